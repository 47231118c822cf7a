"""Photographs that CLIP sorts by the names of the classes: five data sets in the layouts of torchvision, six by CoOp's
lists of images (`coop_splits`), and ImageNet.

The class names come with the data. The templates are this course's own but for the first of each, which is the one
prompt that Diffusion-TTA (Prabhudesai et al., 2023) uses for all sets.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..common.randomness import generator
from ..common.validate import Checked, Count
from ..world.shifts import in_memory, shifted
from . import folders
from .coop_splits import ONE, SPLIT_SETS, read_split
from .stream import Lazy, Stream

SIZE = 224  # pixels a side of CLIP's images: the shorter side becomes that, bicubic, then the centre is cropped


@dataclass(frozen=True)
class DataSet:
    """A data set as torchvision reads it.

    Attributes:
        reader: name of the class in `torchvision.datasets`.
        folder: what it looks for under the root.
        images: how many the test split has.
        asked: arguments that choose the test split.
        templates: with a place for the class name; the first is the single prompt.
    """

    reader: str
    folder: str
    images: int
    asked: tuple[tuple[str, object], ...]
    templates: tuple[str, ...]


TEST = (("split", "test"),)
SETS = {
    "food101": DataSet(
        "Food101", "food-101", 25_250, TEST,
        (ONE, "a plate of {}, ready to eat.", "{} as a restaurant serves it.", "some {} from close by."),
    ),
    "cifar100": DataSet(
        "CIFAR100", "cifar-100-python", 10_000, (("train", False),),
        (ONE, "a tiny, blurry picture of a {}.", "a {} in very few pixels.", "a coarse picture of one {}."),
    ),
    "aircraft": DataSet(
        "FGVCAircraft", "fgvc-aircraft-2013b", 3_333, (*TEST, ("annotation_level", "variant")),
        (ONE, "the aircraft that we see is a {}.", "a {} airplane, on the ground or in the air."),
    ),
    "pets": DataSet(
        "OxfordIIITPet", "oxford-iiit-pet", 3_669, TEST,
        (ONE, "somebody's pet, a {}.", "a {} looks at the camera.", "an animal of the breed {}."),
    ),
    "flowers": DataSet(
        "Flowers102", "flowers-102", 6_149, TEST,
        (ONE, "a {} in bloom.", "the flower in this garden is a {}.", "petals of a {} from close by."),
    ),
}  # fmt: skip
IMAGENET_TEMPLATES = (
    ONE,
    "this picture shows a {}.",
    "a poor snapshot of the {}.",
    "a {} from close by.",
    "one {} among other things.",
    "a drawing of a {}.",
)
LABEL_SETS = (*SETS, *SPLIT_SETS, "imagenet")


@dataclass(frozen=True)
class PhotoLabels:
    """The class names of a data set and the wordings in which they are asked.

    Attributes:
        templates: with a place for the class name; the first is the single prompt.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    def prompts(self, template: int = 0) -> list[str]:
        """One text per class."""
        return [self.templates[template].format(name) for name in self.classes]


def label_set(name: str, root: Path) -> PhotoLabels:
    """What to ask of the images of a data set of `LABEL_SETS`; its class names are read from the files under `root`.

    Raises as `photos_of`; ImageNet's names need no files."""
    if name == "imagenet":
        return PhotoLabels(name, imagenet_names(), IMAGENET_TEMPLATES)
    if name in SPLIT_SETS:
        return PhotoLabels(name, read_split(name, Path(root))[2], SPLIT_SETS[name].templates)
    classes = (c.replace("_", " ").rstrip("?") for c in photos_of(name, Path(root)).classes)
    return PhotoLabels(name, tuple(classes), SETS[name].templates)


@lru_cache(maxsize=len(SETS))
def photos_of(name: str, root: Path):
    """The test images of one of `SETS`, as torchvision's class for it.

    Raises ValueError for an unknown name or damaged files, FileNotFoundError for missing ones."""
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(LABEL_SETS)}")
    from torchvision import datasets

    folder, get = root / SETS[name].folder, _how_to_get(name, root)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: {get}")
    try:
        found = getattr(datasets, SETS[name].reader)(root, **dict(SETS[name].asked))
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(f"{folder} is not whole: {get}") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError) as error:
        raise ValueError(f"the lists of images in {folder} cannot be read: {get}") from error
    if not len(found):
        raise ValueError(f"{folder} names no images: {get}")
    return found


