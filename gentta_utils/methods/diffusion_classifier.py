"""Diffusion Classifier (Li et al., ICCV 2023): the class whose condition explains the noise best.

p(k | x) = softmax_k(-dims * mean over (t, eps) of |eps - eps_phi(x_t, t, k)|^2 / dims / tau). All classes see the same
pairs, because errors vary far more between pairs than between classes. On CIFAR-10, Pets, Flowers and STL-10 the paper
takes absolute errors instead of squared ones, and on ImageNet they cost it points.

Card: docs/methods/diffusion_classifier.md
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ..common.types import Images, Index, Probs
from ..common.validate import Checked, Count, Natural, Positive, Rule, Window, checked
from ..diffusion.error_table import LOSSES, ErrorTable, error_table, evenly, gram
from ..diffusion.pairs import TIMESTEP_MODES, draw_pairs
from .base import Method, Models, Needs, Output, check_classes, no_loss


def _go_down(stages: tuple[tuple[int, int], ...]) -> bool:
    """Whether pairs divide the last number of them, and no stage keeps more classes than the one before."""
    pairs, keep = zip(*stages, strict=True) if stages else ((1,), (1,))
    return min(*pairs, *keep) > 0 and not any(pairs[-1] % n for n in pairs) and list(keep) == sorted(keep)[::-1]


Stages = Annotated[
    tuple[tuple[int, int], ...],
    Rule("((pairs, keep), ...) above 0, pairs that divide the last of them, keep that does not grow", _go_down),
]


@dataclass(frozen=True)
class Settings(Checked):
    pairs: Count = 48  # (t, eps) pairs per image, the same for all classes
    window: Window = (150, 600)  # t in [low, high)
    timesteps: Literal[TIMESTEP_MODES] = "stratified"
    temperature: Positive = 3.0  # tau of the posterior; it does not move the decision
    prune: Natural = 0  # compare only so many classes, the task model's best; 0 compares all
    seed: int = 0
    # absolute errors with "l1"; left out of records where it is "l2", so that older ones stand for the same runs
    loss: Literal[LOSSES] = field(default="l2", metadata={"later": True})
    # successive elimination in place of `pairs`: ((pairs, classes kept), ...), see `staged_errors`
    stages: Stages = field(default=(), metadata={"later": True})


def log_posterior(error: Probs, dims: int, temperature: float) -> Probs:
    """log p (B, K) from mean errors per dimension (B, K): softmax of -dims * error / tau, uniform prior."""
    return (-dims * error / temperature).log_softmax(1)


def staged(table: ErrorTable, pairs: tuple[int, ...], keep: tuple[int, ...]) -> Index:
    """Adaptive elimination (their algorithm 2): the predicted class (B,).

    Stage i adds the pairs of an evenly spread grid of pairs[i], scores the remaining classes by their mean error over
    all pairs seen so far and keeps the keep[i] best; the last keep is 1. One stage with all pairs is the argmin."""
    N = table.t.shape[1]
    seen, remaining = torch.zeros(N, dtype=torch.bool), torch.zeros_like(table.error[:, 0])
    for n, kept in zip(pairs, keep, strict=True):
        seen[evenly(n, N)] = True
        score = table.error[:, seen].mean(1) + remaining
        remaining = remaining.scatter(1, score.argsort(1)[:, kept:], torch.inf)
    return table.classes.gather(1, score.argmin(1, keepdim=True))[:, 0]


def staged_cost(pairs: tuple[int, ...], keep: tuple[int, ...], N: int, classes: int) -> int:
    """Evaluations of one image that `staged` asks for: each stage pays for its unseen pairs and remaining classes."""
    seen, total = set(), 0
    for n, kept in zip(pairs, keep, strict=True):
        new = set(evenly(n, N).tolist()) - seen
        seen, total, classes = seen | new, total + len(new) * classes, kept
    return total


@torch.no_grad()
def staged_errors(
    denoiser,
    images: Images,
    ids: Index,
    pairs: tuple[int, ...],
    keep: tuple[int, ...],
    window: tuple[int, int] = (0, 1000),
    timesteps: str = "stratified",
    seed: int = 0,
    classes: Int[Tensor, "B k"] | None = None,
    loss: str = "l2",
) -> Probs:
    """Errors (B, k) of `classes` (B, k), or of all, by elimination as in `staged`, for `staged_cost` evaluations.

    Those kept to the end have their mean error over all pairs seen. One that was left out lies as far above the worst
    that was kept as it did when it was left out, so whoever was kept longer has the lower error.

    images (B, 3, S, S) in [0, 1]. Raises ValueError unless each of `pairs` divides the last."""
    N, x0 = pairs[-1], denoiser.encode(images)
    t, eps = (
        v.to(x0.device) for v in draw_pairs(ids, N, denoiser.shape, window, timesteps, seed=seed, purpose="table")
    )
    of = torch.arange(denoiser.classes).expand(len(x0), -1) if classes is None else classes
    of, alive = of.to(x0.device), torch.arange(of.shape[1], device=x0.device).expand(len(x0), -1)  # alive: columns
    total, seen, left = torch.zeros(alive.shape, device=x0.device), torch.zeros(N, dtype=torch.bool), []
    for n, kept in zip(pairs, keep, strict=True):
        new = evenly(n, N)[~seen[evenly(n, N)]].to(x0.device)
        seen[evenly(n, N)] = True
        each = [v.repeat_interleave(len(new), 0) for v in (x0, of.gather(1, alive))]
        g = gram(denoiser, each[0], t[:, new].flatten(), eps[:, new].flatten(0, 1), each[1], loss=loss)
        total = total + g.diagonal(dim1=1, dim2=2).unflatten(0, (len(x0), len(new))).sum(1)
        order = total.argsort(1)  # those alive have met the same pairs
        sorted_total, columns = total.gather(1, order), alive.gather(1, order)
        behind = (sorted_total[:, kept:] - sorted_total[:, kept - 1 : kept]) / seen.sum()
        left.append((columns[:, kept:], behind))
        alive, total = columns[:, :kept], sorted_total[:, :kept]
    error = torch.zeros(of.shape, device=x0.device).scatter(1, alive, total / seen.sum())
    worst = (total / seen.sum()).amax(1, keepdim=True)
    for columns, behind in reversed(left):
        error = error.scatter(1, columns, worst + behind)
        worst = torch.cat([worst, worst + behind], 1).amax(1, keepdim=True)
    return error.cpu()


def read_staged(
    denoiser,
    images: Images,
    ids: Index,
    pairs: tuple[int, ...],
    keep: tuple[int, ...],
    window: tuple[int, int] = (0, 1000),
    seed: int = 0,
    classes: Int[Tensor, "B k"] | None = None,
) -> Index:
    """What `staged` says (B,) of the table of pairs[-1] pairs, for no more evaluations per image than `staged_cost`.

    images (B, 3, S, S) in [0, 1]; classes (B, k) or all. Raises ValueError as `staged_errors`."""
    best = staged_errors(denoiser, images, ids, pairs, keep, window, seed=seed, classes=classes).argmin(1)
    return best if classes is None else classes.cpu().gather(1, best[:, None])[:, 0]


class DiffusionClassifier(Method):
    predict = "before"

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        s, (classifier, denoiser) = self.settings, (self.models.classifier, self.models.denoiser)
        before = classifier(images).cpu()
        kept = before.topk(s.prune or denoiser.classes, dim=1).indices.sort(1).values  # (B, k)
        how = dict(timesteps=s.timesteps, seed=s.seed, classes=kept, loss=s.loss)
        if s.stages:
            error = staged_errors(denoiser, images, ids, *zip(*s.stages, strict=True), s.window, **how)
        else:
            error = error_table(denoiser, images, ids, s.pairs, s.window, **how).error.mean(1)
        dims = torch.Size(denoiser.shape).numel()
        log_p = log_posterior(error, dims, s.temperature)
        logits = torch.full_like(before, -torch.inf).scatter(1, kept, log_p)
        return Output(logits, before, no_loss(images))


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> DiffusionClassifier:
    """Nothing is updated. Raises ValueError without a denoiser, or if it has other classes than the classifier."""
    if models.denoiser is None:
        raise ValueError("the Diffusion Classifier needs a denoiser: Models(classifier, denoiser)")
    check_classes(models)
    return DiffusionClassifier(models, settings or Settings())
