"""Streams of rendered scenes: which scenes, under which shift, with which labels."""

from dataclasses import asdict, dataclass, replace

import torch

from ..models import zoo
from ..world import renditions, scenes
from ..world.renditions import FILTER, VERSION
from ..world.shifts import in_memory, shifted
from ..world.words import COUNTS, attributes, label_set
from .stream import Stream
from .stream import stream as stream_of

COLOUR_BLIND = ("r", "sketch", "stylized")  # natural shifts that change more than what `category` asks


def labelled(spec: SceneSpec, name: str) -> Stream:
    """The images of `spec` under its shift, labelled by a label set: what `stream.stream` gives for "category".

    For "count" a scene holds 1 + id % 3 objects.

    Raises ValueError for an unknown label set, or where the shift makes its labels untrue."""
    asked = label_set(name)
    if spec.shift in COLOUR_BLIND and name != "category":
        raise ValueError(f"shift {spec.shift!r} does not keep {name!r}: choose the label set 'category'")
    if name == "count":
        if spec.shift in renditions.SHIFTS:
            raise ValueError(f"shift {spec.shift!r} has one object a scene: choose another label set than 'count'")
        ids = scenes.scene_ids(spec.n, spec.split, spec.start)
        images, labels = torch.empty(spec.n, 3, 64, 64), ids % len(COUNTS)
        for k in range(len(COUNTS)):
            for rows in (labels == k).nonzero()[:, 0].split(renditions.CHUNK):
                images[rows] = scenes.render(scenes.sample(ids[rows], k + 1), dense=False).image
        images = shifted(images, spec.shift, spec.severity, ids, spec.seed)
        return Stream(images, labels, ids, spec.describe() | {"labels": name})
    given = stream_of(spec)
    if name == "category":
        return given
    world = renditions.V2 if spec.shift == "v2" else None
    labels = asked.labels(attributes(scenes.sample(given.ids, world=world)))
    return replace(given, labels=labels, about=given.about | {"labels": name})


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
        about = {**asdict(self), "world": scenes.VERSION, "corruptions": in_memory(self)}
        return about | (describe_rendition(self.shift) if self.shift in renditions.SHIFTS else {})


def describe_rendition(shift: str) -> dict:
    """What the pixels of a natural shift depend on besides the world, for records."""
    if shift == "a":
        _filter()
    return {"natural": VERSION, **({"filter": zoo.fingerprint(FILTER)} if shift == "a" else {})}


def _filter():
    if FILTER not in zoo.names():
        raise FileNotFoundError(
            f"shift 'a' needs the network {FILTER}, which is not here: run `git checkout -- data/models`, or make it "
            f"with `python -m gentta_utils train {FILTER} --promote`"
        )
    return zoo.load(FILTER)
