"""Naive ensemble of classifier and Diffusion Classifier: the mean of two posteriors, nothing adapted.

Card: docs/methods/ensemble.md
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.types import Probs
from ..common.validate import Checked, Fraction, checked
from . import diffusion_classifier
from .base import Method, Models, Needs, Output


@dataclass(frozen=True)
class Settings(Checked):
    weight: Fraction = 0.5  # of the Diffusion Classifier; 0 and 1 are the single models
    reader: diffusion_classifier.Settings = field(default_factory=diffusion_classifier.Settings)


def mix(p_classifier: Probs, p_diffusion: Probs, weight: float = 0.5) -> Probs:
    """(1 - w) p_theta + w p_phi, (B, K)."""
    return (1 - weight) * p_classifier + weight * p_diffusion


class Ensemble(Method):
    predict = "before"

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        out = diffusion_classifier.DiffusionClassifier(self.models, self.settings.reader).episode(images, ids)
        p = mix(out.before.softmax(1), out.logits.softmax(1), self.settings.weight)
        return Output(p.clamp_min(torch.finfo(p.dtype).tiny).log(), out.before, out.loss)


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> Ensemble:
    """Nothing is updated. Raises ValueError without a denoiser."""
    diffusion_classifier.configure(models)
    return Ensemble(models, settings or Settings())
