"""Reverse processes: respaced levels, steps of DDPM and DDIM, and the loop over them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Batch, Index, Levels, Probs
from ..common.validate import Count, Fraction, checked, guarded
from .process import EpsModel

# --- sampling --------------------------------------------------------------------------------------------------------


@checked
def respaced(n: int, T: Count = 1000) -> Int[Tensor, " n"]:
    """n of T timesteps, rising. A fractional stride (T-1)/(n-1), rounded, keeps the first and the last (Dhariwal and
    Nichol, 2021)."""
    if not 1 <= n <= T:
        raise ValueError(f"n={n} levels asked for: choose 1 to {T}")
    return (torch.arange(n, dtype=torch.float64) * ((T - 1) / max(n - 1, 1))).round().long()


@checked
def previous(timesteps: Int[Tensor, " n"], t: int) -> int:
    """The kept level below t, or -1 for the clean image."""
    below = timesteps[timesteps < t]
    return int(below[-1]) if len(below) else -1


def _check_levels(alphas_cumprod: Tensor, t: int, t_prev: int, like: Tensor) -> None:
    if not -1 <= t_prev < t < len(alphas_cumprod) or t < 0:
        raise ValueError(f"t={t}, t_prev={t_prev}: choose -1 <= t_prev < t < {len(alphas_cumprod)}")


def _check_noise(x_t, eps_hat, t, t_prev, alphas_cumprod, eta: float = 0.0, noise: Tensor | None = None, clip=True):
    if eta and noise is None:
        raise ValueError(f"eta={eta} adds noise: give it")


@guarded(_check_levels)
def _levels(alphas_cumprod: Tensor, t: int, t_prev: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """abar at t and at the level below it (1 for the clean image), as scalars on the device of `like`."""
    abar = alphas_cumprod.to(like.device, torch.promote_types(alphas_cumprod.dtype, like.dtype))
    return abar[t], abar[t_prev] if t_prev >= 0 else torch.ones_like(abar[t])


@checked
def predicted_x0(
    x_t: Float[Tensor, "*dims"], eps_hat: Float[Tensor, "*dims"], abar: Float[Tensor, "..."], clip: bool
) -> Float[Tensor, "*dims"]:
    """x0_hat from eps_hat, clipped to [-1, 1] if asked."""
    x0 = (x_t - (1 - abar).sqrt() * eps_hat) / abar.sqrt()
    return x0.clamp(-1, 1) if clip else x0


@checked
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


@checked
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


@checked
@guarded(_check_noise)
def ddim_step(
    x_t: Float[Tensor, "*dims"],
    eps_hat: Float[Tensor, "*dims"],
    t: int,
    t_prev: int,
    alphas_cumprod: Levels,
    eta: Fraction = 0.0,
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


@checked
@torch.no_grad()
def sample(
    denoiser: EpsModel,
    x_t: Batch,
    timesteps: Int[Tensor, " n"],
    cond: Probs | None,
    alphas_cumprod: Levels,
    eta: Fraction = 0.0,
    clip: bool = True,
    ids: Index | None = None,
    seed: int = 0,
) -> Batch:
    """Walk down all levels of `timesteps` (rising) from x_t (B, ...) at the highest; returns x0 (B, ...).

    A shorter `timesteps` is a partial run in the manner of SDEdit: start from `add_noise(x0, timesteps[-1], ...)`.
    With eta > 0 each image (0 .. B-1, or `ids`) draws its own noise: its sample does not depend on its neighbours."""
    if not len(timesteps) or bool((timesteps.diff() <= 0).any()):
        raise ValueError("timesteps are one or more, rising, as of `respaced`")
    ids = torch.arange(len(x_t)) if ids is None else ids
    for t in reversed(timesteps.tolist()):
        eps_hat = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device), cond)
        noise = None
        if eta:
            drawn = [torch.randn(x_t.shape[1:], generator=generator(seed, i, "sample", t)) for i in ids.tolist()]
            noise = torch.stack(drawn).to(x_t)
        x_t = ddim_step(x_t, eps_hat, t, previous(timesteps, t), alphas_cumprod, eta, noise, clip)
    return x_t
