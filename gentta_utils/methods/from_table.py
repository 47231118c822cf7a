"""Diffusion-TTA with output mixing, from an error table: no evaluation of the diffusion model at all.

    L = p' Gram p, so dL/dp = 2 Gram p

The table of an image (`error_table.ErrorTable`) holds all that output mixing can ask of the diffusion model. Whoever
has it, from the Diffusion Classifier for instance, tries step sizes, temperatures and budgets at the price of the
classifier.
Not among the methods by name: it needs a table of the very images.

Card: docs/methods/diffusion_tta.md
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.validate import checked
from ..diffusion.error_table import ErrorTable
from ..diffusion.feedback import probabilities
from ..models.copies import Copies
from ..world.views import view_of
from .base import Method, Models, Output, check_finite, make_optimizer
from .diffusion_tta import Settings


@dataclass
class FromTable(Method):
    online = False
    table: ErrorTable
    ids: Tensor  # (N,) of the table's images

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Update s sees the pairs s, s + S, s + 2 S ... of the table, each pair one update.

        Raises ValueError for an image that the table does not hold."""
        s, losses = self.settings, []
        rows = (ids[:, None] == self.ids).int()  # (B, N)
        if not bool(rows.sum(1).eq(1).all()):
            raise ValueError("the table does not hold each of these images once: make one of this very stream")
        grams = self.table.gram[rows.argmax(1)].to(images.device)  # (B, n, K, K)
        seen = view_of(images, s.view)
        task = Copies(self.models.classifier, s.param_set, len(images), s.rank, s.seed)
        optimizer = make_optimizer(s.optimizer, task.tensors(), s.lr, s.momentum)
        for step in range(s.updates):
            g = grams[:, step :: s.updates].mean(1)  # (B, K, K)
            p = probabilities(task(seen), s.temperature)  # (B, K)
            check_finite(p.sum(1), ids, step, s.lr, "prediction")
            G = 2 * (g @ p.detach()[..., None])[..., 0]  # (B, K)
            losses.append((p.detach() * G).sum(1) / 2)
            optimizer.zero_grad()
            (p * G).sum().backward()
            optimizer.step()
        with torch.no_grad():
            logits = task(seen)
        check_finite(logits.sum(1), ids, s.updates, s.lr, "prediction")
        return Output(logits.cpu(), None, torch.stack(losses).cpu())


@checked
def configure(models: Models, settings: Settings, table: ErrorTable, ids: Tensor) -> FromTable:
    """The classifier's `param_set` is updated. Raises ValueError where the table does not fit the settings."""
    n, K = table.gram.shape[1], models.classifier.classes
    if settings.mixing != "output" or settings.adapt_denoiser or settings.online or settings.top_k:
        raise ValueError("a table serves mixing='output' with a frozen denoiser, image by image, over all classes")
    if settings.tail:
        raise ValueError("from a table the last logits alone are predicted: tail=0")
    if n != settings.updates * settings.pairs or table.gram.shape[-1] != K or len(ids) != len(table.gram):
        raise ValueError(
            f"{settings.updates} updates of {settings.pairs} pairs over {K} classes do not fit a table of {n} pairs "
            f"over {table.gram.shape[-1]}: thin it, or make another"
        )
    models.classifier.requires_grad_(False)
    return FromTable(models, settings, table, ids)
