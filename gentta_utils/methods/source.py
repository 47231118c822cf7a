"""Source: the frozen classifier, on the full or on the low view (the control of every table).

Card: docs/methods/source.md
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.validate import check_images
from ..world.views import view_of
from .base import Models, Needs, Output, no_loss, spent


@dataclass(frozen=True)
class Settings:
    view: str = "full"  # "full", or "low": 64 -> 32 -> 64 pixels before the classifier


@dataclass
class Source:
    predict = "before"
    online = None  # without a state it fits every protocol
    models: Models
    settings: Settings

    @torch.no_grad()
    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        check_images(images, self.models.classifier.image_size)
        start = self.models.counts()
        logits = self.models.classifier(view_of(images, self.settings.view)).cpu()
        return Output(logits, logits, no_loss(images), spent(self.models, start))

    def reset(self) -> None:
        pass


NEEDS = Needs()


def configure(models: Models, settings: Settings | None = None) -> Source:
    """Nothing is updated."""
    return Source(models, settings or Settings())
