"""Streams: the images that a method meets, in order, with labels and ids; from rendered scenes or from folders.

A stream of scenes holds its images. A stream from folders reads them when they are asked for, so that it may be larger
than memory; `rows` gives images in either case. The orders are functions from streams to a stream: `iid`, `correlated`,
`mixed`, `gradual`; they can be nested.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from . import corruptions, folders, natural, scenes
from .draws import generator
from .watermark import watermark

SHIFTS = ["clean", *corruptions.ALL, "watermark", *natural.SHIFTS]


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
        about = {**asdict(self), "world": scenes.VERSION, "corruptions": _in_memory(self)}
        return about | (natural.describe(self.shift) if self.shift in natural.SHIFTS else {})


@dataclass(frozen=True)
class FolderSpec:
    """Which images of a data set on disk, in which form: all that a stream of the imagenet profile depends on."""

    dataset: str  # one of folders.LAYOUTS
    root: str  # the folder that holds the data sets
    n: int | None = None  # so many, drawn at random; None: all
    per_class: int | None = None  # before that: only the first so many of each class by file name
    shift: str = "clean"  # a corruption: from the files of imagenet-c, else made in memory
    severity: int = 0  # 1 to 5 for a corruption, else 0
    size: int = 224
    # shorter side before the centre crop of `size`; a network has its own, see `Classifier.resize`. The files of
    # imagenet-c are stored cropped, after the default
    resize: int = folders.STORED_RESIZE
    seed: int = 0  # of the draw and of the corruption
    font: str | None = None  # a font file with the two characters of the watermark; None: block glyphs

    def describe(self) -> dict:
        """Without the folder, so that a record does not depend on where the files lie; `resize` as it really was."""
        about = {name: value for name, value in asdict(self).items() if name not in ("root", "font")}
        made = "files" if self.dataset == "imagenet-c" else _in_memory(self)
        glyphs = "block glyphs" if self.font is None else Path(self.font).name
        if self.dataset == "imagenet-c":
            about["resize"] = folders.STORED_RESIZE
        return about | {"split": self.dataset, "corruptions": made, "watermark": glyphs}


def _in_memory(spec: SceneSpec | FolderSpec) -> str:
    return f"in-memory {corruptions.version(spec.shift, spec.severity)}"


@dataclass(frozen=True)
class Lazy:
    """Images that are read when they are asked for: `images[index]` gives (M, 3, S, S)."""

    read: Callable[[Tensor], Tensor]  # positions (M,) -> images (M, 3, S, S)
    positions: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index) -> Tensor:
        return self.read(self.positions[index])

    def take(self, index: Tensor) -> "Lazy":
        """The images at these places (M,), still unread."""
        return Lazy(self.read, self.positions[index])


@dataclass(frozen=True)
class Stream:
    """One shift's images (N, 3, S, S) in [0, 1], labels (N,) and ids (N,), with where they come from."""

    images: Tensor | Lazy
    labels: Tensor
    ids: Tensor
    about: dict
    order: str = "iid"
    classes: tuple[int, ...] | None = None  # label k is the model's class classes[k]; None: the model's own classes

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> "Stream":
        """The images at these positions (M,), in this order."""
        return replace(self, images=self.images[index], labels=self.labels[index], ids=self.ids[index])


def shifted(images: Tensor, shift: str, severity: int, ids: Tensor, seed: int = 0) -> Tensor:
    """Images (B, 3, S, S) under a shift of `SHIFTS` that is made from the clean image.

    Raises ValueError for an unknown shift or severity, or a natural shift: those are rendered anew."""
    if shift in natural.SHIFTS:
        raise ValueError(f"shift {shift!r} is not made from an image but rendered: use `stream` or `natural.make`")
    if shift in ("clean", "watermark"):
        _no_severity(shift, severity)
        return images if shift == "clean" else watermark(images)
    return corruptions.corrupt(images, shift, severity, ids, seed)


def _no_severity(shift: str, severity: int) -> None:
    if severity:
        raise ValueError(f"severity={severity}: {shift} has none, leave it at 0")


@lru_cache(maxsize=8)
def stream(spec: SceneSpec | FolderSpec) -> Stream:
    """The images of `spec` under its shift, in random order.

    Raises ValueError for a wrong shift or severity, FileNotFoundError or ValueError for folders that are missing or not
    what they should be; an unreadable image is named when it is read."""
    if isinstance(spec, FolderSpec):
        return _from_folder(spec)
    if spec.shift in natural.SHIFTS:
        _no_severity(spec.shift, spec.severity)
        world = natural.make(spec.n, spec.shift, spec.split, spec.start, dense=False)
        return Stream(world.image, world.label, world.id, spec.describe())
    world = scenes.make(spec.n, spec.split, spec.start, dense=False)
    images = shifted(world.image, spec.shift, spec.severity, world.id, spec.seed)
    return Stream(images, world.label, world.id, spec.describe())


