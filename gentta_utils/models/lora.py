"""LoRA (Hu et al., 2022): W' = W + (alpha / r) B A with B = 0 at the start, so that nothing has changed yet.

Written as other weights, not as other layers. Whatever reads a weight directly (the input projection of
`nn.MultiheadAttention`, attention pooling, timm's or open_clip's fused calls) is adapted too, where a layer around the
weight would never be called; and at the start W + 0 is W bit by bit.

Card: docs/methods/lora.md
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

Pair = tuple[Tensor, Tensor]  # A (r, d_in) and B (d_out, r)
Values = dict[str, Tensor | Pair]  # by the name of the weight that they change

IN_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of MultiheadAttention


def targets(network: nn.Module, skip: Collection[str] = ()) -> list[str]:
    """Names of the weights that may have an adapter, in the order of the modules, without those in `skip`.

    Of linear layers, of 2d convolutions (grouped ones too: a weight is all that is changed) and the input projections
    of `nn.MultiheadAttention`. A weight that several modules share has one name."""
    named, found = {id(v): name for name, v in network.named_parameters()}, []
    for module in network.modules():
        layer = ("weight",) if isinstance(module, nn.Linear | nn.Conv2d) else ()
        own = IN_PROJECTIONS if isinstance(module, nn.MultiheadAttention) else layer
        found += [named[id(v)] for v in (getattr(module, name) for name in own) if v is not None]
    return [name for name in dict.fromkeys(found) if name not in skip]


def check_read(weights: Mapping[str, Tensor], run: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """Raise ValueError with the names of those weights that the output of `run(weights)` does not read.

    An adapter there would train nothing and say nothing. One forward and one backward pass."""
    leaves = {name: v.detach().requires_grad_() for name, v in weights.items()}
    with torch.enable_grad():
        output = run(leaves).float().sum()
        grads = [None] * len(leaves)
        if output.requires_grad:
            grads = torch.autograd.grad(output, list(leaves.values()), allow_unused=True)
    unread = [name for name, g in zip(leaves, grads, strict=True) if g is None]
    if unread:
        raise ValueError(f"no output reads {', '.join(unread)}: skip it by name, its adapter would never train")


def init(weights: Mapping[str, Tensor], rank: int, seed: int = 0) -> dict[str, Pair]:
    """The adapters (A, B) of these weights: A (rank, d_in) drawn from `seed`, B (d_out, rank) zero.

    d_out is the first dimension of a weight, d_in the product of the others. The draw is that of peft after
    `torch.manual_seed(seed)`: the weights of the two layers that it makes, then A again."""
    g, adapters = torch.Generator().manual_seed(seed), {}
    for name, w in weights.items():
        A, B = torch.empty(rank, w[0].numel()), torch.empty(len(w), rank)
        for drawn in (A, B, A):
            nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=g)
        adapters[name] = (A.to(w), torch.zeros_like(B).to(w))
    return adapters


def size(weights: Mapping[str, Tensor], rank: int) -> int:
    """How many numbers the adapters of these weights hold: r (d_in + d_out) each."""
    return sum(rank * (w[0].numel() + len(w)) for w in weights.values())


def flat(values: Values) -> list[Tensor]:
    """All tensors of these values, A before B."""
    return [v for value in values.values() for v in (value if isinstance(value, tuple) else (value,))]


def low_rank(W: Tensor, A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """W' = W + (alpha / r) B A, in the shape of W: of a linear layer or a convolution."""
    return W + scale * (B @ A).view_as(W)


def merged(weights: Mapping[str, Tensor], values: Values, scale: float = 1.0) -> dict[str, Tensor]:
    """What stands in place of the weights: W + scale B A where the value is a pair, else the value itself.

    `scale` is alpha / r; at 1, alpha = r as everywhere in this package."""

    return {n: v if isinstance(v, Tensor) else low_rank(weights[n], *v, scale) for n, v in values.items()}


class _Call(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, work: Callable):
        return work(self.module)


def with_weights(module: nn.Module, weights: Mapping[str, Tensor], work: Callable):
    """work(module) while these weights stand in place of the module's own, which are never written to."""
    inside = {f"module.{name}": v for name, v in weights.items()}
    return functional_call(_Call(module), inside, (work,), tie_weights=False)
