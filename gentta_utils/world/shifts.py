"""All shifts that are made from a clean image, by name."""

from torch import Tensor

from . import corruptions, renditions, severities
from .watermark import watermark

SHIFTS = ["clean", *severities.ALL, "watermark", *renditions.SHIFTS]


def in_memory(shift: str, severity: int) -> str:
    """For records: images are corrupted here, by this version of the shift."""
    return f"in-memory {corruptions.version(shift, severity)}"


def shifted(images: Tensor, shift: str, severity: int, ids: Tensor, seed: int = 0) -> Tensor:
    """Images (B, 3, S, S) under a shift of `SHIFTS` that is made from the clean image.

    Raises ValueError for an unknown shift or severity, or a natural shift: those are rendered again."""
    if shift in renditions.SHIFTS:
        raise ValueError(f"shift {shift!r} is not made from an image but rendered: use `stream` or `renditions.make`")
    if shift in ("clean", "watermark"):
        no_severity(shift, severity)
        return images if shift == "clean" else watermark(images)
    return corruptions.corrupt(images, shift, severity, ids, seed)


def no_severity(shift: str, severity: int) -> None:
    """Raise ValueError unless severity is 0: clean images, the watermark and natural shifts have none."""
    if severity:
        raise ValueError(f"severity={severity}: {shift} has none, leave it at 0")
