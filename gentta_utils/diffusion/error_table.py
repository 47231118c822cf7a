"""The error table: for each image and (t, eps) pair the K x K Gram matrix of the classes' noise errors.

With d_k = eps_phi(x_t, t, k) - eps the entry (j, k) is <d_j, d_k> / dimensions. Its diagonal is the error of each
class, so one table is the Diffusion Classifier at any number of pairs, window and temperature. And because mixing
*outputs* gives |sum_k p_k d_k|^2 = p' Gram p, it is every output-mixing variant too, at no further cost. float32:
float16 rounds away the differences between classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..common.cache import in_parts
from ..common.types import Index
from ..common.validate import Count, Window, check_ids, checked
from .pairs import draw_pairs
from .process import Conditioned, add_noise

LOSSES = ("l2", "l1")  # mean squared or mean absolute error of the noise


@dataclass(frozen=True)
class ErrorTable:
    """Gram matrices of B images and N pairs; pairs are in rising order of t when the draws are stratified."""

    gram: Float[Tensor, "B N k k"]  # float32, mean over dimensions; k = K unless only some classes were asked for
    t: Int[Tensor, "B N"]
    classes: Int[Tensor, "B k"]  # which class each row of the Gram matrix stands for

    @property
    def error(self) -> Float[Tensor, "B N k"]:
        """err[image, pair, class], (B, N, k): mean squared error per dimension; absolute in a table with loss "l1"."""
        return self.gram.diagonal(dim1=-2, dim2=-1)

    def thin(self, n: int) -> "ErrorTable":
        """n of the N pairs, evenly spread over the strata. Raises ValueError unless n divides N."""
        keep = evenly(n, self.t.shape[1])
        return ErrorTable(self.gram[:, keep], self.t[:, keep], self.classes)

    def scores(self, window: tuple[int, int] = (0, 1000)) -> Float[Tensor, "B k"]:
        """Mean error of each class over the pairs with t in [low, high), (B, k): the lowest is the predicted class."""
        inside = ((self.t >= window[0]) & (self.t < window[1])).float()
        if not bool(inside.any(1).all()):
            raise ValueError(f"no pair of some image lies in the window {window}: widen it or draw more pairs")
        return (self.error * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)

    def read(self, window: tuple[int, int] = (0, 1000)) -> Int[Tensor, " B"]:
        """The class with the lowest score (B,)."""
        best = self.scores(window).argmin(1, keepdim=True)
        return self.classes.to(best.device).gather(1, best)[:, 0]


@checked
def plausible(logits: Float[Tensor, "B K"], k: Count = 10) -> Int[Tensor, "B k"]:
    """The k best classes of each row of logits (B, K), in rising order: all of them where there are no more than k."""
    return logits.topk(min(k, logits.shape[1])).indices.sort().values


@checked
def evenly(n: Count, N: Count) -> Int[Tensor, " n"]:
    """Indices of n of N pairs, evenly spread. Raises ValueError unless n divides N."""
    if N % n:
        raise ValueError(f"{n} pairs asked of a table of {N}: choose a divisor")
    return torch.arange(n) * (N // n) + N // n // 2


ROWS_OF_NUMBERS = 300_000  # a hundred rows of 3 x 32 x 32, what fits a cache with all that a network makes of them


@torch.no_grad()
def gram(
    denoiser,
    x0: Float[Tensor, "M C H W"],
    t: Int[Tensor, " M"],
    eps: Float[Tensor, "M C H W"],
    classes: Int[Tensor, "M k"] | None = None,
    micro_batch: int = 0,
    loss: str = "l2",
) -> Float[Tensor, "M k k"]:
    """Gram matrices (M, k, k) float32 of M given pairs: x0 and eps (M, C, H, W), t (M,), classes (M, k) or all K.

    With loss "l1" the diagonal holds the mean of |d_k| and all else is NaN: there is no such form of a mix of classes.
    Costs k forward evaluations per pair. `micro_batch` rows of the denoiser at once; 0: a hundred, or more where a row
    is so small that a call would cost more than its numbers. Raises ValueError for another loss."""
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: choose one of {', '.join(LOSSES)}")
    micro_batch = micro_batch or max(100, ROWS_OF_NUMBERS // torch.Size(denoiser.shape).numel())
    if classes is None:
        classes = torch.arange(denoiser.classes, device=x0.device).expand(len(x0), -1)
    k, out = classes.shape[1], []
    for rows in torch.arange(len(x0), device=x0.device).split(max(1, micro_batch // k)):
        x_t = add_noise(x0[rows], t[rows], eps[rows], denoiser.alphas_cumprod)
        cond = F.one_hot(classes[rows].flatten(), denoiser.classes).to(x0.dtype)  # (n * k, K)
        eps_hat = denoiser(x_t.repeat_interleave(k, 0), t[rows].repeat_interleave(k), cond)
        d = (eps_hat.unflatten(0, (-1, k)) - eps[rows, None]).flatten(2)  # (n, k, D)
        if loss == "l2":
            out.append(d @ d.transpose(1, 2) / d.shape[-1])
        else:
            missing = d.new_full((len(d), k, k), torch.nan)
            out.append(missing.diagonal_scatter(d.abs().mean(2), dim1=1, dim2=2))
    return torch.cat(out)


@checked
def error_table(
    denoiser: Conditioned,
    images: Float[Tensor, "B C H W"],
    ids: Index,
    pairs: Count = 48,
    window: Window = (0, 1000),
    timesteps: str = "stratified",
    noise: str = "fresh",
    seed: int = 0,
    classes: Int[Tensor, "B k"] | None = None,
    cache: Path | None = None,
    chunk: Count = 10,
    loss: str = "l2",
) -> ErrorTable:
    """The table of images (B, 3, S, S) in [0, 1] with these ids (B,), over all classes or over `classes` (B, k).

    With `loss` "l1" the diagonal of the Gram matrices holds mean absolute errors, and nothing stands beside it: `gram`.

    With `cache` (a folder), every `chunk` of images is kept: `cache.in_parts`.

    Raises ValueError for ids that are not one whole number for each image, for a class that the denoiser does not know,
    and for an unknown `timesteps`, `noise` or `loss`."""
    check_ids(ids, len(images))
    if classes is None:
        classes = torch.arange(denoiser.classes).expand(len(images), -1)
    elif not 0 <= int(classes.min()) <= int(classes.max()) < denoiser.classes:
        raise ValueError(
            f"classes are from 0 to {denoiser.classes - 1}: these go from {int(classes.min())} to {int(classes.max())}"
        )

    def work(rows: Index) -> dict[str, Tensor]:
        x0 = denoiser.encode(images[rows])
        t, eps = draw_pairs(ids[rows], pairs, denoiser.shape, window, timesteps, noise, seed, purpose="table")
        each = torch.arange(len(rows)).repeat_interleave(pairs)  # the image of each pair
        moved = [v.to(x0.device) for v in (t.flatten(), eps.flatten(0, 1), classes[rows][each])]
        g = gram(denoiser, x0[each.to(x0.device)], *moved, loss=loss).cpu()
        return {"gram": g.unflatten(0, (len(rows), pairs)), "t": t}

    parts = in_parts(work, ids, cache, chunk, "error table", "chunk")
    return ErrorTable(torch.cat([p["gram"] for p in parts]), torch.cat([p["t"] for p in parts]), classes)
