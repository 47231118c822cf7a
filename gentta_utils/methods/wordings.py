"""Prompts in several wordings: which one stands for the classes while an image is adapted to.

Token states of different sentences must not be averaged, so one wording at a time is the condition: p over K classes
is spread into its block of the M * K conditions of `TextUNet.for_wordings`.

Card: docs/methods/clip_and_text.md
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Answers, Images, Index, Probs
from ..diffusion.pairs import draw_pairs
from ..diffusion.process import add_noise, eps_error

WORDINGS = ("drawn", "read", "wrong")


def spread(p: Probs, wording: Index, M: int) -> Float[Tensor, "B MK"]:
    """p (B, K) in the block of each image's wording (B,), zero elsewhere, with its gradient: (B, M * K)."""
    return p if M == 1 else (F.one_hot(wording, M)[..., None] * p[:, None]).flatten(1)


def block(wording: Index, K: int) -> Int[Tensor, "B K"]:
    """The conditions (B, K) of each image's wording (B,)."""
    return wording[:, None] * K + torch.arange(K, device=wording.device)


def conditions(denoiser, p: Answers, wording: Index) -> tuple[Float[Tensor, "B MK *map"], Int[Tensor, "B K"] | None]:
    """p over all of the denoiser's conditions by each image's wording (B,), and which may be above zero; None: all."""
    M = denoiser.wordings
    return (p, None) if M == 1 else (spread(p, wording, M), block(wording, p.shape[1]))


@torch.no_grad()
def read(denoiser, x0: Images, p: Probs, ids: Index, s) -> Index:
    """The wording (B,) whose mixed condition predicts the noise of each image best.

    All M see the same `s.wording_pairs` pairs: M * wording_pairs forward evaluations per image."""
    n, M = s.wording_pairs, denoiser.wordings
    pairs = draw_pairs(ids, n, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "wording")
    t, eps = (v.to(x0.device) for v in pairs)
    rows = [torch.arange(size, device=x0.device) for size in (len(x0), M, n)]
    errors = []
    for part in torch.cartesian_prod(*rows).split(s.micro_batch):
        b, m, j = part.unbind(1)
        x_t = add_noise(x0[b], t[b, j], eps[b, j], denoiser.alphas_cumprod)
        errors.append(eps_error(denoiser(x_t, t[b, j], spread(p[b], m, M)), eps[b, j]))
    return torch.cat(errors).view(len(x0), M, n).mean(2).argmin(1)


def choose(denoiser, x0: Images, p: Answers, ids: Index, s, step: int) -> Index:
    """The wording (B,) of each image, by `s.wording`, at this update.

    "drawn": one for all images, from the seed and the update alone. "read": the one that explains the image best under
    p (B, K). "wrong": another one than that, drawn by the image's id, with the evaluations that reading takes."""
    M = denoiser.wordings
    if M == 1:
        return torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    if s.wording == "drawn":
        drawn = torch.randint(M, (1,), generator=generator(s.seed, 0, "wording", step))
        return drawn.expand(len(x0)).to(x0.device)
    best = read(denoiser, x0, p, ids, s)
    if s.wording == "read":
        return best
    ahead = [1 + int(torch.randint(M - 1, (1,), generator=generator(s.seed, i, "wrong wording"))) for i in ids.tolist()]
    return (best + torch.tensor(ahead, device=x0.device)) % M
