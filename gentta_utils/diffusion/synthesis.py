"""Labelled images out of a class-conditional diffusion model: the first stage of SDA.

Card: docs/methods/sda.md
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..common.progress import progress
from ..common.randomness import generator
from ..common.types import Images, Index, Probs
from ..common.validate import Checked, Count, Fraction, NotNegative, checked
from .process import Conditioned, EpsModel
from .sampling import respaced, sample


@dataclass(frozen=True)
class Synthesis(Checked):
    """Defaults are the published ones."""

    cfg: NotNegative = 1.0  # classifier-free guidance; 1: none, at half the cost
    steps: Count = 250  # levels of the whole schedule
    eta: Fraction = 1.0  # 1: DDPM, 0: DDIM
    clip: bool = True  # x0_hat to [-1, 1]; not for latents
    seed: int = 0
    images_at_once: Count = 50  # bounds the memory


@checked
def classifier_free(denoiser: EpsModel, scale: float) -> EpsModel:
    """eps_null + s (eps_c - eps_null), Ho and Salimans (2021); on every channel, and the denoiser itself for s = 1."""
    if scale == 1:
        return denoiser

    def guided(x_t: Images, t: Index, cond: Probs) -> Images:
        null = denoiser(x_t, t, None)
        return null + scale * (denoiser(x_t, t, cond) - null)

    return guided


@checked
@torch.no_grad()
def synthesize(denoiser: Conditioned, labels: Index, ids: Index, settings: Synthesis | None = None) -> Images:
    """Task images (B, 3, S, S) in [0, 1] of the classes `labels` (B,).

    All draws belong to (seed, id): an image is the same whatever is made beside it. Raises ValueError for a label that
    the denoiser does not know."""
    s, K = settings or Synthesis(), denoiser.classes
    if not len(labels):
        raise ValueError("no image is asked for: give one label or more")
    if not 0 <= int(labels.min()) <= int(labels.max()) < K:
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())}: this denoiser has {K} classes")
    device, T, out = denoiser.alphas_cumprod.device, len(denoiser.alphas_cumprod), []
    model = classifier_free(denoiser, s.cfg)
    chunks = torch.arange(len(labels)).split(s.images_at_once)
    for rows in progress(chunks, desc="synthesis", unit="chunk", leave=False):
        drawn = [torch.randn(denoiser.shape, generator=generator(s.seed, i, "synthesis")) for i in ids[rows].tolist()]
        cond = F.one_hot(labels[rows], K).float().to(device)
        x0 = sample(
            model, torch.stack(drawn).to(device), respaced(s.steps, T), cond, denoiser.alphas_cumprod,
            s.eta, s.clip, ids[rows], s.seed,
        )  # fmt: skip
        out.append(denoiser.decode(x0).cpu())
    return torch.cat(out)
