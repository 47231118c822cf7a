"""Diffusion-TTA (Prabhudesai et al., NeurIPS 2023): the diffusion loss of the image itself, through the classifier's
probabilities, as the signal that adapts the classifier.

    p = softmax(f_theta(x) / T),  L = mean over (t, eps) of |eps_phi(x_t, t, p) - eps|^2 / dimensions

Of a segmentor p is a map (B, K, h, w), of a depth network its depth in metres: the denoiser then sees a map (`MapUNet`)
and all else is the same. No label and no classification loss is involved. The cheap and exact route: gather
G = dL/dp over all pairs with p detached, then one backward of (p * G).sum() through the classifier, which therefore
runs once per update.

Card: docs/methods/diffusion_tta.md
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Answers, Images, Index
from ..common.validate import Checked, Count, Fraction, Natural, Positive, Window, checked
from ..diffusion.feedback import MIXINGS, condition_gradient, map_errors, probabilities
from ..diffusion.pairs import NOISE_MODES, TIMESTEP_MODES, draw_pairs
from ..models.batchnorm import with_test_statistics
from ..models.copies import PARAM_SETS
from ..models.map_unet import one_hot_map
from ..world.views import VIEWS, view_of
from .base import Method, Models, Needs, Output, check_finite, no_loss
from .feedback import DENOISER_SETS, feedback, fresh_copies, prepare, told
from .wordings import WORDINGS, choose, conditions

SOURCES = ("image", "another", "random")


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are the course's; `PUBLISHED` holds the paper's."""

    lr: Positive  # of the classifier; `learning_rate` finds it for any backbone
    updates: Natural = 12  # S optimiser steps per image; 0: the answer on `view`, with `statistics`, is all
    pairs: Count = 8  # (t, eps) pairs per update
    window: Window = (150, 600)  # t in [low, high); lower misleads under noise, higher says little
    timesteps: Literal[TIMESTEP_MODES] = "stratified"  # or "even", "iid", "fixed"
    noise: Literal[NOISE_MODES] = "fresh"  # or "antithetic", "shared"
    temperature: Positive = 3.0  # of p during adaptation: a one-hot p has no gradient
    top_k: Natural = 0  # keep only the k best classes of the logits that come in, renormalised; 0 keeps all
    mixing: Literal[MIXINGS] = "embedding"  # the condition is mixed, or "output": the noise predictions are
    view: Literal[VIEWS] = "full"  # what the classifier sees: "full" or "low"
    optimizer: Literal["sgd", "adamw"] = "sgd"  # or "adamw"; both without weight decay
    momentum: Fraction = 0.9  # of SGD
    param_set: Literal[PARAM_SETS] = "all"  # which parameters of the classifier: see `copies.parameter_names`
    adapt_denoiser: bool = False  # also change the diffusion model
    adapt_embeddings: bool = False  # and its label table
    denoiser_lr: Positive | None = None  # None: the same as lr
    online: bool = False  # carry the adapted state from batch to batch, instead of a fresh copy for each image
    seed: int = 0
    micro_batch: Count = 48  # rows of the denoiser at once: what fits the cache is fastest on a CPU
    images_at_once: Count = 32  # copies of the classifier at once, bounds the memory
    fixed_chunk: bool = False  # pad every batch to one shape: results bit-equal whatever the batch size
    # what came later, left out of records where it stands as here
    rank: Count = field(default=4, metadata={"later": True})  # r of all adapters, see `lora.init`
    denoiser_set: DENOISER_SETS = field(default="all", metadata={"later": True})  # what `adapt_denoiser` changes
    wording: Literal[WORDINGS] = field(default="drawn", metadata={"later": True})  # which of several: see `choose`
    map_classes: Natural = field(default=0, metadata={"later": True})  # output mixing of maps: see `frequent`; 0: all
    wording_pairs: Count = field(default=4, metadata={"later": True})  # pairs on which "read" and "wrong" compare them
    # share of the updates, the last ones, whose logits are averaged into the prediction (Polyak and Juditsky, 1992);
    # 0: those after the last update alone
    tail: Fraction = field(default=0.0, metadata={"later": True})
    # what the loss is of: "image", or for a placebo "another" image, or "random": a direction as long as the gradient
    feedback_from: Literal[SOURCES] = field(default="image", metadata={"later": True})
    # weight of each image's own statistics in the batch norms of what is adapted, as in `bn_adapt`; 0: the stored ones
    statistics: Fraction = field(default=0.0, metadata={"later": True})
    # pairs on which a map is judged in the end, see `lower`; 0: it is always taken
    trust: Natural = field(default=0, metadata={"later": True})
    margin: Fraction = field(default=0.0, metadata={"later": True})  # share of the loss by which it must be lower there


