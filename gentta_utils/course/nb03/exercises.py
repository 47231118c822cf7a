"""Checks of notebook 03's exercises; how a check works is said in `course.exercises`."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..exercises import Wrong, compare, whole_numbers


def check_adapter_size(answer: Callable) -> None:
    """Numbers that an adapter of some rank adds to a weight of a linear layer or of a convolution."""
    shapes, wanted, both, whole, squares = [], [], [], [], []
    for _ in range(12):
        d_out, d_in, rank = random.randint(5, 90), random.randint(5, 90), random.randint(1, 9)
        kernel = random.choice([(), (1, 1), (3, 3), (5, 2)])
        fan_in = d_in * int(torch.Size(kernel).numel())
        shapes.append(((d_out, d_in, *kernel), rank))
        wanted.append(rank * (d_out + fan_in))
        both.append(rank * (d_out + d_in))
        whole.append(rank * d_out * fan_in)
        squares.append(rank * d_out + d_in * rank * rank * int(torch.Size(kernel).numel()))
    got = whole_numbers([answer(shape, rank) for shape, rank in shapes])
    compare(
        got,
        torch.tensor(wanted),
        {
            "of a convolution each row of A holds a whole patch: the channels times the places of the kernel": (
                torch.tensor(both)
            ),
            "B and A are two thin matrices: add their sizes, their product is never kept": torch.tensor(whole),
            "A is rank x inputs, the rank enters once": torch.tensor(squares),
        },
        tolerance=0.0,
    )


def check_class_feature(answer: Callable) -> None:
    """One unit feature for each class (K, D) from the features of its prompts (K, M, D)."""
    K, M, D = random.randint(2, 6), random.randint(2, 5), random.randint(3, 9)
    x = torch.randn(K, M, D).double() * torch.rand(K, M, 1).double().mul(5).add(0.1)
    unit = F.normalize(x, dim=2)
    mean = unit.mean(1)
    compare(
        answer(x),
        F.normalize(mean, dim=1),
        {
            "a long feature outvotes the others: normalise each prompt's before the mean": F.normalize(
                x.mean(1), dim=1
            ),
            "the mean of unit features is shorter than 1: normalise again, or the class has a smaller scale": unit.mean(
                1
            ),
            "nothing is normalised: both times are needed": x.mean(1),
            "that is normalised over the classes: each class's feature has length 1": F.normalize(mean, dim=0),
        },
    )


def check_condition(answer: Callable) -> None:
    """p (B, K): softmax(z / T) among the k best of the logits z0 that came in, 0 elsewhere."""
    B, K, T = random.randint(2, 5), random.randint(6, 12), random.uniform(2.0, 5.0)
    k = random.randint(2, K - 2)
    start = torch.randn(B, K).double() * 3
    while True:  # the best have changed since, and the scales are such that no two mistakes look alike
        z = start + torch.randn(B, K).double() * 4
        if not torch.equal(_best(z, k), _best(start, k)):
            break

    def among(kept: torch.Tensor, logits: torch.Tensor, T: float) -> torch.Tensor:
        return (logits / T).masked_fill(~kept, -torch.inf).softmax(1)

    kept, p = _best(start, k), (z / T).softmax(1)
    got = answer(z, start, k, T)
    if got is not None and torch.as_tensor(got).isnan().any():
        raise Wrong("some probabilities are not numbers: -inf for what is left out, before the softmax")
    compare(
        got,
        among(kept, z, T),
        {
            "the k classes are chosen once, from the logits that came in: here they follow the current ones": among(
                _best(z, k), z, T
            ),
            "the k probabilities must sum to 1: leave the others out before the softmax": p * kept,
            "the temperature is not used": among(kept, z, 1.0),
            "the values are those of the first logits: only the choice is theirs": among(kept, start, T),
            "a logit of 0 is not left out: it has a probability, use -inf": ((z / T) * kept).softmax(1),
        },
    )


def _best(logits: torch.Tensor, k: int) -> torch.Tensor:
    """True for the k best of each row (B, K)."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(k).indices, True)


def check_pair_scores(answer: Callable) -> None:
    """Shares (3,) of text, image and group score from scores (N, 2, 2): image i with caption j, right where i = j."""
    s = torch.randn(random.randint(30, 60), 2, 2).double()
    s[: len(s) // 2, 0, 0], s[: len(s) // 2, 1, 1] = 2.0, 2.5  # enough that are right
    s[: len(s) // 3, 1, 0] = 2.2  # of them by text alone, so that the scores differ
    s[-4:] = 0.5  # and some ties, which are no success
    a, b, c, d = s[:, 0, 0], s[:, 0, 1], s[:, 1, 0], s[:, 1, 1]
    text, image = (a > b) & (d > c), (a > c) & (d > b)

    def shares(*parts: torch.Tensor) -> torch.Tensor:
        return torch.stack([p.double().mean() for p in parts])

    ties = ((a >= b) & (d >= c), (a >= c) & (d >= b))
    once = ((a > b) | (d > c), (a > c) | (d > b))
    compare(
        answer(s),
        shares(text, image, text & image),
        {
            "text and image are swapped: the text score compares two captions of one image": shares(
                image, text, text & image
            ),
            "a tie is no success: the right one has to score higher": shares(*ties, ties[0] & ties[1]),
            "both of a pair have to be right, not one of them": shares(*once, once[0] & once[1]),
            "the group score takes both at once, for the same pair: a product of shares is something else": torch.stack(
                [text.double().mean(), image.double().mean(), text.double().mean() * image.double().mean()]
            ),
        },
        tolerance=1e-9,
    )
