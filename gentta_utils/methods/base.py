"""The one shape of all methods.

    method = some_method.configure(models, settings)   # says what is updated
    out = method.adapt(images, ids)                    # -> Output
    method.reset()                                     # source state again

`settings` is a frozen dataclass. `evaluate.run` owns the protocol (order, reset, batches), the method its optimiser.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..arrays import Probs
from ..classifier import Classifier
from ..conditioning import Denoiser
from ..mixture import GaussianMixture


@dataclass(frozen=True)
class Models:
    """What a method may use: the task model, and the diffusion model where there is one."""

    classifier: Classifier
    denoiser: Denoiser | GaussianMixture | None = None

    def counts(self) -> dict[str, int]:
        """Network evaluations so far, e.g. {"classifier fwd": 3, "denoiser fwd+bwd": 160}; one for each image."""
        nets = {"classifier": self.classifier, "denoiser": self.denoiser}
        return {f"{name} {kind}": n for name, net in nets.items() if net is not None for kind, n in net.count.items()}


@dataclass
class Output:
    """What a method says of B images.

    Attributes:
        logits: (B, K) after adaptation, on the clean view.
        before: (B, K) of the model as it was when the images came in, on the same view.
        loss: (S, B) the adaptation loss at each of S updates; (0, B) for methods without one.
        nfe: network evaluations spent on the whole batch, by network and kind.
        images: (B, 3, H, W) the changed images, for methods that adapt the input.
    """

    logits: Probs
    before: Probs
    loss: Float[Tensor, "S B"]
    nfe: dict[str, int] = field(default_factory=dict)
    images: Float[Tensor, "B 3 H W"] | None = None


def spent(models: Models, before: dict[str, int]) -> dict[str, int]:
    """Evaluations since `before = models.counts()`, without the zeros."""
    return {k: n - before[k] for k, n in models.counts().items() if n > before[k]}


def no_loss(images: Tensor) -> Tensor:
    """The (0, B) loss of a method that does not adapt."""
    return torch.zeros(0, len(images))