# The "adam" settings of their code: classifier and diffusion model together; the other is SGD 5e-3 with momentum .9
PUBLISHED = dict(
    updates=5,
    pairs=180,
    window=(0, 1000),
    timesteps="iid",
    temperature=1.0,
    optimizer="adamw",
    lr=1e-5,
    adapt_denoiser=True,
)


def _dropped(logits: Answers, top_k: int) -> Bool[Tensor, "B K *map"] | None:
    """True for all but the k best classes (B, K), of a map at each pixel; None for k = 0."""
    if not top_k:
        return None
    return torch.ones_like(logits, dtype=torch.bool).scatter(1, logits.topk(top_k, dim=1).indices, False)


def frequent(logits: Float[Tensor, "B K h w"], k: int, best: int = 5) -> Int[Tensor, "B k"]:
    """The k classes (in rising order) that the most pixels have among their `best` ones, as DUSA chooses them."""
    among = logits.topk(min(best, logits.shape[1]), dim=1).indices.flatten(1)
    votes = torch.zeros_like(logits[:, :, 0, 0]).scatter_add(1, among, torch.ones_like(among, dtype=logits.dtype))
    return votes.topk(min(k, logits.shape[1])).indices.sort().values


@dataclass
class DiffusionTTA(Method):
    state: tuple | None = field(default=None, repr=False)  # online: (task, phi, optimiser), None is the source
    others: Tensor | None = field(default=None, repr=False)  # (M, 3, S, S) of the placebo: image i gets number i % M
    start: Models | None = field(default=None, repr=False)  # what is adapted: the models, or with other statistics

    @property
    def online(self) -> bool:
        return self.settings.online

    @property
    def at_once(self) -> int | None:
        return None if self.online else 1 if self.settings.adapt_denoiser else self.settings.images_at_once

    def reset(self) -> None:
        """Back to the source. The source itself was never written to, so there is nothing to restore."""
        self.state = None

    def _fresh(self, copies: int | None) -> tuple:
        """Copies of the source parameters with a fresh optimiser."""
        return fresh_copies(self.start, self.settings, copies)

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        if self.online:
            self.state = self.state or self._fresh(None)
        task, phi, optimizer = self.state or self._fresh(len(images))
        s, denoiser = self.settings, self.models.denoiser
        with torch.no_grad():
            judged = self.others[ids.cpu() % len(self.others)] if s.feedback_from == "another" else images
            seen, x0 = view_of(images, s.view), denoiser.encode(judged.to(images.device))
            before = self.models.classifier(images) if s.trust or s.statistics else None  # the plain source
        dropped, chosen, losses = None, None, []
        tail, path = max(1, math.ceil(s.tail * s.updates)), []  # the logits after the last `tail` updates
        for step in range(s.updates):
            logits = task(seen)  # (B, K), or a map (B, K, h, w)
            if step == 0:
                first = logits.detach()
                before = first if before is None else before
                dropped = _dropped(first, s.top_k)
                if s.map_classes:
                    chosen = frequent(first, s.map_classes)
                    everywhere = chosen[..., None, None].expand(-1, -1, *first.shape[2:])
                    dropped = torch.ones_like(first, dtype=torch.bool).scatter(1, everywhere, False)
            elif s.updates - step < tail:
                path.append(logits.detach())
            p = told(self.models.classifier, logits, s.temperature, dropped)
            pairs = draw_pairs(
                ids, s.pairs, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "diffusion_tta", step
            )
            t, eps = (v.to(x0.device) for v in pairs)
            optimizer.zero_grad()
            check_finite(p.flatten(1).sum(1), ids, step, s.lr, "prediction")
            if step == 0 or s.wording == "drawn":  # a wording is read once
                wording = choose(denoiser, x0, p.detach(), ids, s, step)
            p, classes = conditions(denoiser, p, wording)
            classes = chosen if classes is None else classes
            G, loss = feedback(denoiser, phi, x0, p, t, eps, s.mixing, s.micro_batch, classes=classes)
            check_finite(loss, ids, step, s.lr)
            slope = (p * G).sum().div(len(images) if s.online else 1)
            if s.feedback_from == "random":
                (grad,) = torch.autograd.grad(slope, logits, retain_graph=True)
                slope = (logits * random_direction(grad, ids, s.seed, step)).sum()
            slope.backward()
            optimizer.step()
            losses.append(loss)
        with torch.no_grad():
            logits = torch.stack([*path, task(seen)]).mean(0)
        check_finite(logits.flatten(1).sum(1), ids, s.updates, s.lr, "prediction")
        if s.trust:
            logits = self.lower(before, logits, x0, ids)
        loss = torch.stack(losses).cpu() if losses else no_loss(images)
        return Output(logits.cpu(), None if before is None else before.cpu(), loss)

    @torch.no_grad()
    def lower(self, before: Tensor, after: Tensor, x0: Tensor, ids: Tensor) -> Tensor:
        """Of each image the adapted map (B, K, h, w) where its loss is lower than under the source's map, by more than
        `margin` of that, on pairs that no update has met; else the source's. Both are told as they would be scored,
        with the best class of each pixel alone: the loss of a soft map falls as soon as it grows sharper, right or
        wrong."""
        s, denoiser = self.settings, self.models.denoiser
        t, eps = draw_pairs(ids, s.trust, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "trust")
        told_of = lambda z: z if denoiser.target == "depth" else one_hot_map(z.argmax(1).to(torch.uint8), z.shape[1])  # noqa: E731
        was, now = (map_errors(denoiser, x0, told_of(z), t, eps, s.micro_batch).mean(1) for z in (before, after))
        taken = now < (1 - s.margin) * was
        return torch.where(taken.view(-1, 1, 1, 1).to(after.device), after, before)


