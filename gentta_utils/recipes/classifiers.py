"""The task models: small timm classifiers at 64 px, trained on few labels and never on a corruption.

They are label-poor on purpose, as in the papers, where the generative model knows more than the classifier. After
training, one temperature is fitted on clean selection scenes and folded into the last layer: a classifier that is
over-confident hides its own gradient from every method that reads its probabilities.
"""

from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from torch import Tensor, nn

from ..common.cache import fingerprint, in_parts
from ..common.files import atomic_write, write_json
from ..common.paths import CACHE
from ..common.progress import progress
from ..common.randomness import numpy_generator
from ..evaluation.chosen import PRUNED, chosen_window
from ..methods.diffusion_classifier import read_staged
from ..models import zoo
from ..models.zoo import IMAGE_SIZE
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.corruptions import corrupt
from ..world.labels import CLASSES
from ..world.scenes import VERSION, scene_ids
from ..world.severities import TEST
from ..world.views import augment, augmix_views, low_pass
from .data import training_set
from .training import Schedule

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ClassifierRecipe:
    """One classifier: a timm architecture, how many labelled scenes it sees, how long it trains."""

    architecture: str
    labels: int
    schedule: Schedule
    model_args: dict = field(default_factory=dict)
    seed: int = 1
    split: str = "train"  # of the scenes it is fitted on
    # half of the images are shown so: "augmix" or "corruptions"; "low": all on the low view; or all as they are
    seen_as: str = ""
    labelled_by: str = ""  # a diffusion model whose reading stands for the labels, at which nobody looks then

    def build(self) -> nn.Module:
        torch.manual_seed(self.seed)
        set_fused_attn(False)  # at 64 tokens on a CPU, attention written out is faster, above all backwards
        return timm.create_model(self.architecture, num_classes=len(CLASSES), **self.model_args)


_RESNET = dict(layers=(1, 1, 1, 1), channels=(32, 48, 64, 128))


def _resnet(labels: int, steps: int, **more) -> ClassifierRecipe:
    return ClassifierRecipe("resnet18", labels, Schedule(steps, batch=64, lr=2e-3, weight_decay=0.05), _RESNET, **more)


def _swin(width: int, heads: tuple, labels: int, steps: int) -> ClassifierRecipe:
    args = dict(img_size=64, patch_size=4, window_size=4, embed_dim=width, depths=(2, 2, 2), num_heads=heads)
    schedule = Schedule(steps, batch=64, lr=1e-3, weight_decay=0.05)
    return ClassifierRecipe("swin_tiny_patch4_window7_224", labels, schedule, args)


def _convnext(dims: tuple, labels: int, steps: int) -> ClassifierRecipe:
    # layer scale, begun at 1e-6 for long trainings, would leave the blocks idle here; channels first: `vmap` has a rule
    args = dict(patch_size=2, depths=(1, 2, 2, 1), dims=dims, ls_init_value=1.0, conv_mlp=True)
    return ClassifierRecipe("convnext_tiny", labels, Schedule(steps, batch=64, lr=1e-3, weight_decay=0.05), args)


RECIPES = {
    "classifier/resnet": _resnet(1500, 1400),
    "classifier/vit": ClassifierRecipe(
        "vit_tiny_patch16_224",
        labels=4000,
        schedule=Schedule(steps=4000, batch=64, lr=1e-3, weight_decay=0.05),
        model_args=dict(img_size=64, patch_size=8, embed_dim=96, depth=6, num_heads=3),
    ),
    "classifier/swin": _swin(32, (2, 4, 8), 5000, 4500),
    "classifier/swin-wide": _swin(40, (2, 4, 8), 5000, 4500),
    "classifier/convnext": _convnext((32, 64, 96, 112), 4000, 3000),
    "classifier/convnext-wide": _convnext((40, 80, 120, 200), 4000, 3000),
    # the same ResNet with fewer and more labels: when does generative feedback help?
    "classifier/resnet-300": _resnet(300, 1000),
    "classifier/resnet-3000": _resnet(3000, 2800),
    # what training can do that adaptation must beat, and the ceiling: one that has seen the test corruptions
    "classifier/resnet-augmix": _resnet(1500, 2800, seen_as="augmix"),
    "classifier/resnet-ceiling": _resnet(1500, 2800, seen_as="corruptions"),
    # what the diffusion model knew: as many labelled scenes, at 32 pixels
    "classifier/resnet-60000": _resnet(60_000, 4000, seen_as="low"),
    # the ResNet trained again: how much is the luck of one training?
    "classifier/resnet-seed2": _resnet(1500, 1400, seed=2),
    "classifier/resnet-seed3": _resnet(1500, 1400, seed=3),
    # what the diffusion model can say of clean scenes, learned once instead of asked for each test image
    "classifier/resnet-distilled": _resnet(1500, 1400, split="unlabelled", labelled_by="denoiser/dit"),
    # picks the hard views of the shift "a" and is used for nothing else
    "classifier/filter": _resnet(1500, 1400, seed=2, split="filter"),
}


