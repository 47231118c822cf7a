"""Scores of maps against the truth, and whether a diffusion model tells a true map from a wrong one.

Segmentation is scored from confusion matrices, of one image or summed over a set: the mean over images and that over
the set are two numbers, and mean class accuracy (the paper's) and mean IoU may move apart. Depth is scored in metres,
after both maps are cut to [NEAR, FAR]. Answers smaller than the truth are enlarged first.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.functional.image import structural_similarity_index_measure

from ..common.types import Index, PerImage
from ..common.validate import checked
from ..diffusion.feedback import map_errors
from ..diffusion.pairs import draw_pairs
from ..models.dense import enlarged
from ..world.maps import FAR, NEAR, VOID

DELTA = 1.25
DEPTH_SCORES = ("ssim", "absrel", "rmse", "delta", "dee")
WINDOWS = ((20, 150), (150, 300), (300, 500), (500, 700), (700, 900))


@checked
def confusion(answer: Float[Tensor, "B K h w"], truth: UInt8[Tensor, "B S S"]) -> Int[Tensor, "B K K"]:
    """Pixels of each image by true class (rows) and predicted class (columns), void left out."""
    predicted = enlarged(answer, truth.shape[-1]).argmax(1)
    return torch.stack(
        [
            multiclass_confusion_matrix(p, y.long(), answer.shape[1], ignore_index=VOID)
            for p, y in zip(predicted, truth, strict=True)
        ]
    )


def mean_class_accuracy(counts: Int[Tensor, "*n K K"]) -> Float[Tensor, "*n"]:
    """Mean over the classes that are there of TP / (TP + FN), in percent, of confusion matrices (*n, K, K)."""
    right, there = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1)
    return 100 * (right / there).nanmean(-1)


def mean_iou(counts: Int[Tensor, "*n K K"]) -> Float[Tensor, "*n"]:
    """Mean over the classes that are there or predicted of TP / (TP + FN + FP), in percent."""
    right = counts.diagonal(dim1=-2, dim2=-1)
    return 100 * (right / (counts.sum(-1) + counts.sum(-2) - right)).nanmean(-1)


@checked
def depth_scores(answer: Float[Tensor, "B 1 h w"], truth: Float[Tensor, "B S S"]) -> dict[str, PerImage]:
    """Of each image (B,): "ssim" in percent (Gaussian window of 11 x 11, sigma 1.5, range FAR - NEAR), "absrel",
    "rmse" in metres, "delta" (share of pixels off by less than a factor of 1.25) and "dee" = (absrel - delta + 1) / 2.

    Diffusion-TTA reports SSIM."""
    y, truth = (v.clamp(NEAR, FAR) for v in (enlarged(answer, truth.shape[-1]), truth[:, None]))
    apart = (y - truth).flatten(1)
    absrel = (apart.abs() / truth.flatten(1)).mean(1)
    delta = (torch.maximum(y / truth, truth / y) < DELTA).float().flatten(1).mean(1)
    ssim = structural_similarity_index_measure(y, truth, sigma=1.5, data_range=FAR - NEAR, reduction="none")
    ssim = ssim.reshape(len(y))
    rmse = apart.square().mean(1).sqrt()
    return {"ssim": 100 * ssim, "absrel": absrel, "rmse": rmse, "delta": delta, "dee": (absrel - delta + 1) / 2}


def scored(answer: Tensor, truth: Tensor) -> np.ndarray:
    """What records keep of maps: `confusion` (N, K, K) for a truth of labels, for depth (N, 5) the `depth_scores` in
    the order of DEPTH_SCORES, float32."""
    if truth.is_floating_point():
        scores = depth_scores(answer, truth)
        return torch.stack([scores[name] for name in DEPTH_SCORES], 1).float().numpy()
    counts, pixels = confusion(answer, truth).numpy(), truth[0].numel()
    return counts.astype(np.uint16 if pixels < 2**16 else np.uint32)


@checked
def aligned(answer: Float[Tensor, "B 1 h w"], like: Float[Tensor, "B h w"]) -> Float[Tensor, "B 1 h w"]:
    """a y + b of each image, by least squares nearest to `like`: for networks whose depth has no scale of its own."""
    y, target = answer.flatten(1).double(), like.flatten(1).double()
    A = torch.stack([y, torch.ones_like(y)], -1)  # (B, h*w, 2)
    coefficients = torch.linalg.pinv(A) @ target[..., None]  # of a flat answer: the mean
    return (A @ coefficients).view_as(answer).to(answer.dtype)


# --- reading ---------------------------------------------------------------------------------------------------------


def reading(
    denoiser,
    images: Float[Tensor, "B 3 S S"],
    ids: Index,
    true: Float[Tensor, "B K h w"],
    wrong: dict[str, Float[Tensor, "B K v u"]],
    pairs: int = 12,
    windows: tuple = WINDOWS,
    seed: int = 0,
) -> dict[str, Float[Tensor, "windows B"]]:
    """By how much the loss under each wrong map is above that under the true one, as a share of it, (windows, B).

    All maps see the same pairs, antithetic in noise. Above 0 the model has read the image right."""
    out = {name: [] for name in wrong}
    with torch.no_grad():
        x0 = denoiser.encode(images.to(denoiser.alphas_cumprod.device))
    for window in windows:
        how = (pairs, denoiser.shape, window, "stratified", "antithetic", seed, "map reading")
        t, eps = draw_pairs(ids, *how)
        best = map_errors(denoiser, x0, true, t, eps).mean(1)
        for name, maps in wrong.items():
            out[name].append(map_errors(denoiser, x0, maps, t, eps).mean(1) / best - 1)
    return {name: torch.stack(rows) for name, rows in out.items()}
