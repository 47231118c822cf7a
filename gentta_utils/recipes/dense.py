"""The task networks of notebook 04: segmentors and depth networks, label-poor and without a corruption, as the papers'.

Encoders start from a classifier, as everybody starts from ImageNet: the convolutional segmentor's from a shipped one,
the others' from NAMED scenes with a class label each, in the first steps of the same run (`warm`).

Losses: cross-entropy, floor and wall at STUFF_WEIGHT (they fill four fifths of a scene); for GLPN the scale-invariant
logarithmic error of its paper; for DenseDepth L1, differences of neighbours and SSIM of FAR / depth, as published.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import GLPNConfig, SegformerConfig

from ..common.files import atomic_write, write_json
from ..common.paths import MODELS
from ..evaluation.dense import confusion, depth_scores, mean_class_accuracy, mean_iou
from ..models.dense import KINDS, MEAN, STD, WEIGHTS, Answers, DenseModel, convolutional, enlarged
from ..streams.maps import MapSpec
from ..streams.stream import stream
from ..world.labels import CLASSES
from ..world.maps import FAR, MAP_CLASSES, NEAR, STUFF
from ..world.severities import VALIDATION
from .classifiers import other_views
from .data import at_default, dense_set, training_set
from .training import Schedule, halved

NAMED = 20_000
STUFF_WEIGHT = 0.3
SHIFT = 5  # pixels, the farthest that an image is moved
SILOG = 0.5  # of the squared mean in GLPN's loss
L1_WEIGHT = 0.1  # of DenseDepth's loss
RECIPROCAL_RANGE = 10.0  # of its SSIM: FAR / depth lies between 1 and 5 in these scenes


@dataclass(frozen=True)
class DenseRecipe:
    """One task network.

    Attributes:
        target: "classes" or "depth".
        kind: "segformer", "glpn", "pyramid" or "densedepth".
        labels: scenes with a true map.
        config: of the transformers model, or the arguments of `dense.convolutional`.
        start: a shipped classifier of the same architecture, whose encoder it goes on from.
        warm: steps at the beginning in which the encoder learns the class labels of NAMED scenes of one object.
        seen_as: "corruptions": half of the images are shown so; the ceiling.
    """

    target: str
    kind: str
    labels: int
    schedule: Schedule
    config: dict = field(default_factory=dict)
    start: str = ""
    warm: int = 0
    seen_as: str = ""

    def network(self) -> nn.Module:
        """The bare network."""
        if self.kind in KINDS:
            config = {"segformer": SegformerConfig, "glpn": GLPNConfig}[self.kind](**self.config)
            return Answers(KINDS[self.kind]._from_config(config, attn_implementation="eager"))
        return convolutional(**self.config, head=self.kind, classes=1 if self.target == "depth" else len(MAP_CLASSES))

    def build(self, seed: int = 0) -> nn.Module:
        """The network with a fresh head, beside a layer for the class labels if there are any."""
        torch.manual_seed(seed)
        network = self.network()
        if self.start:
            weights = load_file(MODELS / self.start / WEIGHTS)
            encoder = network.encoder.state_dict()
            network.encoder.load_state_dict({name: weights[name].float() for name in encoder}, strict=True)
        return WithLabels(network, len(CLASSES)) if self.warm else network

    def describe(self) -> dict:
        """What the card says of it, beside its schedule."""
        about = {"target": self.target, "kind": self.kind, "labels": self.labels, "start": self.start}
        about |= {"warm": self.warm, "named": NAMED if self.warm else 0, "seen_as": self.seen_as}
        return about | {"config": {k: list(v) if isinstance(v, tuple) else v for k, v in self.config.items()}}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded."""
        with torch.device("cpu"):  # scenes are rendered and corrupted there
            images, maps = dense_set(self.labels, self.target)
            views = other_views(images, self.seen_as) if self.seen_as else images[None, :0]  # (n, B, 3, S, S)
            named, labels = training_set(NAMED) if self.warm else (images[:0], maps[:0])
        images, maps, views, named, labels = at_default(images, maps, views, named, labels)
        batch, of_maps = self.schedule.batch, LOSSES[self.kind]

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            model.train()
            flip = torch.rand(batch, generator=generator) < 0.5
            corner = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
            rows = torch.randint(0, NAMED if step < self.warm else self.labels, (batch,), generator=generator)
            seen = lambda x: normalised(cut(x, flip, corner)).to(device)  # noqa: E731
            if step < self.warm:
                return F.cross_entropy(model.named(seen(named[rows])).float(), labels[rows].to(device))
            x = images[rows]
            if self.seen_as:
                which = torch.randint(0, 2 * len(views), (batch,), generator=generator)  # one half stays as it is
                other = views[which % len(views), rows]
                x = torch.where((which < len(views))[:, None, None, None], other, x)
            return of_maps(model, seen(x), cut(maps[rows][:, None], flip, corner)[:, 0].to(device))

        return loss_of

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write float16 weights and configuration: transformers' own format, or timm's names beside a config.json."""
        network = halved(getattr(network, "network", network))  # without the layer for the class labels
        if self.kind in KINDS:
            network.model.save_pretrained(folder, safe_serialization=True)
        else:
            tensors = {name: v.contiguous() for name, v in network.state_dict().items()}
            atomic_write(folder / WEIGHTS, lambda path: save_file(tensors, path))
            classes = {} if self.target == "depth" else {"classes": len(MAP_CLASSES)}
            write_json(folder / "config.json", self.config | {"head": self.kind} | classes)
        network.float()

    def measure(self, model: DenseModel) -> dict:
        """See `of_dense_model`."""
        return of_dense_model(model)


class WithLabels(nn.Module):
    """A network and, beside it, a layer that reads the class of a one-object scene from its encoder's last features."""

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        self.network = network
        self.encoder = [encoder_of(network)]  # in a list: its weights are the network's
        with torch.no_grad():
            width = self.last(torch.zeros(1, 3, 64, 64)).shape[1]
        self.label = nn.Linear(width, classes)

    def last(self, x: Tensor) -> Tensor:
        """The encoder's coarsest features (B, C, h, w)."""
        out = self.encoder[0](x)
        return out[-1] if isinstance(out, list) else out.last_hidden_state

    def named(self, x: Tensor) -> Tensor:
        """Logits (B, 10) of the category."""
        return self.label(self.last(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def encoder_of(network: nn.Module) -> nn.Module:
    """The encoder of any of these networks."""
    return network.model.base_model if isinstance(network, Answers) else network.encoder


def cut(x: Tensor, flip: Tensor, corner: list[int]) -> Tensor:
    """Images or maps (B, C, S, S), some mirrored, and all moved alike by up to SHIFT pixels; edges are repeated."""
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    S, (top, left) = x.shape[-1], corner
    rows, columns = (torch.arange(S).add(by - SHIFT).clamp(0, S - 1) for by in (top, left))
    return x[:, :, rows][:, :, :, columns]


def normalised(images: Tensor) -> Tensor:
    """uint8 images as the networks see them."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


def classes_loss(model: nn.Module, x: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of each pixel, weighted."""
    weight = torch.tensor([STUFF_WEIGHT if name in STUFF else 1.0 for name in MAP_CLASSES], device=x.device)
    return F.cross_entropy(enlarged(model(x).float(), truth.shape[-1]), truth.long(), weight)


def silog_loss(model: nn.Module, x: Tensor, truth: Tensor) -> Tensor:
    """sqrt(mean d^2 - mean(d)^2 / 2) with d = log y - log truth (Eigen et al., 2014)."""
    y = enlarged(model(x).float(), truth.shape[-1])[:, 0]
    apart = (y.clamp_min(NEAR).log() - truth.float().log()).flatten(1)
    return (apart.square().mean() - SILOG * apart.mean().square()).clamp_min(1e-8).sqrt()


def reciprocal_loss(model: nn.Module, x: Tensor, truth: Tensor) -> Tensor:
    """DenseDepth's: .1 L1 + L1 of differences of neighbours + (1 - SSIM) / 2, of FAR / depth at its own resolution."""
    y = getattr(model, "network", model).reciprocal(x).float()
    truth = FAR / F.interpolate(truth.float()[:, None], y.shape[-2:], mode="area")
    edges = sum((y.diff(dim=d) - truth.diff(dim=d)).abs().mean() for d in (2, 3))
    ssim = structural_similarity_index_measure(y, truth, sigma=1.5, data_range=RECIPROCAL_RANGE)
    return L1_WEIGHT * (y - truth).abs().mean() + edges + (1 - ssim) / 2


LOSSES = {"segformer": classes_loss, "pyramid": classes_loss, "glpn": silog_loss, "densedepth": reciprocal_loss}


def _mit(**more) -> dict:
    """A small Mix Transformer, the encoder of SegFormer and GLPN."""
    widths = dict(depths=(2, 2, 2, 2), hidden_sizes=(32, 48, 64, 128), num_attention_heads=(1, 2, 2, 4))
    return widths | dict(sr_ratios=(8, 4, 2, 1), drop_path_rate=0.0) | more


_RESNET = dict(architecture="resnet18", model_args=dict(layers=(1, 1, 1, 1), channels=(32, 48, 64, 128)))
_DENSENET = dict(architecture="densenet121", model_args=dict(growth_rate=12, block_config=(3, 3, 3, 3)))


def _pyramid(labels: int, steps: int, **more) -> DenseRecipe:
    schedule = Schedule(steps, batch=32, lr=2e-3, weight_decay=0.05)
    return DenseRecipe("classes", "pyramid", labels, schedule, _RESNET, start="classifier/resnet", **more)


def _densedepth(steps: int, labels: int = 1500, **more) -> DenseRecipe:
    return DenseRecipe("depth", "densedepth", labels, Schedule(steps, batch=32, lr=1e-3), _DENSENET, **more)


RECIPES = {
    "segmentor/resnet": _pyramid(1500, 1200),
    "segmentor/segformer": DenseRecipe(
        "classes",
        "segformer",
        1500,
        Schedule(3600, batch=32, lr=1e-3, weight_decay=0.05),
        # the first stride is 2, so that it answers at half the image's side
        _mit(patch_sizes=(5, 3, 3, 3), strides=(2, 2, 2, 2), decoder_hidden_size=64, num_labels=len(MAP_CLASSES))
        | dict(classifier_dropout_prob=0.0),
        warm=2000,
    ),
    "depth/glpn": DenseRecipe(
        "depth",
        "glpn",
        1500,
        Schedule(1600, batch=32, lr=1e-3, weight_decay=0.05),
        _mit(patch_sizes=(7, 3, 3, 3), strides=(4, 2, 2, 2), decoder_hidden_size=32, max_depth=int(FAR)),
    ),
    "depth/densenet": _densedepth(1200),
    # equal information: as many maps as the diffusion model saw; and the ceilings, which have seen the corruptions
    "segmentor/resnet-60000": _pyramid(60_000, 6000),
    "depth/densenet-60000": _densedepth(6000, 60_000),
    "segmentor/resnet-ceiling": _pyramid(1500, 2400, seen_as="corruptions"),
    "depth/densenet-ceiling": _densedepth(2400, seen_as="corruptions"),
}


@torch.no_grad()
def of_dense_model(model: DenseModel, n: int = 200, start: int = 1000) -> dict:
    """On clean selection scenes, and n / 4 under each validation corruption at severity 3: mean class accuracy and mean
    IoU over the set in percent; of depth the scores of `depth_scores`, mean over images."""
    out = {}
    for shift, severity in [("clean", 0), *((name, 3) for name in VALIDATION)]:
        s = stream(MapSpec(n if shift == "clean" else n // 4, shift, severity, "select", start, target=model.target))
        answer = torch.cat([model(x) for x in s.images.split(50)])
        if model.target == "depth":
            scores = {name: v.mean() for name, v in depth_scores(answer, s.labels).items()}
        else:
            counts = confusion(answer, s.labels).sum(0)
            scores = {"mean_class_accuracy": mean_class_accuracy(counts), "mean_iou": mean_iou(counts)}
        out[shift] = {name: round(float(v), 4 if model.target == "depth" else 1) for name, v in scores.items()}
    return out
