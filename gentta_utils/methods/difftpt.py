"""DiffTPT (Feng et al., ICCV 2023): TPT with views that a diffusion model draws beside the crops, and two filters.

A generated view may have drifted from the image, so only the nearest views by cosine may count, and of those the most
confident. The public code filters crops and generated views together, by the cosine of their logits
("sequential_logits"); the paper says that crops pass by entropy alone ("parallel_features").

Card: docs/methods/difftpt.md
"""

from dataclasses import dataclass
from typing import Literal

from ..common.validate import Count, Fraction, Natural, checked
from .base import Models, Needs
from .many_views import FILTERS, Generated
from .tpt import TPT, with_prompt
from .tpt import Settings as TPTSettings

VERSION = 1


@dataclass(frozen=True)
class Settings(TPTSettings):
    """Defaults are those of the public code: 128 views, of which 102 are near enough and 30 count."""

    views: Count = 65  # the image and 64 crops
    generated: Natural = 63
    filter: Literal[FILTERS] = "sequential_logits"
    rho_h: Fraction = 0.3
    updates: Natural = 4


PUBLISHED = dict(
    views=65, generated=63, filter="sequential_logits", rho_c=0.8, rho_h=0.3, lr=0.25, updates=4, weight_decay=0.01
)


class DiffTPT(TPT):
    """TPT whose views come from two sources."""


NEEDS = Needs(clip=True)


@checked
def configure(models: Models, settings: Settings | None = None, generated: Generated | None = None) -> DiffTPT:
    """The context vectors of `models.prompt` are updated, a copy for each image.

    Args:
        generated: images (B, 3, S, S) and their ids (B,) -> at least `settings.generated` views of each
            (B, n, 3, S, S) in [0, 1].

    Raises ValueError as `check_views` and `check_prompt`."""
    return with_prompt(DiffTPT(models, settings or Settings(), generated))