NEEDS = Needs(denoiser=True)


@checked
def random_direction(grad: Answers, ids: Index, seed: int = 0, step: int = 0) -> Answers:
    """Normal noise of the shape of a gradient (B, ...), each image's own, as long as the gradient of that image."""
    noise = torch.stack(
        [torch.randn(grad.shape[1:], generator=generator(seed, i, "random direction", step)) for i in ids.tolist()]
    ).to(grad)
    length = grad.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return noise * length.view(-1, *[1] * (grad.ndim - 1))


@checked
def configure(models: Models, settings: Settings, others: Images | None = None) -> DiffusionTTA:
    """The classifier's `param_set` is updated, and the denoiser if asked. Raises ValueError for misfits.

    `others` (M, 3, S, S) are the images of feedback_from="another". The networks of `models` are frozen here: they
    never compute weight gradients."""
    wordings = getattr(models.denoiser, "wordings", 1)
    models = prepare(models, settings, settings.window[1] - 1, wordings)
    if settings.wording == "wrong" and wordings == 1:
        raise ValueError("wording='wrong': there is one wording alone, choose drawn or give more (`for_wordings`)")
    if settings.top_k > models.classifier.classes:
        raise ValueError(f"top_k={settings.top_k}: there are {models.classifier.classes} classes")
    if settings.map_classes and (
        models.classifier.target != "classes" or settings.mixing != "output" or settings.top_k
    ):
        raise ValueError("map_classes is for maps of classes, with mixing='output' and top_k=0: leave it at 0")
    if (settings.feedback_from == "another") != (others is not None):
        raise ValueError(
            "feedback_from='another' goes with the images that it takes: configure(models, settings, others)"
        )
    trust, statistics = settings.trust, settings.statistics
    if trust and "class" in (models.classifier.target, models.denoiser.target):
        raise ValueError("trust compares maps: leave it at 0 where the network or the diffusion model knows none")
    if settings.online and (trust or statistics):
        raise ValueError("trust and statistics are of each image alone: leave them at 0, or choose online=False")
    if not (settings.updates or trust or statistics or settings.view != "full"):
        raise ValueError("updates=0 on the full view, with the stored statistics, changes nothing: choose at least 1")
    start = with_test_statistics(models.classifier, statistics) if statistics else models.classifier
    start = replace(models, classifier=start)
    return DiffusionTTA(models, settings, others=others, start=start)


