"""ZERO (Farina et al., NeurIPS 2024): the confident views vote, each for its first class; nothing is tuned.

The entropy of the mean prediction, which TPT lowers, seldom changes its first class. So take the class from the views
themselves, at temperature 0. At temperature 1 it is the mean prediction of the confident views: the control that tells
what voting adds to looking.

Card: docs/methods/zero.md
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.types import Probs
from ..common.validate import Fraction, NotNegative, checked
from ..diffusion.entropy import entropy, log_mean
from .base import Models, Needs, Output, no_loss
from .many_views import Chosen, Generated, Logits, OfViews, ViewSettings, check_views, select

VERSION = 1


@dataclass(frozen=True)
class Settings(ViewSettings):
    """Defaults are those of the public code."""

    rho_h: Fraction = 0.3  # gamma; .1 in the first version of the paper
    temperature: NotNegative = 0.0  # of each view's softmax; 0: a vote


PUBLISHED = dict(views=64, kind="crops", lowest=0.08, rho_h=0.3, temperature=0.0)
PUBLISHED_FIRST = PUBLISHED | dict(rho_h=0.1)


def votes_of(logits: Logits, chosen: Chosen) -> Probs:
    """Votes (B, K) of the chosen views (B, n) by logits (B, V, K), half a vote more for the class that wins.

    Classes with equal votes: the one of the most confident view that was not chosen and is for one of them; where no
    such view is left, of the most confident chosen one. Public code takes the views in the same order."""
    K, first = logits.shape[2], logits.argmax(2)  # (B, V)
    votes = F.one_hot(first.gather(1, chosen), K).sum(1)  # (B, K)
    tied = votes == votes.amax(1, keepdim=True)
    out = torch.ones_like(first).scatter(1, chosen, 0)
    rank = entropy(logits).argsort(dim=1, stable=True)  # most confident first
    rank = rank.gather(1, out.gather(1, rank).argsort(dim=1, descending=True, stable=True))  # those not chosen first
    ahead = first.gather(1, rank)  # (B, V) their classes
    winner = ahead.gather(1, tied.gather(1, ahead).int().argmax(1, keepdim=True))  # (B, 1)
    return votes.float().scatter_add(1, winner, torch.full_like(winner, 0.5, dtype=torch.float32))


class Zero(OfViews):
    predict = "before"

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Logs of the numbers of votes (B, K), or the log mean prediction of the views that count."""
        s, (features, logits) = self.settings, self.encode(images, ids)
        if s.temperature:
            out = log_mean(self.counting(features, logits)[1] / s.temperature)
        else:
            out = votes_of(logits, select(features, logits, s)).clamp_min(1e-6).log()
        return Output(out.cpu(), None, no_loss(images))


NEEDS = Needs(clip=True)


@checked
def configure(models: Models, settings: Settings | None = None, generated: Generated | None = None) -> Zero:
    """Nothing is updated; `generated` makes further views, e.g. those of DiffTPT with its filter.

    Raises ValueError as `check_views`."""
    return check_views(Zero(models, settings or Settings(), generated))
