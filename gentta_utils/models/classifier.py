"""The task model and its copies: one set of adapted parameters for each image, or one shared by a stream."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..common.evaluations import Evaluations
from ..common.types import Answers
from ..common.validate import check_subset


class Classifier(nn.Module):
    """A timm network behind images in [0, 1]: normalises, returns logits, always in eval mode.

    Args:
        network: maps normalised images (B, 3, S, S) to logits (B, K).
        mean, std: per-channel normalisation.
        image_size: S.
        name: as in `zoo.load`, for records.

    Attributes:
        subset: which of the network's classes the logits are of, in their order; None: all, see `restrict`.
        resize: shorter side that published weights want before the centre crop; None: their images have no crop.
        alignment: the settings of the images that it was fine-tuned on for SDA; None: it was not.
        target: what it answers with: the "class" of an image, and of a `dense.DenseModel` "classes" or "depth".
    """

    target: str = "class"
    subset: tuple[int, ...] | None = None
    resize: int | None = None
    alignment: dict | None = None

    def __init__(self, network: nn.Module, mean: tuple, std: tuple, image_size: int, classes: int, name: str = ""):
        super().__init__()
        self.network, self.image_size, self.classes, self.name = network.eval(), image_size, classes, name
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.count = Evaluations()

    @property
    def answer(self) -> tuple[int, ...]:
        """Shape of what it says of one image: (K,), or (K, h, w) of a map."""
        return (self.classes,)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Answers:
        """Logits (B, K) float32 of images (B, 3, S, S) in [0, 1]."""
        self.count.add(len(images), images, *self.parameters())
        return self.network(self.normalise(images)).float()

    def restrict(self, classes: tuple[int, ...]) -> "Classifier":
        """The same network, not a copy, with the logits (B, k) of k of its classes in this order; it counts for itself.

        Raises ValueError as `check_subset`, or if this is a part already."""
        check_subset(classes, self.classes, self.subset)
        mean, std = (tuple(v.flatten().tolist()) for v in (self.mean, self.std))
        part = Classifier(SomeLogits(self.network, classes), mean, std, self.image_size, len(classes), self.name)
        part.subset, part.resize, part.alignment = tuple(classes), self.resize, self.alignment
        return part.to(self.mean.device)

    def normalise(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
        """Images in [0, 1] as the network wants them, on its device."""
        return (images.to(self.mean.device) - self.mean) / self.std


class SomeLogits(nn.Module):
    """A network's logits of some of its classes: (B, K) becomes (B, k). Its parameters are the network's own."""

    def __init__(self, network: nn.Module, classes: tuple[int, ...]):
        super().__init__()
        self.network = network
        self.register_buffer("classes", torch.tensor(classes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, self.classes]

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.network.get_classifier()


class MeanPool(nn.Module):
    """The mean over space, (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def use_mean_pooling(network: nn.Module) -> nn.Module:
    """Pool by a plain mean, in place: under `vmap` torch's pooling falls back to a loop where channels come last in
    memory, as in ConvNeXt."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, MeanPool())
    return network
