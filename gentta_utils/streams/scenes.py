"""Streams of rendered scenes: which scenes, under which shift, with which labels."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..common.validate import Checked
from ..models import zoo
from ..world import renditions, scenes
from ..world.shifts import check_shift, in_memory, shifted
from ..world.words import COUNTS, LABEL_SETS, attributes, label_set
from .stream import Stream

COLOUR_BLIND = ("r", "sketch", "stylized")  # natural shifts that change more than what `category` asks


@dataclass(frozen=True)
class SceneSpec(Checked):
    """Which scenes, under which shift, sorted by what: all that a stream of the scenes profile depends on.

    Raises ValueError, before anything is rendered, for what is unknown or does not go together."""

    n: int
    shift: str = "clean"  # one of SHIFTS
    severity: int = 0  # 1 to 5 for a corruption, else 0
    split: str = "test"
    start: int = 0
    seed: int = 0  # of the corruption
    labels: str = "category"  # one of words.LABEL_SETS; for "count" a scene holds 1 + id % 3 objects

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("split", scenes.SPLITS), ("labels", LABEL_SETS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        check_shift(self.shift, self.severity)
        if self.shift in COLOUR_BLIND and self.labels != "category":
            raise ValueError(f"shift {self.shift!r} does not keep {self.labels!r}: choose the label set 'category'")
        if self.shift in renditions.SHIFTS and self.labels == "count":
            raise ValueError(f"shift {self.shift!r} has one object per scene: choose another label set than 'count'")
        scenes.scene_ids(self.n, self.split, self.start)

    def describe(self) -> dict:
        """For records; the usual labels are left out."""
        about = {k: v for k, v in asdict(self).items() if k != "labels"}
        about |= {"world": scenes.VERSION, "corruptions": in_memory(self.shift, self.severity)}
        if self.shift in renditions.SHIFTS:
            about |= {"natural": renditions.VERSION}
        if self.shift == "a":
            _filter()
            about |= {"filter": zoo.fingerprint(renditions.FILTER)}
        return about | ({} if self.labels == "category" else {"labels": self.labels})

    def load(self) -> Stream:
        """The scenes, rendered and shifted. Raises FileNotFoundError for shift "a" without its filter network."""
        if self.labels == "count":
            ids = scenes.scene_ids(self.n, self.split, self.start)
            labels, images = ids % len(COUNTS), _crowded(ids)
        elif self.shift in renditions.SHIFTS:
            network = _filter() if self.shift == "a" else None
            world = renditions.make(self.n, self.shift, self.split, self.start, dense=False, network=network)
            ids, labels, images = world.id, world.label, world.image
        else:
            world = scenes.make(self.n, self.split, self.start, dense=False)
            ids, labels, images = world.id, world.label, world.image
        if self.shift not in renditions.SHIFTS:
            images = shifted(images, self.shift, self.severity, ids, self.seed)
        if self.labels not in ("category", "count"):
            world = renditions.STYLES[self.shift][0] if self.shift in renditions.SHIFTS else None
            labels = label_set(self.labels).labels(attributes(scenes.sample(ids, world=world)))
        return Stream(images, labels, ids, self.describe())


def _crowded(ids: Tensor) -> Tensor:
    """Scenes (B, 3, 64, 64) of 1 + id % 3 objects."""
    images, more = torch.empty(len(ids), 3, 64, 64), ids % len(COUNTS)
    for k in range(len(COUNTS)):
        there = (more == k).nonzero()[:, 0]
        for rows in there.split(renditions.CHUNK) if len(there) else ():
            images[rows] = scenes.render(scenes.sample(ids[rows], k + 1), dense=False).image
    return images


def _filter():
    if renditions.FILTER not in zoo.names():
        raise FileNotFoundError(
            f"shift 'a' needs the network {renditions.FILTER}, which is not here: run `git checkout -- data/models`, "
            f"or make it with `python -m gentta_utils train {renditions.FILTER} --promote`"
        )
    return zoo.load(renditions.FILTER)
