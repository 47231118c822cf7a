"""TPT (Shu et al., NeurIPS 2022): tune a CLIP's prompt on one image until its confident views agree.

    L = H( mean over views v in S of softmax(z_v) ) - lambda mean_k |t_k - mean_j t_j|

S holds the views of lowest entropy before any step. The second term, with lambda above 0, is that of C-TPT (Yoon et
al., ICLR 2024): class features t_k that lie apart are calibrated. Context and optimiser start again for each image.

Card: docs/methods/tpt.md
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..common.types import PerImage
from ..common.validate import Count, Fraction, Natural, NotNegative, checked
from ..diffusion.entropy import marginal_entropy
from ..models.clip import text_head
from ..models.prompts import Prompt
from .base import Models, Needs, Output, check_finite, no_loss
from .many_views import Generated, Logits, OfViews, Views, ViewSettings, check_views, chosen_of, select

VERSION = 1


@dataclass(frozen=True)
class Settings(ViewSettings):
    """Defaults are those published."""

    lr: NotNegative = 0.25  # in units of the token embedding's standard deviation: 5e-3 for CLIP's .02
    updates: Natural = 1
    weight_decay: Fraction = 0.01  # of AdamW
    dispersion: NotNegative = 0.0  # lambda of C-TPT
    images_at_once: Count = 16  # through the text tower, bounds the memory
    fixed_chunk: bool = True  # pad every batch to that many: results are bit-equal whatever the batch size


PUBLISHED = dict(views=64, kind="crops", lowest=0.08, rho_h=0.1, lr=0.25, updates=1, weight_decay=0.01)
PUBLISHED_FINE_GRAINED = PUBLISHED | dict(kind="augmix")
PUBLISHED_C_TPT = PUBLISHED | dict(dispersion=50.0)  # lambda was chosen on a test set, see the card


def dispersion(text: Float[Tensor, "B K D"]) -> PerImage:
    """Mean distance of the K class features (B, K, D) to their mean, (B,)."""
    return (text - text.mean(1, keepdim=True)).norm(dim=-1).mean(1)


class TPT(OfViews):
    online = False

    @property
    def at_once(self) -> int:
        return self.settings.images_at_once

    def tune(
        self, features: Views, ids: Tensor, loss_of: Callable[[Logits], PerImage] = marginal_entropy
    ) -> tuple[Float[Tensor, "B M W"], Float[Tensor, "S B"]]:
        """The contexts (B, M, W) tuned on the unit features (B, V, D) of all views, and the loss before each update.

        `loss_of` takes logits (B, n, K) of the views that count."""
        s, prompt, scale = self.settings, self.models.prompt, text_head(self.models.classifier)[0].norm()
        context = prompt.start(features[:, 0]).detach().clone().requires_grad_()
        lr, losses, counting = s.lr * prompt.std, [], None
        optimizer = torch.optim.AdamW([context], lr, weight_decay=s.weight_decay)
        for step in range(s.updates):
            text = prompt(context)  # (B, K, D)
            if counting is None:  # the same views at every step
                logits = scale * features @ text.detach().mT  # (B, V, K)
                counting = chosen_of(features, select(features, logits, s))
            loss = loss_of(scale * counting @ text.mT)  # (B,)
            if s.dispersion:
                loss = loss - s.dispersion * dispersion(text)
            check_finite(loss, ids, step, lr)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach().cpu())
        return context.detach(), torch.stack(losses) if losses else no_loss(features)

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        features, _ = self.encode(images, ids)
        context, losses = self.tune(features, ids)
        with torch.no_grad():
            text = self.models.prompt(context)  # (B, K, D)
            logits = (text_head(self.models.classifier)[0].norm() * features[:, :1] @ text.mT)[:, 0]
        check_finite(logits.sum(1), ids, self.settings.updates, self.settings.lr, "prediction")
        return Output(logits.cpu(), None, losses)


NEEDS = Needs(clip=True)


def check_prompt(models: Models) -> Prompt:
    """The prompt of the models, whose networks are frozen here. Raises ValueError where it does not fit."""
    text_head(models.classifier)
    if models.prompt is None or models.prompt.classes != models.classifier.classes:
        raise ValueError(
            "a prompt of the classifier's classes is tuned: give `Models` one, prompt=make_prompt(clip, names)"
        )
    for network in (models.classifier, models.prompt.clip):
        network.requires_grad_(False)
    return models.prompt


def with_prompt(method: TPT) -> TPT:
    """The method. Raises ValueError as `check_views` and `check_prompt`."""
    check_prompt(check_views(method).models)
    return method


@checked
def configure(models: Models, settings: Settings | None = None, generated: Generated | None = None) -> TPT:
    """The context vectors of `models.prompt` are updated, a copy for each image; `generated` makes further views.

    Raises ValueError as `check_views` and `check_prompt`."""
    return with_prompt(TPT(models, settings or Settings(), generated))
