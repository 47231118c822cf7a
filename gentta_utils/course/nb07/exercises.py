"""Checks of notebook 07's exercises; how a check works is said in `course.exercises`."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor, nn

from ...common.evaluations import forwards
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...methods.base import Models, Output, no_loss, source_logits, spent
from ...models.classifier import Classifier
from ...streams.stream import Stream
from .. import side_by_side
from ..exercises import Wrong, compare, whole_numbers


def check_mine(answer: Callable) -> None:
    """Logits (B, K) of a classifier and images (B, 3, S, S): what every row that stands image by image must obey."""
    classifier = _random_classifier()
    frozen = copy.deepcopy(classifier.state_dict())
    images = torch.rand(random.randint(3, 6), 3, classifier.image_size, classifier.image_size)
    kept = images.clone()
    first = answer(classifier, images)
    if first is None:
        raise Wrong("not written yet: it returns None")
    if not isinstance(first, Tensor) or first.shape != (len(images), classifier.classes):
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise Wrong(f"wanted are logits of the shape (B, K) = {(len(images), classifier.classes)}, this is {shape}")
    if not first.isfinite().all():
        raise Wrong("some logits are not finite")
    if not torch.equal(images, kept):
        raise Wrong("the images were changed in place: the next row would be given other images")
    if any(not torch.equal(value, frozen[name]) for name, value in classifier.state_dict().items()):
        raise Wrong("the classifier was changed in place: the next image would not start from the source")
    if not torch.allclose(answer(classifier, images), first, atol=1e-5):
        raise Wrong("the same images give other logits the second time: draw with a generator that you seed yourself")
    alone = torch.cat([answer(classifier, image[None]) for image in images])
    if not torch.allclose(alone, first, atol=1e-4):
        raise Wrong("an image alone gets other logits than beside the others: this row would depend on its batch")


def _random_classifier() -> Classifier:
    """A tiny network with weights of its own, whose batch norm would notice its neighbours in train mode."""
    K, S = random.randint(3, 7), random.choice([8, 12])
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, K),
    )
    nn.init.normal_(network[-1].weight, std=5.0)
    return Classifier(network, (0.5,) * 3, (0.25,) * 3, S, K, "classifier/tiny")


@dataclass
class Mine:
    """A reader's function of classifier and images, as a method that `evaluation.run` takes."""

    predict, online = "before", None
    models: Models
    answer: Callable

    @torch.no_grad()
    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """What it says of images (B, 3, S, S) in [0, 1]."""
        start = self.models.counts()
        logits = self.answer(self.models.classifier, images.to(self.models.classifier.mean.device))
        return Output(logits.cpu(), source_logits(self.models, images), no_loss(images), spent(self.models, start))

    def reset(self) -> None:
        """Nothing to do: there is no state."""


def joined(
    answer: Callable, models: Models, stream: Stream, live: dict[str, list[Records]], label: str = "mine"
) -> list[dict]:
    """The live table with one row more: that of an answer which passes `check_mine`, else without it."""
    try:
        check_mine(answer)
    except Exception:  # the answer's own, which the check has reported
        return table_of(live)
    about = {"select": "none", "label": label}
    return table_of(live | {label: [run(Mine(models, answer), stream, about=about, batch=len(stream))]})


def table_of(live: dict[str, list[Records]]) -> list[dict]:
    """`side_by_side.live` with the forward equivalents of each row."""
    heads = [{"method": row, "forward equivalents": f"{forwards(mine[0].nfe):g}"} for row, mine in live.items()]
    return [head | line for head, line in zip(heads, side_by_side.live(live), strict=True)]


def check_honest_guide(answer: Callable) -> None:
    """Percent right of a guide, honestly, of two halves (R, C) each: R rows in C cells on the halves of the scenes."""
    R, C = random.randint(4, 8), random.randint(3, 6)
    by_a = by_b = torch.zeros(C)
    while torch.equal(by_a, by_b):  # else the halves agree, and it does not matter which of them scores
        truth = 50 + 10 * torch.rand(R, C).double()
        a, b = (truth + 8 * torch.randn(R, C).double() for _ in range(2))
        by_a, by_b = a.argmax(0), b.argmax(0)
    cells = torch.arange(C)
    both = (b[by_a, cells].mean() + a[by_b, cells].mean()) / 2
    mean = (a + b) / 2
    compare(
        answer(a, b),
        both,
        {
            "that is the winner's own score: score each choice on the half that did not make it": (
                (a[by_a, cells].mean() + b[by_b, cells].mean()) / 2
            ),
            "chosen and scored on all scenes: the noise that chose a row also praises it": mean.max(0).values.mean(),
            "one direction only: choose by `b` too, score that on `a`, and average": b[by_a, cells].mean(),
            "one direction only: choose by `a` too, score that on `b`, and average": a[by_b, cells].mean(),
            "one row for all cells is the control, not the guide: choose in each cell": (
                (b[a.mean(1).argmax()].mean() + a[b.mean(1).argmax()].mean()) / 2
            ),
            "each row's best cell: choose along the rows, dim 0": (
                (b.gather(1, a.argmax(1, keepdim=True)).mean() + a.gather(1, b.argmax(1, keepdim=True)).mean()) / 2
            ),
        },
        tolerance=1e-6,
    )


