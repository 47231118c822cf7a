"""ImageNet and its variants on disk: where each lies, which folder is which class, how an image becomes a tensor.

A class is known by its folder's name and never by its rank among the folders: the sets with 200 classes, and the one
whose folders are numbers that sort as text (0, 1, 10, 100 ...), would get wrong labels without any error.
"""

import hashlib
import os
from collections import Counter
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ..common.randomness import generator
from ..common.validate import Checked, Count, check_choice
from ..world import renditions
from ..world.severities import ALL, CONSTANTS, constants_side
from ..world.shifts import SHIFTS, check_shift, in_memory, shifted
from ..world.watermark import watermark
from .stream import Lazy, Stream

SUFFIXES = (".jpeg", ".jpg", ".png")
STORED_RESIZE = 256  # shorter side from which ImageNet-C was cropped to 224 px (Hendrycks and Dietterich, 2019)
SMALLEST = 8  # pixels: what has a shorter side is no image of these sets
NARROWEST = 50  # nor what is so many times as long as wide: it would be enlarged before it is cropped
NOT_CLASSES = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN")  # what systems leave beside the class folders
STORED_NAMES = {"elastic": "elastic_transform", "jpeg": "jpeg_compression"}  # where ImageNet-C's folders differ


@dataclass(frozen=True)
class Layout:
    """Where a data set lies under the root, how many images it has, how its class folders are named."""

    folder: str
    images: int
    synsets: str = "imagenet"  # the list of wnids: all 1000, or the 200 of imagenet_a or imagenet_r
    numbers: bool = False  # folders are named by class index instead


LAYOUTS = {
    "imagenet": Layout("ImageNet/val", 50_000),
    "imagenet-a": Layout("imagenet-a", 7_500, "imagenet_a"),
    "imagenet-r": Layout("imagenet-r", 30_000, "imagenet_r"),
    "imagenet-v2": Layout("imagenetv2-matched-frequency-format-val", 10_000, numbers=True),
    "imagenet-c": Layout("ImageNet-C", 50_000),  # a corruption and a severity
    "imagenet-sketch": Layout("ImageNet-Sketch", 50_889),
    "imagenet-stylized": Layout("imagenet-styletransfer-v2/val", 50_000),
}


@dataclass(frozen=True)
class Listing:
    """N images on disk, sorted by class and file name."""

    paths: tuple[Path, ...]
    labels: Tensor  # (N,) int64
    ids: Tensor  # (N,) int64, from class and file name: the same for an image of ImageNet and its corrupted versions
    classes: tuple[int, ...] | None  # label k is class classes[k] of the 1000; None: of all of them


@lru_cache
def synsets(name: str = "imagenet") -> tuple[str, ...]:
    """The wnids of a list in the order of the class indices; timm ships the lists."""
    return tuple((resources.files("timm.data") / "_info" / f"{name}_synsets.txt").read_text(encoding="utf-8").split())


def class_indices(dataset: str) -> tuple[int, ...] | None:
    """Which of the 1000 classes a data set holds, in the order of its labels; None for all."""
    rank = {wnid: i for i, wnid in enumerate(synsets())}
    subset = LAYOUTS[dataset].synsets
    return None if subset == "imagenet" else tuple(rank[wnid] for wnid in synsets(subset))


def folder_of(dataset: str, root: Path, shift: str = "clean", severity: int = 0) -> Path:
    """The folder that holds the class folders; `shift` and `severity` belong to imagenet-c.

    Raises ValueError for an unknown data set, corruption or severity."""
    check_choice("data set", dataset, LAYOUTS)
    folder = Path(root) / LAYOUTS[dataset].folder
    if dataset == "imagenet-c":
        if shift not in ALL or type(severity) is not int or severity not in range(1, 6):
            raise ValueError(
                f"imagenet-c has no {shift!r} of severity {severity!r}: choose 1 to 5 and one of {', '.join(ALL)}"
            )
        return folder / STORED_NAMES.get(shift, shift) / str(severity)
    return folder / "images" if (folder / "images").is_dir() else folder  # some copies of Sketch have this level


