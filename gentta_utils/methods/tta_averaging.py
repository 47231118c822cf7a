"""TTA-averaging: the mean prediction over MEMO's views, nothing adapted.

The control that tells what MEMO gains by its update from what it gains by looking at many views.

Card: docs/methods/tta_averaging.md
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..common.validate import Checked, Count, between, checked
from ..diffusion.entropy import log_mean
from ..world.views import CROPS, augmix_views
from ..world.views import VERSION as VIEWS
from .base import Method, Models, Needs, Output, no_loss

VERSION = VIEWS  # of the numbers: they change with the views


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are the views of MEMO's; with the same seed they are the very views of its first update."""

    views: Count = 32
    crop: Literal[CROPS] = "pad"  # before AugMix, or "resized" as on ImageNet, or "none"
    severity: Annotated[float, between(0.1, 10)] = 1.0  # of AugMix
    seed: int = 0


PUBLISHED_CIFAR = dict(views=32, crop="pad")  # MEMO's views
PUBLISHED_IMAGENET = dict(views=64, crop="resized")


class TTAAveraging(Method):
    predict = "before"

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Log mean probabilities (B, K) of images (B, 3, S, S) in [0, 1]."""
        s, logits = self.settings, []
        for image, i in zip(images, ids.tolist(), strict=True):
            views = augmix_views(image, i, s.views, s.crop, s.severity, s.seed)
            logits.append(log_mean(self.models.classifier(views)).cpu())
        return Output(torch.stack(logits), None, no_loss(images))


NEEDS = Needs()


@checked
def configure(models: Models, settings: Settings | None = None) -> TTAAveraging:
    """Nothing is updated."""
    return TTAAveraging(models, settings or Settings())
