"""The task model of TTT-MAE: a masked autoencoder on unlabelled scenes, then a head on few labels.

Two phases of one run, so that one checkpoint holds it. First encoder and decoder learn to fill in three quarters of the
patches. Then both are frozen and the head is trained on the encoder's tokens ("probing"): at test time the encoder can
be adapted by the first task because the head reads what the first task taught it.

Card: docs/methods/ttt_mae.md
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.mae import draw_masks, masked_error
from ..world.views import augment
from .classifiers import ClassifierRecipe
from .data import training_set
from .training import Schedule

RATIO = 0.75  # of the patches are hidden


@dataclass(frozen=True)
class TwoPhases(Schedule):
    """A schedule with a second rise and fall.

    Attributes:
        share: of the steps, for the first phase.
        second_lr: largest learning rate of the second.
    """

    share: float = 0.75
    second_lr: float = 1e-3

    @property
    def first(self) -> int:
        """Steps of the first phase."""
        return round(self.share * self.steps)

    def lr_at(self, step: int) -> float:
        begin, end, lr = (0, self.first, self.lr) if step < self.first else (self.first, self.steps, self.second_lr)
        return Schedule(end - begin, self.batch, lr, self.warmup, self.flat, self.final).lr_at(step - begin)


@dataclass(frozen=True)
class MaeRecipe(ClassifierRecipe):
    """As of a classifier, and how many scenes without labels come first."""

    schedule: TwoPhases
    unlabelled: int = 20_000


RECIPES = {
    "classifier/mae": MaeRecipe(
        "masked_autoencoder",
        labels=4000,
        schedule=TwoPhases(steps=8000, batch=128, lr=1.5e-3, weight_decay=0.05, betas=(0.9, 0.95)),
        model_args=dict(
            img_size=64, patch_size=8, embed_dim=96, depth=6, num_heads=3, decoder_dim=64, decoder_depth=2, head_depth=2
        ),
    )
}


def make_loss(recipe: MaeRecipe, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
    """The loss function of `training.train`, with its data loaded: masked error, then the head's cross-entropy."""
    images, labels = training_set(max(recipe.unlabelled, recipe.labels), split=recipe.split)
    schedule = recipe.schedule

    def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        probing = step >= schedule.first
        model.train()
        n = recipe.labels if probing else recipe.unlabelled
        rows = torch.randint(n, (schedule.batch,), generator=generator)
        x = augment(images[rows].float() / 127.5 - 1, generator).to(device)
        if probing:
            with torch.no_grad():
                tokens = model.encoder.forward_features(x)
            return F.cross_entropy(model.head(tokens).float(), labels[rows].to(device))
        keep = draw_masks(len(x), model.patches, RATIO, generator).to(device)
        return masked_error(model(x, keep).float(), x, keep, model.patch_size).mean()

    return loss_of