def listing(dataset: str, root: Path, shift: str = "clean", severity: int = 0) -> Listing:
    """The images of a data set, without reading them.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: it is empty, or its classes are not those of the data set.
    """
    folder = folder_of(dataset, root, shift, severity)
    get = f"`python -m gentta_utils data {dataset} --root {root}` gets it or says how"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: {get}")
    get = f"move {folder} away; then {get}"
    layout, indices = LAYOUTS[dataset], class_indices(dataset)
    names = [str(i) for i in range(1000)] if layout.numbers else synsets(layout.synsets)
    found = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if left := sorted(found & set(NOT_CLASSES)):
        print(f"passed over in {folder}: {', '.join(left)}")
        found -= set(left)
    if not found:
        content = "images but no class folders" if any(map(_is_image, folder.iterdir())) else "no images"
        raise ValueError(f"{folder} holds {content}: {get}")
    if strange := found - set(names):
        raise ValueError(
            f"{folder} is not {dataset}: {len(strange)} of its {len(found)} folders, such as {min(strange)!r}, are not "
            f"among the {len(names)} classes; {get}"
        )
    if missing := set(names) - found:
        raise ValueError(
            f"{folder} is not whole: {len(missing)} of {len(names)} classes, such as {min(missing)!r}, are missing; "
            f"{get}"
        )
    paths, labels, ids = [], [], []
    for label, name in enumerate(names):
        images = _images_in(folder / name, get)
        index = label if indices is None else indices[label]
        paths += images
        labels += [label] * len(images)
        ids += [id_of(f"{index}/{path.stem}") for path in images]
    return Listing(tuple(paths), torch.tensor(labels), torch.tensor(ids), indices)


def _images_in(folder: Path, get: str) -> list[Path]:
    """The images of a class by name. Raises ValueError for none, for two of one stem, and for what is no file."""
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.is_file()) for entry in entries if _is_image(Path(entry.name))]
    stems = Counter(Path(name).stem for name, _ in files)
    for name, is_file in sorted(files):
        shown = ascii(name) if not name.isprintable() else repr(name)
        if not is_file:
            raise ValueError(f"{shown} in {folder} is no file (a pipe, a folder, a link to nothing): delete it")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"{shown} in {folder} is a name in another encoding than UTF-8: rename it")
        if stems[Path(name).stem] > 1:
            raise ValueError(f"{folder} holds {stems[Path(name).stem]} images {Path(name).stem!r}: delete all but one")
    if not files:
        raise ValueError(f"{folder} holds no images: {get}")
    return sorted(folder / name for name, _ in files)


def first_of_each(labels: Int[Tensor, " N"], m: int | None) -> Int[Tensor, " M"]:
    """Positions of the first m of each class among sorted labels (N,); of all if m is None."""
    rank = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
    return (rank < (len(labels) if m is None else m)).nonzero()[:, 0]


def read_image(
    path: Path, size: int = 224, resize: int | None = STORED_RESIZE, resample: int = Image.Resampling.BILINEAR
) -> Float[Tensor, "3 size size"]:
    """An image as RGB (3, size, size) float32 in [0, 1]: shorter side to `resize`, then the centre crop.

    Grey images, palettes, transparency and 16 bits become 8-bit RGB. `resize=None` takes the image as it is stored.

    Raises ValueError with one sentence for a file that is damaged, tiny, of a strange kind, or not of this size though
    it should be."""
    image = read_rgb(path)
    width, height = image.size
    if resize is None and (width, height) != (size, size):
        raise ValueError(f"{path} has {width} x {height} pixels where {size} x {size} are stored: set size={width}")
    return to_tensor(image if resize is None else centre_crop(image, size, resize, resample))


def read_rgb(path: Path) -> Image.Image:
    """An image as 8-bit RGB. Raises ValueError with one sentence for one that is damaged, tiny or of a strange kind."""
    try:
        with Image.open(path) as file:
            image = file.copy()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} cannot be read as an image ({error}): get it again, or delete it") from error
    image = _rgb(image, path)
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise ValueError(f"{path} has {width} x {height} pixels, too few for an image: get it again, or delete it")
    if max(width, height) > NARROWEST * min(width, height):
        raise ValueError(f"{path} has {width} x {height} pixels, too long and narrow for an image: delete it")
    return image