def check_curse(answer: Callable) -> None:
    """By how many points the best of R equally good rows seems better than it is: each right with p, n scenes each."""
    p, n, R = random.uniform(0.4, 0.8), random.randint(10, 60), random.randint(3, 25)
    cdf = torch.tensor(binom.cdf(range(n), n, p))  # (n,): at most k right, k from 0 to n - 1
    best = (1 - cdf**R).sum()
    compare(
        answer(p, n, R),
        100 * (best / n - p),
        {
            "in points: hundredths, not shares": best / n - p,
            "take away the truth: wanted is the lead, not the score of the best": 100 * best / n,
            "that is the approximation for many scenes: with F(k) it is exact": (
                torch.tensor(100 * math.sqrt(2 * math.log(R) * p * (1 - p) / n)).double()
            ),
            "P(max > k) is 1 - F(k)**R: (1 - F(k))**R is that of the worst row": 100 * (((1 - cdf) ** R).sum() / n - p),
            "sum over k from 0 on: E[max] is the sum of P(max > k) for k = 0 to n - 1": 100
            * ((1 - cdf[1:] ** R).sum() / n - p),
        },
        tolerance=1e-4,
    )


def check_survivors(answer: Callable) -> None:
    """How many of m p-values Holm's procedure rejects while the chance of any error stays below alpha."""
    cases = [_p_values() for _ in range(24)]
    got = whole_numbers([answer(p, alpha) for p, alpha in cases])
    count = lambda f: torch.tensor([f(p, alpha) for p, alpha in cases])  # noqa: E731
    compare(
        got,
        count(_holm),
        {
            "that is Bonferroni: after each rejection one test fewer is left to be divided by": count(
                lambda p, alpha: int((p <= alpha / len(p)).sum())
            ),
            "no correction at all: m tests at alpha miss m * alpha times by chance": count(
                lambda p, alpha: int((p <= alpha).sum())
            ),
            "stop at the first that fails: what comes after it stays, even if it is under its own limit": count(
                lambda p, alpha: int((p.sort().values <= _limits(p, alpha)).sum())
            ),
            "that is Benjamini and Hochberg: it bounds the share of errors, not the chance of one": count(_hochberg),
            "sort them first, the smallest one meets the strictest limit": count(
                lambda p, alpha: _until_it_fails(p <= _limits(p, alpha))
            ),
        },
        tolerance=0.0,
    )


def _limits(p: Tensor, alpha: float) -> Tensor:
    """alpha / m, alpha / (m - 1), ..., alpha (m,)."""
    return alpha / torch.arange(len(p), 0, -1)


def _until_it_fails(passed: Tensor) -> int:
    return int(passed.long().cumprod(0).sum())


def _holm(p: Tensor, alpha: float) -> int:
    return _until_it_fails(p.sort().values <= _limits(p, alpha))


def _hochberg(p: Tensor, alpha: float) -> int:
    below = p.sort().values <= alpha * torch.arange(1, len(p) + 1) / len(p)
    return int(below.nonzero().max()) + 1 if below.any() else 0


def _p_values() -> tuple[Tensor, float]:
    """p-values (m,) in a random order and alpha: some tiny, one just over its limit, one behind it under its own."""
    m, alpha = random.randint(8, 14), random.choice([0.05, 0.1])
    few = random.randint(1, 3)
    limits = alpha / torch.arange(m, 0, -1).double()
    p = limits * 0.9  # each under its limit in Holm's order ...
    p[few] = limits[few] * 1.02  # ... except this one, over it and still under the next one's
    p[few + 1] = p[few] * 1.01
    p[few + 2 :] = p[few + 1] + (1 - p[few + 1]) * torch.rand(m - few - 2).double()
    return p[torch.randperm(m)], alpha
