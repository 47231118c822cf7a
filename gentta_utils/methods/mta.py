"""MTA (Zanella and Ben Ayed, CVPR 2024): the mode of the views' features, found by a mean shift that doubts each view.

    y <- softmax((K(m) + lambda_q W y) / lambda_y),   m <- sum_v K_v(m) y_v f_v / |sum_v K_v(m) y_v f_v|

K_v(m) is a Gaussian kernel of each view's own bandwidth, W the affinity of the views' predictions, y how much each view
is believed. The mode m takes the place of the image's feature. Nothing is tuned and no text is encoded.

Card: docs/methods/mta.md
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..common.validate import Count, Fraction, NotNegative, Positive, checked
from ..models.clip import text_head
from .base import Models, Needs, Output, no_loss
from .many_views import FILTERS, Generated, Logits, OfViews, Views, ViewSettings, check_views, kept

VERSION = 1


@dataclass(frozen=True)
class Settings(ViewSettings):
    """Defaults are those published, the same for all data sets."""

    filter: Literal[FILTERS] = "none"  # y does the filtering
    lambda_y: Positive = 0.2  # temperature of y
    lambda_q: NotNegative = 4.0  # weight of the views' agreement
    neighbours: Fraction = 0.3  # share of the views that give a view its bandwidth
    rounds: Count = 5  # of y and m in turn
    inner: Count = 5  # steps of each in a round


PUBLISHED = dict(views=64, kind="crops", lowest=0.08, filter="none", lambda_y=0.2, lambda_q=4.0)


def mean_shift(
    m: Float[Tensor, "B D"], f: Views, logits: Logits, s: Settings
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B V"]]:
    """The mode (B, D) of unit features (B, V, D), sought from m (B, D), and how much each view is believed (B, V).

    Bandwidth^2 of a view: half the mean squared distance to its nearest `neighbours`. All steps are taken, where public
    code stops when less than 1e-6 changes."""
    V = f.shape[1]
    p = logits.softmax(-1)
    affinity, y = p @ p.mT, f.new_full(f.shape[:2], 1 / V)  # (B, V, V), (B, V)
    if V == 1:
        return f[:, 0], y
    squared = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").square()
    near = squared.sort(-1).values[..., 1 : 1 + kept(s.neighbours, V - 1)].mean(-1)  # (B, V)
    log_density = lambda m: -(f - m[:, None]).square().sum(-1) / near.clamp_min(1e-12)  # noqa: E731
    for _ in range(s.rounds):
        d = log_density(m).exp()  # (B, V)
        for _ in range(s.inner):
            y = ((d + s.lambda_q * (affinity @ y[..., None])[..., 0]) / s.lambda_y).softmax(1)
        for _ in range(s.inner):
            weight = (log_density(m) + y.log()).softmax(1)  # a sum of densities may be 0 in float32
            m = F.normalize((weight[..., None] * f).sum(1), dim=-1)
    return m, y


class MTA(OfViews):
    predict = "before"

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Logits (B, K) of the mode of images (B, 3, S, S)."""
        features, logits = self.encode(images, ids)
        m, _ = mean_shift(features[:, 0], *self.counting(features, logits), self.settings)
        return Output((m @ text_head(self.models.classifier).T).cpu(), None, no_loss(images))


NEEDS = Needs(clip=True)


@checked
def configure(models: Models, settings: Settings | None = None, generated: Generated | None = None) -> MTA:
    """Nothing is updated; `generated` makes further views, e.g. those of DiffTPT with its filter.

    Raises ValueError as `check_views`."""
    return check_views(MTA(models, settings or Settings(), generated))
