"""Entropies of predictions in nats: the losses of TENT, MEMO and TPT (docs/methods/tent.md, memo.md).

Two that are easily confused: TENT lowers the mean of the entropies, MEMO and TPT the entropy of the mean.
"""

import math

from jaxtyping import Float
from torch import Tensor

from ..common.types import Answers, PerImage
from ..common.validate import checked


@checked
def entropy(logits: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
    """H(p) of p = softmax(z) for finite logits z (*batch, K). Its gradient is dH/dz_i = -p_i (log p_i + H)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy_of(answers: Answers) -> PerImage:
    """H (B,) of the prediction of each image; of a map the mean over its pixels, each of which has a prediction."""
    H = entropy(answers.movedim(1, -1))  # (B,), or (B, h, w)
    return H.flatten(1).mean(1) if H.ndim > 1 else H


@checked
def log_mean(logits: Float[Tensor, "*batch V K"]) -> Float[Tensor, "*batch K"]:
    """log of the mean prediction over V views of logits (*batch, V, K); in log space, where a tiny p is no zero."""
    return logits.log_softmax(-1).logsumexp(-2) - math.log(logits.shape[-2])


@checked
def marginal_entropy(logits: Float[Tensor, "*batch V K"]) -> Float[Tensor, "*batch"]:
    """H(mean over V of softmax(z_v)) for logits (*batch, V, K); with one view it is `entropy`."""
    return entropy(log_mean(logits))
