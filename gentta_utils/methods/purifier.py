"""One reverse loop for all methods that change the input: DiffPure, ILVR, DDA, SDA.

    x_t ~ q(x_t | x0) at t = start;  then down the kept levels:  x_{t-1} = DDIM(x_t) - grad_{x_t} energy(x0_hat)

At eta 1 that is DDPM's step, with the variance that the denoiser learned, where it has learned one (OpenAI's ADM), as
in the published code. The denoiser is asked without a condition. `start` is an original, 0-based t (the papers' t* is
start + 1), and -1 is the clean image: then nothing is left of the method but the denoiser's own resolution, which is a
control to keep in mind. All draws belong to (seed, image, t): methods with one seed see the same noise.

Card: docs/methods/diffpure.md
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.types import Answers
from ..diffusion.reverse import Settings, levels_of
from .base import Method, Models, Output, no_loss, source_logits, stated

READING = ("ensemble", "temperature", "images_at_once", "fixed_chunk")  # settings that change no image


def what_changes(settings: Settings) -> dict:
    """The settings of a method that its images depend on, without those that say how they are then read.

    Where a norm goes over a batch, the number of images at once is among them; the variance is where it is not the
    denoiser's own, of which the denoiser itself tells."""
    batch = ("images_at_once",) if getattr(settings, "norm", "image") == "batch" else ()
    used = {name: v for name, v in stated(settings).items() if name not in READING or name in batch}
    if used["variance"] == "learned":
        del used["variance"]
    return used


@dataclass
class Purifier(Method):
    """Base of the methods that change the input. A method says how an image is changed and how it is then read.

    Attributes:
        change: (images (B, 3, S, S) in [0, 1], ids (B,)) -> the changed images, of the same shape and range.
        ready: images (3, S, S) changed before, by id, which are then not computed again: all classifiers can share
            one purification.
    """

    change: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    ready: dict[int, Tensor] | None = field(default=None, repr=False)

    @property
    def at_once(self) -> int:
        return self.settings.images_at_once

    @torch.no_grad()
    def read(self, images: Tensor, changed: Tensor) -> tuple[Answers, Answers]:
        """Logits (B, K) of the method and of the source: here the source classifier, on the changed image alone."""
        return self.models.classifier(changed).cpu(), source_logits(self.models, images)

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        if self.ready is None:
            changed = self.change(images, ids)
        else:
            changed = torch.stack([self.ready[i] for i in ids.tolist()])
        return Output(*self.read(images, changed), no_loss(images), images=changed.cpu())


def prepare(models: Models, s: Settings) -> Models:
    """The models, frozen here: they never compute weight gradients. Raises ValueError where the settings do not fit."""
    if models.denoiser is None:
        raise ValueError("this method needs a denoiser: Models(classifier, denoiser)")
    levels_of(s, len(models.denoiser.alphas_cumprod))
    for net in (models.classifier, models.denoiser, models.aligned):
        if isinstance(net, torch.nn.Module):
            net.requires_grad_(False)
    return models
