"""What the methods share that look at many views of an image: which views, their features, and which of them count.

Every view goes through the image tower once; all else happens on its unit feature. Five filters say which views count:

    "none"               all
    "entropy"            the share rho_h with the lowest entropy (TPT, ZERO)
    "cosine"             the image and the share rho_c of the others whose logits are nearest to its own
    "sequential_logits"  "cosine", then "entropy" among those that are left (DiffTPT's public code)
    "parallel_features"  "entropy" among crops; among generated views first those of the nearest features (its paper)

Cards: docs/methods/tpt.md, docs/methods/difftpt.md
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..common.validate import Checked, Count, Fraction, Natural, between, check_images
from ..diffusion.entropy import entropy
from ..models.clip import image_features, text_head
from ..world.views import VIEW_KINDS, image_views
from .base import Method

FILTERS = ("none", "entropy", "cosine", "sequential_logits", "parallel_features")
Views = Float[Tensor, "B V D"]  # features
Logits = Float[Tensor, "B V K"]
Chosen = Int[Tensor, "B n"]  # places of views
Generated = Callable[[Tensor, Tensor], Tensor]  # images (B, 3, S, S) and ids (B,) -> n more views (B, n, 3, S, S)


@dataclass(frozen=True)
class ViewSettings(Checked):
    views: Count = 64  # V, made of the image; the image itself is the first
    kind: Literal[tuple(VIEW_KINDS)] = "crops"  # how they are made; `views.keeping` says which keep a label
    lowest: Annotated[float, between(0.01, 1)] = 0.08  # share of the area that a crop has at least
    generated: Natural = 0  # views more, from the callable that `configure` is given
    filter: Literal[FILTERS] = "entropy"  # which views count
    rho_c: Fraction = 0.8  # share that the cosine filter keeps
    rho_h: Fraction = 0.1  # share that the entropy filter keeps; at least one view is kept
    seed: int = 0


def kept(share: float, of: int) -> int:
    """How many of so many views a share is: rounded down as in public code, but one at least, where that has none."""
    return max(1, int(share * of))


def most_confident(logits: Logits, share: float) -> Chosen:
    """The views (B, n) of lowest entropy, n = `kept`; of equal ones the first."""
    return entropy(logits).argsort(dim=1, stable=True)[:, : kept(share, logits.shape[1])]


def nearest(points: Float[Tensor, "B V C"], share: float) -> Chosen:
    """View 0, and the share of the others with the highest cosine to it: (B, 1 + n)."""
    others = F.cosine_similarity(points[:, :1], points[:, 1:], dim=-1)  # (B, V - 1)
    order = others.argsort(dim=1, descending=True, stable=True)[:, : kept(share, others.shape[1])]
    return F.pad(order + 1, (1, 0))


def select(features: Views, logits: Logits, s: ViewSettings) -> Chosen:
    """The views (B, n) that count by `s.filter`: n is the same for all images."""
    V = logits.shape[1]
    if s.filter == "entropy":
        return most_confident(logits, s.rho_h)
    if s.filter == "cosine":
        return nearest(logits, s.rho_c)
    if s.filter == "sequential_logits":
        near = nearest(logits, s.rho_c)
        return near.gather(1, most_confident(chosen_of(logits, near), s.rho_h))
    if s.filter == "parallel_features":
        chosen = most_confident(logits[:, : s.views], s.rho_h)
        if not s.generated:
            return chosen
        near = nearest(torch.cat([features[:, :1], features[:, s.views :]], 1), s.rho_c)[:, 1:] + s.views - 1
        return torch.cat([chosen, near.gather(1, most_confident(chosen_of(logits, near), s.rho_h))], 1)
    return torch.arange(V, device=logits.device).expand(len(logits), -1)


def chosen_of(values: Float[Tensor, "B V C"], chosen: Chosen) -> Float[Tensor, "B n C"]:
    """The rows of the chosen views."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


@dataclass
class OfViews(Method):
    """Base of the methods that look at many views of an image by a zero-shot CLIP.

    Attributes:
        generated: makes `settings.generated` views more; it must give an image the same views whatever its company.
    """

    at_once = 1  # its views fill a batch, and results are bit-equal whatever its neighbours
    generated: Generated | None = None

    @torch.no_grad()
    def encode(self, images: Tensor, ids: Tensor) -> tuple[Views, Logits]:
        """Unit features (B, V, D) and logits (B, V, K) of all views of images (B, 3, S, S), image by image.

        Raises ValueError where the generated views are too few or no images."""
        s, classifier, found = self.settings, self.models.classifier, []
        for image, i in zip(images, ids, strict=True):
            views = image_views(image, int(i), s.views, s.kind, s.lowest, s.seed)
            if s.generated:
                more = self.generated(image[None], i[None])[0]
                if len(more) < s.generated:
                    raise ValueError(f"generated={s.generated}: image {int(i)} has {len(more)} such views, make more")
                check_images(more, classifier.image_size)
                views = torch.cat([views, more[: s.generated].to(views)])
            found.append(image_features(classifier, views))
        features = torch.stack(found)
        return features, features @ text_head(classifier).T

    def counting(self, features: Views, logits: Logits) -> tuple[Float[Tensor, "B n D"], Float[Tensor, "B n K"]]:
        """Features (B, n, D) and logits (B, n, K) of the views that count."""
        chosen = select(features, logits, self.settings)
        return chosen_of(features, chosen), chosen_of(logits, chosen)


def check_views(method: OfViews) -> OfViews:
    """The method. Raises ValueError unless its classifier is a zero-shot CLIP and generated views have a source."""
    text_head(method.models.classifier)
    if method.settings.generated and method.generated is None:
        raise ValueError(
            f"generated={method.settings.generated}: hand `configure` what makes these views, or choose generated=0"
        )
    return method