def _from_folder(spec: FolderSpec) -> Stream:
    if spec.shift in natural.SHIFTS:
        raise ValueError(f"shift {spec.shift!r} is for scenes: on disk it is a data set, e.g. dataset='imagenet-r'")
    if spec.resize < spec.size:
        raise ValueError(f"resize={spec.resize} is smaller than size={spec.size}: the crop would leave the image")
    stored = spec.dataset == "imagenet-c"
    files = folders.listing(spec.dataset, Path(spec.root), spec.shift, spec.severity)
    keep = folders.first_of_each(files.labels, spec.per_class)
    n = len(keep) if spec.n is None else spec.n
    if not 1 <= n <= len(keep):
        raise ValueError(
            f"n={n} asked of {len(keep)} images of {spec.dataset}: choose 1 to {len(keep)}, or None for all"
        )
    keep = keep[torch.randperm(len(keep), generator=generator(spec.seed, 0, "order"))[:n]]

    def read(rows: Tensor) -> Tensor:
        resize = None if stored else spec.resize
        images = torch.stack([folders.read_image(files.paths[i], spec.size, resize) for i in rows.tolist()])
        if spec.shift == "watermark" and spec.font is not None:
            return watermark(images, spec.font)
        return images if stored else shifted(images, spec.shift, spec.severity, files.ids[rows], spec.seed)

    about = spec.describe() | {"n": n}
    return Stream(Lazy(read, keep), files.labels[keep], files.ids[keep], about, classes=files.classes)


# --- orders ----------------------------------------------------------------------------------------------------------


def iid(stream: Stream, seed: int = 0) -> Stream:
    """The images in random order."""
    return _ordered(stream, torch.randperm(len(stream), generator=generator(seed, 0, "order")), "iid")


def correlated(stream: Stream) -> Stream:
    """The images sorted by class: the labels of neighbours are anything but independent."""
    return _ordered(stream, stream.labels.argsort(stable=True), "correlated")


def mixed(streams: list[Stream]) -> Stream:
    """One image of each shift in turn, so that neighbours never come from the same one; within a shift as it was.

    Raises ValueError unless the streams have one length and the same classes."""
    if len({len(s) for s in streams}) != 1:
        raise ValueError(f"mixed order takes streams of one length, these have {[len(s) for s in streams]} images")
    joined = _joined(streams)
    order = {s.order for s in streams} - {"iid"}
    turns = torch.arange(len(joined)).view(len(streams), -1).T.flatten()
    return _ordered(joined, turns, "+".join(["mixed", *sorted(order)]))


def gradual(streams: list[Stream]) -> Stream:
    """Severities that rise step by step and fall again: half of each stream on the way up, all of the last, the rest.

    Raises ValueError unless the severities rise from stream to stream and the classes are the same."""
    severities = [s.about.get("severity", 0) for s in streams]
    if not streams or severities != sorted(set(severities)):
        raise ValueError(f"gradual order takes streams of rising severity, these have {severities}")
    rows = torch.arange(sum(len(s) for s in streams)).split([len(s) for s in streams])
    up = [r[: (len(r) + 1) // 2] for r in rows[:-1]]
    down = [r[(len(r) + 1) // 2 :] for r in rows[-2::-1]]
    return _ordered(_joined(streams), torch.cat([*up, rows[-1], *down]), "gradual")


def _ordered(stream: Stream, index: Tensor, order: str) -> Stream:
    images = stream.images.take(index) if isinstance(stream.images, Lazy) else stream.images[index]
    return replace(stream, images=images, labels=stream.labels[index], ids=stream.ids[index], order=order)


def _joined(streams: list[Stream]) -> Stream:
    """One stream after the other; what their descriptions do not agree on becomes a list."""
    if len({s.classes for s in streams}) != 1:
        raise ValueError("these streams have different classes, so their labels do not mean the same: run them apart")
    ends = torch.tensor([len(s) for s in streams]).cumsum(0)

    def read(rows: Tensor) -> Tensor:
        which = torch.bucketize(rows, ends, right=True)
        images = [streams[w].images[(r - ends[w] + len(streams[w]))[None]] for w, r in zip(which.tolist(), rows)]
        return torch.cat(images)

    about = {}
    for key in streams[0].about:
        values = [s.about.get(key) for s in streams]
        about[key] = values[0] if all(v == values[0] for v in values) else values
    labels, ids = (torch.cat([getattr(s, name) for s in streams]) for name in ("labels", "ids"))
    return Stream(Lazy(read, torch.arange(len(ids))), labels, ids, about, classes=streams[0].classes)