def centre_crop(image: Image.Image, size: int, resize: int, resample: int) -> Image.Image:
    """The middle size x size pixels after the shorter side was made `resize` pixels."""
    width, height = image.size
    longer = int(resize * max(width, height) / min(width, height))
    width, height = (resize, longer) if width <= height else (longer, resize)
    image = image.resize((width, height), resample)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> Float[Tensor, "3 H W"]:
    """RGB (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would cut it off at 255 instead of scaling it
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"{path} has pixels of kind {image.mode!r}, whose range nobody knows: convert it to 8 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def id_of(name: str) -> int:
    """An image's id by what it is called, 63 bits of a hash: stable when other files come or go."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class FolderSpec(Checked):
    """Which images of a data set on disk, in which form: all that a stream of the imagenet profile depends on."""

    dataset: str  # one of folders.LAYOUTS
    root: str  # the folder that holds the data sets
    n: Count | None = None  # so many, drawn at random; None: all
    per_class: Count | None = None  # before that: only the first so many of each class by file name
    shift: str = "clean"  # a corruption: from the files of imagenet-c, else made in memory
    severity: int = 0  # 1 to 5 for a corruption, else 0
    size: Count = 224
    # shorter side before the centre crop of `size`; a network has its own, see `Classifier.resize`. The files of
    # imagenet-c are stored cropped, after the default
    resize: Count = STORED_RESIZE
    seed: int = 0  # of the draw and of the corruption
    font: str | None = None  # a font file with the two characters of the watermark; None: block glyphs

    def __post_init__(self):
        super().__post_init__()
        check_choice("data set", self.dataset, LAYOUTS)
        if self.dataset == "imagenet-c":
            folder_of(self.dataset, Path(self.root), self.shift, self.severity)
        else:
            check_on_disk(self.shift, self.severity, self.size)
        if self.resize < self.size:
            raise ValueError(f"resize={self.resize} is smaller than size={self.size}: the crop would leave the image")

    def describe(self) -> dict:
        """Without the folder, so that a record does not depend on where the files lie; `resize` as it really was."""
        about = {name: value for name, value in asdict(self).items() if name not in ("root", "font")}
        made = "files" if self.dataset == "imagenet-c" else in_memory(self.shift, self.severity)
        glyphs = "block glyphs" if self.font is None else Path(self.font).name
        if self.dataset == "imagenet-c":
            about["resize"] = STORED_RESIZE
        return about | {"split": self.dataset, "corruptions": made, "watermark": glyphs}

    def load(self) -> Stream:
        """The images, read when they are asked for.

        Raises FileNotFoundError or ValueError for folders that are missing or not what they should be; an unreadable
        image is named when it is read."""
        return _from_folder(self)


def check_on_disk(shift: str, severity: int, size: int) -> None:
    """Raise ValueError unless the shift can be made of photographs of this size, in pixels."""
    if shift in renditions.SHIFTS:
        raise ValueError(f"shift {shift!r} is for scenes: on disk it is a data set, e.g. dataset='imagenet-r'")
    check_shift(shift, severity, [name for name in SHIFTS if name not in renditions.SHIFTS])
    if shift in ALL and shift not in CONSTANTS.get(constants_side(size), ()):
        there = [str(side) for side in CONSTANTS if shift in CONSTANTS[side]]
        raise ValueError(f"size={size}: {shift} has constants for {', '.join(there)} pixels")


def _from_folder(spec: FolderSpec) -> Stream:
    stored = spec.dataset == "imagenet-c"
    files = listing(spec.dataset, Path(spec.root), spec.shift, spec.severity)
    keep = first_of_each(files.labels, spec.per_class)
    n = len(keep) if spec.n is None else spec.n
    if not 1 <= n <= len(keep):
        raise ValueError(
            f"n={n} asked of {len(keep)} images of {spec.dataset}: choose 1 to {len(keep)}, or None for all"
        )
    keep = keep[torch.randperm(len(keep), generator=generator(spec.seed, 0, "order"))[:n]]

    def read(rows: Tensor) -> Tensor:
        resize = None if stored else spec.resize
        images = torch.stack([read_image(files.paths[i], spec.size, resize) for i in rows.tolist()])
        if spec.shift == "watermark" and spec.font is not None:
            return watermark(images, spec.font)
        return images if stored else shifted(images, spec.shift, spec.severity, files.ids[rows], spec.seed)

    about = spec.describe() | {"n": n}
    return Stream(Lazy(read, keep), files.labels[keep], files.ids[keep], about, classes=files.classes)
