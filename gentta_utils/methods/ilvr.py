"""ILVR (Choi et al., ICCV 2021): sample from pure noise, but with the low frequencies of the input.

    x_{t-1} = x' + Phi_D(y_{t-1}) - Phi_D(x'),   x' the ordinary reverse sample,   y_{t-1} ~ q(y_{t-1} | input)

Low frequencies are replaced, where DDA pulls at them with a gradient: no backward pass.

Card: docs/methods/ilvr.md
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..common.validate import Count, checked
from ..diffusion import reverse
from ..diffusion.guidance import PADS, bicubic_low_pass
from ..diffusion.process import add_noise
from ..diffusion.reverse import noise_for, walk
from .base import Models, Needs
from .purifier import Purifier, prepare


@dataclass(frozen=True)
class Settings(reverse.Settings):
    """Defaults are the published ones, at the filter that DDA uses."""

    start: int = 999
    steps: int = 100
    factor: Count = 4  # D of the low-pass; published 8 to 32 at 256 px
    stop: reverse.Level = 20  # index of the step (0 is the last) down to which, excluded, is replaced; -1: to the end
    pad: Literal[PADS] = "edge"  # of the low-pass, or "zero"
    reference: Literal["matched", "published"] = "matched"  # noised as the sample; "published": a level above it


@torch.no_grad()
def purify(denoiser, images: Tensor, ids: Tensor, settings: Settings) -> Tensor:
    """New images (B, 3, S, S) in [0, 1] with the low frequencies of images (B, 3, S, S) in [0, 1]; ids (B,)."""
    s, x0 = settings, denoiser.encode(images)

    def correct(x_prev: Tensor, t: int, t_prev: int, index: int) -> Tensor:
        if index <= s.stop:
            return x_prev
        level = t if s.reference == "published" else t_prev
        y = x0  # the clean image has no noise
        if level >= 0:
            noise = noise_for(ids, x0.shape[1:], s, "ilvr", t).to(x0)
            y = add_noise(x0, torch.full((len(x0),), level, device=x0.device), noise, denoiser.alphas_cumprod)
        return x_prev + bicubic_low_pass(y - x_prev, s.factor, s.pad)

    pure = noise_for(ids, x0.shape[1:], s, "reverse/start", s.start).to(x0)
    return denoiser.decode(walk(denoiser, x0, ids, s, correct=correct, x_start=pure))


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings | None = None, ready: dict[int, Tensor] | None = None) -> Purifier:
    """The input is changed, no weight is. Images (3, S, S) in `ready`, by id, were changed before.

    Raises ValueError where settings and denoiser do not fit."""
    settings = settings or Settings()
    models = prepare(models, settings)
    return Purifier(models, settings, partial(purify, models.denoiser, settings=settings), ready)
