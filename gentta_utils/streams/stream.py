"""Streams: the images that a method meets, in order, with labels and ids; from rendered scenes or from folders.

A stream of scenes holds its images. A stream from folders reads them when they are asked for, so that it may be larger
than memory; `rows` gives images in either case. The orders are functions from streams to a stream: `iid`, `correlated`,
`mixed`, `gradual`; they can be nested.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..common.randomness import generator
from ..common.validate import check_ids, checked


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
    """One shift's images (N, 3, S, S) in [0, 1], labels (N,) and ids (N,), with where they come from.

    Of segmentation and depth the labels are maps (N, S, S)."""

    images: Tensor | Lazy
    labels: Tensor
    ids: Tensor
    about: dict
    order: str = "iid"
    classes: tuple[int, ...] | None = None  # label k is the model's class classes[k]; None: the model's own classes

    def __post_init__(self):
        lazy, kind = isinstance(self.images, Lazy), getattr(self.images, "dtype", type(self.images).__name__)
        if not lazy and not (isinstance(self.images, Tensor) and self.images.ndim == 4 and kind.is_floating_point):
            raise ValueError(f"images of a stream are a float tensor (N, 3, S, S), or `Lazy`, these are {kind}")
        check_ids(self.ids, len(self.images))
        if not (isinstance(self.labels, Tensor) and self.labels.ndim == 3 and len(self.labels) == len(self.images)):
            check_ids(self.labels, len(self.images), "labels")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> "Stream":
        """The images at these positions (M,), in this order."""
        return replace(self, images=self.images[index], labels=self.labels[index], ids=self.ids[index])


@runtime_checkable
class Spec(Protocol):
    """What determines a stream: `scenes.SceneSpec` or `folders.FolderSpec`."""

    def describe(self) -> dict:
        """All that the images and labels depend on, for records."""

    def load(self) -> Stream:
        """The stream itself."""


@checked
@lru_cache(maxsize=8)
def stream(spec: Spec) -> Stream:
    """The images of `spec` under its shift, in random order; the last few streams are kept.

    Raises as `spec.load`."""
    return spec.load()


# --- orders ----------------------------------------------------------------------------------------------------------


@checked
def iid(stream: Stream, seed: int = 0) -> Stream:
    """The images in random order."""
    return _ordered(stream, torch.randperm(len(stream), generator=generator(seed, 0, "order")), "iid")


@checked
def correlated(stream: Stream) -> Stream:
    """The images sorted by class: the labels of neighbours are anything but independent."""
    return _ordered(stream, stream.labels.argsort(stable=True), "correlated")


@checked
def mixed(streams: list[Stream]) -> Stream:
    """One image of each shift in turn, so that neighbours never come from the same one; within a shift as it was.

    Raises ValueError unless the streams have one length and the same classes."""
    if len({len(s) for s in streams}) != 1:
        raise ValueError(f"mixed order takes streams of one length, these have {[len(s) for s in streams]} images")
    joined = _joined(streams)
    order = {s.order for s in streams} - {"iid"}
    turns = torch.arange(len(joined)).view(len(streams), -1).T.flatten()
    return _ordered(joined, turns, "+".join(["mixed", *sorted(order)]))


@checked
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