def learning_rate(models: Models, images: Tensor, ids: Tensor, settings: Settings, delta: float = 0.7) -> float:
    """The SGD step that moves the margin by `delta` logits in the first update of the median image.

    lr = delta / median(|d margin / d theta|^2 * |dL/dz|), margin = best logit - second best, with the view, parameters,
    temperature and pairs of `settings`. A heuristic for the size of a step, by which one `delta` serves every backbone,
    where one fixed lr does not. It is no bound: the gradient of the loss need not point along that of the margin, and
    later updates, with momentum, add up.

    Args:
        images: (B, 3, S, S) shifted images (validation corruptions) with ids (B,).

    Raises ValueError for AdamW, whose step does not depend on the size of the gradient, for networks that answer with
    maps, which have no one margin, and where no image has any gradient.
    """
    if models.classifier.target != "class":
        raise ValueError("the rule is for classifiers: a map has a margin at each pixel, choose its rate on a grid")
    if settings.optimizer != "sgd":
        raise ValueError("the rule is for SGD: AdamW's step does not depend on the size of the gradient")
    method = configure(models, settings)
    rates = []
    for rows in torch.arange(len(images)).split(settings.images_at_once):
        task, _, _ = method._fresh(len(rows))
        seen, x0 = view_of(images[rows], settings.view), models.denoiser.encode(images[rows])
        z = task(seen)
        top = z.topk(2).values
        grads = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), task.tensors(), allow_unused=True)
        # (B,) |d margin / d theta|^2; a decoder, for instance, has no part in it
        squared = sum(g.flatten(1).square().sum(1) for g in grads if g is not None)
        z = z.detach().requires_grad_()
        p = probabilities(z, settings.temperature, _dropped(z.detach(), settings.top_k))
        pairs = draw_pairs(
            ids[rows], settings.pairs, models.denoiser.shape, settings.window, settings.timesteps, settings.noise,
            settings.seed, "learning_rate",
        )  # fmt: skip
        t, eps = (v.to(x0.device) for v in pairs)
        wording = choose(models.denoiser, x0, p.detach(), ids[rows], settings, 0)
        p, classes = conditions(models.denoiser, p, wording)
        how = (settings.mixing, settings.micro_batch, None, classes)
        G, _ = condition_gradient(models.denoiser, x0, p, t, eps, *how)
        slope = torch.autograd.grad((p * G).sum(), z)[0].norm(dim=1)  # (B,) |dL/dz|
        rates.append(squared * slope)
    median = float(torch.cat(rates).median())
    if not median > 0:
        raise ValueError("no gradient reaches the logits of the median image: raise the temperature")
    return delta / median
