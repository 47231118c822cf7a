"""Diffusion in flat functions: schedules, forward process, conversions, loss, DDPM and DDIM steps, respacing.

Everything is written against `eps_hat = denoiser(x_t, t, cond)` and one float tensor `alphas_cumprod` (T,), the
abar of the papers, kept in float32 or float64 always. t is 0-based (papers count from 1) and is the *original* index
also when a sampler keeps only some levels. Images and latents are (B, C, H, W), t is (B,) int64.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from .arrays import Batch, Index, Levels, PerImage, Probs
from .draws import generator

EpsModel = Callable[..., Tensor]  # (x_t (B, C, H, W), t (B,), cond) -> eps_hat (B, C, H, W)


# --- schedules -------------------------------------------------------------------------------------------------------


def linear_betas(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Levels:
    """Ho et al. (2020), section 4: betas (T,) float64; used by DDPM, ADM 256 and DiT."""
    return torch.linspace(start, end, T, dtype=torch.float64)


def scaled_linear_betas(T: int = 1000, start: float = 0.00085, end: float = 0.012) -> Levels:
    """Linear in sqrt(beta), betas (T,) float64; used by Stable Diffusion 1.x and 2.x."""
    return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2


def cosine_betas(T: int = 1000, s: float = 0.008, largest: float = 0.999) -> Levels:
    """Nichol and Dhariwal (2021), eq. 17: betas (T,) float64 from abar = cos^2, clipped."""
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp_max(largest)


def alphas_cumprod_of(betas: Levels) -> Levels:
    """abar_t = prod_{s<=t} (1 - beta_s), (T,), in the precision of `betas`."""
    return torch.cumprod(1 - betas, dim=0)


def expand(values: Levels, t: Index, like: Shaped[Tensor, "B *dims"]) -> Shaped[Tensor, "B *ones"]:
    """values[t] shaped (B, 1, ..., 1) so that it broadcasts against `like` (B, ...).

    Roots and differences are taken of `values` before this call, in their own precision: in half precision abar is 1 at
    small t and nothing is left of 1 - abar."""
    return values.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


# --- forward process and conversions ---------------------------------------------------------------------------------


def add_noise(x0: Batch, t: Index, eps: Batch, alphas_cumprod: Levels) -> Batch:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al., eq. 4)."""
    return expand(alphas_cumprod.sqrt(), t, x0) * x0 + expand((1 - alphas_cumprod).sqrt(), t, x0) * eps


