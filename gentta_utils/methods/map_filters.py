"""Filters of a map: what a segmentor's or a depth network's answer gains without any generative model.

Five, one after the other, each of which does nothing as its setting stands: a number added to the logits of each class,
a median over neighbours, a guided filter by the image (He et al., 2010), a mean with the average map of the training
scenes, and objects that grow. Every table of adapted maps carries them, for each can raise a score by itself.

Card: docs/methods/map_filters.md
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..common.validate import Checked, Count, Fraction, Natural, Positive, Rule, checked
from ..models.dense import enlarged
from ..models.map_unet import one_hot_map
from ..world.maps import MAP_CLASSES, dilated, mean_map
from ..world.views import VIEWS, view_of
from .base import Method, Models, Needs, Output, no_loss, source_logits

Map = Float[Tensor, "B K h w"]
Biases = Annotated[tuple[float, ...], Rule("a tuple of numbers, one for each class, or ()", lambda v: True)]
FLOOR = 1e-6  # the least probability, whose logarithm is taken
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Settings(Checked):
    """In the order in which they are applied; as they stand here none does anything."""

    view: Literal[VIEWS] = "full"  # what the network sees, or "low"
    bias: Biases = ()  # added to the logits; (): none
    median: Natural = 0  # radius in pixels of the answer
    guided: Natural = 0  # radius in pixels of the image
    eps: Positive = 1e-3  # variance of the guide below which the guided filter is a mean
    blend: Fraction = 0.0  # weight of the training scenes' mean map
    dilate: Natural = 0  # pixels of the image by which objects grow


@checked
def median_of(maps: Map, radius: Natural) -> Map:
    """The median of each channel over (2 radius + 1)^2 pixels; edges are repeated."""
    side = 2 * radius + 1
    wide = F.pad(maps, (radius,) * 4, mode="replicate")
    return wide.unfold(2, side, 1).unfold(3, side, 1).flatten(-2).median(-1).values


@checked
def guided_filter(
    maps: Map, images: Float[Tensor, "B 3 S S"], radius: Count, eps: Positive
) -> Float[Tensor, "B K S S"]:
    """Each channel as a linear function of the image's brightness in every window of (2 radius + 1)^2 pixels, averaged
    over the windows that a pixel is in: smooth, but for edges that the image has too.

    Maps (B, K, h, w) and images (B, 3, S, S) in [0, 1]; the maps are enlarged to (B, K, S, S) first."""
    p, guide = enlarged(maps, images.shape[-1]), (images * images.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
    mean = lambda v: F.avg_pool2d(v, 2 * radius + 1, 1, radius, count_include_pad=False)  # noqa: E731
    mean_g, mean_p = mean(guide), mean(p)
    a = (mean(guide * p) - mean_g * mean_p) / (mean(guide * guide) - mean_g.square() + eps)
    return mean(a) * guide + mean(mean_p - a * mean_g)


@dataclass
class MapFilters(Method):
    predict = "before"
    mean: Tensor | None = field(default=None, repr=False)  # (K, h, w), of `blend`

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        answer = self.models.classifier(view_of(images, self.settings.view)).cpu()
        before = answer if self.settings.view == "full" else source_logits(self.models, images)
        answer = self.filtered(answer, images.cpu())
        return Output(answer, enlarged(before, answer.shape[-1]), no_loss(images))  # some filters enlarge it

    def filtered(self, answer: Tensor, images: Tensor) -> Tensor:
        """Logits or metres, (B, K, h, w) or as large as the image."""
        s, depth = self.settings, self.models.classifier.target == "depth"
        if s.bias:
            answer = answer + answer.new_tensor(s.bias).view(-1, 1, 1)
        if s.median or s.guided or s.blend:
            y = answer if depth else answer.softmax(1)
            y = median_of(y, s.median) if s.median else y
            y = guided_filter(y, images, s.guided, s.eps) if s.guided else y
            y = torch.lerp(y, enlarged(self.mean[None].to(y), y.shape[-1]), s.blend) if s.blend else y
            answer = y if depth else y.clamp_min(FLOOR).log()
        if s.dilate:
            labels = enlarged(answer, images.shape[-1]).argmax(1).byte()
            answer = one_hot_map(dilated(labels, s.dilate), answer.shape[1]).clamp_min(FLOOR).log()
        return answer


NEEDS = Needs(maps=True)


@checked
def configure(
    models: Models, settings: Settings | None = None, mean: Float[Tensor, "K h w"] | None = None
) -> MapFilters:
    """Nothing is updated. `mean` is the map of `blend`: probabilities of classes, or metres; None: that of the
    training scenes of this course.

    Raises ValueError for a network that does not answer with maps, and for filters that do not fit its answer."""
    s, network = settings or Settings(), models.classifier
    if network.target == "class":
        raise ValueError("these filters are for networks that answer with maps: give a segmentor or a depth network")
    if network.target == "depth" and (s.bias or s.dilate):
        raise ValueError("depth has no classes: leave bias and dilate as they are")
    if s.bias and len(s.bias) != network.classes:
        raise ValueError(f"bias has {len(s.bias)} numbers: choose {network.classes}, one for each class")
    if s.dilate and network.classes != len(MAP_CLASSES):
        raise ValueError(f"dilate={s.dilate} knows the objects of these scenes: choose 0 for {network.classes} classes")
    if s.blend and mean is None:
        mean = mean_map(network.target)
    if s.blend and len(mean) != network.classes:
        raise ValueError(f"the mean map has {len(mean)} channels, the network answers with {network.classes}")
    return MapFilters(models, s, mean)
