"""Batch normalisation with the statistics of the test batch, alone or mixed with the source's."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .classifier import Classifier


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
        if x.numel() > x.shape[1]:  # else one value per channel
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
    """A frozen copy of the classifier, in eval mode, with `MixedBatchNorm` in place of its batch norms.

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