def other_views(images: Tensor, seen_as: str, n: int = 4, seed: int = 0) -> Tensor:
    """n views (n, B, 3, S, S) uint8 of uint8 images (B, 3, S, S).

    Args:
        seen_as: "augmix" (Hendrycks et al., 2020; its views alone, without the consistency loss), or "corruptions": one
            of the 15 test corruptions at a severity from 1 to 5, both drawn for each view.

    Raises ValueError for another name."""
    if seen_as not in ("augmix", "corruptions"):
        raise ValueError(f"unknown seen_as={seen_as!r}: choose augmix or corruptions")
    out = torch.empty(n, *images.shape, dtype=torch.uint8)
    for i, image in enumerate(progress(images, desc=f"views by {seen_as}", unit="image")):
        x = image.float() / 255
        if seen_as == "augmix":
            views = augmix_views(x, i, n, crop="none", severity=3.0, seed=seed)
        else:
            rng = numpy_generator(seed, i, "ceiling")
            names, severities = rng.choice(TEST, n), rng.integers(1, 6, n)
            ids = n * i + torch.arange(n)
            views = torch.cat(
                [
                    corrupt(x[None], str(name), int(severity), ids[v : v + 1], seed=1)
                    for v, (name, severity) in enumerate(zip(names, severities, strict=True))
                ]
            )
        out[:, i] = (views * 255).round().byte()
    return out


def read_labels(images: Tensor, denoiser: str, split: str, chunk: int = 50) -> Tensor:
    """What the pruned reader of the course says (n,) of the first n scenes of a split, uint8 images (n, 3, S, S).

    Kept in the cache in parts of `chunk`: an interrupted call goes on where it stopped. Raises as `zoo.cached` and
    `chosen_window`."""
    network, window, ids = zoo.cached(denoiser), chosen_window(), scene_ids(len(images), split)
    depends = {"denoiser": zoo.fingerprint(denoiser), "precision": network.precision, "world": VERSION}
    folder = CACHE / "read" / fingerprint(depends | {"stages": PRUNED, "window": window, "split": split})
    pairs, keep = zip(*PRUNED, strict=True)
    read = lambda rows: read_staged(network, images[rows].float() / 255, ids[rows], pairs, keep, window)  # noqa: E731
    parts = in_parts(lambda rows: {"read": read(rows)}, ids, folder, chunk, "unlabelled scenes read")
    return torch.cat([part["read"] for part in parts])


def make_loss(recipe: ClassifierRecipe, device: str = "cpu"):
    """The loss function of `training.train`, with its data loaded: cross-entropy on shuffled passes over the labels."""
    images, labels = training_set(recipe.labels, split=recipe.split)
    if recipe.labelled_by:
        labels = read_labels(images, recipe.labelled_by, recipe.split)
    views = other_views(images, recipe.seen_as) if recipe.seen_as not in ("", "low") else None  # (n, B, 3, S, S)
    batch = recipe.schedule.batch
    per_pass = len(images) // batch

    def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        model.train()
        order = torch.randperm(
            len(images), generator=torch.Generator().manual_seed(recipe.seed + 7919 * (step // per_pass))
        )
        rows = order[step % per_pass * batch :][:batch]
        x = images[rows]
        if views is not None:
            which = torch.randint(0, 2 * len(views), (len(rows),), generator=generator)  # one half stays as it is
            other = which < len(views)
            x = torch.where(other[:, None, None, None], views[which.clamp_max(len(views) - 1), rows], x)
        x = augment(x.float() / 127.5 - 1, generator).to(device)
        if recipe.seen_as == "low":
            x = low_pass(x).contiguous(memory_format=torch.channels_last)  # in which bf16 takes a third less time
        return F.cross_entropy(model(x).float(), labels[rows].to(device))

    return loss_of


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 that minimises the cross-entropy of logits / T (Guo et al., 2017), by LBFGS."""
    log_t = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_t.detach().exp())


def fold_temperature(model: nn.Module, temperature: float) -> None:
    """Divide the last layer by the temperature, in place: the logits come out calibrated."""
    head = model.get_classifier()
    with torch.no_grad():
        head.weight /= temperature
        head.bias /= temperature


@torch.no_grad()
def _clean_logits(model: nn.Module, n: int = 1000) -> tuple[Tensor, Tensor]:
    clean = stream(SceneSpec(n, split="select"))
    return model((clean.images - MEAN[0]) / STD[0]), clean.labels


def calibrate(model: nn.Module) -> float:
    """Fit a temperature on 1,000 clean selection scenes and fold it into the last layer, in place; returns it."""
    temperature = fit_temperature(*_clean_logits(model))
    fold_temperature(model, temperature)
    return round(temperature, 3)


def save(model: nn.Module, recipe: ClassifierRecipe, folder: Path) -> None:
    """Write the model in timm's own folder format, weights as float16 safetensors."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    atomic_write(folder / "model.safetensors", lambda path: save_file(tensors, path))
    config = {
        "architecture": recipe.architecture,
        "num_classes": len(CLASSES),
        "model_args": recipe.model_args,
        "pretrained_cfg": {
            "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": len(CLASSES),
            "classifier": model.pretrained_cfg["classifier"],
            "first_conv": model.pretrained_cfg["first_conv"],
        },
    }
    write_json(folder / "config.json", config)
