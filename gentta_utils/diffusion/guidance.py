"""What steers a reverse process towards a reference image: the low-pass Phi_D of DDA and ILVR, and energies on x0_hat.

    Phi_D = bicubic down by D, bicubic up by D, both antialiased (a = -.5)

An energy maps the clean-image estimate x0_hat to one number per image; its gradient with respect to x_t is subtracted
from the next sample (docs/methods/dda.md, docs/methods/gda_like.md).
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ..common.types import Images
from ..common.validate import checked

PADS = ("edge", "zero")
NORMS = ("image", "batch")


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel (1981), with a = -1/2 as in PIL, MATLAB and antialiased torch."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resize_matrix(size: int, to: int, pad: str = "edge") -> Float[Tensor, "to size"]:
    """Antialiased bicubic resampling of one side as a matrix (to, size) float64.

    "edge" shares the weight of what would lie outside among the pixels inside, so a constant stays a constant: that is
    `F.interpolate(..., antialias=True)`. "zero" is the published resizer, for which the outside is black."""
    widen = max(1.0, size / to)
    centre = (torch.arange(to, dtype=torch.float64)[:, None] + 0.5) * size / to - 0.5
    margin = int(2 * widen) + 1
    pixels = torch.arange(-margin, size + margin, dtype=torch.float64)
    weights = _cubic((pixels - centre) / widen)
    inside = weights[:, margin : margin + size]
    return inside / (inside if pad == "edge" else weights).sum(1, keepdim=True)


@lru_cache(maxsize=32)
def _round_trip(size: int, factor: int, pad: str) -> Float[Tensor, "size size"]:
    return resize_matrix(size // factor, size, pad) @ resize_matrix(size, size // factor, pad)


@checked
def bicubic_low_pass(images: Images, factor: int, pad: str = "edge") -> Images:
    """Phi_D of images (B, C, H, W): what is left of them after bicubic down- and up-sampling by D = `factor`.

    A linear filter, so also its gradient is exact; not quite a projector (on white noise a second pass of Phi_4 changes
    28% in norm).

    Raises ValueError unless the sides are multiples of `factor`, and for an unknown `pad`."""
    if pad not in PADS:
        raise ValueError(f"pad={pad!r}: choose one of {', '.join(PADS)}")
    H, W = images.shape[-2:]
    if factor < 1 or H % factor or W % factor:
        raise ValueError(f"factor={factor}: choose a divisor of the sides {H} and {W}")
    if factor == 1:
        return images
    rows, columns = (_round_trip(side, factor, pad).to(images) for side in (H, W))
    return rows @ images @ columns.T


Energy = Callable[[Tensor, int], Tensor]  # (x0_hat (B, C, H, W), t) -> (B,), or (1,) for a whole batch


def structure_energy(reference: Images, scale: float, factor: int, pad: str = "edge", norm: str = "image") -> Energy:
    """w |Phi_D(reference) - Phi_D(x0_hat)|, the guidance of DDA, with reference (B, C, H, W) outside of the graph.

    Args:
        scale: w. The gradient of a norm by x0_hat has length about 1, whatever the distance; by x_t it is multiplied by
            how far x0_hat follows x_t: a push is shorter than w near the end and several w long at late levels.
        norm: of each "image", or one of the whole "batch" as in the public code, which divides every image's step by
            about sqrt(B) and lets it depend on its neighbours.
    """
    low = bicubic_low_pass(reference.detach(), factor, pad)

    def energy(x0_hat: Tensor, t: int) -> Tensor:
        d = low - bicubic_low_pass(x0_hat, factor, pad)
        # at d = 0, where a norm has no derivative, torch takes 0
        distance = torch.linalg.vector_norm(d.flatten(1), dim=1) if norm == "image" else d.norm()[None]
        return scale * distance

    return energy
