"""MEMO (Zhang et al., NeurIPS 2022): make one image's prediction confident and the same for all its views.

    L = H( mean over views v of softmax(f(a_v(x))) )

One gradient step on all parameters, then the clean view is predicted; weights and optimiser start again for each image.
Batch norm counts the source statistics as 16 images (a = 1/17, docs/methods/bn_adapt.md), others stay as they are.

Card: docs/methods/memo.md
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.validate import check_images, check_settings
from ..diffusion.entropy import marginal_entropy
from ..models.batchnorm import with_test_statistics
from ..models.classifier import Classifier
from ..models.copies import Copies
from ..world.views import CROPS, augmix_views
from .base import Models, Needs, Output, check_finite, make_optimizer, source_logits, spent


@dataclass(frozen=True)
class Settings:
    """Defaults are those published for CIFAR-10, with the batch norm of ImageNet."""

    lr: float = 5e-3
    views: int = 32  # B, augmented copies of the image per update
    updates: int = 1
    optimizer: str = "sgd"  # without momentum, or "adamw"
    weight_decay: float = 0.0
    alpha: float = 1 / 17  # of the test statistics in batch norm, over the views or over the clean view; 0: the source
    crop: str = "pad"  # before AugMix, or "resized" as on ImageNet, or "none"
    severity: float = 1.0  # of AugMix
    seed: int = 0

    def __post_init__(self):
        choices, positive = {"optimizer": ("sgd", "adamw"), "crop": CROPS}, ("lr", "views", "updates")
        check_settings(self, choices, positive, fraction=("alpha", "weight_decay"))
        if not 0.1 <= self.severity <= 10:
            raise ValueError(f"severity={self.severity}: choose a number from 0.1 to 10")


PUBLISHED_CIFAR = dict(views=32, optimizer="sgd", lr=5e-3, crop="pad")  # a ResNet-26 with group norm
PUBLISHED_RESNET50 = dict(views=64, optimizer="sgd", lr=2.5e-4, crop="resized", alpha=1 / 17)
PUBLISHED_RVT = dict(views=64, optimizer="adamw", lr=1e-5, weight_decay=0.01, crop="resized", alpha=0.0)  # ResNeXt too


@dataclass
class Memo:
    predict = "after"
    online = False
    models: Models
    settings: Settings
    adapted: Classifier = field(repr=False)

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to each of images (B, 3, S, S) in [0, 1] with these ids (B,) alone; `before` is the source.

        Raises ValueError for images of the wrong size or range, FloatingPointError when an adaptation diverges."""
        check_images(images, self.models.classifier.image_size)
        start = self.models.counts()
        # One image at a time: its views fill a batch, and results are bit-equal whatever its neighbours.
        parts = [self._episode(images[b], ids[b : b + 1]) for b in range(len(images))]
        logits, loss = torch.cat([z for z, _ in parts]), torch.cat([each for _, each in parts], 1)
        return Output(logits, source_logits(self.models, images), loss, spent(self.models, start))

    def reset(self) -> None:
        """Nothing to do: every image starts from the source, which was never written to."""

    def _episode(self, image: Tensor, image_id: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, K) and losses (S, 1) of an image (3, S, S) with its id (1,)."""
        s, losses = self.settings, []
        task = Copies(self.adapted, "all", None)
        optimizer = make_optimizer(s.optimizer, task.tensors(), s.lr, weight_decay=s.weight_decay)
        for step in range(s.updates):
            views = augmix_views(image, int(image_id), s.views, s.crop, s.severity, s.seed, step)
            loss = marginal_entropy(task(views))[None]  # (1,)
            check_finite(loss, image_id, step, s.lr)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            logits = task(image[None])
        check_finite(logits.sum(1), image_id, s.updates, s.lr, "prediction")
        return logits.cpu(), torch.stack(losses).cpu()


NEEDS = Needs()


def configure(models: Models, settings: Settings | None = None) -> Memo:
    """All parameters are updated, on copies."""
    settings = settings or Settings()
    return Memo(models, settings, with_test_statistics(models.classifier, settings.alpha, unbiased=True))
