"""The adapted reader: LoRA of the diffusion model alone, fitted to the image, and the model then read as a classifier.

    L = mean over (t, eps) of |eps_phi(x_t, t, p) - eps|^2 / dimensions,  p = softmax(f_theta(x) / T), theta stays

What the text of Diffusion-TTA names as an update of Stable Diffusion cannot change the classifier. What it changes is
how the diffusion model itself tells the classes apart, so that is what is scored, against the same reading before.

Card: docs/methods/adapted_reader.md
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..common.validate import Checked, Count, Fraction, Positive, Window, checked, frozen
from ..diffusion.feedback import probabilities
from ..diffusion.pairs import NOISE_MODES, TIMESTEP_MODES, draw_pairs
from ..models import lora
from .base import Method, Models, Needs, Output, check_finite
from .diffusion_classifier import DiffusionClassifier
from .diffusion_classifier import Settings as Reader
from .feedback import check_attention, check_denoiser, feedback, freeze, fresh_denoiser, make_steps, takes_steps


@dataclass(frozen=True)
class Settings(Checked):
    denoiser_set: ClassVar[str] = "lora"  # a full copy is what `diffusion_tta` can adapt

    lr: Positive  # of the adapters
    updates: Count = 12
    pairs: Count = 8  # (t, eps) pairs per update
    window: Window = (150, 600)  # t in [low, high)
    timesteps: Literal[TIMESTEP_MODES] = "stratified"
    noise: Literal[NOISE_MODES] = "fresh"
    temperature: Positive = 3.0  # of the classifier's p, which is the condition throughout
    rank: Count = 4  # r
    optimizer: Literal["sgd", "adamw"] = "sgd"  # both without weight decay
    momentum: Fraction = 0.9  # of SGD
    seed: int = 0
    micro_batch: Count = 48  # rows of the denoiser at once
    reader: Reader = field(default_factory=Reader)  # how it is read, before and after

    def __post_init__(self):
        if isinstance(self.reader, dict):  # from a record
            object.__setattr__(self, "reader", Reader(**frozen(self.reader)))
        super().__post_init__()


class AdaptedReader(Method):
    online = False
    at_once = 1  # all images of a call would share the adapters

    def _read(self, phi: lora.Values, images: Tensor, ids: Tensor) -> Output:
        """What the Diffusion Classifier says with these adapters: log p, and the classifier's logits as `before`."""
        models, weights = self.models, lora.merged(dict(self.models.denoiser.named_parameters()), phi)
        reading = lambda d: DiffusionClassifier(Models(models.classifier, d), self.settings.reader)  # noqa: E731
        return lora.with_weights(models.denoiser, weights, lambda d: reading(d).episode(images, ids))

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        s, denoiser = self.settings, self.models.denoiser
        phi, losses = fresh_denoiser(denoiser, s), []
        optimizer = make_steps(s, [{"params": lora.flat(phi)}])
        before = self._read(phi, images, ids)
        with torch.no_grad():
            x0, p = (
                denoiser.encode(images),
                probabilities(before.before, s.temperature).to(denoiser.alphas_cumprod.device),
            )
        for step in range(s.updates):
            pairs = draw_pairs(
                ids, s.pairs, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "adapted_reader", step
            )
            t, eps = (v.to(x0.device) for v in pairs)
            optimizer.zero_grad()
            _, loss = feedback(denoiser, phi, x0, p, t, eps, micro_batch=s.micro_batch)
            check_finite(loss, ids, step, s.lr)
            optimizer.step()
            losses.append(loss)
        after = self._read(phi, images, ids).logits
        check_finite(after.amax(1), ids, s.updates, s.lr, "prediction")
        return Output(after, before.logits, torch.stack(losses).cpu())


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings) -> AdaptedReader:
    """The adapters of the denoiser's attention are updated. Raises ValueError where the settings do not fit.

    The networks of `models` are frozen here: they never compute weight gradients."""
    check_denoiser(models, max(settings.window[1], settings.reader.window[1]) - 1)
    if not takes_steps(models.denoiser):
        raise ValueError("adapters of the denoiser: load it with precision='fp32' and low_memory=False")
    check_attention(models.denoiser)
    freeze(models)
    return AdaptedReader(models, settings)
