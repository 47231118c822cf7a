"""How often a network was evaluated."""

from collections.abc import Mapping

import torch

from .types import Number


class Evaluations(dict[str, int]):
    """Evaluations of a network so far, by kind: {"fwd": n, "fwd+bwd": n}, one for each image of each batch."""

    def __init__(self):
        super().__init__({"fwd": 0, "fwd+bwd": 0})

    def add(self, n: int, *inputs: torch.Tensor | None) -> None:
        """Count n images; with a backward pass where gradients are on and one of these inputs asks for one."""
        asked = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs)
        self["fwd+bwd" if asked else "fwd"] += n


def together(one: Mapping[str, Number], other: Mapping[str, Number]) -> dict[str, Number]:
    """The sum of two counts, by kind; a kind that one of them lacks counts as 0 there."""
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in {**one, **other}}


def forwards(nfe: Mapping[str, Number]) -> float:
    """Forward equivalents of evaluations by network and kind: a backward pass counts as two forward ones."""
    return float(sum(n * (3 if kind.endswith("fwd+bwd") else 1) for kind, n in nfe.items()))
