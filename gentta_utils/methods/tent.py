"""TENT (Wang et al., ICLR 2021): lower the mean entropy of the batch by scale and shift of the norm layers.

    L = mean over b of H(softmax(f(x_b)))

Batch norm takes the statistics of the batch, with the gradient through them, as in training; dropout and stochastic
depth stay off. Scale and shift of layer and group norm are adapted just so. The scored logits are those of the last
forward pass, before the last update (predict="before").

Card: docs/methods/tent.md
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..common.types import Probs
from ..common.validate import check_images, check_settings
from ..diffusion.entropy import entropy
from ..models.batchnorm import with_test_statistics
from ..models.classifier import Classifier
from ..models.copies import Copies, parameter_names
from .base import Models, Needs, Output, check_finite, make_optimizer, source_logits, spent


@dataclass(frozen=True)
class Settings:
    """Defaults are those published for CIFAR-10-C."""

    lr: float = 1e-3
    updates: int = 1  # a batch
    optimizer: str = "adam"  # or "sgd"; both without weight decay
    momentum: float = 0.9  # of SGD
    predict: str = "before"  # the last update, or "after" it: one forward pass more
    online: bool = True  # state carried from batch to batch; False: each image from the source, with its own copy
    images_at_once: int = 32  # copies at once where not online, bounds the memory

    def __post_init__(self):
        choices = {"optimizer": ("adam", "sgd"), "predict": ("before", "after")}
        check_settings(self, choices, positive=("lr", "updates", "images_at_once"), fraction=("momentum",))


PUBLISHED_CIFAR = dict(optimizer="adam", lr=1e-3)  # their code, in batches of 200
PUBLISHED_IMAGENET = dict(optimizer="sgd", lr=2.5e-4, momentum=0.9)  # in batches of 64; in the paper alone


@dataclass
class Tent:
    models: Models
    settings: Settings
    adapted: Classifier = field(repr=False)
    state: tuple[Copies, torch.optim.Optimizer] | None = field(default=None, repr=False)  # None is the source

    @property
    def predict(self) -> str:
        return self.settings.predict

    @property
    def online(self) -> bool:
        return self.settings.online

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to images (B, 3, S, S) in [0, 1] with these ids (B,).

        `before` is the frozen source, with its own statistics: the logits of the not yet updated network are
        what predict="before" returns as `logits`.

        Raises ValueError for images of the wrong size or range, FloatingPointError when the loss is not finite."""
        check_images(images, self.models.classifier.image_size)
        start = self.models.counts()
        if self.online:
            self.state = self.state or self._fresh(None)
            parts = [self._adapt(images, ids, *self.state)]
        else:
            chunks = torch.arange(len(images)).split(self.settings.images_at_once)
            parts = [self._adapt(images[c], ids[c], *self._fresh(len(c))) for c in chunks]
        logits, loss = torch.cat([z for z, _ in parts]), torch.cat([each for _, each in parts], 1)
        return Output(logits, source_logits(self.models, images), loss, spent(self.models, start))

    def reset(self) -> None:
        """Back to the source, moments of the optimiser included. The source itself was never written to."""
        self.state = None

    def _fresh(self, copies: int | None) -> tuple[Copies, torch.optim.Optimizer]:
        s, task = self.settings, Copies(self.adapted, "norm", copies)
        return task, make_optimizer(s.optimizer, task.tensors(), s.lr, s.momentum)

    def _adapt(self, images: Tensor, ids: Tensor, task: Copies, optimizer) -> tuple[Probs, Float[Tensor, "S B"]]:
        s, losses = self.settings, []
        for step in range(s.updates):
            logits = task(images)  # (B, K)
            loss = entropy(logits)
            check_finite(loss, ids, step, s.lr)
            optimizer.zero_grad()
            (loss.mean() if s.online else loss.sum()).backward()  # copies are independent: their gradients do not mix
            optimizer.step()
            losses.append(loss.detach())
        if s.predict == "after":
            with torch.no_grad():
                logits = task(images)
            check_finite(logits.sum(1), ids, s.updates, s.lr, "prediction")
        return logits.detach().cpu(), torch.stack(losses).cpu()


NEEDS = Needs(online=True)


def configure(models: Models, settings: Settings | None = None) -> Tent:
    """Scale and shift of all norm layers are updated, on a copy. Raises ValueError for a network without any."""
    adapted = with_test_statistics(models.classifier, differentiable=True)
    parameter_names(adapted, "norm")
    return Tent(models, settings or Settings(), adapted)
