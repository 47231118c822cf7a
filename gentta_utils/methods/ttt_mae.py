"""TTT-MAE (Gandelsman et al., NeurIPS 2022): adapt by filling in missing patches of the image itself.

    L = mean over hidden patches of |g(f(masked x)) - patch|^2 / D,  patches normalised one by one

The contrast to generative feedback: this loss never sees a class. Only the encoder f is updated, by steps that see
random masks of the one image; decoder g and head h stay. Then the whole image is predicted by h(f(x)).

Card: docs/methods/ttt_mae.md
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from ..common.randomness import generator
from ..common.validate import Checked, Count, Fraction, Positive, Rule, checked
from ..models.mae import MaskedAutoencoder, draw_masks, masked_error
from .base import Method, Models, Needs, Output, check_finite, make_optimizer

Ratio = Annotated[float, Rule("a number between 0 and 1", lambda v: 0 < v < 1)]


@dataclass(frozen=True)
class Settings(Checked):
    """Defaults are the published ones, but for fewer masks."""

    lr: Positive = 5e-3  # published as 1e-2 for 256 masks, in proportion to their number
    updates: Count = 20
    masks: Count = 16  # an update, all of one image
    ratio: Ratio = 0.75  # share of the patches that is hidden
    optimizer: Literal["sgd", "adamw"] = "sgd"  # or "adamw"; both without weight decay
    momentum: Fraction = 0.9  # of SGD
    seed: int = 0


PUBLISHED = dict(lr=5e-3, updates=20, masks=128, ratio=0.75, optimizer="sgd", momentum=0.9)


class TTTMAE(Method):
    online = False
    at_once = 1  # its masks fill a batch, and results are bit-equal whatever its neighbours

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to one image (1, 3, S, S) with its id (1,) alone."""
        s, classifier, losses = self.settings, self.models.classifier, []
        network, x = classifier.network, classifier.normalise(images)
        encoder = {f"encoder.{n}": v.detach().clone().requires_grad_() for n, v in network.encoder.named_parameters()}
        optimizer = make_optimizer(s.optimizer, list(encoder.values()), s.lr, s.momentum)
        views = x.expand(s.masks, -1, -1, -1)  # (M, 3, S, S)
        for step in range(s.updates):
            g = generator(s.seed, int(ids), "ttt_mae", step)
            keep = draw_masks(s.masks, network.patches, s.ratio, g).to(x.device)  # (M, v)
            predicted = functional_call(network, encoder, (views, keep))  # (M, L, D)
            classifier.count.add(s.masks, *encoder.values())
            loss = masked_error(predicted, views, keep, network.patch_size).mean()[None]  # (1,)
            check_finite(loss, ids, step, s.lr)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            logits = functional_call(network, encoder, (x,)).float()
            classifier.count.add(1)
        check_finite(logits.sum(1), ids, s.updates, s.lr, "prediction")
        return Output(logits.cpu(), None, torch.stack(losses).cpu())


NEEDS = Needs()


@checked
def configure(models: Models, settings: Settings | None = None) -> TTTMAE:
    """The encoder is updated, on a copy; the network of `models` is frozen here.

    Raises ValueError for a network that cannot fill in patches, or a mask ratio that hides none or all of them."""
    settings, network = settings or Settings(), models.classifier.network
    if not isinstance(network, MaskedAutoencoder):
        raise ValueError(
            f"{models.classifier.name or 'this network'} has no decoder to fill in missing patches: "
            "load classifier/mae, or train it with `python -m gentta_utils train classifier/mae`"
        )
    draw_masks(1, network.patches, settings.ratio, torch.Generator())
    models.classifier.requires_grad_(False)
    return TTTMAE(models, settings)
