"""Eight photographs inside packages that the course needs anyway, with the ImageNet classes that are a right answer.

They are an exhibit, real pixels at 224 px for corruptions, transforms and networks, and measure no accuracy. Nobody's
licence is in doubt; data/README.md lists them. `python -m gentta_utils data photos` copies them, with licences and
labels, into a folder; streams read them where the packages keep them.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..common.randomness import generator, numpy_generator
from ..common.validate import Checked, Count
from ..world.shifts import in_memory, shifted
from .folders import check_on_disk, id_of, read_rgb, to_tensor
from .open_vocabulary import imagenet_names
from .stream import Stream

SIZE = 224  # pixels a side of a crop
SHARE = (0.6, 1.0)  # side of a crop, as a share of the photograph's shorter side
FOLDER = "photos"  # under the folder of all data sets
SKIMAGE = "scikit-image, `skimage.data.{}`"
MATPLOTLIB = "matplotlib, pull request 1599; the file's comment names its page on Wikimedia Commons"
FLICKR = "scikit-learn, sklearn/datasets/images/README.txt"


@dataclass(frozen=True)
class Photo:
    """One of `PHOTOS`: where its package keeps it, what may be answered, and on what terms it may be passed on."""

    name: str
    package: str
    file: str
    accepted: tuple[str, ...]  # names of ImageNet's classes, as `imagenet_names` has them; decided before any answer
    licence: str
    stated: str  # where the licence stands

    @property
    def path(self) -> Path:
        """The file. Raises FileNotFoundError where the package is another version that has no such file."""
        found = find_spec(self.package)
        path = Path(found.origin).parent / self.file if found and found.origin else Path(self.file)
        if not path.is_file():
            raise FileNotFoundError(f"no photograph {path}: run `pip install -c constraints.txt -e .`")
        return path

    @property
    def classes(self) -> tuple[int, ...]:
        """The indices of `accepted`."""
        return tuple(imagenet_names().index(name) for name in self.accepted)


def _of_skimage(name: str, file: str, accepted: tuple[str, ...], licence: str) -> Photo:
    return Photo(name, "skimage", f"data/{file}", accepted, licence, SKIMAGE.format(name))


PHOTOS = (
    _of_skimage("astronaut", "astronaut.png", ("space shuttle",), "public domain, NASA"),
    _of_skimage("chelsea", "chelsea.png", ("tabby", "tiger cat", "Egyptian cat"), "CC0, Stefan van der Walt"),
    _of_skimage("coffee", "coffee.png", ("espresso", "cup", "coffee mug"), "CC0, Rachel Michetti"),
    _of_skimage("rocket", "rocket.jpg", ("missile", "projectile"), "public domain, SpaceX"),
    _of_skimage("camera", "camera.png", ("tripod", "reflex camera", "Polaroid camera"), "CC0, Lav Varshney"),
    _of_skimage("brick", "brick.png", ("stone wall",), "CC0, CC0Textures"),
    Photo(
        "hopper", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", ("military uniform",),
        "public domain, United States Navy", MATPLOTLIB,
    ),
    Photo(
        "china", "sklearn", "datasets/images/china.jpg", ("palace", "monastery", "stupa"),
        "CC BY 2.0, danielbuechele (flickr.com/photos/danielbuechele/6061409035)", FLICKR,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CropSpec(Checked):
    """Seeded random crops of the photographs, resized to 224 px: all that such a stream depends on."""

    crops: Count  # of each photograph
    shift: str = "clean"  # a corruption, made of the crop
    severity: int = 0  # 1 to 5 for a corruption, else 0
    seed: int = 0  # of crops, order and corruption

    def __post_init__(self):
        super().__post_init__()
        check_on_disk(self.shift, self.severity, SIZE)

    def describe(self) -> dict:
        """All that the images and labels depend on, for records."""
        about = {"world": "photographs", "split": "photographs", "n": self.crops * len(PHOTOS), "size": SIZE}
        return about | asdict(self) | {"corruptions": in_memory(self.shift, self.severity)}

    def load(self) -> Stream:
        """The crops in random order; the label is the first class that is accepted, the id names photograph and crop.

        Raises FileNotFoundError as `Photo.path`."""
        places = [(photo, k) for photo in PHOTOS for k in range(self.crops)]
        order = torch.randperm(len(places), generator=generator(self.seed, 0, "order")).tolist()
        ids = torch.tensor([id_of(f"{FOLDER}/{places[i][0].name}/{places[i][1]}") for i in order])
        images = torch.stack([crop(*places[i], self.seed) for i in order])
        labels = torch.tensor([places[i][0].classes[0] for i in order])
        return Stream(shifted(images, self.shift, self.severity, ids, self.seed), labels, ids, self.describe())


@lru_cache(maxsize=len(PHOTOS))
def opened(photo: Photo) -> Image.Image:
    """The photograph as 8-bit RGB, as the course reads any image. Raises FileNotFoundError as `Photo.path`."""
    return read_rgb(photo.path)


def crop(photo: Photo, number: int, seed: int = 0) -> Tensor:
    """The random square of this number, mirrored or not, (3, 224, 224) in [0, 1]. Raises as `opened`."""
    image, draw = opened(photo), numpy_generator(seed, number, f"crop of {photo.name}")
    side = round(min(image.size) * draw.uniform(*SHARE))
    left, top = (int(draw.integers(0, length - side + 1)) for length in image.size)
    pixels = to_tensor(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))
    return pixels.flip(2) if draw.random() < 0.5 else pixels


def copy_to(root: Path) -> Path:
    """Copy the photographs to `root`/photos with photos.json: file, package, accepted classes, licence of each.

    Raises FileNotFoundError as `Photo.path`, OSError where the folder cannot be written."""
    folder, listed = Path(root) / FOLDER, {}
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOS:
        target = folder / f"{photo.name}{photo.path.suffix}"
        shutil.copyfile(photo.path, target)
        listed[target.name] = asdict(photo) | {"classes": photo.classes}
    (folder / "photos.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return folder
