"""Why tuning a prompt moves an image, or does not: what only somebody who knows the labels can tell.

Nothing of this is a method: labels go in. It belongs beside a method's row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.types import Index, PerImage
from ..diffusion.entropy import log_mean
from ..methods.many_views import Logits, OfViews, Views, select
from ..methods.tpt import TPT
from ..models.clip import text_head


@torch.no_grad()
def precision(method: OfViews, images: Tensor, ids: Index, labels: Index) -> tuple[PerImage, PerImage]:
    """Share of the views that count whose first class is right, (B,), and whether the image's own is (B,)."""
    shares, own = [], []
    for rows in torch.arange(len(ids)).split(16):
        share, right = _precision(method, *method.encode(images[rows], ids[rows]), labels[rows])
        shares.append(share.cpu())
        own.append(right.cpu())
    return torch.cat(shares), torch.cat(own)


def _precision(method: OfViews, features: Views, logits: Logits, labels: Tensor) -> tuple[PerImage, PerImage]:
    """`precision` of views that are encoded already."""
    right = (logits.argmax(-1) == labels.to(logits.device)[:, None]).float()  # (b, V)
    return right.gather(1, select(features, logits, method.settings)).mean(1), right[:, 0]


def diagnose(method: TPT, images: Tensor, ids: Index, labels: Index) -> dict[str, PerImage]:
    """Of each image (B, 3, S, S) with its id and true label (B,):

    | name | what |
    |---|---|
    | precision | share of the views that count whose first class is right |
    | image | whether the image's own first class is right |
    | sure | whether its p is above .99 |
    | margin | best logit - second best |
    | moved | how far tuning moved that difference, of the same two classes |
    | degrees | by how much class features turned, mean over classes |
    | tuned | whether the tuned prompt is right |
    | ceiling | whether it is when tuned on the true label: the same views and steps, cross-entropy of their mean p |
    """
    found = []
    for rows in torch.arange(len(ids)).split(method.settings.images_at_once):
        x, i, y = images[rows], ids[rows], labels[rows]
        features, logits = method.encode(x, i)
        y = y.to(logits.device)
        best, scale = logits[:, 0].topk(2).indices, text_head(method.models.classifier)[0].norm()
        told = lambda z, y=y: F.nll_loss(log_mean(z), y, reduction="none")  # noqa: E731
        contexts = [method.tune(features, i)[0], method.tune(features, i, told)[0]]
        with torch.no_grad():
            start = method.models.prompt(method.models.prompt.start(features[:, 0]))  # (b, K, D)
            texts = [method.models.prompt(context) for context in contexts]
            z, after, ceiling = ((scale * features[:, :1] @ t.mT)[:, 0] for t in (start, *texts))
        margin, then = (v.gather(1, best).diff(dim=1)[:, 0].neg() for v in (z, after))
        share, right = _precision(method, features, logits, y)
        found.append(
            {
                "precision": share,
                "image": right,
                "sure": (z.softmax(1).amax(1) > 0.99).float(),
                "margin": margin,
                "moved": (then - margin).abs(),
                "degrees": (start * texts[0]).sum(-1).clamp(-1, 1).acos().rad2deg().mean(1),
                "tuned": (after.argmax(1) == y).float(),
                "ceiling": (ceiling.argmax(1) == y).float(),
            }
        )
    return {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}
