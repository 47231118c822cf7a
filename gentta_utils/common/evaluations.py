"""How often a network was evaluated."""

import torch


class Evaluations(dict[str, int]):
    """Evaluations of a network so far, by kind: {"fwd": n, "fwd+bwd": n}, one for each image of each batch."""

    def __init__(self):
        super().__init__({"fwd": 0, "fwd+bwd": 0})

    def add(self, n: int, *inputs: torch.Tensor | None) -> None:
        """Count n images; with a backward pass where gradients are on and one of these inputs asks for one."""
        asked = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs)
        self["fwd+bwd" if asked else "fwd"] += n
