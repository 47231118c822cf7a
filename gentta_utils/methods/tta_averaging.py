"""TTA-averaging: the mean prediction over MEMO's views, nothing adapted.

The control that tells what MEMO gains by its update from what it gains by looking at many views.

Card: docs/methods/tta_averaging.md
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.validate import check_images, check_settings
from ..diffusion.entropy import log_mean
from ..world.views import CROPS, augmix_views
from .base import Models, Needs, Output, no_loss, source_logits, spent


@dataclass(frozen=True)
class Settings:
    """Defaults are the views of MEMO's; with the same seed they are the very views of its first update."""

    views: int = 32
    crop: str = "pad"  # before AugMix, or "resized" as on ImageNet, or "none"
    severity: float = 1.0  # of AugMix
    seed: int = 0

    def __post_init__(self):
        check_settings(self, {"crop": CROPS}, positive=("views",))
        if not 0.1 <= self.severity <= 10:
            raise ValueError(f"severity={self.severity}: choose a number from 0.1 to 10")


PUBLISHED_CIFAR = dict(views=32, crop="pad")  # MEMO's views
PUBLISHED_IMAGENET = dict(views=64, crop="resized")


@dataclass
class TTAAveraging:
    predict = "before"
    online = None  # without a state it fits every protocol
    models: Models
    settings: Settings

    @torch.no_grad()
    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Log mean probabilities (B, K) of images (B, 3, S, S) in [0, 1]; `before` is the source on the clean view.

        Raises ValueError for images of the wrong size or range."""
        check_images(images, self.models.classifier.image_size)
        s, start, logits = self.settings, self.models.counts(), []
        for image, i in zip(images, ids.tolist(), strict=True):
            views = augmix_views(image, i, s.views, s.crop, s.severity, s.seed)
            logits.append(log_mean(self.models.classifier(views)).cpu())
        before = source_logits(self.models, images)
        return Output(torch.stack(logits), before, no_loss(images), spent(self.models, start))

    def reset(self) -> None:
        pass


NEEDS = Needs()


def configure(models: Models, settings: Settings | None = None) -> TTAAveraging:
    """Nothing is updated."""
    return TTAAveraging(models, settings or Settings())
