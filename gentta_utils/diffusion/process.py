"""Diffusion in flat functions: schedules, forward process, conversions, loss, DDPM and DDIM steps, respacing.

Everything is written against `eps_hat = denoiser(x_t, t, cond)` and one float tensor `alphas_cumprod` (T,), the
abar of the papers, kept in float32 or float64 always. t is 0-based (papers count from 1) and is the *original* index
also when a sampler keeps only some levels. Images and latents are (B, C, H, W), t is (B,) int64.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from ..common.types import Answers, Batch, Index, Levels, PerImage
from ..common.validate import Count, Fraction, checked, guarded

EpsModel = Callable[..., Tensor]  # (x_t (B, C, H, W), t (B,), cond) -> eps_hat (B, C, H, W)


@runtime_checkable
class Conditioned(Protocol):
    """An `EpsModel` that knows its schedule (T,), its number of conditions and the shape of what it denoises."""

    alphas_cumprod: Tensor
    classes: int
    shape: tuple

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor: ...


# --- schedules -------------------------------------------------------------------------------------------------------


@checked
def linear_betas(T: Count = 1000, start: Fraction = 1e-4, end: Fraction = 0.02) -> Levels:
    """Ho et al. (2020), section 4: betas (T,) float64; used by DDPM, ADM 256 and DiT."""
    return torch.linspace(start, end, T, dtype=torch.float64)


@checked
def alphas_cumprod_of(betas: Levels) -> Levels:
    """abar_t = prod_{s<=t} (1 - beta_s), (T,), in the precision of `betas`."""
    return torch.cumprod(1 - betas, dim=0)


def _check_timesteps(values: Tensor, t: Tensor, like: Tensor) -> None:
    if t.numel() and not 0 <= int(t.min()) <= int(t.max()) < len(values):
        raise ValueError(f"t from {int(t.min())} to {int(t.max())}: choose timesteps from 0 to {len(values) - 1}")


@guarded(_check_timesteps)
def expand(values: Levels, t: Index, like: Shaped[Tensor, "B *dims"]) -> Shaped[Tensor, "B *ones"]:
    """values[t] shaped (B, 1, ..., 1) so that it broadcasts against `like` (B, ...).

    Roots and differences are taken of `values` before this call, in their own precision: in half precision abar is 1 at
    small t and nothing is left of 1 - abar.

    Raises ValueError for a timestep that the schedule does not have."""
    return values.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


# --- forward process and conversions ---------------------------------------------------------------------------------


@checked
def add_noise(x0: Batch, t: Index, eps: Batch, alphas_cumprod: Levels) -> Batch:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al., eq. 4)."""
    return expand(alphas_cumprod.sqrt(), t, x0) * x0 + expand((1 - alphas_cumprod).sqrt(), t, x0) * eps


@checked
def eps_to_x0(eps: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """x0_hat = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
    return (x_t - expand((1 - alphas_cumprod).sqrt(), t, x_t) * eps) / expand(alphas_cumprod.sqrt(), t, x_t)


@checked
def x0_to_eps(x0: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """eps = (x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t), the inverse of `eps_to_x0`."""
    return (x_t - expand(alphas_cumprod.sqrt(), t, x_t) * x0) / expand((1 - alphas_cumprod).sqrt(), t, x_t)


@checked
def eps_to_v(eps: Batch, x0: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0 (Salimans and Ho, 2022)."""
    return expand(alphas_cumprod.sqrt(), t, x0) * eps - expand((1 - alphas_cumprod).sqrt(), t, x0) * x0


@checked
def v_to_eps(v: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t."""
    return expand(alphas_cumprod.sqrt(), t, x_t) * v + expand((1 - alphas_cumprod).sqrt(), t, x_t) * x_t


@checked
def to_eps(output: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels, prediction_type: str) -> Batch:
    """The noise that a network's output stands for; `prediction_type` as in the schedulers of diffusers."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return v_to_eps(output, x_t, t, alphas_cumprod)
    if prediction_type == "sample":
        return x0_to_eps(output, x_t, t, alphas_cumprod)
    raise ValueError(f"unknown prediction_type {prediction_type!r}: use epsilon, v_prediction or sample")


# --- losses ----------------------------------------------------------------------------------------------------------


@checked
def eps_error(eps_hat: Batch, eps: Batch) -> PerImage:
    """Mean over all dimensions of (eps_hat - eps)^2, one number per image: (B,)."""
    return (eps_hat - eps).square().flatten(1).mean(1)


@checked
def diffusion_loss(
    denoiser: EpsModel, x0: Batch, t: Index, eps: Batch, cond: Answers | None, alphas_cumprod: Levels
) -> PerImage:
    """L_simple for given draws, (B,): |eps_hat(x_t, t, cond) - eps|^2 / dimensions (Ho et al., eq. 14)."""
    x_t = add_noise(x0, t, eps, alphas_cumprod)
    return eps_error(denoiser(x_t, t, cond), eps)
