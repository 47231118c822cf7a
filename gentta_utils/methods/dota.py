"""DOTA (Han et al., 2024): a Gaussian for each class, fitted to the stream under CLIP's own probabilities.

    score_k = x Lambda mu_k - mu_k Lambda mu_k / 2,   Lambda = ((1 - eps) mean_k Sigma_k + eps I)^-1

The mixture of notebook 01, with means and one shared covariance that are learnt online: mu_k starts at the text feature
of class k, counted as one image. The score is added to CLIP's logits with a weight that grows with the stream.

Card: docs/methods/dota.md
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..common.types import Probs
from ..common.validate import Count, Fraction, NotNegative, Positive, checked
from ..models.clip import text_head
from .base import Models, Needs, Output, no_loss
from .many_views import Generated, OfViews, ViewSettings, check_views

VERSION = 1


@dataclass(frozen=True)
class Settings(ViewSettings):
    """Defaults are this course's: public code has one file for each test set, with constants chosen on it."""

    views: Count = 1  # more: those that count are predicted by their mean and fitted one by one
    sigma: Positive = 0.004  # variance of every feature before any image
    epsilon: Fraction = 0.001  # share of the identity in the covariance that is inverted
    rho: NotNegative = 0.02  # weight of the score for each image that a class has, on average
    eta: NotNegative = 0.2  # and at most


@dataclass
class Gaussians:
    """K class means (K, D), covariances (K, D, D) and counts (K,)."""

    mu: Float[Tensor, "K D"]
    sigma: Float[Tensor, "K D D"]
    count: Float[Tensor, " K"]

    def fit(self, x: Float[Tensor, "n D"], p: Float[Tensor, "n K"]) -> None:
        """Take in features (n, D) with these probabilities (n, K); covariances are about the means of before."""
        weight = p.sum(0)  # (K,)
        total = self.count + weight
        off = x[:, None] - self.mu  # (n, K, D)
        spread = torch.einsum("nk,nki,nkj->kij", p, off, off)
        self.sigma = (self.count[:, None, None] * self.sigma + spread) / total[:, None, None]
        self.mu = (self.count[:, None] * self.mu + p.T @ x) / total[:, None]
        self.count = total

    def scores(self, x: Float[Tensor, "n D"], epsilon: float) -> Float[Tensor, "n K"]:
        """Linear discriminant scores (n, K) of features, classes equally likely."""
        shared = (1 - epsilon) * self.sigma.mean(0) + epsilon * torch.eye(x.shape[1], device=x.device)
        w = torch.linalg.solve(shared, self.mu.T)  # (D, K)
        return x @ w - (self.mu.T * w).sum(0) / 2


def start(text: Float[Tensor, "K D"], sigma: float) -> Gaussians:
    """Gaussians at the unit text features, with variance sigma, each counted as one image."""
    K, D = text.shape
    return Gaussians(text.clone(), sigma * torch.eye(D, device=text.device).repeat(K, 1, 1), text.new_ones(K))


@dataclass
class DOTA(OfViews):
    predict = "before"
    online = True
    state: Gaussians | None = field(default=None, repr=False)

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Logits (1, K) of one image, which is taken in afterwards."""
        s, (features, logits) = self.settings, self.counting(*self.encode(images, ids))
        text = F.normalize(text_head(self.models.classifier), dim=-1)
        self.state = self.state or start(text, s.sigma)
        z: Probs = logits.mean(1)  # (1, K)
        weight = (s.rho * self.state.count.mean()).clamp(max=s.eta)
        out = z + weight * self.state.scores(features.mean(1), s.epsilon)
        self.state.fit(features[0], z.softmax(1).expand(features.shape[1], -1) / features.shape[1])
        return Output(out.cpu(), None, no_loss(images))

    def reset(self) -> None:
        """Back to the text features."""
        self.state = None


NEEDS = Needs(clip=True, online=True)


@checked
def configure(models: Models, settings: Settings | None = None, generated: Generated | None = None) -> DOTA:
    """Nothing of the networks is updated; the Gaussians are, image by image, whatever the batch size.

    Raises ValueError as `check_views`."""
    return check_views(DOTA(models, settings or Settings(), generated))
