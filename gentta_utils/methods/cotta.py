"""CoTTA (Wang et al., CVPR 2022): a student that follows a slow teacher, and forgets what it learnt.

For each batch: the student takes one step towards the teacher's predictions, averaged over augmented copies where the
source is unsure of the batch; the teacher moves a little towards the student; a few of the student's weights return to
the source. The scored logits are the teacher's of before its update. Batch norm takes the statistics of the batch in
student, teacher and source, as in TENT.

Card: docs/methods/cotta.md
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..common.randomness import generator
from ..common.types import PerImage, Probs
from ..common.validate import Checked, Count, Fraction, Positive, checked
from ..models.batchnorm import with_test_statistics
from ..models.classifier import Classifier
from ..models.copies import Copies
from ..world.views import jitter
from .base import Method, Models, Needs, Output, check_finite, make_optimizer


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are those published for CIFAR-10-C."""

    lr: Positive = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"  # or "sgd"; both without weight decay
    momentum: Fraction = 0.9  # of SGD
    teacher_momentum: Fraction = 0.999  # m, what stays of the teacher at each batch; 1: it stays the source
    restore: Fraction = 0.01  # r, the share of weights that return to the source at each batch
    threshold: Fraction = 0.92  # p_th: average over views where the source's mean confidence is below; 0: never
    views: Count = 32  # to average over
    symmetric: bool = False  # cross-entropy in both directions, half each
    seed: int = 0


# Their code, for batches of 200 and of 64, never reset
PUBLISHED_CIFAR = dict(optimizer="adam", lr=1e-3, teacher_momentum=0.999, restore=0.01, threshold=0.92)
PUBLISHED_IMAGENET = dict(
    optimizer="sgd", lr=1e-2, momentum=0.9, teacher_momentum=0.999, restore=0.001, threshold=0.1, symmetric=True
)


def consistency(student: Probs, teacher: Probs, symmetric: bool = False) -> PerImage:
    """Cross-entropy CE(softmax(teacher), softmax(student)) of logits (B, K), (B,); symmetric: the mean of both ways."""

    def ce(target: Probs, z: Probs) -> PerImage:
        return -(target.softmax(1) * z.log_softmax(1)).sum(1)

    return (ce(teacher, student) + ce(student, teacher)) / 2 if symmetric else ce(teacher, student)


@dataclass
class CoTTA(Method):
    predict = "before"
    online = True
    source: Classifier = field(repr=False)  # with the statistics of the batch; its weights never change
    state: tuple[Copies, Copies, torch.optim.Optimizer] | None = field(default=None, repr=False)  # student, teacher
    batches: int = 0  # since the source

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        s = self.settings
        self.state = self.state or self._fresh()
        student, teacher, optimizer = self.state
        z = student(images)  # (B, K)
        with torch.no_grad():
            target = self._target(images, ids, teacher)
        loss = consistency(z, target, s.symmetric)
        check_finite(loss, ids, self.batches, s.lr)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        self._follow_and_restore(student, teacher)
        self.batches += 1
        return Output(target.cpu(), None, loss.detach()[None].cpu())

    def reset(self) -> None:
        """Back to the source: student, teacher, moments of the optimiser and draws."""
        self.state, self.batches = None, 0

    def _fresh(self) -> tuple[Copies, Copies, torch.optim.Optimizer]:
        s, student, teacher = self.settings, Copies(self.source, "all", None), Copies(self.source, "all", None)
        return student, teacher, make_optimizer(s.optimizer, student.tensors(), s.lr, s.momentum)

    def _target(self, images: Tensor, ids: Tensor, teacher: Copies) -> Probs:
        """The teacher's logits (B, K): plain, or their mean over views where the source is unsure of the batch."""
        s, confidence = self.settings, self.source(images).softmax(1).amax(1).mean()
        if not confidence < s.threshold:
            return teacher(images)
        return torch.stack([teacher(jitter(images, ids, view, s.seed)) for view in range(s.views)]).mean(0)

    @torch.no_grad()
    def _follow_and_restore(self, student: Copies, teacher: Copies) -> None:
        """Teacher <- m teacher + (1 - m) student, then a share r of the student's weights returns to the source."""
        s, source = self.settings, dict(self.source.named_parameters())
        g = generator(s.seed, -1, "cotta/restore", self.batches)  # of no image
        for name, value in student.values.items():
            teacher.values[name].lerp_(value, 1 - s.teacher_momentum)
            back = torch.rand(value.shape, generator=g) < s.restore
            value.copy_(torch.where(back.to(value.device), source[name], value))


NEEDS = Needs(online=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> CoTTA:
    """All parameters are updated, on copies: a student's by gradient, a teacher's by following it."""
    return CoTTA(models, settings or Settings(), with_test_statistics(models.classifier, differentiable=True))
