"""Pairs of scenes and captions that differ only in who has which attribute, in the manner of Winoground (Thrush et al.,
CVPR 2022): a model that takes a caption for a bag of words cannot tell them apart.

The two scenes of a pair share all that their captions do not tell apart: camera, light, shapes, shades, texture, and
the noise of the sensor.

Card: docs/methods/composition.md
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..common.randomness import generator
from .labels import CLASSES, COLOURS
from .scenes import Scenes, render, sample, scene_ids
from .words import ATTRIBUTES, LEFT, UNSAID, across, attributes, sentence, unseen_pair

VERSION = "1.0"  # part of every record: raise it when any pair changes
KINDS = {  # kind -> the attributes of its captions; of two objects no attribute list says which is which
    "floor": ("category", "colour", "floor"),
    "wall": ("category", "colour", "wall"),
    "two objects": (),
    "left or right": ("category", "colour", "pose"),
}
CLEAR = 2 * LEFT  # so far from the middle, at least, an object is plainly on one side; 1 is the picture's edge


@dataclass(frozen=True)
class Pairs:
    """N pairs of one kind: scene 2i + j is truly described by caption j of pair i, and wrongly by the other one.

    Attributes:
        scenes: 2N of them; both of a pair carry the id of the first, so they share the noise of the sensor.
        said: (2N, A) what the captions say of attributes, in the order of `words.ATTRIBUTES`; None for "two objects".
        captions: 2N texts.
        unseen: (N,) whether a pair of category and colour stands in its captions that no training caption names.
        ids: (2N,) int64, one for each image, for all that is drawn by image: corruptions, noise.
    """

    kind: str
    scenes: Scenes
    said: Int[Tensor, "M A"] | None
    captions: list[str]
    unseen: Bool[Tensor, " N"]
    ids: Int[Tensor, " M"]

    def __len__(self) -> int:
        return len(self.unseen)


def holds_unseen(ids: Int[Tensor, " M"]) -> Bool[Tensor, " M"]:
    """Of image ids (M,): whether their pairs' captions hold an unseen pair of category and colour, by construction."""
    return ids // 2 % 2 == 0


def pairs(kind: str, n: int, split: str = "test", start: int = 0) -> Pairs:
    """The n pairs start .. start + n - 1 of a split, not yet rendered; each takes two of the split's scene ids.

    In every other pair, from an even number on, the captions hold an unseen pair of category and colour.

    Raises ValueError for an unknown kind, and as `scenes.scene_ids`."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    ids = scene_ids(2 * n, split, 2 * start)
    base, objects = ids[::2].repeat_interleave(2), 1 + (kind == "two objects")
    classes, unseen = sample(ids[::2], objects).classes, holds_unseen(ids[::2])
    shown = 1 if kind == "left or right" else 2  # of the two colours, on objects
    drawn = zip(ids[::2].tolist(), classes, unseen.tolist(), strict=True)
    one, other, floor, wall = (
        torch.tensor([_colours(*row, shown) for row in drawn]).repeat_interleave(2, 0).T
    )  # (2N,) each
    second = torch.arange(2 * n) % 2 == 1
    if kind != "left or right":
        one, other = torch.where(second, other, one), torch.where(second, one, other)
    ground = {"floor": floor, "wall": wall} | ({kind: other} if kind in ("floor", "wall") else {})
    scenes = sample(base, objects, colours={"colour": torch.stack([one, other], 1)[:, :objects], **ground})
    if kind == "left or right":
        scenes = _moved(scenes, 2 * second.float() - 1)
    elif kind == "two objects":
        scenes = _side_by_side(scenes)
    said = None if kind == "two objects" else _said(scenes, KINDS[kind])
    captions = _of_two(scenes) if said is None else [sentence(row) for row in said.tolist()]
    return Pairs(kind, scenes, said, captions, unseen, ids)


def rendered(these: Pairs, size: int = 64, dense: bool = False, chunk: int = 50) -> Pairs:
    """The pairs with images (2N, 3, size, size), and with masks and depth if `dense`."""
    parts = [
        render(these.scenes.map(lambda v, r=r: v[r]), size, dense=dense)
        for r in torch.arange(len(these.ids)).split(chunk)
    ]
    names = ("image", "mask", "instance", "depth") if dense else ("image",)
    filled = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(these, scenes=replace(these.scenes, **filled))


def _colours(i: int, classes: Int[Tensor, " O"], unseen: bool, shown: int) -> list[int]:
    """Four different colours for the pair with this id: two that are exchanged, then those of floor and wall.

    Unseen: an object of one of the classes has an unseen colour among the first `shown`; else none has."""
    g = generator(0, i, "composition")
    while True:
        drawn = torch.randperm(len(COLOURS), generator=g)[:4]
        if bool(unseen_pair(*torch.cartesian_prod(classes, drawn[:shown]).T).any()) == unseen:
            return drawn.tolist()


def _moved(scenes: Scenes, side: Float[Tensor, " M"]) -> Scenes:
    """The object on the left (-1) or right (1) of the picture, as far from the middle as before, or CLEAR of it.

    Its distance along the optical axis stays, and with it its size in the picture."""
    right, x, reach = across(scenes)
    there = side * torch.maximum(x.abs(), CLEAR * reach)
    return replace(scenes, position=scenes.position + ((there - x)[:, None] * right)[:, None])


def _side_by_side(scenes: Scenes) -> Scenes:
    """Two objects turned about the point between them until neither hides the other, the same one on the left."""
    level = scenes.position.new_tensor([1.0, 0.0, 1.0])
    right, apart = across(scenes)[0], (scenes.position[:, 1] - scenes.position[:, 0]) * level / 2
    length = apart.norm(dim=1) * (apart * right).sum(1).sign()
    arms = torch.tensor([-1.0, 1.0]).view(2, 1) * ((length[:, None] * right) - apart)[:, None]  # (M, 2, 3)
    return replace(scenes, position=scenes.position + arms)


def _said(scenes: Scenes, names: tuple[str, ...]) -> Int[Tensor, "M A"]:
    facts = attributes(scenes)
    spoken = torch.tensor([name in names for name in ATTRIBUTES])
    return torch.where(spoken, facts, UNSAID)


def _of_two(scenes: Scenes) -> list[str]:
    rows = zip(scenes.classes.tolist(), scenes.colour.tolist(), strict=True)
    return [
        "a photo of " + " and ".join(f"a {COLOURS[c]} {CLASSES[k]}" for k, c in zip(*row, strict=True)) for row in rows
    ]
