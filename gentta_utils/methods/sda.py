"""SDA (Guo et al., CVPR 2025): bring test images and classifier to the diffusion model's own domain.

    D_syn = {(align(g(k)), k)},  theta_ft = argmin CE(f_theta, D_syn),  prediction p_theta(x) + p_theta_ft(align(x))

Before deployment a copy of the classifier is fine-tuned on labelled synthetic images that went through the very `align`
that test images go through (`recipes.aligned`). At test time the source reads the image, the copy the aligned one.

Card: docs/methods/sda.md
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrays import Probs
from . import dda
from .base import Models
from .dda import DDA, align
from .reverse import prepare, what_changes

PUBLISHED = {**dda.PUBLISHED, "images_at_once": 10}


@dataclass(frozen=True)
class Settings(dda.Settings):
    """Those of DDA: there is one alignment."""


class SDA(DDA):
    """The source on the image, the fine-tuned classifier on the aligned one."""

    def change(self, images: Tensor, ids: Tensor) -> Tensor:
        return align(self.models.denoiser, images, ids, self.settings, self.models.aligned)

    @torch.no_grad()
    def read(self, images: Tensor, changed: Tensor) -> tuple[Probs, Probs]:
        return self.read_by(self.models.aligned, images, changed)


def configure(models: Models, settings: Settings | None = None) -> SDA:
    """The input is changed; the weights were, once, by `recipes.aligned`.

    Raises ValueError without a fine-tuned classifier, or where it was fine-tuned on images of another alignment."""
    settings = settings or Settings()
    if models.aligned is None:
        raise ValueError("SDA needs a fine-tuned classifier: Models(classifier, denoiser, aligned)")
    made, wanted = models.aligned.alignment, what_changes(settings)
    if made is not None and made != wanted:
        names = [name for name in made | wanted if made.get(name) != wanted.get(name)]
        raise ValueError(
            f"this classifier was fine-tuned on another alignment (another {', '.join(names)}): take its settings, or "
            "fine-tune it again"
        )
    return SDA(prepare(models, settings), settings)