def eps_to_x0(eps: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """x0_hat = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
    return (x_t - expand((1 - alphas_cumprod).sqrt(), t, x_t) * eps) / expand(alphas_cumprod.sqrt(), t, x_t)


def x0_to_eps(x0: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """eps = (x_t - sqrt(abar_t) x0) / sqrt(1 - abar_t), the inverse of `eps_to_x0`."""
    return (x_t - expand(alphas_cumprod.sqrt(), t, x_t) * x0) / expand((1 - alphas_cumprod).sqrt(), t, x_t)


def eps_to_v(eps: Batch, x0: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x0 (Salimans and Ho, 2022)."""
    return expand(alphas_cumprod.sqrt(), t, x0) * eps - expand((1 - alphas_cumprod).sqrt(), t, x0) * x0


def v_to_eps(v: Batch, x_t: Batch, t: Index, alphas_cumprod: Levels) -> Batch:
    """eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t."""
    return expand(alphas_cumprod.sqrt(), t, x_t) * v + expand((1 - alphas_cumprod).sqrt(), t, x_t) * x_t


def to_eps(
    output: Batch,
    x_t: Batch,
    t: Index,
    alphas_cumprod: Levels,
    prediction_type: str,
) -> Batch:
    """The noise that a network's output stands for; `prediction_type` as in the schedulers of diffusers."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return v_to_eps(output, x_t, t, alphas_cumprod)
    if prediction_type == "sample":
        return x0_to_eps(output, x_t, t, alphas_cumprod)
    raise ValueError(f"unknown prediction_type {prediction_type!r}: use epsilon, v_prediction or sample")


# --- losses ----------------------------------------------------------------------------------------------------------


def eps_error(eps_hat: Batch, eps: Batch) -> PerImage:
    """Mean over all dimensions of (eps_hat - eps)^2, one number an image: (B,)."""
    return (eps_hat - eps).square().flatten(1).mean(1)


def diffusion_loss(
    denoiser: EpsModel,
    x0: Batch,
    t: Index,
    eps: Batch,
    cond: Probs | None,
    alphas_cumprod: Levels,
) -> PerImage:
    """L_simple for given draws, (B,): |eps_hat(x_t, t, cond) - eps|^2 / dimensions (Ho et al., eq. 14)."""
    x_t = add_noise(x0, t, eps, alphas_cumprod)
    return eps_error(denoiser(x_t, t, cond), eps)


def bound_weights(betas: Levels) -> Levels:
    """Weights (T,) which turn the *sum* of squared errors into the bound in nats, with sigma_t^2 = beta_tilde_t.

    w_t = beta_t^2 / (2 beta_tilde_t alpha_t (1 - abar_t)) (Ho et al., eq. 12); w_0 is infinite there, because
    beta_tilde_0 = 0: it is set to w_1."""
    abar = alphas_cumprod_of(betas)
    abar_prev = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    beta_tilde = betas * (1 - abar_prev) / (1 - abar)
    w = betas**2 / (2 * beta_tilde * (1 - betas) * (1 - abar))
    return torch.cat([w[1:2], w[1:]])


# --- sampling --------------------------------------------------------------------------------------------------------


def respaced(n: int, T: int = 1000, integer: bool = False) -> Int[Tensor, " n"]:
    """n of T timesteps, rising. A fractional stride (T-1)/(n-1), rounded, keeps the first and the last (Dhariwal and
    Nichol, 2021); with `integer` the stride is T // n and the last is not among them ("ddim50")."""
    if not 1 <= n <= T:
        raise ValueError(f"n={n} levels asked for: choose 1 to {T}")
    if integer:
        return torch.arange(n) * (T // n)
    return (torch.arange(n, dtype=torch.float64) * ((T - 1) / max(n - 1, 1))).round().long()


def previous(timesteps: Int[Tensor, " n"], t: int) -> int:
    """The kept level below t, or -1 for the clean image."""
    below = timesteps[timesteps < t]
    return int(below[-1]) if len(below) else -1


def _levels(alphas_cumprod: Tensor, t: int, t_prev: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """abar at t and at the level below it (1 for the clean image), as scalars on the device of `like`."""
    abar = alphas_cumprod.to(like.device, torch.promote_types(alphas_cumprod.dtype, like.dtype))
    return abar[t], abar[t_prev] if t_prev >= 0 else torch.ones_like(abar[t])


def predicted_x0(x_t: Tensor, eps_hat: Tensor, abar: Tensor, clip: bool) -> Tensor:
    """x0_hat from eps_hat, clipped to [-1, 1] if asked."""
    x0 = (x_t - (1 - abar).sqrt() * eps_hat) / abar.sqrt()
    return x0.clamp(-1, 1) if clip else x0


def ddpm_step(
    x_t: Float[Tensor, "*dims"],
    eps_hat: Float[Tensor, "*dims"],
    t: int,
    t_prev: int,
    alphas_cumprod: Levels,
    noise: Float[Tensor, "*dims"],
    clip: bool = True,
) -> Float[Tensor, "*dims"]:
    """One ancestral step t -> t_prev with the fixed small variance beta_tilde (Ho et al., eq. 6, 7).

    `noise` is standard normal, of the shape of x_t; it is not used on the way to the clean image (t_prev = -1)."""
    abar, abar_prev = _levels(alphas_cumprod, t, t_prev, x_t)
    alpha = abar / abar_prev  # of the respaced chain
    x0 = predicted_x0(x_t, eps_hat, abar, clip)
    mean = abar_prev.sqrt() * (1 - alpha) / (1 - abar) * x0 + alpha.sqrt() * (1 - abar_prev) / (1 - abar) * x_t
    variance = (1 - alpha) * (1 - abar_prev) / (1 - abar)
    return mean if t_prev < 0 else mean + variance.sqrt() * noise


def learned_variance(v: Float[Tensor, "*dims"], t: int, t_prev: int, alphas_cumprod: Levels) -> Float[Tensor, "*dims"]:
    """Variance of an ancestral step t -> t_prev from what a network learned of it (Nichol and Dhariwal, 2021, eq. 15).

    v in [-1, 1] interpolates, in the logarithm, between beta_tilde (-1) and beta (1) of the respaced chain. On the way
    to the clean image (t_prev = -1) no noise is added: 0."""
    if t_prev < 0:
        return torch.zeros_like(v)
    abar, abar_prev = _levels(alphas_cumprod, t, t_prev, v)
    beta = 1 - abar / abar_prev
    beta_tilde = beta * (1 - abar_prev) / (1 - abar)
    r = (v + 1) / 2
    return (r * beta.log() + (1 - r) * beta_tilde.log()).exp()


def ddim_step(
    x_t: Float[Tensor, "*dims"],
    eps_hat: Float[Tensor, "*dims"],
    t: int,
    t_prev: int,
    alphas_cumprod: Levels,
    eta: float = 0.0,
    noise: Float[Tensor, "*dims"] | None = None,
    clip: bool = True,
) -> Float[Tensor, "*dims"]:
    """One DDIM step (Song et al., 2021, eq. 12, 16); eta = 0 is deterministic, eta = 1 has the variance of DDPM."""
    abar, abar_prev = _levels(alphas_cumprod, t, t_prev, x_t)
    x0 = predicted_x0(x_t, eps_hat, abar, clip)
    eps_hat = (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()  # the noise that belongs to the clipped x0
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()
    x_prev = abar_prev.sqrt() * x0 + (1 - abar_prev - sigma**2).clamp_min(0).sqrt() * eps_hat
    return x_prev if eta == 0 else x_prev + sigma * noise


@torch.no_grad()
def sample(
    denoiser: EpsModel,
    x_t: Batch,
    timesteps: Int[Tensor, " n"],
    cond: Probs | None,
    alphas_cumprod: Levels,
    eta: float = 0.0,
    clip: bool = True,
    ids: Index | None = None,
    seed: int = 0,
) -> Batch:
    """Walk down all levels of `timesteps` (rising) from x_t (B, ...) at the highest; returns x0 (B, ...).

    A shorter `timesteps` is a partial run in the manner of SDEdit: start from `add_noise(x0, timesteps[-1], ...)`.
    With eta > 0 each image (0 .. B-1, or `ids`) draws its own noise: its sample does not depend on its neighbours."""
    ids = torch.arange(len(x_t)) if ids is None else ids
    for t in reversed(timesteps.tolist()):
        eps_hat = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device), cond)
        noise = None
        if eta:
            drawn = [torch.randn(x_t.shape[1:], generator=generator(seed, i, "sample", t)) for i in ids.tolist()]
            noise = torch.stack(drawn).to(x_t)
        x_t = ddim_step(x_t, eps_hat, t, previous(timesteps, t), alphas_cumprod, eta, noise, clip)
    return x_t
