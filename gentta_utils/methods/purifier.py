"""One reverse loop for all methods that change the input: DiffPure, ILVR, DDA, SDA.

    x_t ~ q(x_t | x0) at t = start;  then down the kept levels:  x_{t-1} = DDIM(x_t) - grad_{x_t} energy(x0_hat)

At eta 1 that is DDPM's step, with the variance that the denoiser learned, where it has learned one (OpenAI's ADM), as
in the published code. The denoiser is asked without a condition. `start` is an original, 0-based t (the papers' t* is
start + 1), and -1 is the clean image: then nothing is left of the method but the denoiser's own resolution, which is a
control to keep in mind. All draws belong to (seed, image, t): methods with one seed see the same noise.

Card: docs/methods/diffpure.md
"""

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from ..common.types import Probs
from ..common.validate import check_images
from ..diffusion.reverse import Settings, levels_of
from .base import Models, Output, no_loss, source_logits, spent

READING = ("ensemble", "temperature", "images_at_once", "fixed_chunk")  # settings that change no image


def what_changes(settings: Settings) -> dict:
    """The settings of a method that its images depend on, without those that say how they are then read.

    Where a norm goes over a batch, the number of images at once is among them; the variance is where it is not the
    denoiser's own, of which the denoiser itself tells."""
    batch = ("images_at_once",) if getattr(settings, "norm", "image") == "batch" else ()
    used = {name: v for name, v in asdict(settings).items() if name not in READING or name in batch}
    if used["variance"] == "learned":
        del used["variance"]
    return used


@dataclass
class Purifier:
    """Base of the methods: chunks, padding, costs. A method says how an image is changed and how it is then read.

    Attributes:
        ready: images (3, S, S) changed before, by id, which are then not computed again: all classifiers can share
            one purification.
    """

    predict = "after"
    online = None  # without a state it fits every protocol
    models: Models
    settings: Settings
    ready: dict[int, Tensor] | None = field(default=None, repr=False)

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        """The changed images (B, 3, S, S) in [0, 1] of images (B, 3, S, S)."""
        raise NotImplementedError

    @torch.no_grad()
    def read(self, images: Tensor, changed: Tensor) -> tuple[Probs, Probs]:
        """Logits (B, K) of the method and of the source: here the source classifier, on the changed image alone."""
        return self.models.classifier(changed).cpu(), source_logits(self.models, images)

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Change images (B, 3, S, S) in [0, 1] with these ids (B,), then predict; `Output.images` are the changed ones.

        Raises ValueError for images of the wrong size or range, FloatingPointError when a sample is not finite."""
        check_images(images, self.models.classifier.image_size)
        chunks = torch.arange(len(images)).split(self.settings.images_at_once)
        parts = [self._episode(images[c], ids[c]) for c in chunks]
        logits, before, changed, nfe = zip(*parts, strict=True)
        total = {kind: sum(n.get(kind, 0) for n in nfe) for kind in nfe[0]}
        return Output(torch.cat(logits), torch.cat(before), no_loss(images), total, torch.cat(changed))

    def reset(self) -> None:
        """Nothing to do: no weight is changed and no image knows of another."""

    def _episode(self, images: Tensor, ids: Tensor) -> tuple:
        B, at_once, start = len(images), self.settings.images_at_once, self.models.counts()
        if self.settings.fixed_chunk and at_once > B:
            pad = [0] * (at_once - B)
            images, ids = torch.cat([images, images[pad]]), torch.cat([ids, ids[pad]])
        if self.ready is None:
            changed = self.change(images, ids)
        else:
            changed = torch.stack([self.ready[i] for i in ids.tolist()])
        logits, before = self.read(images, changed)
        nfe = {kind: n * B // len(images) for kind, n in spent(self.models, start).items()}  # without the padding
        return logits[:B], before[:B], changed[:B].cpu(), nfe


def prepare(models: Models, s: Settings) -> Models:
    """The models, frozen here: they never compute weight gradients. Raises ValueError where the settings do not fit."""
    if models.denoiser is None:
        raise ValueError("this method needs a denoiser: Models(classifier, denoiser)")
    levels_of(s, len(models.denoiser.alphas_cumprod))
    for net in (models.classifier, models.denoiser, models.aligned):
        if isinstance(net, torch.nn.Module):
            net.requires_grad_(False)
    return models
