"""TEA (Yuan et al., CVPR 2024): read the classifier as an energy model, and lower the energy of the test images
below that of its own samples.

    E(x) = -logsumexp f(x),  L = mean over b of E(x_b) - E(sample_b)

Samples come from Langevin steps through the classifier, begun at a replay buffer. Then one step on scale and shift of
batch norm; a network without batch norm adapts the norm layers that it has. Predicted after the update. Batch norm
takes the statistics of its batch throughout, as in TENT: also of the samples, since the original drops the stored ones.

Card: docs/methods/tea.md
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Images, PerImage, Probs
from ..common.validate import Checked, Count, Fraction, Positive, checked
from ..models.batchnorm import MixedBatchNorm, with_test_statistics
from ..models.classifier import Classifier
from ..models.copies import Copies, parameter_names
from .base import Method, Models, Needs, Output, check_finite, make_optimizer

VERSION = 2  # of the numbers; 1 sampled with the statistics of the source


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are the published ones, but for the clamp."""

    lr: Positive = 1e-3
    updates: Count = 1  # a batch, each with its own samples
    optimizer: Literal["adam", "sgd"] = "adam"  # or "sgd"; both without weight decay
    momentum: Fraction = 0.9  # of SGD
    steps: Count = 20  # of Langevin dynamics
    step_size: Positive = 0.1  # a, in pixels of [0, 1]
    noise: Fraction = 0.01  # s, of each step
    clamp: bool = True  # keep the samples in [0, 1], the range of the classifier's images
    buffer: Count = 10_000  # samples that are kept to start from
    fresh: Fraction = 0.05  # share of starts that are uniform noise nevertheless
    seed: int = 0


PUBLISHED = dict(  # in batches of 200; its buffer starts in [-1, 1] whatever the classifier takes
    lr=1e-3, optimizer="adam", steps=20, step_size=0.1, noise=0.01, buffer=10_000, fresh=0.05, clamp=False
)


def energy(logits: Probs) -> PerImage:
    """E = -logsumexp of logits (B, K), (B,): low where the classifier knows an image as anything at all."""
    return -logits.logsumexp(1)


def langevin(
    classifier, x: Images, steps: int, step_size: float, noise: float, clamp: bool, g: torch.Generator
) -> Images:
    """Samples (B, 3, S, S) of exp(-E), begun at images x: x <- x - a dE/dx + s n, with n ~ N(0, 1) drawn from `g`."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(energy(classifier(x)).sum(), x)
        x = x.detach() - step_size * slope + noise * torch.randn(x.shape, generator=g).to(x.device)
        x = x.clamp(0, 1) if clamp else x
    return x


@dataclass
class Tea(Method):
    online = True
    adapted: Classifier = field(repr=False)  # with the statistics of the batch; its weights never change
    param_set: str  # "bn", or "norm" where there is no batch norm
    state: tuple[Copies, torch.optim.Optimizer] | None = field(default=None, repr=False)  # None is the source
    buffer: dict[int, Tensor] = field(default_factory=dict, repr=False)  # what was sampled; all else is still noise
    drawn: int = 0  # batches of samples since the source

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        s, losses = self.settings, []
        self.state = self.state or self._fresh()
        task, optimizer = self.state
        for step in range(s.updates):
            samples = self.sample(len(images))
            loss = energy(task(images)) - energy(task(samples))  # (B,); two calls: each has its own statistics
            check_finite(loss, ids, step, s.lr)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            logits = task(images)
        check_finite(logits.sum(1), ids, s.updates, s.lr, "prediction")
        return Output(logits.cpu(), None, torch.stack(losses).cpu())

    def reset(self) -> None:
        """Back to the source: scale and shift, moments of the optimiser, replay buffer and draws."""
        self.state, self.buffer, self.drawn = None, {}, 0

    def sample(self, n: int) -> Images:
        """n samples (n, 3, S, S) of the network as it is now, which replace what they were begun at in the buffer."""
        s, classifier = self.settings, self.models.classifier
        task, _ = self.state = self.state or self._fresh()
        g = generator(s.seed, -1, "tea", self.drawn)  # of no image: the samples belong to the batch
        places = torch.randint(s.buffer, (n,), generator=g).tolist()
        again = (torch.rand(n, generator=g) >= s.fresh).tolist()
        noise = torch.rand(n, 3, classifier.image_size, classifier.image_size, generator=g)
        x = torch.stack([self.buffer.get(i, u) if keep else u for i, keep, u in zip(places, again, noise, strict=True)])
        now = Copies(self.adapted, self.param_set, None)  # each step takes the statistics of the samples,
        now.values = {name: value.detach() for name, value in task.values.items()}  # scale and shift as adapted
        x = langevin(now, x, s.steps, s.step_size, s.noise, s.clamp, g)
        self.buffer.update(zip(places, map(torch.clone, x.cpu()), strict=True))  # rows alone, not views of x
        self.drawn += 1
        return x

    def _fresh(self) -> tuple[Copies, torch.optim.Optimizer]:
        s, task = self.settings, Copies(self.adapted, self.param_set, None)
        return task, make_optimizer(s.optimizer, task.tensors(), s.lr, s.momentum)


NEEDS = Needs(online=True, batch_statistics=True)


@checked
def configure(models: Models, settings: Settings | None = None) -> Tea:
    """Scale and shift of batch norm, else of all norm layers, are updated, on a copy.

    The classifier of `models` is frozen here. Raises ValueError for a network without any norm layer."""
    adapted = with_test_statistics(models.classifier, differentiable=True)
    param_set = "bn" if any(isinstance(m, MixedBatchNorm) for m in adapted.modules()) else "norm"
    parameter_names(adapted, param_set)
    models.classifier.requires_grad_(False)
    return Tea(models, settings or Settings(), adapted, param_set)
