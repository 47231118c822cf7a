"""One reverse loop for all methods that change the input: DiffPure, ILVR, DDA and SDA."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Images, Index
from ..common.validate import Checked, Count, Fraction, between, checked
from .guidance import Energy
from .process import add_noise
from .sampling import ddim_step, ddpm_step, learned_variance, predicted_x0, previous, respaced

Level = Annotated[int, between(-1, math.inf)]  # a timestep, or -1 for the clean image


@dataclass(frozen=True)
class Settings(Checked):
    """What all of these methods have in common."""

    start: Level = 149  # original t at which the reverse process begins; -1: only encode and decode
    steps: Count = 50  # denoiser evaluations, at levels even from t = 0 to start
    of: Count | None = None  # take the lowest `steps` of so many levels of the whole schedule, as published
    eta: Fraction = 1.0  # 1: the noise of DDPM at each step, 0: none (DDIM)
    variance: Literal["learned", "fixed"] = "learned"  # at eta 1, where learned, as published; "fixed": beta_tilde
    clip: bool = True  # x0_hat to [-1, 1]; not for latents
    seed: int = 0
    images_at_once: Count = 25  # bounds the memory
    fixed_chunk: bool = False  # pad every batch to one shape: results bit-equal whatever the batch size

    def __post_init__(self):
        super().__post_init__()
        if self.of is None and self.steps > self.start + 1 > 0:
            raise ValueError(f"steps={self.steps}: choose at most {self.start + 1}, or a higher start")


FAR = 1e3  # samples of data in [-1, 1], or of latents, stay below this by far


def levels_of(s: Settings, T: int = 1000) -> Int[Tensor, " n"]:
    """The original timesteps at which the denoiser is evaluated, rising (n,); none for start = -1.

    Raises ValueError where `start` is not among the T levels, or not the highest that `of` leaves."""
    if s.start >= T:
        raise ValueError(f"start={s.start}: choose at most {T - 1}, this denoiser has {T} timesteps")
    if s.start < 0:
        return torch.arange(0)
    if s.of is None:
        return torch.tensor([s.start]) if s.steps == 1 else respaced(s.steps, s.start + 1)
    kept = respaced(s.of, T)[: s.steps]
    if s.start != kept[-1]:
        raise ValueError(f"start={s.start}: choose {int(kept[-1])}, the highest of {s.steps} of {s.of} levels")
    return kept


@checked
def noise_for(ids: Index, shape: tuple[Count, ...], s: Settings, purpose: str, t: int) -> Float[Tensor, "B *shape"]:
    """Standard normal noise (B, *shape) on the CPU, each image's own."""
    return torch.stack([torch.randn(shape, generator=generator(s.seed, i, purpose, t)) for i in ids.tolist()])


Correct = Callable[[Tensor, int, int, int], Tensor]  # (x_prev, t, t_prev, index of the step) -> x_prev


