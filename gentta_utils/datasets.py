"""Streams: the images that a method meets, in order, with labels and ids."""

from dataclasses import asdict, dataclass
from functools import lru_cache

from torch import Tensor

from . import corruptions, scenes
from .watermark import watermark

SHIFTS = ["clean", *corruptions.ALL, "watermark"]


@dataclass(frozen=True)
class SceneSpec:
    """Which scenes, under which shift: all that a stream of the scenes profile depends on."""

    n: int
    shift: str = "clean"  # one of SHIFTS
    severity: int = 0  # 1 to 5 for a corruption, else 0
    split: str = "test"
    start: int = 0
    seed: int = 0  # of the corruption

    def describe(self) -> dict:
        return {**asdict(self), "world": scenes.VERSION, "corruptions": f"in-memory {corruptions.VERSION}"}


@dataclass(frozen=True)
class Stream:
    """One shift's images (N, 3, S, S) in [0, 1], labels (N,) and ids (N,), with where they come from."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    about: dict
    order: str = "iid"

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> "Stream":
        """The images at these positions (M,), in this order."""
        return Stream(self.images[index], self.labels[index], self.ids[index], self.about, self.order)


def shifted(images: Tensor, shift: str, severity: int, ids: Tensor, seed: int = 0) -> Tensor:
    """Images (B, 3, S, S) under a shift of `SHIFTS`. Raises ValueError for an unknown shift or severity."""
    if shift in ("clean", "watermark"):
        if severity:
            raise ValueError(f"severity={severity}: {shift} has none, leave it at 0")
        return images if shift == "clean" else watermark(images)
    return corruptions.corrupt(images, shift, severity, ids, seed)


@lru_cache(maxsize=8)
def stream(spec: SceneSpec) -> Stream:
    """Render the scenes of `spec` and put them under its shift."""
    world = scenes.make(spec.n, spec.split, spec.start, dense=False)
    images = shifted(world.image, spec.shift, spec.severity, world.id, spec.seed)
    return Stream(images, world.label, world.id, spec.describe())
