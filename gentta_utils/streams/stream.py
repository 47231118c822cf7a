"""Streams: the images that a method meets, in order, with labels and ids; from rendered scenes or from folders.

A stream of scenes holds its images. A stream from folders reads them when they are asked for, so that it may be larger
than memory; `rows` gives images in either case. The orders are functions from streams to a stream: `iid`, `correlated`,
`dirichlet`, `long_tailed`, `mixed`, `gradual`, `continual`; they can be nested.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..common.randomness import generator, numpy_generator
from ..common.validate import Fraction, Positive, check_ids, checked


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
def dirichlet(stream: Stream, concentration: Positive = 0.1, seed: int = 0) -> Stream:
    """Labels that come in bursts: the stream has as many slots as classes, and the shares of a class's images that fall
    into each are drawn from a Dirichlet distribution; within a slot the order is random.

    The smaller the concentration, the more of a class falls into one slot: 0.1 is that of NOTE (Gong et al., NeurIPS
    2022) and RoTTA (Yuan et al., CVPR 2023). A large one is `iid` with classes spread evenly."""
    draw, classes = numpy_generator(seed, 0, "dirichlet"), stream.labels.unique()
    slots: list[list[int]] = [[] for _ in classes]
    for k in classes:
        mine = (stream.labels == k).nonzero()[:, 0].numpy()
        mine = mine[draw.permutation(len(mine))]
        shares = draw.dirichlet([concentration] * len(slots))
        ends = (shares.cumsum() * len(mine)).round().astype(int)
        for slot, part in zip(slots, np.split(mine, ends[:-1]), strict=True):
            slot += part.tolist()
    order = [slot[i] for slot in slots for i in draw.permutation(len(slot))]
    return _ordered(stream, torch.tensor(order), "dirichlet")


@checked
def long_tailed(stream: Stream, ratio: Fraction = 0.1, seed: int = 0) -> Stream:
    """Few classes have many images and many have few: the k-th of K classes, drawn at random, keeps
    n ratio^(k / (K - 1)) images, where n is what the smallest class has (Cao et al., NeurIPS 2019); in random order."""
    draw = generator(seed, 0, "long tail")
    classes, counts = stream.labels.unique(return_counts=True)
    kept = []
    for k, c in enumerate(torch.randperm(len(classes), generator=draw).tolist()):
        mine = (stream.labels == classes[c]).nonzero()[:, 0]
        n = max(1, round(int(counts.min()) * ratio ** (k / max(1, len(classes) - 1))))
        kept.append(mine[torch.randperm(len(mine), generator=draw)[:n]])
    index = torch.cat(kept)
    return _ordered(stream, index[torch.randperm(len(index), generator=draw)], "long-tailed")


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


@checked
def continual(streams: list[Stream]) -> Stream:
    """One stream after the other, each as it was: a state that is carried on meets all shifts in turn. Parts of one
    shift in one order are a longer stream in that order.

    Raises ValueError unless the classes are the same."""
    known = {(s.about.get("shift"), s.about.get("severity"), s.order) for s in streams}
    return replace(_joined(streams), order="continual" if len(known) > 1 else streams[0].order)


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
