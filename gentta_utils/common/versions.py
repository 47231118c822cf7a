"""Which libraries compute the numbers, and in which versions they are here."""

from importlib.metadata import PackageNotFoundError, version

# Distributions that change a number or a pixel, all of them in constraints.txt (tests/common/test_versions.py holds the
# list to what the package imports)
COMPUTING = (
    "torch",
    "torchvision",
    "accelerate",
    "captum",
    "diffusers",
    "numpy",
    "open_clip_torch",
    "papermill",
    "peft",
    "pillow",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "timm",
    "tokenizers",
    "transformers",
)


def versions(names: tuple[str, ...] = COMPUTING) -> dict[str, str]:
    """The version of each distribution here, "missing" for one that is not installed. Loads none of them."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
