"""DUSA (Li et al., NeurIPS 2024): as Diffusion-TTA, but the noise predictions of the classes are mixed.

    grad log p(x_t) = sum_k p(k | x_t) grad log p(x_t | k), so
    eps_hat = sum_k p_k eps_phi(x_t, t, k),  L = |eps_hat - eps|^2 / dimensions

With the true posterior the mix is the unconditional prediction at every t, so one fixed t serves. Only a few classes
are evaluated: the best of the classifier, and some drawn from the rest. With the denoiser frozen dL/dp is 2 Gram p,
forward evaluations alone. The published form predicts a batch before its update.

Card: docs/methods/dusa.md
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Index, Probs
from ..common.validate import Checked, Count, Fraction, Natural, Positive, checked
from ..diffusion.feedback import MIXINGS, probabilities
from ..diffusion.pairs import draw_pairs
from ..models import lora
from ..models.copies import PARAM_SETS
from ..world.views import VIEWS, view_of
from .base import Method, Models, Needs, Output, check_finite
from .feedback import DENOISER_SETS, feedback, fresh_copies, prepare


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are the published ones, but for the frozen denoiser and an update at every batch."""

    lr: Positive = 1e-5
    t: Natural = 100  # the one noise level
    pairs: Count = 1  # noises per update
    updates: Count = 1  # optimiser steps on each batch
    accumulate: Count = 1  # batches an optimiser step
    top: Count = 4  # best classes
    extra: Natural = 2  # classes drawn from the rest; all classes where there are no more than top + extra
    logit_norm: bool = True  # logits divided by their norm
    temperature: Positive = 1.0  # of p, on top of that
    mixing: Literal[MIXINGS] = "output"  # or "embedding", as Diffusion-TTA: the condition is mixed
    view: Literal[VIEWS] = "full"  # what the classifier sees: "full" or "low"
    optimizer: Literal["sgd", "adamw"] = "adamw"  # without weight decay it is Adam; or "sgd"
    momentum: Fraction = 0.9  # of SGD
    param_set: Literal[PARAM_SETS] = "all"  # which parameters of the classifier: see `copies.parameter_names`
    adapt_denoiser: bool = False  # also change the diffusion model
    adapt_embeddings: bool = False  # and its label table
    denoiser_lr: Positive | None = None  # None: the same as lr
    predict: Literal["before", "after"] = "before"  # the updates, or "after" them: one forward pass more
    online: bool = True  # state carried from batch to batch; False: each image from the source, with its own copy
    seed: int = 0
    micro_batch: Count = 48  # rows of the denoiser at once
    images_at_once: Count = 32  # copies at once where not online, bounds the memory
    # what came later, left out of records where it stands as here
    rank: Count = field(default=4, metadata={"later": True})  # r of all adapters, see `lora.init`
    denoiser_set: DENOISER_SETS = field(default="all", metadata={"later": True})  # what `adapt_denoiser` changes

    def __post_init__(self):
        super().__post_init__()
        if self.accumulate > 1 and (self.updates > 1 or not self.online):
            raise ValueError(f"accumulate={self.accumulate}: choose 1, or online=True with updates=1")


PUBLISHED = dict(  # in batches of 8: one update for 64 images
    lr=1e-5, t=100, accumulate=8, top=4, extra=2, logit_norm=True, temperature=1.0, adapt_denoiser=True
)


def logit_norm(logits: Probs) -> Probs:
    """z / |z| (B, K): with many classes their softmax is nearly uniform, however sure the classifier."""
    return logits / logits.norm(dim=1, keepdim=True)


def choose_classes(logits: Probs, ids: Index, top: int, extra: int, seed: int = 0, step: int = 0) -> Int[Tensor, "B k"]:
    """The `top` best classes of logits (B, K), and `extra` drawn from softmax(z) of the rest without replacement.

    In rising order; all K where K <= top + extra. Drawn by the largest z + Gumbel noise, for each image of ids (B,)."""
    if logits.shape[1] <= top + extra:
        return torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    z = logits.detach().cpu().double()
    best = z.topk(top).indices
    noise = [
        torch.empty_like(z[0]).exponential_(generator=generator(seed, i, "dusa/classes", step)) for i in ids.tolist()
    ]
    rest = (z - torch.stack(noise).log()).scatter(1, best, -torch.inf)
    return torch.cat([best, rest.topk(extra).indices], 1).sort().values.to(logits.device)


@dataclass
class Dusa(Method):
    state: tuple | None = field(default=None, repr=False)  # online: (task, phi, optimiser), None is the source
    batches: int = 0  # since the source

    @property
    def predict(self) -> str:
        return self.settings.predict

    @property
    def online(self) -> bool:
        return self.settings.online

    @property
    def at_once(self) -> int | None:
        return None if self.online else 1 if self.settings.adapt_denoiser else self.settings.images_at_once

    def reset(self) -> None:
        """Back to the source, with no gradient left over. The source itself was never written to."""
        self.state, self.batches = None, 0

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        if self.online:
            self.state = self.state or fresh_copies(self.models, self.settings, None)
        task, phi, optimizer = self.state or fresh_copies(self.models, self.settings, len(images))
        s, denoiser, losses = self.settings, self.models.denoiser, []
        seen, x0, place = view_of(images, s.view), denoiser.encode(images), self.batches % s.accumulate
        for step in range(s.updates):
            z = task(seen)  # (B, K)
            if step == 0:
                logits = z.detach()
            classes = choose_classes(z, ids, s.top, s.extra, s.seed, step)  # (B, k)
            dropped = torch.ones_like(z, dtype=torch.bool).scatter(1, classes, False)
            p = probabilities(logit_norm(z) if s.logit_norm else z, s.temperature, dropped)
            check_finite(p.sum(1), ids, step, s.lr, "prediction")
            pairs = draw_pairs(ids, s.pairs, denoiser.shape, (s.t, s.t + 1), "fixed", "fresh", s.seed, "dusa", step)
            t, eps = (v.to(x0.device) for v in pairs)
            if place == 0:
                optimizer.zero_grad()
            G, loss = feedback(denoiser, phi, x0, p, t, eps, s.mixing, s.micro_batch, classes=classes)
            check_finite(loss, ids, step, s.lr)
            (p * G).sum().div(len(images) if s.online else 1).backward()
            if place == s.accumulate - 1:
                for value in [*task.tensors(), *lora.flat(phi or {})]:
                    value.grad = None if value.grad is None else value.grad / s.accumulate
                optimizer.step()
            losses.append(loss)
        if s.predict == "after":
            with torch.no_grad():
                logits = task(seen)
            check_finite(logits.sum(1), ids, s.updates, s.lr, "prediction")
        self.batches += self.online
        return Output(logits.cpu(), None, torch.stack(losses).cpu())


NEEDS = Needs(denoiser=True, online=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> Dusa:
    """The classifier's `param_set` is updated, and the denoiser if asked. Raises ValueError for misfits.

    The networks of `models` are frozen here: they never compute weight gradients."""
    settings = settings or Settings()
    if settings.top > models.classifier.classes:
        raise ValueError(f"top={settings.top}: there are {models.classifier.classes} classes, choose fewer")
    return Dusa(prepare(models, settings, settings.t), settings)
