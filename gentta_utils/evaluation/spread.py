"""How near views stay to their image, and how far they lie apart: the two axes of DiffTPT's first figure.

Features are those of an image tower, normalised: (B, n, D) of n views of each of B images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def fidelity(views: Float[Tensor, "B n D"], image: Float[Tensor, "B D"]) -> Float[Tensor, "B n"]:
    """Cosine of the features of each view to those of the image itself, from -1 to 1."""
    return F.cosine_similarity(views, image[:, None], dim=-1)


def diversity(views: Float[Tensor, "B n D"], kept: Bool[Tensor, "B n"] | None = None) -> Float[Tensor, " B"]:
    """Mean distance between the features of two different views of an image, from 0 to 2 for unit features.

    `kept` says which views count, all where it is None; with fewer than two of them there is no pair: NaN."""
    kept = torch.ones(views.shape[:2], dtype=torch.bool) if kept is None else kept
    pairs = (kept[:, :, None] & kept[:, None]).triu(1)  # (B, n, n)
    return (torch.cdist(views, views) * pairs).sum((1, 2)) / pairs.sum((1, 2))
