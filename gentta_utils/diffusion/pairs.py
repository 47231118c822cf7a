"""The (t, eps) pairs on which a loss is estimated, drawn for each image from its own generator."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Index
from ..common.validate import Count, Window, checked

TIMESTEP_MODES = ("stratified", "even", "iid", "fixed")
NOISE_MODES = ("fresh", "antithetic", "shared")


@checked
def draw_timesteps(n: Count, window: Window, mode: str, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Always exactly n timesteps (n,) int64 in [low, high) of `window`.

    "stratified": one in each n-th of the window, independently within it. "even": a stride with one random offset.
    "iid": uniform, as published. "fixed": the low end of the window, n times."""
    low, high = window
    if mode == "iid":
        return torch.randint(low, high, (n,), generator=generator)
    if mode == "fixed":
        return torch.full((n,), low)
    if mode not in TIMESTEP_MODES:
        raise ValueError(f"unknown timesteps={mode!r}: choose one of {', '.join(TIMESTEP_MODES)}")
    jitter = torch.rand(n if mode == "stratified" else 1, generator=generator, dtype=torch.float64)
    return (low + (torch.arange(n) + jitter) / n * (high - low)).long().clamp_max(high - 1)


@checked
def draw_noise(n: Count, shape: tuple, mode: str, generator: torch.Generator) -> Float[Tensor, "n *shape"]:
    """n noises (n, *shape) float32. "fresh": independent. "antithetic": pairs eps, -eps. "shared": one for all n."""
    if mode not in NOISE_MODES:
        raise ValueError(f"unknown noise={mode!r}: choose one of {', '.join(NOISE_MODES)}")
    free = {"fresh": n, "antithetic": (n + 1) // 2, "shared": 1}[mode]
    eps = torch.randn(free, *shape, generator=generator)
    if mode == "antithetic":
        return torch.stack([eps, -eps], 1).flatten(0, 1)[:n]
    return eps.expand(n, *shape) if mode == "shared" else eps


@checked
def draw_pairs(
    ids: Index,
    n: Count,
    shape: tuple[Count, ...],
    window: Window = (0, 1000),
    timesteps: str = "stratified",
    noise: str = "fresh",
    seed: int = 0,
    purpose: str = "pairs",
    step: int = 0,
) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n *shape"]]:
    """The n (t, eps) pairs of each image with these ids (B,): t (B, n) int64 and eps (B, n, *shape) float32."""
    if not len(ids):
        raise ValueError("no pair is asked for: give the id of one image or more")
    t, eps = [], []
    for i in ids.tolist():
        t.append(draw_timesteps(n, window, timesteps, generator(seed, i, f"{purpose}/t", step)))
        eps.append(draw_noise(n, shape, noise, generator(seed, i, f"{purpose}/eps", step)))
    return torch.stack(t), torch.stack(eps)
