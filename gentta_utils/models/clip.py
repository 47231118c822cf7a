"""CLIP (Radford et al., 2021) behind images in [0, 1] and plain strings, and the zero-shot classifier it becomes.

The network is open_clip's own class with its own tokenizer, whichever the weights. Features are normalised before they
are compared: without that the softmax is about ten times too sharp and no gradient is left.

Card: docs/methods/clip_and_text.md
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..common.types import Probs
from ..world.views import low_pass
from .classifier import Classifier, SomeLogits

TEXTS_AT_ONCE = 512  # a thousand classes in six wordings would need 6 GB


class Clip(nn.Module):
    """An open_clip network with its tokenizer, frozen or not.

    Args:
        network: `encode_image`, `encode_text`, `logit_scale`.
        tokenizer: list of strings -> tokens (M, L).
        mean, std: per-channel normalisation of its images, whose side is image_size.
        name: as in `zoo.load`, for records.
    """

    def __init__(self, network: nn.Module, tokenizer, mean: tuple, std: tuple, image_size: int, name: str = ""):
        super().__init__()
        self.network, self.tokenizer, self.image_size, self.name = network.eval(), tokenizer, image_size, name
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode_images(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """Unit features (B, D) of images (B, 3, S, S) in [0, 1]."""
        x = (images.to(self.mean.device) - self.mean) / self.std
        return F.normalize(self.network.encode_image(x).float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Unit features (M, D) of texts, `TEXTS_AT_ONCE` of them in one call of the network."""
        tokens = self.tokenizer(list(texts)).to(self.mean.device).split(TEXTS_AT_ONCE)
        return F.normalize(torch.cat([self.network.encode_text(some).float() for some in tokens]), dim=-1)

    def class_features(self, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "K D"]:
        """One unit feature per class (K, D): the mean over templates of unit features, normalised again."""
        texts = [template.format(name) for name in names for template in templates]
        return F.normalize(self.encode_texts(texts).unflatten(0, (len(names), -1)).mean(1), dim=-1)

    @torch.no_grad()
    def zero_shot(self, names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Classifier:
        """The classifier over these classes: logits are cosines times the learned scale. It shares the image tower.

        Raises ValueError without a class or a template."""
        if not names or not templates:
            raise ValueError("a zero-shot classifier takes at least one class name and one template")
        head = self.network.logit_scale.exp() * self.class_features(names, templates)
        mean, std = (tuple(v.flatten().tolist()) for v in (self.mean, self.std))
        network = ZeroShot(self.network.visual, head)
        return Classifier(network, mean, std, self.image_size, len(names), self.name).to(self.mean.device)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention written out: the fused kernel has no per-sample rule for `vmap`, and the fast path that torch takes
    where it sees no gradient, as inside `vmap`, has no derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Low(nn.Module):
    """An image tower that sees area averages, enlarged again: of normalised images as of the images themselves."""

    def __init__(self, tower: nn.Module, factor: int):
        super().__init__()
        self.tower, self.factor = tower, factor

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        return self.tower(low_pass(x, self.factor))


class ZeroShot(nn.Module):
    """An image tower and a bias-free last layer of text features times the logit scale."""

    def __init__(self, visual: nn.Module, head: Float[Tensor, "K D"]):
        super().__init__()
        self.visual, self.head = visual, nn.Linear(head.shape[1], head.shape[0], bias=False)
        self.head.weight = nn.Parameter(head.clone())

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Probs:
        with plain_attention():
            return self.head(F.normalize(self.visual(x), dim=-1))

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.head


def image_features(classifier: Classifier, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
    """Unit features (B, D) of images in [0, 1] by a zero-shot classifier, counted as its forward passes.

    Its logits are `image_features @ text_head.T`. Raises ValueError for another classifier."""
    network, _ = _zero_shot(classifier)
    classifier.count.add(len(images), images, *classifier.parameters())
    return F.normalize(network.visual(classifier.normalise(images)).float(), dim=-1)


def text_head(classifier: Classifier) -> Float[Tensor, "K D"]:
    """The unit features of a zero-shot classifier's K classes, times the logit scale, which is the norm of each.

    Raises ValueError for another classifier."""
    network, classes = _zero_shot(classifier)
    head = network.head.weight.detach()
    return head if classes is None else head[classes]


def _zero_shot(classifier: Classifier) -> tuple[ZeroShot, Tensor | None]:
    """Its network, and which of its classes are left."""
    network, classes = classifier.network, None
    if isinstance(network, SomeLogits):
        network, classes = network.network, network.classes
    if not isinstance(network, ZeroShot):
        raise ValueError(
            f"{classifier.name or 'this classifier'} has no text features: take a CLIP's `zero_shot` classifier"
        )
    return network, classes
