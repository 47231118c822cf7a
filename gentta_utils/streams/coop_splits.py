"""The data sets of prompt learning that torchvision does not read as CoOp does: by CoOp's own lists of images.

Zhou et al. (2022) published a file `split_zhou_*.json` for each: {"train", "val", "test"}, lists of [path, label, class
name]. Names there are as CLIP is asked for them ("Annual Crop Land"). Put it into the data set's folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..common.randomness import generator

PARTS = ("train", "val", "test")
ONE = "a photo of a {}."


@dataclass(frozen=True)
class SplitSet:
    """Where a data set lies under the root, and what is asked of it.

    Attributes:
        pictures: subfolder that the paths of the list count from.
        list: the file with the three parts, in `folder`.
        images: how many the test part has.
        templates: the first is the one prompt of TPT for all sets, the second CoOp's own.
    """

    folder: str
    pictures: str
    list: str
    images: int
    templates: tuple[str, ...]


SPLIT_SETS = {
    "caltech101": SplitSet("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", 2_465, (ONE,)),
    "cars": SplitSet("stanford_cars", "", "split_zhou_StanfordCars.json", 8_041, (ONE,)),
    "dtd": SplitSet("dtd", "images", "split_zhou_DescribableTextures.json", 1_692, (ONE, "{} texture.")),
    "eurosat": SplitSet(
        "eurosat", "2750", "split_zhou_EuroSAT.json", 8_100, (ONE, "a centered satellite photo of {}.")
    ),
    "sun397": SplitSet("sun397", "SUN397", "split_zhou_SUN397.json", 19_850, (ONE,)),
    "ucf101": SplitSet(
        "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", 3_783, (ONE, "a photo of a person doing {}.")
    ),
}


def read_split(name: str, root: Path, part: str = "test") -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Paths (N), labels (N,) and the K class names of a part of one of `SPLIT_SETS`.

    Raises ValueError for an unknown set or part and for a damaged list, FileNotFoundError for a missing one."""
    if name not in SPLIT_SETS or part not in PARTS:
        raise ValueError(f"unknown {name!r}, {part!r}: choose one of {', '.join(SPLIT_SETS)} and of {', '.join(PARTS)}")
    how, folder = SPLIT_SETS[name], Path(root) / SPLIT_SETS[name].folder
    file = folder / how.list
    if not file.is_file():
        raise FileNotFoundError(
            f"no list {file} of {name}: `python -m gentta_utils data {name} --root {root}` says how to get it"
        )
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
        names = {int(k): str(c).replace("_", " ") for p in PARTS for _, k, c in lists[p]}
        paths, labels = zip(*((folder / how.pictures / path, int(k)) for path, k, _ in lists[part]), strict=True)
        classes = tuple(names[k] for k in range(len(names)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not CoOp's list of images: fetch it again") from error
    return list(paths), torch.tensor(labels), classes


def few_shots(labels: Tensor, shots: int = 16, seed: int = 0) -> Tensor:
    """Positions (M,) of `shots` images of each class, or of all where a class has fewer, drawn by the seed."""
    order = torch.randperm(len(labels), generator=generator(seed, 0, "shots"))
    return torch.cat([order[labels[order] == k][:shots] for k in labels.unique()])
