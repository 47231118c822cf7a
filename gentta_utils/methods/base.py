"""The one shape of all methods.

    method = some_method.configure(models, settings)   # says what is updated
    out = method.adapt(images, ids)                    # -> Output
    method.reset()                                     # source state again

`settings` is a frozen dataclass. `evaluate.run` owns the protocol (order, reset, batches), the method its optimiser
(docs/methods/protocol.md).
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..common.types import Answers
from ..common.validate import check_ids, check_images
from ..diffusion.mixture import GaussianMixture
from ..models.classifier import Classifier
from ..models.denoiser import Denoiser
from ..models.prompts import Prompt
from ..world.views import view_of


@dataclass(frozen=True)
class Models:
    """What a method may use: the task model, and the diffusion model where there is one.

    `aligned` is a second task model of the same classes, for the images that SDA has changed. `prompt` is the text
    tower of a zero-shot CLIP with a learnable prompt of the same classes, for the methods that tune it."""

    classifier: Classifier
    denoiser: Denoiser | GaussianMixture | None = None
    aligned: Classifier | None = None
    prompt: Prompt | None = None

    def restrict(self, classes: tuple[int, ...] | None) -> "Models":
        """The same networks among some of their classes, as a `Stream` of ImageNet-A or -R names them in `classes`.

        Logits and conditions are then (B, k), and class i of them is class classes[i] of the whole. None: these models.

        Raises ValueError unless the classes are different ones of both models."""
        if classes is None:
            return self
        parts = (None if net is None else net.restrict(classes) for net in (self.denoiser, self.aligned, self.prompt))
        return Models(self.classifier.restrict(classes), *parts)

    def counts(self) -> dict[str, int]:
        """Network evaluations so far, e.g. {"classifier fwd": 3, "denoiser fwd+bwd": 160}; one for each image."""
        nets = {"classifier": self.classifier, "denoiser": self.denoiser, "aligned": self.aligned}
        nets["text"] = self.prompt  # one for each class of an image
        return {f"{name} {kind}": n for name, net in nets.items() if net is not None for kind, n in net.count.items()}


@dataclass(frozen=True)
class Needs:
    """What a method needs of a run. Each states its own as `NEEDS`, and whatever runs methods reads that.

    Attributes:
        denoiser: a diffusion model.
        clip: a zero-shot CLIP as classifier, and its `Models.prompt`.
        maps: a network that answers with maps.
        online: by default a state is carried from batch to batch, so a stream is met in order; settings with a field
            `online` say it for themselves.
        batch_statistics: an image's prediction rests on the other images of its batch: give it large ones.
    """

    denoiser: bool = False
    clip: bool = False
    maps: bool = False
    online: bool = False
    batch_statistics: bool = False


@dataclass
class Output:
    """What a method says of B images.

    Attributes:
        logits: (B, K) after adaptation, on the clean view; (B, K, h, w) of a network that answers with maps.
        before: (B, K) of the model as it was when the images came in, on the same view; None leaves it to `Method`.
        loss: (S, B) the adaptation loss at each of S updates; (0, B) for methods without one.
        nfe: network evaluations spent on the whole batch, by network and kind.
        images: (B, 3, H, W) the changed images, for methods that adapt the input.
    """

    logits: Answers
    before: Answers | None
    loss: Float[Tensor, "S B"]
    nfe: dict[str, int] = field(default_factory=dict)
    images: Float[Tensor, "B 3 H W"] | None = None


def spent(models: Models, before: dict[str, int]) -> dict[str, int]:
    """Evaluations since `before = models.counts()`, without the zeros."""
    return {k: n - before[k] for k, n in models.counts().items() if n > before[k]}


@torch.no_grad()
def source_logits(models: Models, images: Tensor) -> Answers:
    """Logits (B, K), or maps, of the source for `Output.before`. Not counted: the table needs them, not the method."""
    classifier = models.classifier
    return classifier.network(classifier.normalise(images)).float().cpu()


@dataclass
class Method:
    """Base of the methods: checks the images, hands them to `episode` part by part, counts what that cost.

    Attributes:
        predict: whether "before" or "after" the last update.
        online: whether a state is carried from batch to batch; None: without a state it fits every protocol.
        at_once: images of an episode; None: the whole batch.
    """

    predict = "after"
    online = None
    at_once = None
    models: Models
    settings: Any

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to images (n, 3, S, S) with these ids (n,) and predict them; costs are counted by `adapt`."""
        raise NotImplementedError

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to images (B, 3, S, S) in [0, 1] with these ids (B,) and predict them.

        `before` is the frozen source, unless the method has it for nothing.

        Raises ValueError for images of the wrong size or range and for ids that are no whole numbers,
        FloatingPointError where an adaptation diverges."""
        check_images(images, self.models.classifier.image_size)
        check_ids(ids, len(images))
        parts, nfe = [], dict.fromkeys(self.models.counts(), 0)
        for rows in torch.arange(len(images)).split(self.at_once or len(images)):
            n, start = len(rows), self.models.counts()
            if getattr(self.settings, "fixed_chunk", False) and self.at_once:
                rows = torch.cat([rows, rows[:1].expand(self.at_once - n)])
            out = self.episode(images[rows], ids[rows])
            for kind, count in spent(self.models, start).items():
                nfe[kind] += count * n // len(rows)  # without the padding
            both = [None if v is None else v[:n] for v in (out.before, out.images)]
            parts.append((out.logits[:n], out.loss[:, :n], *both))
        logits, loss, before, changed = zip(*parts, strict=True)
        if before[0] is None:
            before = [source_logits(self.models, view_of(images, getattr(self.settings, "view", "full")))]
        changed = None if changed[0] is None else torch.cat(changed)
        nfe = {kind: count for kind, count in nfe.items() if count}
        return Output(torch.cat(logits), torch.cat(before), torch.cat(loss, 1), nfe, changed)

    def reset(self) -> None:
        """Back to the source. It was never written to, and without a state there is nothing to do."""


def stated(settings) -> dict:
    """Settings as records keep them: without a field that came later (`metadata={"later": True}`) and stands at its
    default, so that a run made before there was such a field still has the description that it would have today."""
    old = {f.name for f in fields(settings) if f.metadata.get("later") and getattr(settings, f.name) == f.default}
    return {name: value for name, value in asdict(settings).items() if name not in old}


def check_classes(models: Models, wordings: int = 1) -> None:
    """Raise ValueError unless the denoiser has each of the classifier's K classes in so many wordings."""
    K, has = models.classifier.classes, (models.denoiser.classes, models.denoiser.wordings)
    if has != (wordings * K, wordings):
        raise ValueError(
            f"the denoiser has {has[0]} conditions in {has[1]} wordings, the classifier {K} classes: give both the "
            f"same classes, in {wordings} wordings"
        )


def make_optimizer(
    name: str, tensors: list[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """A fresh "sgd" (with momentum), "adam" or "adamw" over these tensors."""
    if name == "sgd":
        return torch.optim.SGD(tensors, lr, momentum=momentum, weight_decay=weight_decay)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](tensors, lr, weight_decay=weight_decay)


def check_finite(values: Tensor, ids: Tensor, step: int, lr: float, what: str = "loss") -> None:
    """Raise FloatingPointError, with the first image of ids (B,) whose value (B,), a `what`, is not finite."""
    bad = ~torch.isfinite(values.detach()).cpu()
    if bool(bad.any()):
        raise FloatingPointError(
            f"the {what} in the adaptation to image {int(ids[bad][0])} diverged at update {step}: lower the learning "
            f"rate (lr={lr:g})"
        )


def no_loss(images: Tensor) -> Tensor:
    """The (0, B) loss of a method that does not adapt."""
    return torch.zeros(0, len(images))
