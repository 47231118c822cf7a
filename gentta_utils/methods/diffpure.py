"""DiffPure (Nie et al., ICML 2022): diffuse the image to a moderate level, bring it back, classify that.

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps at t = start, then the unconditional reverse process to t = 0

Nothing but the start ties the result to the input: detail below the noise of that level is drawn again.

Card: docs/methods/diffpure.md
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion import reverse
from ..diffusion.reverse import walk
from .base import Models, Needs
from .purifier import Purifier, prepare


@dataclass(frozen=True)
class Settings(reverse.Settings):
    """Defaults are those published for ImageNet, in a third of the steps."""

    repeats: int = 1  # so many times in a row, each with its own noise

    def __post_init__(self):
        super().__post_init__()
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats}: choose a number above 0")


PUBLISHED_IMAGENET = dict(start=149, steps=150)  # t* = 150 of 1000, each level
PUBLISHED_CIFAR = dict(start=99, steps=100)  # Linf; 74 for L2, 124 for StAdv


@torch.no_grad()
def purify(denoiser, images: Tensor, ids: Tensor, settings: Settings) -> Tensor:
    """Purified images (B, 3, S, S) in [0, 1] of images (B, 3, S, S) in [0, 1] with these ids (B,)."""
    x0 = denoiser.encode(images)
    for i in range(settings.repeats):
        x0 = walk(denoiser, x0, ids, settings, purpose="reverse" if i == 0 else f"reverse/{i}")
    return denoiser.decode(x0)


class DiffPure(Purifier):
    """The source classifier on purified images."""

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        return purify(self.models.denoiser, images, ids, self.settings)


NEEDS = Needs(denoiser=True)


def configure(models: Models, settings: Settings | None = None) -> DiffPure:
    """The input is changed, no weight is. Raises ValueError where settings and denoiser do not fit."""
    settings = settings or Settings()
    return DiffPure(prepare(models, settings), settings)
