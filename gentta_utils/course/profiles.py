"""What a notebook needs to know of its profile beyond the models: images, names of classes, settings.

Each function takes the notebook's own parameters `profile` and `data_root`, so that one cell serves both profiles.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..common.paths import ROOT
from ..evaluation import chosen
from ..methods import METHODS, diffusion_classifier, diffusion_tta, source
from ..methods.base import Models
from ..models import hub
from ..models.zoo import check_profile
from ..streams import folders
from ..streams import stream as streams_stream
from ..streams.folders import FolderSpec
from ..streams.scenes import SceneSpec
from ..streams.stream import Stream
from ..world import labels, renditions, scenes

# The published SGD settings (ViT-B/32; docs/methods/diffusion_tta.md) with the DiT frozen: nothing was tuned by this
# project at this size
PUBLISHED_SGD = diffusion_tta.PUBLISHED | dict(optimizer="sgd", lr=5e-3, adapt_denoiser=False)

# the natural shifts of scenes are named after these
NATURAL = {shift: f"imagenet-{shift}" for shift in renditions.SHIFTS}


@dataclass(frozen=True)
class World:
    """Some unshifted images: image (N, 3, S, S) in [0, 1], label (N,), id (N,) and a caption each."""

    image: Tensor
    label: Tensor
    id: Tensor
    caption: list[str]

    def __len__(self) -> int:
        return len(self.label)


def world(profile: str, data_root: str, n: int = 120) -> World:
    """The shipped scenes, or n images of the validation set of ImageNet. Raises as `stream`."""
    if check_profile(profile) == "scenes":
        shipped = scenes.shipped()
        return World(shipped.image, shipped.label, shipped.id, shipped.caption)
    s = stream(profile, data_root, n)
    return World(s.images, s.labels, s.ids, [f"a photo of a {classes(profile)[k]}" for k in s.labels.tolist()])


def require(profile: str, *names: str) -> None:
    """Stop before anything runs where weights of these models are missing: a line for each.

    Raises FileNotFoundError in the imagenet profile; what is shipped is checked when it is loaded."""
    if check_profile(profile) == "imagenet":
        hub.require(names)


def note(profile: str) -> None:
    """Say, above what a notebook shows from the committed records, that it is not a result of an imagenet run."""
    if check_profile(profile) == "imagenet":
        print("From the committed records of the course's small models, not from this run:")


def stream(
    profile: str,
    data_root: str,
    n: int,
    shift: str = "clean",
    severity: int = 0,
    split: str = "test",
    start: int = 0,
    resize: int | None = None,
) -> Stream:
    """n images under a shift, in memory: scenes, or ImageNet's from `data_root` (relative to the checkout).

    `start` makes other images: the first scene's number, or the seed of the draw from the folder. A corruption comes
    from the files of ImageNet-C where they are there, else it is made in memory; the records say which. A natural shift
    is a data set of its own, ImageNet-A for "a"; where it has 200 classes, methods take `models.restrict(s.classes)`.

    `resize` is that of the classifier (`Classifier.resize`), from which ImageNet's images are cropped; None is 256,
    from which ImageNet-C's files were. Where clean images and those files differ in it, the protocol line says so.

    Raises ValueError for a wrong shift or severity, FileNotFoundError or ValueError for folders that are missing or not
    what they should be."""
    if check_profile(profile) == "scenes":
        return streams_stream.stream(SceneSpec(n, shift, severity, split, start))
    root, crop = ROOT / Path(data_root).expanduser(), {"resize": resize} if resize else {}
    if shift in NATURAL:
        if severity:
            raise ValueError(f"severity={severity}: {NATURAL[shift]} has none, leave it at 0")
        s = streams_stream.stream(FolderSpec(NATURAL[shift], str(root), n, seed=start, **crop)).rows(torch.arange(n))
        return replace(s, about=s.about | {"shift": shift})  # tables tell shifts apart by this name
    stored = severity > 0 and folders.folder_of("imagenet-c", root, shift, severity).is_dir()
    which, at = "imagenet-c" if stored else "imagenet", {"shift": shift, "severity": severity}
    return streams_stream.stream(FolderSpec(which, str(root), n, **at, seed=start, **crop)).rows(torch.arange(n))


@lru_cache
def classes(profile: str, subset: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """A name for each class, all different: of ImageNet's the first, with the wnid where two classes share it.

    With `subset`, the `classes` of a stream, the names of its labels."""
    if subset is not None:
        return tuple(classes(profile)[k] for k in subset)
    if check_profile(profile) == "scenes":
        return tuple(labels.CLASSES)
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(k).split(",")[0] for k in range(1000)]
    return tuple(n if names.count(n) == 1 else f"{n} ({w})" for n, w in zip(names, folders.synsets(), strict=True))


def settings(profile: str, classifier: str, **changes) -> diffusion_tta.Settings:
    """Settings of Diffusion-TTA: the ones chosen on held-out corruptions of scenes, or the published ones."""
    if check_profile(profile) == "scenes":
        return chosen.tuned(classifier, **changes)
    return diffusion_tta.Settings(**PUBLISHED_SGD | changes)


def rival(profile: str, row: str, classifier: str):
    """Settings of another method: the ones chosen on held-out corruptions of scenes, or its defaults.

    `row` is one of `nb02.choose.select_rivals`, e.g. "tent"."""
    if check_profile(profile) == "scenes" and row in chosen.chosen_rows(classifier):
        return chosen.rival(row, classifier)
    return METHODS[chosen.method_of(row)].Settings()


def method(profile: str, row: str, models: Models, classifier: str, ours: diffusion_tta.Settings, small: bool = False):
    """A configured method by the name of its row in a table, with what was chosen for it.

    "source", "source, low-passed", a name of `METHODS`, or that and more words, as "diffusion_tta online". `ours` are
    the settings of "diffusion_tta", online too where none were chosen for that; the Diffusion Classifier has about as
    many evaluations, among ten classes.

    Args:
        small: as few views, pairs and updates as will run.

    Raises KeyError for an unknown name, ValueError where the models do not fit."""
    name = row.replace(",", "").split(" ")[0]
    if name == "source":
        how = source.Settings("low" if "low" in row else "full")
    elif name == "diffusion_classifier":
        how = diffusion_classifier.Settings(
            pairs=2 if small else 9, window=window(profile), prune=min(10, models.classifier.classes)
        )
    elif row == "diffusion_tta":
        how = ours
    elif name == "diffusion_tta" and (profile != "scenes" or row not in chosen.chosen_rows(classifier)):
        how = replace(ours, online=True)
    else:
        how = rival(profile, row, classifier)
    fewer = {"views": 4, "updates": 1, "steps": 2} if small else {}
    if small and name == "diffusion_tta":
        fewer = {"updates": 2, "pairs": 2}
    return METHODS[name].configure(models, replace(how, **{k: v for k, v in fewer.items() if hasattr(how, k)}))


def window(profile: str) -> tuple[int, int]:
    """The timesteps that the Diffusion Classifier reads: chosen on scenes, or all, as published."""
    return chosen.chosen_window() if check_profile(profile) == "scenes" else (0, 1000)
