"""Variations that are made once and kept: one file per image in the cache, named by what it shows.

An interrupted call goes on where it stopped; several processes or GPUs share the work by `share`, each on images of its
own; more variations of an image go on from those that are there.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor

from ..common.cache import fingerprint
from ..common.files import atomic_write, read_tensors
from ..common.paths import CACHE
from ..common.progress import progress
from ..common.types import Index
from ..methods.variations import MODELS_OF, Settings, check_generator, evaluations, usual, variations
from ..models import hub, zoo

IMAGES_AT_ONCE = 25  # so many files are written together


@dataclass(frozen=True)
class Generated:
    """Variations of B images with what they cost.

    Attributes:
        ids: (B,). images: (B, n, 3, S, S) uint8.
        about: generator, settings, model, precision.
        seconds: per variation, on average. nfe: evaluations of the denoiser per variation.
    """

    ids: Index
    images: UInt8[Tensor, "B n 3 S S"]
    about: dict
    seconds: float
    nfe: int

    def views(self) -> Float[Tensor, "B n 3 S S"]:
        """The variations in [0, 1]."""
        return self.images.float() / 255

    def save(self, path: Path) -> None:
        """Write one compressed file (.npz), atomically."""
        about = json.dumps(self.about | {"seconds": self.seconds, "nfe": self.nfe})
        content = {"ids": self.ids.numpy(), "images": self.images.numpy(), "about": np.array(about)}
        atomic_write(path, lambda temporary: np.savez_compressed(temporary, **content))

    @classmethod
    def load(cls, path: Path) -> "Generated":
        """What `save` wrote. Raises FileNotFoundError where there is nothing."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no variations at {path}: run `git checkout -- data/scenes`")
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            ids, images = torch.from_numpy(file["ids"]), torch.from_numpy(file["images"])
        return cls(ids, images, about, about.pop("seconds"), about.pop("nfe"))


def model_of(generator: str, profile: str = "scenes") -> str:
    """The name of a generator's model. Raises ValueError for an unknown generator."""
    if generator not in MODELS_OF:
        raise ValueError(f"unknown generator {generator!r}: choose one of {', '.join(MODELS_OF)}")
    return hub.ADM if profile == "imagenet" and generator == "image_to_image" else MODELS_OF[generator]


def generated(
    images: Float[Tensor, "B 3 S S"],
    ids: Index,
    n: int,
    generator: str,
    settings: Settings | None = None,
    captions: Sequence[str] | None = None,
    profile: str = "scenes",
    device: str = "cpu",
    precision: str = "auto",
    folder: Path | None = None,
    share: tuple[int, int] = (1, 1),
    denoiser=None,
) -> Generated | None:
    """n variations of each image (B, 3, S, S) in [0, 1], from the cache or made now; arguments as of `variations`.

    Args:
        folder: the cache; data/cache/variations where None.
        share: (k, of): make those of every `of`-th image alone, beginning with the k-th, and return None.
        denoiser: use this instead of loading the generator's model of the profile.

    Raises ValueError as `variations`, and for a share that is none."""
    name, (k, of) = model_of(generator, profile), share
    if not 1 <= k <= of:
        raise ValueError(f"share {k}/{of}: choose 1/{of} to {of}/{of}")
    s = settings or usual(generator, captions is not None)
    denoiser = denoiser or zoo.load(name, profile, device, precision=precision)
    check_generator(generator, denoiser, s, len(images), captions)
    about = {"generator": generator, "settings": asdict(s), "model": zoo.fingerprint(name, profile)}
    about |= {"profile": profile, "precision": denoiser.precision}
    home = Path(folder or CACHE / "variations") / fingerprint(about)
    paths = [home / f"{key}.safetensors" for key in _keys(images, ids, captions)]
    kept = {}
    mine = torch.arange(len(images))[k - 1 :: of]
    for rows in progress(mine.split(IMAGES_AT_ONCE), desc=f"variations, {generator}", unit="part", leave=False):
        for i in rows.tolist():
            kept[i] = read_tensors(paths[i])
        there = torch.tensor([_count(kept[i]) for i in rows.tolist()])
        for have in there[there < n].unique().tolist():
            lacking, begun = rows[there == have], time.perf_counter()
            said = None if captions is None else [captions[i] for i in lacking.tolist()]
            made = variations(images[lacking], n - have, generator, denoiser, ids[lacking], s, said, first=have)
            made = (made * 255).round().byte()
            seconds = (time.perf_counter() - begun) / len(lacking)
            for i, new in zip(lacking.tolist(), made, strict=True):
                old = kept[i] or {"images": new[:0], "seconds": torch.zeros(1, dtype=torch.float64)}
                both = torch.cat([old["images"], new]).contiguous()
                kept[i] = {"images": both, "seconds": old["seconds"] + seconds}
                atomic_write(paths[i], lambda temporary, content=kept[i]: save_file(content, temporary))
    if of > 1:
        return None
    seconds = [float(kept[i]["seconds"]) / len(kept[i]["images"]) for i in range(len(images))]
    shown = torch.stack([kept[i]["images"][:n] for i in range(len(images))])
    nfe = evaluations(generator, s, captions is not None)
    return Generated(ids, shown, about, sum(seconds) / max(len(seconds), 1), nfe)


def _keys(images: Tensor, ids: Tensor, captions: Sequence[str] | None) -> list[str]:
    """A name for each image, of all that its variations depend on beside the settings: pixels, id, caption."""
    captions = captions or [""] * len(images)
    keys = []
    for image, i, caption in zip(images, ids.tolist(), captions, strict=True):
        pixels = (image.cpu().float() * 65535).round().to(torch.int32).contiguous().numpy().tobytes()
        keys.append(hashlib.sha256(pixels + f"|{i}|{caption}".encode()).hexdigest()[:24])
    return keys


def _count(kept: dict | None) -> int:
    return 0 if kept is None else len(kept["images"])
