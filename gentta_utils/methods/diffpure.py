"""DiffPure (Nie et al., ICML 2022): diffuse the image to a moderate level, bring it back, classify that.

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps at t = start, then the unconditional reverse process to t = 0

Nothing but the start ties the result to the input: detail below the noise of that level is drawn again.

Card: docs/methods/diffpure.md
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..common.validate import Count, checked
from ..diffusion import reverse
from ..diffusion.reverse import walk
from .base import Models, Needs
from .purifier import Purifier, prepare


@dataclass(frozen=True)
class Settings(reverse.Settings):
    """Defaults are those published for ImageNet, in a third of the steps."""

    repeats: Count = 1  # so many times in a row, each with its own noise


PUBLISHED_IMAGENET = dict(start=149, steps=150)  # t* = 150 of 1000, each level
PUBLISHED_CIFAR = dict(start=99, steps=100)  # Linf; 74 for L2, 124 for StAdv


@torch.no_grad()
def purify(denoiser, images: Tensor, ids: Tensor, settings: Settings) -> Tensor:
    """Purified images (B, 3, S, S) in [0, 1] of images (B, 3, S, S) in [0, 1] with these ids (B,)."""
    x0 = denoiser.encode(images)
    for i in range(settings.repeats):
        x0 = walk(denoiser, x0, ids, settings, purpose="reverse" if i == 0 else f"reverse/{i}")
    return denoiser.decode(x0)


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings | None = None, ready: dict[int, Tensor] | None = None) -> Purifier:
    """The input is changed, no weight is. Images (3, S, S) in `ready`, by id, were changed before.

    Raises ValueError where settings and denoiser do not fit."""
    settings = settings or Settings()
    models = prepare(models, settings)
    return Purifier(models, settings, partial(purify, models.denoiser, settings=settings), ready)
