"""SDA before deployment: labelled synthetic images, aligned, and a classifier fine-tuned on them.

Beside the published set stand its controls: synthetic images that were not aligned, as many *real* labelled scenes,
aligned and not, and scenes that the source was trained on (no new label). A label-poor classifier gains by labels
alone, and only the controls tell that from alignment.

Card: docs/methods/sda.md
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..common.cache import ImageSet, fingerprint, make_images
from ..common.evaluations import Evaluations
from ..common.files import atomic_write, read_json, read_tensors, write_json
from ..common.paths import CACHE
from ..common.progress import progress
from ..common.validate import Checked, Natural
from ..diffusion.synthesis import Synthesis, synthesize
from ..evaluation.chosen import selection
from ..methods import dda, sda
from ..methods.base import stated
from ..methods.purifier import what_changes
from ..methods.sda import FineTune, fine_tune
from ..models import zoo
from ..models.classifier import Classifier
from ..streams.stream import Lazy
from ..world import scenes
from ..world.labels import CLASSES
from . import classifiers, quality
from .data import labelled_set

GENERATOR = "denoiser/dit"
ALIGNER = "unconditional/unet-unshuffle"
BACKBONES = (
    "classifier/resnet",
    "classifier/vit",
    "classifier/swin",
    "classifier/swin-wide",
    "classifier/convnext",
    "classifier/convnext-wide",
)
ALIGNED = tuple(f"{name}-sda" for name in BACKBONES)  # what `train` can make
OF_A_PART = ("per_class", "first", "labels")  # what says nothing of the images themselves


@dataclass(frozen=True)
class Data(Checked):
    """Which images a classifier is fine-tuned on, and all that they depend on."""

    kind: Literal["synthetic", "real", "own"] = "synthetic"  # or new labelled scenes; "own": the source's, of training
    per_class: Natural = 50
    aligned: bool = True  # by `alignment`; False: as they are
    synthesis: Synthesis = field(default_factory=Synthesis)
    alignment: sda.Settings = field(default_factory=sda.Settings)
    generator: str = GENERATOR
    aligner: str = ALIGNER
    labels: Literal["asked", "source", "agreed"] = "asked"  # the class asked for; what the source reads in the image
    # before it is aligned; or the images alone in which it reads what was asked for
    first: Natural = 0  # images of each class that are left to other sets: sets of the same kind may be disjoint

    def describe(self) -> dict:
        """For records and caches; without what has no part in it."""
        about = {"kind": self.kind, "per_class": self.per_class, "world": scenes.VERSION}
        if self.kind == "synthetic":
            about |= {"synthesis": asdict(self.synthesis), "generator": zoo.fingerprint(self.generator)}
        if self.aligned:
            about |= {"alignment": what_changes(self.alignment), "aligner": zoo.fingerprint(self.aligner)}
        later = {"labels": self.labels, "first": self.first}
        return about | {k: v for k, v in later.items() if v not in ("asked", 0)}


def images_of(data: Data, source: Classifier | None = None) -> tuple[Tensor, Tensor]:
    """The images (N, 3, S, S) float32 in [0, 1] and labels (N,) of a set, from the cache where they are there.

    Image j K + k is the j-th of class k: a smaller set is the beginning of a larger one, and one that has a `first` is
    the end of one. `source` reads them where the labels ask for it, and guides the alignment where its settings do."""
    whole, left = replace(data, per_class=data.first + data.per_class, first=0), data.first * len(CLASSES)
    raw = raw_images(whole).images
    images = (align_images(whole, raw, source).images if data.aligned else raw)[left:]
    raw, labels = raw[left:], torch.arange(len(images)) % len(CLASSES)
    if data.labels == "asked":
        return images, labels
    with torch.no_grad():
        read = torch.cat([source(part).argmax(1).cpu() for part in raw.split(100)])
    return (images, read) if data.labels == "source" else (images[read == labels], labels[read == labels])


def raw_images(data: Data) -> ImageSet:
    """The images of a set before they are aligned. Sets of other sizes share their parts, one image per class each."""
    K = len(CLASSES)
    ids = torch.arange(data.per_class * K)
    if data.kind != "synthetic":
        start = {"real": {}, "own": {"start": 0}}[data.kind]  # the classifiers were fitted on the first scenes
        return ImageSet(ids, labelled_set(data.per_class, **start), 0.0, {})
    about = {k: v for k, v in replace(data, aligned=False).describe().items() if k not in OF_A_PART}
    denoiser, s = zoo.cached(data.generator), data.synthesis
    return make_images(
        lambda rows: synthesize(denoiser, ids[rows] % K, ids[rows], s),
        ids, denoiser, CACHE / "synthetic" / fingerprint(about), K, "synthetic images",
    )  # fmt: skip


def align_images(data: Data, images: Tensor, source: Classifier | None = None) -> ImageSet:
    """The images (N, 3, S, S) of a set through the `align` of test time, with the same settings; `source` guides those
    that a classifier guides (`entropy_scale`), which are kept for each."""
    about = {k: v for k, v in data.describe().items() if k not in OF_A_PART}
    guide = source if data.alignment.entropy_scale else None
    about |= {"guide": zoo.fingerprint(guide.name)} if guide else {}
    denoiser, ids = zoo.cached(data.aligner), torch.arange(len(images))
    return make_images(
        # draws of its own: the ids of test scenes may be the same numbers
        lambda rows: dda.align(denoiser, images[rows], -1 - ids[rows], data.alignment, guide),
        ids, denoiser, CACHE / "aligned" / fingerprint(about), len(CLASSES), "aligned images",
    )  # fmt: skip


def on_disk(about: dict, make: Callable[[Tensor], Tensor], n: int, chunk: int) -> Lazy:
    """n images in [0, 1] that `make` (rows (M,) -> images (M, 3, S, S)) has made, `chunk` at a time, and that are read
    from a file of bytes when they are asked for: 50,000 of 224 pixels are 7.5 GB, of which memory holds a batch.

    `about` is all that they depend on; what was begun goes on where it stopped."""
    path = CACHE / "on-disk" / f"{fingerprint(about | {'n': n})}.npy"
    state = path.with_suffix(".json")
    done = read_json(state, f"delete {path.parent}") if state.is_file() else 0
    rows = torch.arange(n)
    for part in progress(rows[done:].split(chunk) if done < n else (), desc="images", unit="chunk", leave=False):
        images = (make(part).cpu() * 255).round().byte().numpy()
        if not state.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.lib.format.open_memmap(path, "w+", np.uint8, (n, *images.shape[1:]))
        kept = np.load(path, mmap_mode="r+")
        kept[part.numpy()] = images
        kept.flush()
        write_json(state, int(part[-1]) + 1)
    kept = np.load(path, mmap_mode="r")
    return Lazy(lambda at: torch.from_numpy(kept[at.numpy()]).float() / 255, rows)


def describe(name: str, data: Data, how: FineTune) -> dict:
    """All that a fine-tuned classifier depends on."""
    return {"source": zoo.fingerprint(name), "data": data.describe(), "fine_tune": stated(how)}


def aligned_classifier(name: str, data: Data, how: FineTune) -> Classifier:
    """A shipped classifier, fine-tuned on such a set; from the cache where it is there.

    Without images it is the source. Its `alignment` says what `sda.configure` has to find at test time."""
    source, path = zoo.cached(name), _kept(name, data, how)
    tensors = read_tensors(path)
    if not data.per_class:
        tensors = source.network.state_dict()
    elif tensors is None:
        tuned = fine_tune(source, *images_of(data, source), how)
        tensors = {k: v.contiguous() for k, v in tuned.network.state_dict().items()}
        atomic_write(path, lambda temporary: save_file(tensors, temporary))
    tuned = copy.deepcopy(source)
    tuned.network.load_state_dict(tensors)
    tuned.alignment = what_changes(data.alignment) if data.aligned and data.per_class else None
    tuned.count = Evaluations()
    return tuned


def shipped(name: str, data: Data, how: FineTune) -> Classifier | None:
    """The shipped classifier that was fine-tuned on just this set in just this way; None where there is none."""
    aligned = f"{name}-sda"
    there = aligned in zoo.names() and zoo.card(aligned)["recipe"] == describe(name, data, how)
    return zoo.cached(aligned) if there else None


def _kept(name: str, data: Data, how: FineTune) -> Path:
    """Where the weights of a fine-tuned classifier are kept."""
    return CACHE / "fine-tuned" / f"{fingerprint(describe(name, data, how))}.safetensors"


def from_description(name: str, about: dict) -> Classifier:
    """The fine-tuned form of a classifier that `describe` wrote this of: shipped, or from the cache; none is trained.

    Raises as `read_description`."""
    data, how = read_description(name, about)
    return shipped(name, data, how) or aligned_classifier(name, data, how)


def read_description(name: str, about: dict) -> tuple[Data, FineTune]:
    """The set and the settings that `describe` wrote this of, where the classifier is shipped or in the cache.

    Raises ValueError where the models that it was made with are others now, FileNotFoundError where it is not here."""
    content = dict(about["data"])
    data = Data(
        kind=content["kind"],
        per_class=content["per_class"],
        aligned="alignment" in content,
        synthesis=Synthesis(**content.get("synthesis", {})),
        alignment=sda.Settings(**content.get("alignment", {})),
        labels=content.get("labels", "asked"),
        first=content.get("first", 0),
        generator=_listed(content.get("generator"), GENERATOR),
        aligner=_listed(content.get("aligner"), ALIGNER),
    )
    how = FineTune(**about["fine_tune"])
    if describe(name, data, how) != about:
        raise ValueError(
            f"the records name a fine-tuned {name} of other models than those that are here: measure again"
        )
    if data.per_class and shipped(name, data, how) is None and not _kept(name, data, how).is_file():
        raise FileNotFoundError(
            f"the {name} that was fine-tuned on this set is neither shipped nor in {CACHE / 'fine-tuned'}: measure its "
            f"table again, or, for the chosen set, run `python -m gentta_utils train {name}-sda`"
        )
    return data, how


def _listed(fingerprint: str | None, usual: str) -> str:
    """The diffusion model with these weights, of those that are listed; the usual one where none has them."""
    names = (m for m in zoo.names() if m.startswith(("denoiser/", "unconditional/")))
    return next((m for m in names if zoo.fingerprint(m) == fingerprint), usual)


def chosen(name: str) -> tuple[Data, FineTune]:
    """The set and the settings for a classifier or its aligned form in `ALIGNED`; raises as `selection`."""
    content = selection()
    data = Data(alignment=sda.Settings(**content["alignment"]), synthesis=Synthesis(**content["synthesis"]))
    return data, FineTune(**content["fine_tune"][name.removesuffix("-sda")])


def train(name: str, folder: Path, data: Data, how: FineTune) -> None:
    """Write the aligned classifier `<classifier>-sda` in timm's folder format, with its alignment and card."""
    source = name.removesuffix("-sda")
    start = time.perf_counter()
    tuned = aligned_classifier(source, data, how)
    (folder / "card.json").unlink(missing_ok=True)
    classifiers.save(tuned.network, classifiers.RECIPES[source], folder)
    write_json(folder / "alignment.json", what_changes(data.alignment))
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in tuned.parameters()),
        "world": scenes.VERSION,
        "recipe": describe(source, data, how),
        "minutes": round((time.perf_counter() - start) / 60, 1),  # without what was in the cache
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "quality": quality.of_classifier(tuned),
        "licence": "MIT, as the repository; trained on rendered scenes and on images generated from them",
    }
    write_json(folder / "card.json", card)
