"""What numbers rest on beside data: which libraries compute them, in which versions, and the code of a method."""

import ast
import hashlib
import sys
from functools import lru_cache
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
    "torchmetrics",
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


@lru_cache
def code_of(module: str) -> str | None:
    """Checksum of a loaded module's code, whatever its layout, comments and docstrings; None where it has no file."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]
