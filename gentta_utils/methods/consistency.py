"""Consistency over flips and scales: MEMO's loss for networks that answer with maps.

    L = mean over pixels of H( mean over views v of softmax(u_v f(a_v(x))) )         classes
    L = mean over pixels of var over views v of log(u_v f(a_v(x)))                   depth

a_v mirrors the image and resizes it, u_v turns the answer back, so that each pixel has an answer from every view.
Without an update, and with the views' mean as prediction, it is the usual test-time augmentation of segmentation.

Card: docs/methods/consistency.md
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..common.types import Images, PerImage
from ..common.validate import Checked, Count, Fraction, Natural, Positive, Rule, checked
from ..diffusion.entropy import entropy_of
from ..models.copies import PARAM_SETS, Copies, parameter_names
from ..models.dense import enlarged
from .base import Method, Models, Needs, Output, check_finite, make_optimizer, no_loss

Sizes = Annotated[tuple[float, ...], Rule("a tuple of shares of the side, above 0", lambda v: v and min(v) > 0)]
Views = Float[Tensor, "V B K h w"]


@dataclass(frozen=True)
class Settings(Checked):
    lr: Positive = 1e-3
    updates: Natural = 1
    sizes: Sizes = (1.0,)  # of the views, as shares of the side; each as it is and mirrored
    predict: Literal["image", "views"] = "image"  # the answer to the image itself, or the mean over its views
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Fraction = 0.9  # of SGD
    param_set: Literal[PARAM_SETS] = "all"
    images_at_once: Count = 16  # copies of the network at once, bounds the memory


def views_of(network, images: Images, sizes: tuple[float, ...]) -> Views:
    """What the network says of every view of images (B, 3, S, S), turned back onto the image: (V, B, K, h, w), where
    h is that of its answer to the image, and the first view is the image itself at the first size."""
    S, answers = images.shape[-1], []
    for size in sizes:
        seen = images if size == 1 else enlarged(images, max(1, round(size * S)))
        for mirrored in (False, True):
            answer = network(seen.flip(-1) if mirrored else seen)
            answers.append(answer.flip(-1) if mirrored else answer)
    side = network.classifier[0].shape[-1] if isinstance(network, Copies) else network.shape[-1]
    return torch.stack([a if a.shape[-1] == side else enlarged(a, side) for a in answers])


def mean_answer(views: Views, target: str) -> Float[Tensor, "B K h w"]:
    """One answer of all views: log of the mean probabilities, or the geometric mean of depth."""
    return views.log().mean(0).exp() if target == "depth" else views.log_softmax(2).logsumexp(0)


def view_disagreement(views: Views, target: str) -> PerImage:
    """The loss (B,): mean over pixels of the entropy of the mean, or of the variance of the logarithm of depth."""
    if target == "depth":
        return views.log().var(0, correction=0).flatten(1).mean(1)
    return entropy_of(mean_answer(views, target))


@dataclass
class Consistency(Method):
    online = False

    @property
    def at_once(self) -> int:
        return self.settings.images_at_once

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        s, target, losses = self.settings, self.models.classifier.target, []
        task = Copies(self.models.classifier, s.param_set, len(images))
        optimizer = make_optimizer(s.optimizer, task.tensors(), s.lr, s.momentum)
        for step in range(s.updates):
            loss = view_disagreement(views_of(task, images, s.sizes), target)
            check_finite(loss, ids, step, s.lr)
            optimizer.zero_grad()
            loss.sum().backward()  # copies are independent: their gradients do not mix
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            answer = task(images) if s.predict == "image" else mean_answer(views_of(task, images, s.sizes), target)
        check_finite(answer.flatten(1).sum(1), ids, s.updates, s.lr, "prediction")
        return Output(answer.cpu(), None, torch.stack(losses).cpu() if losses else no_loss(images))


NEEDS = Needs(maps=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> Consistency:
    """The network's `param_set` is updated, on copies. Raises ValueError for one that does not answer with maps."""
    settings, network = settings or Settings(), models.classifier
    if network.target == "class":
        raise ValueError("consistency is for networks that answer with maps: choose memo for a classifier")
    if settings.param_set == "logits":
        raise ValueError("param_set='logits' is a free map, the same for every view: choose parameters of the network")
    parameter_names(network, settings.param_set)
    network.requires_grad_(False)
    return Consistency(models, settings)
