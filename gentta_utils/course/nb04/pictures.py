"""Pictures of maps for notebook 04: classes as colours, errors, and where a diffusion model disagrees with a map."""

import torch
from jaxtyping import Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from ...world.maps import MAP_CLASSES
from .. import plots

# floor and wall, then the ten categories; green is left to what is right
COLOURS = (
    "0.75", "0.5", plots.BLUE, plots.ORANGE, plots.RED, plots.PURPLE, plots.SKY, plots.YELLOW, plots.BLACK, "#8C510A",
    "#762A83", "#F4A6B0",
)  # fmt: skip
WHITE = (1.0, 1.0, 1.0)  # of what has no colour here, void among it


def painted(classes: Shaped[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """A class map as a picture; labels beyond the twelve classes are white."""
    palette = torch.tensor([to_rgb(c) for c in COLOURS] + [WHITE])
    return palette[classes.long().clamp_max(len(COLOURS))].permute(2, 0, 1)


def errors(predicted: Shaped[Tensor, "h w"], truth: UInt8[Tensor, "h w"]) -> Float[Tensor, "3 h w"]:
    """Where a class map is right (light grey) and where it is wrong, in the colour of what it says there."""
    return torch.where(predicted == truth, torch.tensor(0.92), painted(predicted))


def change(
    before: Shaped[Tensor, "h w"], after: Shaped[Tensor, "h w"], truth: UInt8[Tensor, "h w"]
) -> Float[Tensor, "3 h w"]:
    """Pixels by what became of them: repaired green, broken red, wrong as before dark grey, right as before light."""
    was, is_ = before == truth, after == truth
    shade = torch.where(is_, 0.92, 0.45).expand(3, -1, -1)
    colour = lambda c: torch.tensor(to_rgb(c)).view(3, 1, 1)  # noqa: E731
    return torch.where(is_ & ~was, colour(plots.GREEN), torch.where(was & ~is_, colour(plots.RED), shade))


def signed(ax: Axes, values: Float[Tensor, "H W"], title: str, largest: float, region: Tensor | None = None) -> None:
    """Signed numbers per pixel: red above 0, blue below, white at 0, full colour at `largest`; a region is outlined."""
    plots.picture(ax, values, title)
    ax.images[0].set(cmap="RdBu_r", clim=(-largest, largest))
    if region is not None and 0 < int(region.sum()) < region.numel():
        ax.contour(region.float().numpy(), levels=[0.5], colors=plots.BLACK, linewidths=1.2)


def names_of(classes: Shaped[Tensor, "h w"], names: tuple[str, ...] = tuple(MAP_CLASSES), least: int = 15) -> str:
    """The objects of a map that have at least so many pixels, for a title."""
    found = [names[k] for k in classes.unique().tolist() if 2 <= k < len(names) and int((classes == k).sum()) >= least]
    return ", ".join(found) or "nothing"
