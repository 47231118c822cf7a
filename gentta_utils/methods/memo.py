"""MEMO (Zhang et al., NeurIPS 2022): make one image's prediction confident and the same for all its views.

    L = H( mean over views v of softmax(f(a_v(x))) )

One gradient step on all parameters, then the clean view is predicted; weights and optimiser start again for each image.
Batch norm counts the source statistics as 16 images (a = 1/17, docs/methods/bn_adapt.md), others stay as they are.

Card: docs/methods/memo.md
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..common.validate import Checked, Count, Fraction, Positive, between, checked
from ..diffusion.entropy import marginal_entropy
from ..models.batchnorm import with_test_statistics
from ..models.classifier import Classifier
from ..models.copies import Copies
from ..world.views import CROPS, augmix_views
from ..world.views import VERSION as VIEWS
from .base import Method, Models, Needs, Output, check_finite, make_optimizer

VERSION = VIEWS  # of the numbers: they change with the views


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are those published for CIFAR-10, with the batch norm of ImageNet."""

    lr: Positive = 5e-3
    views: Count = 32  # B, augmented copies of the image per update
    updates: Count = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"  # without momentum, or "adamw"
    weight_decay: Fraction = 0.0
    alpha: Fraction = 1 / 17  # of the test statistics in batch norm, over the views or the clean view; 0: the source
    crop: Literal[CROPS] = "pad"  # before AugMix, or "resized" as on ImageNet, or "none"
    severity: Annotated[float, between(0.1, 10)] = 1.0  # of AugMix
    seed: int = 0


PUBLISHED_CIFAR = dict(views=32, optimizer="sgd", lr=5e-3, crop="pad")  # a ResNet-26 with group norm
PUBLISHED_RESNET50 = dict(views=64, optimizer="sgd", lr=2.5e-4, crop="resized", alpha=1 / 17)
PUBLISHED_RVT = dict(views=64, optimizer="adamw", lr=1e-5, weight_decay=0.01, crop="resized", alpha=0.0)  # ResNeXt too


@dataclass
class Memo(Method):
    online = False
    at_once = 1  # its views fill a batch, and results are bit-equal whatever its neighbours
    adapted: Classifier = field(repr=False)

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to one image (1, 3, S, S) with its id (1,) alone."""
        s, losses = self.settings, []
        task = Copies(self.adapted, "all", None)
        optimizer = make_optimizer(s.optimizer, task.tensors(), s.lr, weight_decay=s.weight_decay)
        for step in range(s.updates):
            views = augmix_views(images[0], int(ids), s.views, s.crop, s.severity, s.seed, step)
            loss = marginal_entropy(task(views))[None]  # (1,)
            check_finite(loss, ids, step, s.lr)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            logits = task(images)
        check_finite(logits.sum(1), ids, s.updates, s.lr, "prediction")
        return Output(logits.cpu(), None, torch.stack(losses).cpu())


NEEDS = Needs()


@checked
def configure(models: Models, settings: Settings | None = None) -> Memo:
    """All parameters are updated, on copies."""
    settings = settings or Settings()
    return Memo(models, settings, with_test_statistics(models.classifier, settings.alpha, unbiased=True))
