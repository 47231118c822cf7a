"""BN-adapt: batch norm with the statistics of the test images in place of those stored in training.

    mu = (1 - a) mu_source + a mu_test,  var = (1 - a) var_source + a var_test

No gradient, one forward pass. a = 1 is "BN-1", the "norm" baseline of TENT's tables (Schneider et al., NeurIPS 2020;
Nado et al., 2020); a = n / (N + n) counts the source as N images (Schneider et al., eq. 1), with n = 1 and N = 16 the
batch norm of MEMO.

Card: docs/methods/bn_adapt.md
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..common.validate import Checked, Fraction, Positive, checked
from ..models.batchnorm import MixedBatchNorm, with_test_statistics
from ..models.classifier import Classifier
from .base import Method, Models, Needs, Output, no_loss


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are BN-1."""

    alpha: Fraction | None = 1.0  # a, weight of the test statistics; 0 is the source, None is n / (prior + n)
    prior: Positive = 16.0  # N, the images that the source statistics count for where alpha is None
    statistics: Literal["batch", "image"] = "batch"  # of the whole batch, or "image": of each image alone
    unbiased: bool = False  # the unbiased estimate of the test variance, as alpha-BN; train mode takes the biased one


PUBLISHED = dict(alpha=1.0)  # the public "norm" baseline, with batches of 200
PUBLISHED_MEMO = dict(alpha=None, prior=16.0, statistics="image", unbiased=True)  # a = 1/17, one image


@dataclass
class BNAdapt(Method):
    adapted: Classifier = field(repr=False)  # the statistics have seen the images that are scored

    @property
    def online(self) -> bool:
        """True for batch statistics: no state is kept, but the results of an image depend on its batch."""
        return self.settings.statistics == "batch"

    @property
    def at_once(self) -> int | None:
        return None if self.online else 1

    @torch.no_grad()
    def episode(self, images: Tensor, ids: Tensor) -> Output:
        return Output(self.adapted(images).cpu(), None, no_loss(images))


NEEDS = Needs(online=True, batch_statistics=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> BNAdapt:
    """The statistics of batch norm are replaced, on a copy. Raises ValueError for a network without batch norm."""
    settings = settings or Settings()
    s, classifier = settings, models.classifier
    adapted = with_test_statistics(classifier, s.alpha, s.prior, s.unbiased)
    if not any(isinstance(m, MixedBatchNorm) for m in adapted.modules()):
        raise ValueError(
            f"{classifier.name or 'this network'} has no batch norm with stored statistics, so BN-adapt would change "
            "nothing: choose a network with batch norm, or TENT, which adapts any norm layer"
        )
    return BNAdapt(models, settings, adapted)
