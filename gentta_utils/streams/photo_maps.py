"""Photographs with a map for each: ADE20K's scene parsing benchmark (150 classes), NYU Depth v2 (metres).

Images are square crops, as everywhere in the course, and corrupted at the size at which the networks see them. ADE20K
(Zhou et al., 2017): shorter side to 512 px, then the middle; a label of 0 is of no class. NYU (Silberman et al., 2012):
the middle 448 px of its official test images as they are, without their white frame, and no metre is changed.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ..common.randomness import generator
from ..common.validate import Checked, Count, check_choice
from ..world import ade20k
from ..world.shifts import in_memory, shifted
from . import folders
from .stream import Lazy, Stream


@dataclass(frozen=True)
class MapSet:
    """Where a data set lies under the root, and what it is a truth of.

    Attributes:
        images: how many the whole set has.
        size: side of the crop.
        resize: shorter side before it; None: no pixel is resized.
    """

    folder: str
    images: int
    target: str
    size: int
    resize: int | None


SETS = {
    "ade20k": MapSet("ADEChallengeData2016", 2_000, "classes", 512, 512),
    "nyu": MapSet("nyu_depth_v2", 654, "depth", 448, None),
}
MILLIMETRES = 1000  # of a metre, the unit of NYU's depth files


def listing(name: str, root: Path) -> list[tuple[Path, Path]]:
    """Images of a set with their maps, unread, by name; of ADE20K the validation part, of NYU the official test part.

    Raises ValueError for an unknown name or an image that is there twice, FileNotFoundError for a folder or a map that
    is missing."""
    check_choice("data set", name, SETS)
    folder, get = Path(root) / SETS[name].folder, _how_to_get(name, root)
    if name == "ade20k":
        at, truths = folder / "images" / "validation", folder / "annotations" / "validation"
        images, truth_of = _images_in(at, "*", get), lambda path: truths / f"{path.stem}.png"
    else:
        at = folder / "official_splits" / "test"
        images = _images_in(at, "**/rgb_*", get)
        truth_of = lambda path: path.with_name(f"{path.stem.replace('rgb', 'sync_depth')}.png")  # noqa: E731
    pairs = [(path, truth_of(path)) for path in images]
    if lone := [truth for _, truth in pairs if not truth.is_file()]:
        raise FileNotFoundError(f"{len(lone)} of {len(pairs)} images in {at} have no map, such as {lone[0]}: {get}")
    return pairs


def _images_in(folder: Path, pattern: str, get: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: {get}")
    found = sorted(p for p in folder.glob(pattern) if p.suffix.lower() in folders.SUFFIXES and p.is_file())
    if not found:
        raise FileNotFoundError(f"{folder} holds no images: {get}")
    if len({path.with_suffix("") for path in found}) < len(found):
        raise ValueError(f"{folder} holds an image twice, in two formats: delete one of them")
    return found


def _how_to_get(name: str, root: Path) -> str:
    return f"`python -m gentta_utils data {name} --root {root}` says how to get it"


def read_image(name: str, path: Path) -> Float[Tensor, "3 S S"]:
    """An image of a set, cropped. Raises ValueError in one sentence as `folders.read_image`."""
    how = SETS[name]
    if how.resize is None:
        return folders.to_tensor(_middle(folders.read_rgb(path), how.size, path))
    return folders.read_image(path, how.size, how.resize)


def read_truth(name: str, path: Path, image: Path) -> UInt8[Tensor, "S S"] | Float[Tensor, "S S"]:
    """The map of an image, cropped as the image is: labels from 0, `maps.VOID` where there is none, or metres. Where no
    depth was measured it is that of the nearest pixel that has one.

    Raises ValueError in one sentence for a file that is damaged, of another size than its image, or no such map."""
    truth, size = _opened(path, Image.Image.copy), _opened(image, lambda file: file.size)
    if truth.size != size:
        raise ValueError(f"{path} has {truth.size} pixels and its image {size}: get both again, or delete them")
    how = SETS[name]
    if how.target == "classes":
        if truth.mode not in ("L", "P") or (most := int(np.asarray(truth).max())) > len(ade20k.CLASSES):
            said = f"pixels of kind {truth.mode!r}" if truth.mode not in ("L", "P") else f"a label of {most}"
            raise ValueError(f"{path} holds {said}, not labels up to 150: take the scene parsing benchmark's maps")
        labels = folders.centre_crop(truth, how.size, how.resize, Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(labels) - np.uint8(1))  # 0, of no class, comes round to VOID = 255
    if not truth.mode.startswith("I"):
        raise ValueError(f"{path} has pixels of kind {truth.mode!r}, not of 16 bits: save depth in whole millimetres")
    depth = np.asarray(_middle(truth, how.size, path), np.float32) / MILLIMETRES
    if not depth.any():
        raise ValueError(f"{path} has no depth anywhere in the middle: get it again, or delete it with its image")
    nearest = ndimage.distance_transform_edt(depth == 0, return_distances=False, return_indices=True)
    return torch.from_numpy(depth[tuple(nearest)])


def _opened(path: Path, read: Callable[[Image.Image], object]):
    try:
        with Image.open(path) as file:
            return read(file)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path} cannot be read as an image ({error}): get it again, or delete it") from error


def _middle(image: Image.Image, size: int, path: Path) -> Image.Image:
    width, height = image.size
    if min(width, height) < size:
        raise ValueError(f"{path} has {width} x {height} pixels, fewer than {size} x {size}: take the originals")
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class PhotoMapSpec(Checked):
    """Which images of a data set, with the truth of which map: all that such a stream depends on.

    The stream's labels are the maps (N, S, S): uint8 of `ade20k.CLASSES` or void, or float32 metres."""

    dataset: str  # one of SETS
    root: str  # the folder that holds the data sets
    n: Count  # so many, drawn at random
    shift: str = "clean"  # a corruption, made in memory
    severity: int = 0  # 1 to 5 for a corruption, else 0
    seed: int = 0  # of the draw and of the corruption

    def __post_init__(self):
        super().__post_init__()
        check_choice("data set", self.dataset, SETS)
        folders.check_on_disk(self.shift, self.severity, SETS[self.dataset].size)

    def describe(self) -> dict:
        """Without the folder, so that a record does not depend on where the files lie."""
        about, how = {name: v for name, v in asdict(self).items() if name != "root"}, SETS[self.dataset]
        made = in_memory(self.shift, self.severity)
        return about | {"split": self.dataset, "target": how.target, "size": how.size, "corruptions": made}

    def load(self) -> Stream:
        """The images, read when they are asked for, with their maps, which are read now.

        Raises FileNotFoundError or ValueError for files that are missing or not what they should be; an unreadable
        image is named when it is read."""
        pairs, name = listing(self.dataset, Path(self.root)), self.dataset
        if not self.n <= len(pairs):
            raise ValueError(f"n={self.n} asked of {len(pairs)} images of {name}: choose 1 to {len(pairs)}")
        keep = torch.randperm(len(pairs), generator=generator(self.seed, 0, "order"))[: self.n]
        at = Path(self.root) / SETS[name].folder
        ids = torch.tensor([folders.id_of(f"{name}/{p.relative_to(at).with_suffix('')}") for p, _ in pairs])
        maps = torch.stack([read_truth(name, pairs[i][1], pairs[i][0]) for i in keep.tolist()])

        def read(rows: Tensor) -> Tensor:
            images = torch.stack([read_image(name, pairs[i][0]) for i in rows.tolist()])
            return shifted(images, self.shift, self.severity, ids[rows], self.seed)

        return Stream(Lazy(read, keep), maps, ids[keep], self.describe())