def walk(
    denoiser,
    x0: Images,
    ids: Index,
    s: Settings,
    energies: dict[str, Energy] | None = None,
    correct: Correct | None = None,
    raw: bool = False,
    noise_level: int | None = None,
    x_start: Images | None = None,
    purpose: str = "reverse",
    longest: float = 0.0,
) -> Images:
    """x0 (B, C, H, W) in the denoiser's own space, diffused to `s.start` and brought back: (B, C, H, W).

    Args:
        energies: each under the name of the setting that scales it. The gradient of their sum with respect to x_t is
            subtracted after each step; costs a backward pass through the denoiser, never a gradient of its weights.
        correct: replaces what a step returns, after the energies.
        raw: the energies see x0_hat before it is clipped, so that they have a gradient also where it is.
        noise_level: t up to which x0 is noised, `s.start` where None.
        x_start: begin with this instead of noised x0.
        longest: each image's gradient is shortened to this length where it is longer; 0: never.

    Raises FloatingPointError where a sample or an estimate is not finite, with the image, the term at fault and what
    helps."""
    energies = energies or {}
    abar, kept = denoiser.alphas_cumprod, levels_of(s, len(denoiser.alphas_cumprod))
    if not len(kept):
        return x0
    if x_start is None:
        at = torch.full((len(x0),), s.start if noise_level is None else noise_level, device=x0.device)
        x_start = add_noise(x0, at, noise_for(ids, x0.shape[1:], s, f"{purpose}/start", s.start).to(x0), abar)
    x_t = x_start
    for index, t in reversed(list(enumerate(kept.tolist()))):
        t_prev = previous(kept, t)
        eps_hat, v, push = _predict(denoiser, x_t, t, energies, s, raw)
        if longest and energies:
            push = push * (longest / _length(push).clamp_min(longest))
        noise = noise_for(ids, x0.shape[1:], s, purpose, t).to(x0) if s.eta else None
        if v is not None:
            mean = ddpm_step(x_t, eps_hat, t, t_prev, abar, torch.zeros_like(noise), s.clip)
            x_prev = mean + learned_variance(v, t, t_prev, abar).sqrt() * noise - push
        else:
            x_prev = ddim_step(x_t, eps_hat, t, t_prev, abar, s.eta, noise, s.clip) - push
        if correct is not None:
            x_prev = correct(x_prev, t, t_prev, index)
        both = torch.isfinite(x_prev) & torch.isfinite(eps_hat)  # clipping hides an estimate that is infinite
        finite = both.flatten(1).all(1).cpu()
        if not bool(finite.all()):
            why = _why(denoiser, x_t, t, eps_hat, v, energies, s, raw)
            raise FloatingPointError(f"purification of image {int(ids[~finite][0])} diverged at t={t}: {why}")
        x_t = x_prev
    return x_t


def _length(x: Images) -> Float[Tensor, "B 1 1 1"]:
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _predict(
    denoiser, x_t: Images, t: int, energies: dict[str, Energy], s: Settings, raw: bool
) -> tuple[Tensor, Tensor | None, Tensor | float]:
    """eps_hat, what the denoiser says of the variance (None: nothing, or it is not asked), and the gradient of all
    energies with respect to x_t (0 without one)."""
    at = torch.full((len(x_t),), t, device=x_t.device)
    learned = s.variance == "learned" and s.eta == 1 and getattr(denoiser, "learned_variance", False)

    def both() -> tuple[Tensor, Tensor | None]:
        return denoiser.with_variance(x_t, at) if learned else (denoiser(x_t, at, None), None)

    if not energies:
        with torch.no_grad():
            return *both(), 0.0
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        eps_hat, v = both()
        x0_hat = predicted_x0(x_t, eps_hat, denoiser.alphas_cumprod[t].to(x_t), s.clip and not raw)
        total = sum(energy(x0_hat, t).sum() for energy in energies.values())
        push = torch.autograd.grad(total, x_t)[0]
        return eps_hat.detach(), None if v is None else v.detach(), push


def _why(
    denoiser,
    x_t: Images,
    t: int,
    eps_hat: Images,
    v: Images | None,
    energies: dict[str, Energy],
    s: Settings,
    raw: bool,
) -> str:
    """Which term of the step from x_t was not finite, and what helps."""

    def finite(x: Tensor) -> bool:
        return bool(torch.isfinite(x).all())

    scales, size = " and ".join(energies), float(x_t.abs().max())
    if size > FAR and energies:
        return f"guidance had pushed the sample to {size:.0e}: lower {scales}"
    for what, estimate in {"noise": eps_hat, "variance": v}.items():
        if estimate is not None and not finite(estimate):
            half = getattr(denoiser, "precision", "fp32") != "fp32"
            advice = "load it with precision='fp32'" if half else "look at its weights"
            return f"the {what} that the diffusion model estimates is not finite: {advice}"
    x0_hat = predicted_x0(x_t, eps_hat, denoiser.alphas_cumprod[t].to(x_t), s.clip and not raw)
    for name, energy in energies.items():
        with torch.enable_grad():
            value = energy(x0_hat.requires_grad_(), t)
            (slope,) = torch.autograd.grad(value.sum(), x0_hat)
        if bool(value.isinf().any()):
            return f"the term of {name} is too large: lower it"
        if not (finite(value) and finite(slope)):
            what = "gradient" if finite(value) else "value"
            return f"the term of {name} has no {what} at this image: set {name}=0, a lower one does not help"
    return "the step is too large" + (f": lower {scales}" if energies else "")
