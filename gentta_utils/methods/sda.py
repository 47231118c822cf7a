"""SDA (Guo et al., CVPR 2025): bring test images and classifier to the diffusion model's own domain.

    D_syn = {(align(g(k)), k)},  theta_ft = argmin CE(f_theta, D_syn),  prediction p_theta(x) + p_theta_ft(align(x))

Before deployment a copy of the classifier is fine-tuned on labelled synthetic images that went through the very `align`
that test images go through (`recipes.aligned`). At test time the source reads the image, the copy the aligned one.

Card: docs/methods/sda.md
"""

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..common.devices import autocast
from ..common.evaluations import Evaluations
from ..common.progress import progress
from ..common.types import Number, Probs
from ..common.validate import Checked, Count, Fraction, Natural, NotNegative, Positive, checked
from ..models.classifier import Classifier
from ..world import views
from . import dda
from .base import Models, Needs
from .dda import DDA, align
from .purifier import prepare, what_changes

PUBLISHED = {**dda.PUBLISHED, "images_at_once": 10}


@dataclass(frozen=True)
class Settings(dda.Settings):
    """Those of DDA: there is one alignment."""


class SDA(DDA):
    """The source on the image, the fine-tuned classifier on the aligned one."""

    @torch.no_grad()
    def read(self, images: Tensor, changed: Tensor) -> tuple[Probs, Probs]:
        return self.read_by(self.models.aligned, images, changed)


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings | None = None, ready: dict[int, Tensor] | None = None) -> SDA:
    """The input is changed; the weights were, once, by `recipes.aligned`; `ready` as in `dda.configure`.

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
    models = prepare(models, settings)
    change = partial(align, models.denoiser, settings=settings, classifier=models.aligned)
    return SDA(models, settings, change, ready)


@dataclass(frozen=True)
class FineTune(Checked):
    """How a classifier is fine-tuned."""

    optimizer: Literal["sgd", "adamw"]
    lr: Positive
    weight_decay: Fraction
    momentum: Fraction = 0.9  # of SGD
    batch: Count = 64
    epochs: Count = 15
    schedule: Literal["cosine", "step"] = "cosine"  # or "step": a tenth from two thirds on
    warmup: Natural = 0  # epochs of linear rise
    clip: NotNegative = 0.0  # largest gradient norm, 0: none
    seed: int = 0
    updates: Natural = field(default=0, metadata={"later": True})  # in all, whatever the set; 0: those of the epochs
    frozen_norm: bool = field(default=False, metadata={"later": True})  # batch norm keeps the source's statistics
    half: bool = field(default=False, metadata={"later": True})  # in bf16 where that is fast, as models are trained

    def lr_at(self, epoch: Number) -> float:
        """Learning rate after so many epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.schedule == "step":
            return self.lr * (0.1 if epoch >= self.epochs * 2 / 3 else 1.0)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup) / (self.epochs - self.warmup)))


_TRANSFORMER = FineTune("adamw", 2e-5, 1e-8, warmup=5, clip=5.0)

# Guo et al. (CVPR 2025), Table 7; for their batches see `published`
FINE_TUNE = {
    "resnet": FineTune("sgd", 5e-4, 1e-4, schedule="step"),
    "swin": _TRANSFORMER,
    "convnext": _TRANSFORMER,
    "vit": _TRANSFORMER,  # not in the paper
}


def published(name: str, large: bool = False) -> FineTune:
    """The published settings for the family of e.g. "classifier/swin-wide", in batches of 64, or with `large` of 512
    and 1,024 as published. Raises ValueError for other families."""
    family = name.split("/")[-1].split("-")[0]
    if family not in FINE_TUNE:
        raise ValueError(f"no settings for the family of {name}: choose one of {', '.join(FINE_TUNE)}")
    return replace(FINE_TUNE[family], batch=512 if family == "resnet" else 1024) if large else FINE_TUNE[family]


def fine_tune(classifier: Classifier, images: Any, labels: Tensor, how: FineTune) -> Classifier:
    """A copy of the classifier, fine-tuned on images (N, 3, S, S) in [0, 1], a tensor or what is read like one, with
    labels (N,); the source stays.

    Random flips and shifted crops, as in its training. Raises ValueError for no image, FloatingPointError when the loss
    is not finite."""
    if not len(images):
        raise ValueError("there is no image to fine-tune on: give one or more")
    tuned = copy.deepcopy(classifier).requires_grad_(True)
    tuned.count = Evaluations()
    values = list(tuned.parameters())
    if how.optimizer == "sgd":
        optimizer = torch.optim.SGD(values, how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    else:
        optimizer = torch.optim.AdamW(values, how.lr, weight_decay=how.weight_decay)
    generator = torch.Generator().manual_seed(how.seed)
    amp = autocast(tuned.mean.device.type) if how.half else nullcontext()
    tuned.network.train()
    if how.frozen_norm:
        for module in tuned.network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    for epoch, rows in progress(_batches(len(images), how, generator), desc="fine-tuning", unit="update", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = how.lr_at(epoch)
        x = views.augment(images[rows], generator)
        with amp:
            logits = tuned.network(tuned.normalise(x))
        loss = F.cross_entropy(logits.float(), labels[rows].to(tuned.mean.device))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"fine-tuning diverged in epoch {epoch:.0f}: lower the learning rate ({how.lr:g})")
        optimizer.zero_grad()
        loss.backward()
        if how.clip:
            nn.utils.clip_grad_norm_(values, how.clip)
        optimizer.step()
    tuned.network.eval()
    return tuned.requires_grad_(False)


def _batches(n: int, how: FineTune, generator: torch.Generator) -> Iterator[tuple[float, Tensor]]:
    """The epoch at which the schedule stands, and the rows (B,) of each batch of n images.

    With `updates` the schedule of all epochs is gone through once, however often each image is seen."""
    done = 0
    for epoch in itertools.count():
        batches = torch.randperm(n, generator=generator).split(how.batch)
        if len(batches) > 1 and len(batches[-1]) < how.batch and not how.frozen_norm:
            batches = batches[:-1]  # a rest of few images would upset batch norm
        for i, rows in enumerate(batches):
            if done == how.updates if how.updates else epoch == how.epochs:
                return
            start, end = epoch, epoch + (i + 1) / len(batches)
            if how.updates:
                start, end = (how.epochs * k / how.updates for k in (done, done + 1))
            yield end if start < how.warmup else int(start), rows
            done += 1
