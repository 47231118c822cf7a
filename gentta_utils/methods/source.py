"""Source: the frozen classifier, on the full or on the low view (the control of every table).

Card: docs/methods/source.md
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..common.validate import Checked, checked
from ..world.views import VIEWS, view_of
from .base import Method, Models, Needs, Output, no_loss


@dataclass(frozen=True)
class Settings(Checked):
    view: Literal[VIEWS] = "full"  # "full", or "low": 64 -> 32 -> 64 pixels before the classifier


class Source(Method):
    predict = "before"

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        logits = self.models.classifier(view_of(images, self.settings.view)).cpu()
        return Output(logits, logits, no_loss(images))


NEEDS = Needs()


@checked
def configure(models: Models, settings: Settings | None = None) -> Source:
    """Nothing is updated."""
    return Source(models, settings or Settings())
