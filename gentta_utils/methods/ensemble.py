"""Naive ensemble of classifier and Diffusion Classifier: the mean of two posteriors, nothing adapted.

Card: docs/methods/ensemble.md
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.types import Probs
from . import diffusion_classifier
from .base import Models, Needs, Output


@dataclass(frozen=True)
class Settings:
    weight: float = 0.5  # of the Diffusion Classifier; 0 and 1 are the single models
    reader: diffusion_classifier.Settings = field(default_factory=diffusion_classifier.Settings)


def mix(p_classifier: Probs, p_diffusion: Probs, weight: float = 0.5) -> Probs:
    """(1 - w) p_theta + w p_phi, (B, K)."""
    return (1 - weight) * p_classifier + weight * p_diffusion


@dataclass
class Ensemble:
    predict = "before"
    online = None  # without a state it fits every protocol
    models: Models
    settings: Settings

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        out = diffusion_classifier.configure(self.models, self.settings.reader).adapt(images, ids)
        p = mix(out.before.softmax(1), out.logits.softmax(1), self.settings.weight)
        return Output(p.clamp_min(torch.finfo(p.dtype).tiny).log(), out.before, out.loss, out.nfe)

    def reset(self) -> None:
        pass


NEEDS = Needs(denoiser=True)


def configure(models: Models, settings: Settings | None = None) -> Ensemble:
    """Nothing is updated. Raises ValueError for a weight outside of [0, 1]."""
    settings = settings or Settings()
    if not 0 <= settings.weight <= 1:
        raise ValueError(f"weight={settings.weight}: choose a number between 0 and 1")
    diffusion_classifier.configure(models)
    return Ensemble(models, settings)
