"""Task models that answer with a map: logits of classes (B, K, h, w), or depth (B, 1, h, w) in metres.

Segmentors: `SegformerForSemanticSegmentation` (Xie et al., 2021), and a convolutional encoder with a light pyramid head
(after Lin et al., 2017). Depth: `GLPNForDepthEstimation` (Kim et al., 2022), and DenseDepth (Alhashim and Wonka, 2018).
Maps may be smaller than the image; whoever compares them with a truth enlarges them by `enlarged`.
"""

import json
import re
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GLPNForDepthEstimation, PreTrainedModel, SegformerForSemanticSegmentation
from transformers.utils.logging import disable_progress_bar

from ..common.validate import check_choice
from ..world.maps import FAR, NEAR
from .classifier import Classifier

MEAN = STD = (0.5, 0.5, 0.5)
KINDS = {"segformer": SegformerForSemanticSegmentation, "glpn": GLPNForDepthEstimation}
EDGE = 64  # of the scenes' images
WEIGHTS = "model.safetensors"
PUBLISHED_FILES = ("config.json", "preprocessor_config.json")


class DenseModel(Classifier):
    """A `Classifier` that answers for every pixel: logits (B, K, h, w), or depth (B, 1, h, w) in metres.

    Args:
        network: maps normalised images (B, 3, S, S) to such an answer.
        answer: (K, h, w) of one image; K is 1 for depth.
        target: "classes" or "depth".
    """

    def __init__(
        self, network: nn.Module, mean: tuple, std: tuple, image_size: int, answer: tuple, target: str, name: str = ""
    ):
        super().__init__(network, mean, std, image_size, answer[0], name)
        self.shape, self.target = tuple(answer), target

    @property
    def answer(self) -> tuple[int, ...]:
        return self.shape

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B K h w"]:
        """Logits (B, K, h, w) or metres (B, 1, h, w), float32, of images (B, 3, S, S) in [0, 1]."""
        return super().forward(images)

    def restrict(self, classes: tuple[int, ...]) -> "DenseModel":
        """Raises ValueError: a map is over all classes of its network."""
        raise ValueError("a network that answers with maps has no subset of classes: use it whole")


def enlarged(answer: Float[Tensor, "B K h w"], side: int) -> Float[Tensor, "B K S S"]:
    """Logits or depth at side x side, bilinear: how a smaller answer is compared with a truth per pixel."""
    return F.interpolate(answer, (side, side), mode="bilinear", align_corners=False)


def dense_model(
    network: nn.Module, target: str, name: str = "", size: int = EDGE, mean: tuple = MEAN, std: tuple = STD
) -> DenseModel:
    """The network behind images in [0, 1] of this size; how large it answers is tried out."""
    with torch.no_grad():
        answer = network.eval()(torch.zeros(1, 3, size, size)).shape[1:]
    return DenseModel(network, mean, std, size, tuple(answer), target, name)


def published(folder: Path, name: str, size: int) -> DenseModel:
    """A SegFormer or GLPN as transformers stores it, behind images in [0, 1] of this size. They are normalised as its
    preprocessor_config.json says; GLPN's are not.

    Raises ValueError for a network of another kind."""
    kind, shown = (json.loads((folder / file).read_text(encoding="utf-8")) for file in PUBLISHED_FILES)
    seen = [(0.0,) * 3, (1.0,) * 3]
    if shown.get("do_normalize"):
        seen = [tuple(shown[f"image_{what}"]) for what in ("mean", "std")]
    model = _of_transformers(folder, kind.get("model_type"), name, size, *seen)
    as_published(model.network)
    return model


def as_published(network: nn.Module) -> nn.Module:
    """Make an encoder of transformers the function that published weights of it were trained in (Xie et al., 2021; Kim
    et al., 2022), in place: norms of blocks and stages had epsilon 1e-6, the library's have 1e-5.

    Models that were trained in the library's class, as those of the scenes profile, must not come here."""
    block = ("layernorm_before", "layernorm_after", "layer_norm_1", "layer_norm_2")
    for name, module in network.named_modules():
        own = re.search(r"encoder\.layer_norm\.\d+$|stages\.\d+\.layer_norm$", name)
        if isinstance(module, nn.LayerNorm) and (own or name.endswith(block)):
            module.eps = 1e-6
    return network


