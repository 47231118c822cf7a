"""Scenes with maps: a class and a depth for every pixel, the truth of segmentation and of depth estimation.

A class map tells floor from wall, which the `mask` of a scene calls background, and the ten categories: 12 classes.
A scene here shows 1 + id % 3 objects of different categories, and its ids are those of `scenes`: the splits never meet.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .labels import CLASSES
from .scenes import Scenes, render, sample, scene_ids
from .tracing import WALL, camera_rays

STUFF = ("floor", "wall")  # the first classes of a map, what is no object
MAP_CLASSES = [*STUFF, *CLASSES]
VOID = 255  # in a class map: of no class, or of one that nobody knows
NEAR, FAR = 0.1, 10.0  # metres: all depth is cut to this range before it is a condition or measured
CHUNK = 50  # scenes rendered at once


@dataclass(frozen=True)
class Maps:
    """B scenes of size S with their maps.

    Attributes:
        id: (B,) of the scenes.
        image: (B, 3, S, S) in [0, 1].
        classes: (B, S, S), index into MAP_CLASSES or VOID.
        depth: (B, S, S) metres along the optical axis.
    """

    id: Int[Tensor, " B"]
    image: Float[Tensor, "B 3 S S"]
    classes: UInt8[Tensor, "B S S"]
    depth: Float[Tensor, "B S S"]

    def __len__(self) -> int:
        return len(self.id)


def objects_in(ids: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How many objects the scenes with these ids (B,) show here: 1, 2 or 3."""
    return 1 + ids % 3


def make(ids: Int[Tensor, " B"], size: int = 64) -> Maps:
    """The scenes with these ids (`scenes.scene_ids`), rendered with their maps at size x size pixels."""
    B = len(ids)
    image, depth = torch.empty(B, 3, size, size), torch.empty(B, size, size)
    classes = torch.empty(B, size, size, dtype=torch.uint8)
    for objects in objects_in(ids).unique().tolist():
        for rows in (objects_in(ids) == objects).nonzero()[:, 0].split(CHUNK):
            world = render(sample(ids[rows], objects), size)
            image[rows], depth[rows], classes[rows] = world.image, world.depth, class_map(world)
    return Maps(ids, image, classes, depth)


@lru_cache(maxsize=2)
def mean_map(target: str, n: int = 300, size: int = 32) -> Float[Tensor, "K S S"]:
    """What n scenes of the training split show at each pixel on average: shares of the classes, or of "depth" metres
    (1, S, S). It knows no image."""
    made = make(scene_ids(n, "train"), size)
    if target == "depth":
        return made.depth.mean(0, keepdim=True)
    return F.one_hot(made.classes.long(), len(MAP_CLASSES)).float().mean(0).movedim(-1, 0)


def class_map(scenes: Scenes) -> UInt8[Tensor, "B S S"]:
    """Classes of the pixels of rendered scenes: 0 floor, 1 wall, k + 2 for category k."""
    origin, direction, axis = camera_rays(scenes, scenes.mask.shape[-1])
    distance = scenes.depth.flatten(1) / (direction * axis[:, None]).sum(-1)  # along each ray
    point = origin + distance[..., None] * direction  # (B, S*S, 3)
    wall = ((WALL - point[..., 2]).abs() < point[..., 1].abs()).view_as(scenes.mask)  # the nearer of the two planes
    return torch.where(scenes.mask > 0, scenes.mask + len(STUFF) - 1, wall.byte())


# --- wrong maps, to see whether a model tells them from the true one -------------------------------------------------


def swapped(classes: UInt8[Tensor, "B S S"], ids: Int[Tensor, " B"]) -> UInt8[Tensor, "B S S"]:
    """Class maps in which the largest object's category and another one, by the scene's id, have changed places."""
    kinds, first = len(CLASSES), len(STUFF)
    area = torch.stack([(classes == first + k).flatten(1).sum(1) for k in range(kinds)], 1)  # (B, kinds)
    one = area.argmax(1)
    other = (one + 1 + ids % (kinds - 1)) % kinds
    one, other = (v.byte().view(-1, 1, 1) + first for v in (one, other))
    return torch.where(classes == one, other, torch.where(classes == other, one, classes))


def dilated(classes: UInt8[Tensor, "B S S"], by: int = 2) -> UInt8[Tensor, "B S S"]:
    """Class maps whose objects have grown by so many pixels on all sides, over what is no object."""
    objects = torch.where((classes >= len(STUFF)) & (classes < len(MAP_CLASSES)), classes, 0).float()[:, None]
    grown = F.max_pool2d(objects, 2 * by + 1, 1, by)[:, 0].byte()
    return torch.where((classes < len(STUFF)) & (grown > 0), grown, classes)


def rescaled(
    depth: Float[Tensor, "B S S"], classes: UInt8[Tensor, "B S S"], ids: Int[Tensor, " B"], by: float = 0.2
) -> Float[Tensor, "B S S"]:
    """Depth of which objects are nearer or farther by this share, by the scene's id."""
    factor = torch.where(ids % 2 == 0, 1 + by, 1 - by).view(-1, 1, 1)
    return torch.where(classes >= len(STUFF), factor * depth, depth)


def grown(depth: Float[Tensor, "B S S"], by: int = 2) -> Float[Tensor, "B S S"]:
    """Depth whose nearer sides have grown by so many pixels over what is behind them: each edge is moved."""
    return -F.max_pool2d(-depth[:, None], 2 * by + 1, 1, by)[:, 0]
