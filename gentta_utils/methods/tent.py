"""TENT (Wang et al., ICLR 2021): lower the mean entropy of the batch by scale and shift of the norm layers.

    L = mean over b of H(softmax(f(x_b)))

Batch norm takes the statistics of the batch, with the gradient through them, as in training; dropout and stochastic
depth stay off. Scale and shift of layer and group norm are adapted just so. Of a segmentor's map the loss is the mean
over its pixels too. The scored logits are those of the last
forward pass, before the last update (predict="before").

Card: docs/methods/tent.md
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..common.validate import Checked, Count, Fraction, Positive, checked
from ..diffusion.entropy import entropy_of
from ..models.batchnorm import with_test_statistics
from ..models.classifier import Classifier
from ..models.copies import Copies, parameter_names
from .base import Method, Models, Needs, Output, check_finite, make_optimizer


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are those published for CIFAR-10-C."""

    lr: Positive = 1e-3
    updates: Count = 1  # a batch
    optimizer: Literal["adam", "sgd"] = "adam"  # or "sgd"; both without weight decay
    momentum: Fraction = 0.9  # of SGD
    predict: Literal["before", "after"] = "before"  # the last update, or "after" it: one forward pass more
    online: bool = True  # state carried from batch to batch; False: each image from the source, with its own copy
    images_at_once: Count = 32  # copies at once where not online, bounds the memory


PUBLISHED_CIFAR = dict(optimizer="adam", lr=1e-3)  # their code, in batches of 200
PUBLISHED_IMAGENET = dict(optimizer="sgd", lr=2.5e-4, momentum=0.9)  # in batches of 64; in the paper alone


@dataclass
class Tent(Method):
    """`before` is the frozen source, with its own statistics: the logits of the not yet updated network are what
    predict="before" returns as `logits`."""

    adapted: Classifier = field(repr=False)
    state: tuple[Copies, torch.optim.Optimizer] | None = field(default=None, repr=False)  # None is the source

    @property
    def predict(self) -> str:
        return self.settings.predict

    @property
    def online(self) -> bool:
        return self.settings.online

    @property
    def at_once(self) -> int | None:
        return None if self.online else self.settings.images_at_once

    def reset(self) -> None:
        """Back to the source, moments of the optimiser included. The source itself was never written to."""
        self.state = None

    def _fresh(self, copies: int | None) -> tuple[Copies, torch.optim.Optimizer]:
        s, task = self.settings, Copies(self.adapted, "norm", copies)
        return task, make_optimizer(s.optimizer, task.tensors(), s.lr, s.momentum)

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        if self.online:
            self.state = self.state or self._fresh(None)
        task, optimizer = self.state or self._fresh(len(images))
        s, losses = self.settings, []
        for step in range(s.updates):
            logits = task(images)  # (B, K), or maps (B, K, h, w)
            loss = entropy_of(logits)
            check_finite(loss, ids, step, s.lr)
            optimizer.zero_grad()
            (loss.mean() if s.online else loss.sum()).backward()  # copies are independent: their gradients do not mix
            optimizer.step()
            losses.append(loss.detach())
        if s.predict == "after":
            with torch.no_grad():
                logits = task(images)
            check_finite(logits.flatten(1).sum(1), ids, s.updates, s.lr, "prediction")
        return Output(logits.detach().cpu(), None, torch.stack(losses).cpu())


NEEDS = Needs(online=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> Tent:
    """Scale and shift of all norm layers are updated, on a copy. Raises ValueError for a network without any, and for
    one of depth, whose answer has no entropy."""
    if models.classifier.target == "depth":
        raise ValueError("depth has no entropy to lower: choose the method consistency for a depth network")
    adapted = with_test_statistics(models.classifier, differentiable=True)
    parameter_names(adapted, "norm")
    return Tent(models, settings or Settings(), adapted)
