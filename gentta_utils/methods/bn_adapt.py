"""BN-adapt: batch norm with the statistics of the test images in place of those stored in training.

    mu = (1 - a) mu_source + a mu_test,  var = (1 - a) var_source + a var_test

No gradient, one forward pass. a = 1 is "BN-1", the "norm" baseline of TENT's tables (Schneider et al., NeurIPS 2020;
Nado et al., 2020); a = n / (N + n) counts the source as N images (Schneider et al., eq. 1), with n = 1 and N = 16 the
batch norm of MEMO.

Card: docs/methods/bn_adapt.md
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..classifier import Classifier
from ..inputs import check_images
from .base import Models, Output, check_settings, no_loss, source_logits, spent


@dataclass(frozen=True)
class Settings:
    """Defaults are BN-1."""

    alpha: float | None = 1.0  # a, weight of the test statistics; 0 is the source, None is n / (prior + n)
    prior: float = 16.0  # N, the images that the source statistics count for where alpha is None
    statistics: str = "batch"  # of the whole batch, or "image": of each image alone
    unbiased: bool = False  # the unbiased estimate of the test variance, as alpha-BN; train mode takes the biased one

    def __post_init__(self):
        check_settings(self, {"statistics": ("batch", "image")}, positive=("prior",))
        if self.alpha is not None:
            check_settings(self, {}, fraction=("alpha",))


PUBLISHED = dict(alpha=1.0)  # the public "norm" baseline, with batches of 200
PUBLISHED_MEMO = dict(alpha=None, prior=16.0, statistics="image", unbiased=True)  # a = 1/17, one image


class MixedBatchNorm(_BatchNorm):
    """Stands for a batch norm, under the same names of parameters and buffers, and mixes its statistics as above.

    Where a channel holds a single value (one image, 1 x 1 feature map) there is no variance to take: the layer then
    keeps the source's statistics, because a = 1 would turn every such image into zeros.

    Args:
        norm: the batch norm, whose tensors are taken over; what timm has it do after (drop, activation) comes along.
        alpha, prior, unbiased: see `Settings`; n is the batch size of the call.
        differentiable: batch norm as in training (a = 1, biased), with the gradient through the statistics that TENT
            has. Otherwise statistics are constants for the backward pass.
    """

    def __init__(
        self,
        norm: _BatchNorm,
        alpha: float | None,
        prior: float = 16.0,
        unbiased: bool = False,
        differentiable: bool = False,
    ):
        super().__init__(norm.num_features, norm.eps, affine=norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.alpha, self.prior, self.unbiased, self.differentiable = alpha, prior, unbiased, differentiable

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) normalised; nothing is stored."""
        mean, var = self.running_mean, self.running_var
        if x.numel() > x.shape[1]:  # else one value a channel
            if self.differentiable:
                mean = var = None
            else:
                alpha = len(x) / (self.prior + len(x)) if self.alpha is None else self.alpha
                over = [0, *range(2, x.ndim)]
                test_var, test_mean = torch.var_mean(x.detach(), over, correction=int(self.unbiased))
                mean, var = torch.lerp(mean, test_mean, alpha), torch.lerp(var, test_var, alpha)
        x = F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)
        return self.act(self.drop(x))


def with_test_statistics(
    classifier: Classifier,
    alpha: float | None = 1.0,
    prior: float = 16.0,
    unbiased: bool = False,
    differentiable: bool = False,
) -> Classifier:
    """A frozen copy of the classifier, in eval mode, whose batch norms are `MixedBatchNorm`s.

    Everything else stays in eval mode too: train mode would switch on dropout and stochastic depth. A network without
    batch norm is copied as it is. Evaluations of the copy are counted with those of the original."""
    adapted = copy.deepcopy(classifier).requires_grad_(False)
    adapted.count = classifier.count
    for name, norm in list(adapted.network.named_modules(remove_duplicate=False)):
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:  # else it has no statistics but the batch's
            parent, _, leaf = name.rpartition(".")
            mixed = MixedBatchNorm(norm, alpha, prior, unbiased, differentiable)
            setattr(adapted.network.get_submodule(parent), leaf, mixed)
    return adapted.eval()


@dataclass
class BNAdapt:
    predict = "after"  # the statistics have seen the images that are scored
    models: Models
    settings: Settings
    adapted: Classifier = field(repr=False)

    @property
    def online(self) -> bool:
        """True for batch statistics: no state is kept, but the results of an image depend on its batch."""
        return self.settings.statistics == "batch"

    @torch.no_grad()
    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Logits of images (B, 3, S, S) in [0, 1]; `before` is the source. Raises ValueError for bad images."""
        check_images(images, self.models.classifier.image_size)
        start = self.models.counts()
        parts = images.split(len(images) if self.online else 1)
        logits = torch.cat([self.adapted(part) for part in parts]).cpu()
        return Output(logits, source_logits(self.models, images), no_loss(images), spent(self.models, start))

    def reset(self) -> None:
        """Nothing to do: each batch brings its own statistics."""


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
