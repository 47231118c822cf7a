"""All shifts that are made from a clean image, by name."""

from collections.abc import Sequence

from torch import Tensor

from ..common.validate import checked
from . import corruptions, renditions, severities
from .watermark import watermark

SHIFTS = ["clean", *severities.ALL, *severities.UNSEEN, "watermark", *renditions.SHIFTS]


def in_memory(shift: str, severity: int) -> str:
    """For records: images are corrupted here, by this version of the shift."""
    return f"in-memory {corruptions.version(shift, severity)}"


@checked
def shifted(images: Tensor, shift: str, severity: int, ids: Tensor, seed: int = 0) -> Tensor:
    """Images (B, 3, S, S) under a shift of `SHIFTS` that is made from the clean image.

    Raises ValueError for an unknown shift or severity, or a natural shift: those are rendered again."""
    if shift not in SHIFTS:
        raise ValueError(f"unknown shift {shift!r}: choose one of {', '.join(SHIFTS)}")
    if shift in renditions.SHIFTS:
        raise ValueError(f"shift {shift!r} is not made from an image but rendered: use `stream` or `renditions.make`")
    if shift in ("clean", "watermark"):
        no_severity(shift, severity)
        return images if shift == "clean" else watermark(images)
    return corruptions.corrupt(images, shift, severity, ids, seed)


def check_shift(shift: str, severity: int, choices: Sequence[str] | None = None) -> None:
    """Raise ValueError unless the shift is one of the choices, with a severity of 1 to 5 for a corruption, else 0.

    None are all choices."""
    choices = SHIFTS if choices is None else choices
    if type(severity) is not int:
        raise ValueError(f"severity={severity!r}: choose a whole number")
    if shift not in choices:
        raise ValueError(f"unknown shift {shift!r}: choose one of {', '.join(choices)}")
    if shift not in severities.ALL + severities.UNSEEN:
        no_severity(shift, severity)
    elif not 1 <= severity <= 5:
        raise ValueError(f"severity={severity}: choose 1 to 5 for {shift}")


def no_severity(shift: str, severity: int) -> None:
    """Raise ValueError unless severity is 0: clean images, the watermark and natural shifts have none."""
    if severity:
        raise ValueError(f"severity={severity}: {shift} has none, leave it at 0")
