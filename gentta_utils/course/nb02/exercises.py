"""Checks of notebook 02's exercises; how a check works is said in `checks`."""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from ..exercises import Wrong, compare


def check_stratified(answer: Callable) -> None:
    """Timesteps (n,) int64, one in each n-th of [low, high), random within it."""
    n, low = random.randint(2, 40), random.randint(0, 300)
    high = low + n * random.randint(5, 20) + random.randint(0, n - 1)
    draws = [answer(n, low, high, torch.Generator().manual_seed(s)) for s in range(30)]
    if draws[0] is None:
        raise Wrong("not written yet: it returns None")
    for t in draws:
        if tuple(t.shape) != (n,):
            raise Wrong(
                f"it returned {tuple(t.shape)} timesteps, wanted are exactly ({n},): a stride of whole numbers?"
            )
        if t.dtype != torch.int64:
            raise Wrong(f"the timesteps are {t.dtype}: they index a table, make them int64")
        if t.min() < low or t.max() >= high:
            raise Wrong(f"a timestep lies outside of the window [{low}, {high}): where does the last stratum end?")
        edges = low + torch.arange(n + 1) * (high - low) / n
        if ((t < edges[:-1].floor()) | (t > edges[1:])).any():
            raise Wrong("a stratum is empty and another holds two: draw one t in each n-th of the window")
    if torch.stack(draws).double().std(0).max() == 0:
        raise Wrong("every draw is the same: each t is random within its stratum")
    if len({tuple((t - draws[0]).tolist()) for t in draws[1:]}) == 1 or _one_offset(draws, (high - low) / n):
        raise Wrong("all strata move together: draw an offset for each of them")


def _one_offset(draws: list[Tensor], width: float) -> bool:
    """Whether every draw is one offset plus the strata, up to rounding."""
    steps = torch.arange(len(draws[0])) * width
    return width >= 4 and all(((t - steps).max() - (t - steps).min()) <= 1.01 for t in draws)


def check_accumulate(answer: Callable) -> None:
    """Mean gradient over all pairs from chunks whose own means are known, whatever the size of the chunks."""
    n, dims = random.randint(5, 20), random.randint(1, 6)
    size = random.choice([s for s in range(2, n) if n % s])  # the last chunk is smaller
    each = torch.randn(n, dims).double()
    asked = []

    def gradient_of(pairs: Tensor) -> Tensor:
        asked.append(pairs)
        return each[pairs].mean(0)

    got = answer(gradient_of, torch.arange(n), size)
    if got is not None and max(map(len, asked)) > size:
        raise Wrong(f"a chunk holds {max(map(len, asked))} pairs, more than {size} do not fit into memory")
    chunks = [each[c].mean(0) for c in torch.arange(n).split(size)]
    compare(
        got,
        each.mean(0),
        {
            "that is the mean of the chunks' means: the last chunk is smaller and counts less": torch.stack(
                chunks
            ).mean(0),
            "that is the sum of the chunks' means: weigh each by its share of the pairs": torch.stack(chunks).sum(0),
            "that is the sum over pairs: divide by their number": each.sum(0),
        },
    )


def check_output_gradient(answer: Callable) -> None:
    """dL/dz (B, K) of L = p' Gram p with p = softmax(z)."""
    B, K, D = random.randint(2, 5), random.randint(3, 8), random.randint(2, 9)
    d, z = torch.randn(B, K, D).double(), torch.randn(B, K).double().requires_grad_()
    gram, p = d @ d.transpose(1, 2) / D, z.softmax(1)
    (wanted,) = torch.autograd.grad(torch.einsum("bj,bjk,bk->", p, gram, p), z)
    p = p.detach()
    h = 2 * (gram @ p[..., None])[..., 0]
    compare(
        answer(gram, p),
        wanted,
        {
            "that is dL/dp: it still has to go through the softmax": h,
            "a factor 2 is missing: p stands twice in the loss": wanted / 2,
            "subtract the mean under p, not the plain mean: sum_k p_k h_k": p * (h - h.mean(1, keepdim=True)),
            "the factor p_i is missing": h - (p * h).sum(1, keepdim=True),
        },
    )


def check_rate(answer: Callable) -> None:
    """The step that moves the margin of the median image by delta: delta / median of the products."""
    B, delta = 2 * random.randint(3, 12) + 1, random.uniform(0.3, 3.0)
    squared, slope = torch.rand(B).double() * 100 + 1, torch.rand(B).double() * 1e-3 + 1e-5
    compare(
        answer(squared, slope, delta),
        delta / (squared * slope).median(),
        {
            "take the median over images, not the mean: a few have gradients a hundred times larger": delta
            / (squared * slope).mean(),
            "multiply before you take the median: both numbers belong to one image": delta
            / (squared.median() * slope.median()),
            "the margin moves by rate x product: divide delta by it": delta * (squared * slope).median(),
            "the first number is the squared norm already": delta / (squared**2 * slope).median(),
        },
        tolerance=1e-6,
    )
