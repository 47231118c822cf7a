"""CoOp and CoCoOp (Zhou et al., IJCV and CVPR 2022): a prompt learnt from a few labelled images of each class.

    CoOp: context v_1 .. v_M for all images;  CoCoOp: v_m + h(x), with a small network h of the image feature x

Not test-time adaptation: they are baselines, and where TPT and DiffTPT may start (`Models.prompt`). The towers are
frozen, so images are encoded once and the training is that of a few thousand numbers.

Card: docs/methods/coop.md
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.randomness import generator
from ..common.validate import Checked, Count, Fraction, NotNegative, Positive, checked
from ..models.clip import image_features, text_head
from .base import Method, Models, Needs, Output, no_loss
from .tpt import check_prompt

CLIP_STD = 0.02  # of CLIP's token embedding, which the published rate is for
VERSION = 1


@dataclass(frozen=True)
class Settings(Checked):
    """How the prompt is learnt. Defaults are CoOp's, with the words as a start and without augmentation."""

    kind: Literal["coop", "cocoop"] = "coop"
    start: Literal["words", "random"] = "words"  # those of the template, or normal numbers of the embedding's spread
    epochs: Count = 50
    batch: Count = 32
    lr: Positive = 2e-3  # of SGD for an embedding of standard deviation .02; it grows with the square of that
    warmup_lr: NotNegative = 1e-5  # in the first epoch; then a cosine from `lr` to 0
    momentum: Fraction = 0.9
    weight_decay: Fraction = 5e-4
    seed: int = 0


PUBLISHED = dict(kind="coop", epochs=50, batch=32, lr=2e-3)
PUBLISHED_COCOOP = dict(kind="cocoop", epochs=10, batch=1, lr=2e-3)


def make_meta(features: int, width: int, seed: int) -> nn.Module:
    """CoCoOp's network: Linear to a sixteenth, ReLU, Linear to the text tower's width."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hidden = max(1, features // 16)
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))


def rate_at(s: Settings, step: int, steps: int) -> float:
    """The rate of a step: `warmup_lr` in the first epoch, then a cosine."""
    epoch = step * s.epochs // steps
    return s.warmup_lr if epoch == 0 and s.epochs > 1 else s.lr * (1 + math.cos(math.pi * epoch / s.epochs)) / 2


def learn(models: Models, images: Tensor, labels: Tensor, settings: Settings | None = None) -> Models:
    """The models with a prompt learnt on images (N, 3, S, S) with labels (N,); the given ones are not changed.

    Raises ValueError where the models have no prompt, or a label is not one of its classes."""
    s, prompt = settings or Settings(), check_prompt(models)
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= prompt.classes:
        raise ValueError(f"labels must be 0 to {prompt.classes - 1}: give images of the classes of the prompt")
    with torch.no_grad():
        x = torch.cat([image_features(models.classifier, part) for part in images.split(64)])  # (N, D)
    init, g = prompt.init.clone(), generator(s.seed, -1, "coop")  # of no image
    if s.start == "random":
        init = (prompt.std * torch.randn(init.shape, generator=g)).to(init)
    meta = make_meta(x.shape[1], init.shape[1], s.seed).to(x.device) if s.kind == "cocoop" else None
    learnt = prompt.learned(init.requires_grad_(), meta)
    scale, labels = text_head(models.classifier)[0].norm(), labels.to(x.device)
    values = [init, *(meta.parameters() if meta else ())]
    optimizer = torch.optim.SGD(values, s.lr, momentum=s.momentum, weight_decay=s.weight_decay)
    order = torch.cat([torch.randperm(len(x), generator=g) for _ in range(s.epochs)]).split(s.batch)
    for step, rows in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(s, step, len(order)) * (prompt.std / CLIP_STD) ** 2
        some = x[rows] if meta else x[rows[:1]]  # without h one context serves the batch
        text = learnt(learnt.start(some)).expand(len(rows), -1, -1)  # (n, K, D)
        loss = F.cross_entropy(scale * (x[rows][:, None] @ text.mT)[:, 0], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value in values:
        value.requires_grad_(False)
    return replace(models, prompt=prompt.learned(init.detach(), meta))


class CoOp(Method):
    predict = "before"

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Logits (B, K) of images (B, 3, S, S) under the learnt prompt."""
        classifier, prompt = self.models.classifier, self.models.prompt
        x = image_features(classifier, images)
        text = prompt(prompt.start(x)) if prompt.meta else prompt(prompt.init[None]).expand(len(x), -1, -1)
        return Output((text_head(classifier)[0].norm() * x[:, None] @ text.mT)[:, 0].cpu(), None, no_loss(images))


NEEDS = Needs(clip=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> CoOp:
    """Nothing is updated: `models` come from `learn` with these settings. Raises ValueError without a prompt."""
    check_prompt(models)
    return CoOp(models, settings or Settings())
