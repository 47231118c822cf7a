"""TTT-MAE (Gandelsman et al., NeurIPS 2022): adapt by filling in missing patches of the image itself.

    L = mean over hidden patches of |g(f(masked x)) - patch|^2 / D,  patches normalised one by one

The contrast to generative feedback: this loss never sees a class. Only the encoder f is updated, by steps that see
random masks of the one image; decoder g and head h stay. Then the whole image is predicted by h(f(x)).

Card: docs/methods/ttt_mae.md
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from ..common.randomness import generator
from ..common.validate import check_images, check_settings
from ..models.mae import MaskedAutoencoder, draw_masks, masked_error
from .base import Models, Needs, Output, check_finite, make_optimizer, source_logits, spent


@dataclass(frozen=True)
class Settings:
    """Defaults are the published ones, but for fewer masks."""

    lr: float = 5e-3  # published as 1e-2 for 256 masks, in proportion to their number
    updates: int = 20
    masks: int = 16  # an update, all of one image
    ratio: float = 0.75  # share of the patches that is hidden
    optimizer: str = "sgd"  # or "adamw"; both without weight decay
    momentum: float = 0.9  # of SGD
    seed: int = 0

    def __post_init__(self):
        check_settings(self, {"optimizer": ("sgd", "adamw")}, ("lr", "updates", "masks"), ("momentum",))
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: choose a number between 0 and 1")


PUBLISHED = dict(lr=5e-3, updates=20, masks=128, ratio=0.75, optimizer="sgd", momentum=0.9)


@dataclass
class TTTMAE:
    predict = "after"
    online = False
    models: Models
    settings: Settings

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to each of images (B, 3, S, S) in [0, 1] with these ids (B,) alone; `before` is the source.

        Raises ValueError for images of the wrong size or range, FloatingPointError when an adaptation diverges."""
        check_images(images, self.models.classifier.image_size)
        start = self.models.counts()
        # One image at a time: its masks fill a batch, and results are bit-equal whatever its neighbours.
        parts = [self._episode(images[b : b + 1], ids[b : b + 1]) for b in range(len(images))]
        logits, loss = torch.cat([z for z, _ in parts]), torch.cat([each for _, each in parts], 1)
        return Output(logits, source_logits(self.models, images), loss, spent(self.models, start))

    def reset(self) -> None:
        """Nothing to do: every image starts from the source, which was never written to."""

    def _episode(self, image: Tensor, image_id: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (1, K) and losses (S, 1) of an image (1, 3, S, S) with its id (1,)."""
        s, classifier, losses = self.settings, self.models.classifier, []
        network, x = classifier.network, classifier.normalise(image)
        encoder = {f"encoder.{n}": v.detach().clone().requires_grad_() for n, v in network.encoder.named_parameters()}
        optimizer = make_optimizer(s.optimizer, list(encoder.values()), s.lr, s.momentum)
        views = x.expand(s.masks, -1, -1, -1)  # (M, 3, S, S)
        for step in range(s.updates):
            g = generator(s.seed, int(image_id), "ttt_mae", step)
            keep = draw_masks(s.masks, network.patches, s.ratio, g).to(x.device)  # (M, v)
            predicted = functional_call(network, encoder, (views, keep))  # (M, L, D)
            classifier.count["fwd+bwd"] += s.masks
            loss = masked_error(predicted, views, keep, network.patch_size).mean()[None]  # (1,)
            check_finite(loss, image_id, step, s.lr)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
        with torch.no_grad():
            logits = functional_call(network, encoder, (x,)).float()
        classifier.count["fwd"] += 1
        check_finite(logits.sum(1), image_id, s.updates, s.lr, "prediction")
        return logits.cpu(), torch.stack(losses).cpu()


NEEDS = Needs()


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