def _how_to_get(name: str, root: Path) -> str:
    return f"`python -m gentta_utils data {name} --root {root}` says how to get it"


@lru_cache
def imagenet_names() -> tuple[str, ...]:
    """Of ImageNet's classes: the first word for each, with the wnid where two classes share it."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    names = [info.index_to_description(k).split(",")[0] for k in range(1000)]
    count = Counter(names)
    return tuple(n if count[n] == 1 else f"{n} ({w})" for n, w in zip(names, folders.synsets(), strict=True))


@dataclass(frozen=True)
class PhotoSpec(Checked):
    """Which images of a data set, as CLIP sees them: all that a stream of an open vocabulary depends on."""

    dataset: str  # one of LABEL_SETS, or of folders.LAYOUTS but imagenet-c
    root: str  # the folder that holds the data sets
    n: Count  # so many, drawn at random
    shift: str = "clean"  # a corruption, made in memory
    severity: int = 0  # 1 to 5 for a corruption, else 0
    seed: int = 0  # of the draw and of the corruption

    def __post_init__(self):
        super().__post_init__()
        known = (*LABEL_SETS, *(name for name in folders.LAYOUTS if name not in (*LABEL_SETS, "imagenet-c")))
        if self.dataset not in known:
            raise ValueError(f"unknown data set {self.dataset!r}: choose one of {', '.join(known)}")
        folders.check_on_disk(self.shift, self.severity, SIZE)

    def describe(self) -> dict:
        """Without the folder, so that a record does not depend on where the files lie."""
        about = {name: value for name, value in asdict(self).items() if name != "root"}
        made = in_memory(self.shift, self.severity)
        return about | {"split": self.dataset, "labels": self.dataset, "size": SIZE, "corruptions": made}

    def load(self) -> Stream:
        """The images, read when they are asked for.

        Raises FileNotFoundError or ValueError for files that are missing or not what they should be; an unreadable
        image is named when it is read."""
        root = Path(self.root)
        how = _from_lists if self.dataset in SETS else _from_split if self.dataset in SPLIT_SETS else _from_folders
        pictures, labels, ids, classes = how(self.dataset, root)
        there = len(pictures)
        if not 1 <= self.n <= there:
            raise ValueError(f"n={self.n} asked of {there} images of {self.dataset}: choose 1 to {there}")
        keep = torch.randperm(there, generator=generator(self.seed, 0, "order"))[: self.n]
        for i in keep.tolist():
            if isinstance(pictures[i], Path) and not pictures[i].is_file():
                raise FileNotFoundError(f"no image {pictures[i]}: {_how_to_get(self.dataset, root)}")

        def read(rows: Tensor) -> Tensor:
            images = torch.stack([_as_clip_sees(pictures[i]) for i in rows.tolist()])
            return shifted(images, self.shift, self.severity, ids[rows], self.seed)

        return Stream(Lazy(read, keep), labels[keep], ids[keep], self.describe(), classes=classes)


def _from_lists(name: str, root: Path) -> tuple:
    """Pictures (paths, or arrays of pixels), labels (N,), ids (N,); None for "all classes"."""
    found = photos_of(name, root)
    if name == "cifar100":
        pictures, labels, called = list(found.data), found.targets, range(len(found))
    else:
        pictures = [Path(p) for p in (found._images if name == "pets" else found._image_files)]
        labels, called = found._labels, [p.stem for p in pictures]
    return pictures, torch.tensor(labels), torch.tensor([folders.id_of(f"{name}/{c}") for c in called]), None


def _from_split(name: str, root: Path) -> tuple:
    """The same of a set that CoOp's list of images describes."""
    paths, labels, _ = read_split(name, root)
    folder = root / SPLIT_SETS[name].folder
    return paths, labels, torch.tensor([folders.id_of(f"{name}/{p.relative_to(folder)}") for p in paths]), None


def _from_folders(name: str, root: Path) -> tuple:
    """The same of ImageNet and the sets like it; a set with 200 classes names them."""
    found = folders.listing(name, root)
    return found.paths, found.labels, found.ids, found.classes


def _as_clip_sees(picture) -> Tensor:
    if isinstance(picture, Path):
        return folders.read_image(picture, SIZE, SIZE, Image.Resampling.BICUBIC)
    return folders.to_tensor(folders.centre_crop(Image.fromarray(picture), SIZE, SIZE, Image.Resampling.BICUBIC))