def load(path: Path, name: str = "") -> DenseModel:
    """The model in a folder: in the format of transformers, or a `Pyramid` or `DenseDepth` with a config.json."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type"):
        return _of_transformers(path, config["model_type"], name)
    network = convolutional(**config)
    network.load_state_dict({k: v.float() for k, v in load_file(path / WEIGHTS).items()}, strict=True)
    return dense_model(network, "depth" if config["head"] == "densedepth" else "classes", name)


def _of_transformers(folder: Path, kind: str | None, name: str, *shown) -> DenseModel:
    check_choice("kind of network", str(kind), KINDS)
    disable_progress_bar()  # it would stand in every committed notebook
    network = Answers(KINDS[kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager"))
    return dense_model(network, "depth" if kind == "glpn" else "classes", name, *shown)


class Answers(nn.Module):
    """A network of transformers that returns its answer alone, (B, K, h, w), and no object around it."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(pixel_values=x)
        return out.logits if "logits" in out else out.predicted_depth[:, None].clamp(NEAR, FAR)

    def get_classifier(self) -> nn.Module:
        """All behind the encoder: what "head" means of a network that answers with maps."""
        parts = ("decode_head", "decoder", "head")
        return nn.ModuleList(getattr(self.model, part) for part in parts if hasattr(self.model, part))


def convolutional(architecture: str, model_args: dict, head: str, classes: int = 1, width: int = 64) -> nn.Module:
    """A timm encoder with one of two heads, "pyramid" or "densedepth", its weights yet to be loaded."""
    encoder = timm.create_model(architecture, features_only=True, **model_args)
    return Pyramid(encoder, classes, width) if head == "pyramid" else DenseDepth(encoder, width)


class Pyramid(nn.Module):
    """Features of all levels of a timm encoder, summed from the coarsest to the finest, and classes of each pixel."""

    def __init__(self, encoder: nn.Module, classes: int, width: int = 64):
        super().__init__()
        self.encoder = encoder
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in encoder.feature_info.channels())
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = None
        for lateral, feature in reversed(list(zip(self.lateral, self.encoder(x), strict=True))):
            level = lateral(feature)
            y = level if y is None else level + _to_size_of(y, level)
        return self.classify(self.smooth(F.relu(y)))

    def get_classifier(self) -> nn.Module:
        """All behind the encoder."""
        return nn.ModuleList([self.lateral, self.smooth, self.classify])


class DenseDepth(nn.Module):
    """A timm encoder and a decoder of bilinear steps, each with the encoder's features beside it. It is trained on the
    reciprocal FAR / depth, in which near things weigh more, and answers at half the image's side."""

    def __init__(self, encoder: nn.Module, width: int = 64):
        super().__init__()
        self.encoder = encoder
        *skips, last = encoder.feature_info.channels()
        self.bottom = nn.Conv2d(last, width, 1)
        self.up = nn.ModuleList(_two_convolutions(width + c, width) for c in reversed(skips))
        self.reciprocal_of = nn.Conv2d(width, 1, 3, padding=1)

    def reciprocal(self, x: Tensor) -> Tensor:
        """FAR / depth (B, 1, h, w), which may come out of range."""
        *skips, y = self.encoder(x)
        y = self.bottom(y)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            y = up(torch.cat([_to_size_of(y, skip), skip], 1))
        return self.reciprocal_of(y)

    def forward(self, x: Tensor) -> Tensor:
        return FAR / self.reciprocal(x).clamp(1, FAR / NEAR)

    def get_classifier(self) -> nn.Module:
        """All behind the encoder."""
        return nn.ModuleList([self.bottom, self.up, self.reciprocal_of])


def _two_convolutions(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(outside, outside, 3, padding=1), nn.LeakyReLU(0.2),
    )  # fmt: skip


def _to_size_of(y: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(y, like.shape[-2:], mode="bilinear", align_corners=False)
