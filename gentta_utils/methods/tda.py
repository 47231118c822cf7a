"""TDA (Karmanov et al., CVPR 2024): a key-value cache of the stream's own features corrects the zero-shot logits.

    z = z_clip + alpha_p exp(-beta_p (1 - x X_p)) V_p - alpha_n exp(-beta_n (1 - x X_n)) V_n

The positive cache holds the most confident images of each predicted class, with that class as value; the negative one
images that are neither sure nor unsure, with the classes that are not out of the question. Nothing is trained.

Card: docs/methods/tda.md
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..common.types import Probs
from ..common.validate import Count, Fraction, Natural, NotNegative, checked
from ..diffusion.entropy import entropy
from .base import Models, Needs, Output, no_loss
from .many_views import Generated, OfViews, ViewSettings, check_views

VERSION = 1


@dataclass(frozen=True)
class Settings(ViewSettings):
    """Defaults are those of the public code's file for ImageNet."""

    views: Count = 1  # more: the mean feature of those that count
    shots: Natural = 3  # positive cache: images per predicted class
    alpha: NotNegative = 2.0
    beta: NotNegative = 5.0
    negative_shots: Natural = 2
    negative_alpha: NotNegative = 0.117
    negative_beta: NotNegative = 1.0
    unsure_from: Fraction = 0.2  # of a negative image: entropy in nats over log2 K, as in public code (.69 at most)
    unsure_to: Fraction = 0.5
    possible: Fraction = 0.03  # probability above which its value holds a class


PUBLISHED_IMAGENET = dict(
    shots=3,
    alpha=2.0,
    beta=5.0,
    negative_shots=2,
    negative_alpha=0.117,
    negative_beta=1.0,
    unsure_from=0.2,
    unsure_to=0.5,
    possible=0.03,
)


class Cache:
    """At most `shots` features for each class, those of lowest entropy, each with a value (K,)."""

    def __init__(self, shots: int):
        self.shots, self.rows = shots, {}

    def offer(self, k: int, h: float, x: Float[Tensor, " D"], value: Float[Tensor, " K"]) -> None:
        """Keep x under class k if there is room, or if its entropy h is below the highest there, which then goes."""
        rows = self.rows.setdefault(k, [])
        if self.shots and (len(rows) < self.shots or h < rows[-1][0]):
            self.rows[k] = sorted([*rows[: self.shots - 1], (h, x, value)], key=lambda row: row[0])

    def logits(self, x: Float[Tensor, " D"], alpha: float, beta: float) -> Tensor:
        """alpha exp(-beta (1 - cos)) of x to every feature, times the values: (K,), or 0 without any."""
        rows = [row for k in sorted(self.rows) for row in self.rows[k]]
        if not rows:
            return x.new_zeros(())
        keys, values = (torch.stack([row[i] for row in rows]) for i in (1, 2))
        return alpha * torch.exp(-beta * (1 - keys @ x)) @ values


@dataclass
class TDA(OfViews):
    predict = "before"  # nothing is updated by gradient; the image itself is in the cache, as in public code
    online = True
    state: tuple[Cache, Cache] | None = field(default=None, repr=False)

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Logits (1, K) of one image after it was offered to the caches."""
        s, (features, logits) = self.settings, self.counting(*self.encode(images, ids))
        self.state = self.state or (Cache(s.shots), Cache(s.negative_shots))
        x = F.normalize(features.mean(1), dim=-1)[0]  # (D,)
        z: Probs = logits.mean(1)  # (1, K)
        p, h, k = z.softmax(1)[0], float(entropy(z)), int(z.argmax())
        positive, negative = self.state
        positive.offer(k, h, x, F.one_hot(z.argmax(1), z.shape[1])[0].to(z))
        if s.unsure_from < h / math.log2(z.shape[1]) < s.unsure_to:
            negative.offer(k, h, x, (p > s.possible).to(z))
        z = z + positive.logits(x, s.alpha, s.beta) - negative.logits(x, s.negative_alpha, s.negative_beta)
        return Output(z.cpu(), None, no_loss(images))

    def reset(self) -> None:
        """Back to empty caches."""
        self.state = None


NEEDS = Needs(clip=True, online=True)


@checked
def configure(models: Models, settings: Settings | None = None, generated: Generated | None = None) -> TDA:
    """Nothing is updated but the caches, image by image, whatever the batch size.

    Raises ValueError for one class, and as `check_views`."""
    if models.classifier.classes < 2:
        raise ValueError("TDA compares an entropy with that of all classes: give it two classes or more")
    return check_views(TDA(models, settings or Settings(), generated))
