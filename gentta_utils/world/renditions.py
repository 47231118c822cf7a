"""The natural shifts of the scenes: the same solids in other views, other renditions, other textures.

They stand for the natural-shift sets of ImageNet: "v2" draws pose, camera and light from wider ranges; "a" holds the
views that a network used nowhere else gets wrong; "r" is cartoons, line drawings and voxels; "sketch" is pencil lines
alone; "stylized" keeps shape and light and swaps every texture. "far" stands for no set: its objects are small in the
frame, as in most photographs, so that a crop may show them better than the image does. Classes, masks and depths stay
exact, and a scene is still a function of its id alone (in "a": of its id and that network).
"""

import math
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.randomness import generator
from ..common.types import Index
from ..common.validate import Count, checked
from .scenes import SPLIT_SIZE, Scenes, World, render, sample, scene_ids
from .solids import EDGE, VOXELS
from .tracing import Surface, photograph

VERSION = 1  # part of every record of a natural shift: raise it when any of their pixels change
SHIFTS = ("v2", "a", "r", "sketch", "stylized", "far")
RENDITIONS = ("cartoon", "drawing", "voxels")  # what "r" is made of, a third each
FILTER = "classifier/filter"  # the network whose errors make "a"; used for nothing else
STRIDE = 250_000  # between the alternatives from which "a" takes the first that the filter gets wrong
CHUNK = 50  # scenes rendered at once
V2 = World(  # so wide that it costs the shipped classifiers 3 to 8 points, on scenes of the "select" split
    tilt=(-0.48, 0.48),
    camera_x=(-1.1, 1.1),
    camera_y=(1.1, 2.6),
    light_x=(-1.3, 1.3),
    light_y=(0.75, 1.6),
)
FAR = World(scale=(0.5, 0.65))  # of the shape's size, instead of .75 to 1.1


# --- looks: (scenes, surface) -> colours (B, N, 3) in [0, 1] of N = S * S rays ----------------------------------------


def cartoon(scenes: Scenes, surface: Surface) -> Tensor:
    """Two flat tones a surface, loud colours, black outlines."""
    grey = surface.colour.mean(-1, keepdim=True)
    tone = torch.where(surface.diffuse > 0.35, 1.0, 0.6)[..., None]
    flat = (grey + 1.4 * (surface.colour - grey)) * tone  # (B, N, 3)
    flat = torch.where(surface.highlight[..., None] > 0.3, 1.0, flat)
    return torch.where(_lines(surface, 1 / 40)[..., None], 0.05, flat).clamp(0, 1)


def drawing(scenes: Scenes, surface: Surface) -> Tensor:
    """Coloured ink on tinted paper: outlines, and hatching that grows denser as less light arrives."""
    u = _uniform(scenes.id, 6, "drawing").to(surface.point)[:, None]  # (B, 1, 6)
    paper, ink = 0.82 + 0.18 * u[..., :3], 0.4 * u[..., 3:]
    down, right = _grid(surface)  # (N,), 0 to 1
    one, other = (((v * 22) % 1) < 0.3 for v in (right + down, right - down))
    hatched = (one & (surface.diffuse < 0.5)) | (other & (surface.diffuse < 0.2))  # (B, N)
    return torch.where((_lines(surface, 1 / 64) | hatched)[..., None], ink, paper)


def blocks(scenes: Scenes, surface: Surface) -> Tensor:
    """A photograph of one object made of voxels, with the seams between them."""
    local = (surface.point - scenes.position[:, :1]) @ scenes.rotation[:, 0] / scenes.scale[:, :1, None]  # (B, N, 3)
    off_centre = (local / EDGE - (local / EDGE).round()).abs()  # 0 to .5; .5 across the face that is hit
    seam = (off_centre.sort(-1).values[..., 1] > 0.42) & (surface.instance > 0)
    return photograph(scenes, surface) * torch.where(seam, 0.6, 1.0)[..., None]


def pencil(scenes: Scenes, surface: Surface) -> Tensor:
    """Grey lines on white paper where the object has an edge, nothing else; the pressure comes and goes."""
    u = _uniform(scenes.id, 5, "sketch").to(surface.point)  # (B, 5)
    down, right = _grid(surface)
    wave = (8 * (u[:, 1:2] - 0.5) * down + 8 * (u[:, 2:3] - 0.5) * right + 6 * u[:, 3:4]).sin()  # (B, N)
    pressure = (0.55 + 0.4 * u[:, :1]) * (0.8 + 0.2 * wave)
    paper = 0.94 + 0.06 * u[:, 4:]
    lines = _lines(surface, 1 / 64, background=False)
    return (paper * torch.where(lines, 1 - pressure, 1.0))[..., None].expand(-1, -1, 3)


def stylized(scenes: Scenes, surface: Surface) -> Tensor:
    """Each surface in two random colours that flow into each other; only shape and light are left of the scene."""
    B = len(scenes)
    u = _uniform(scenes.id, 3 * (6 + 12 + 2), "stylized").to(surface.point).view(B, 3, 20)
    region = torch.where(surface.instance > 0, 0, torch.where(surface.on_floor, 1, 2))  # (B, N)
    colour = torch.zeros_like(surface.colour)
    for r in range(3):
        first, second = u[:, r, None, :3], u[:, r, None, 3:6]  # (B, 1, 3)
        bend, flow = (24 * (u[:, r, 6:18] - 0.5)).view(B, 3, 4).split((2, 2), -1)  # radians a metre, (B, 3, 2)
        phase = 2 * math.pi * u[:, r, None, 18:]  # (B, 1, 2)
        swirl = 1.5 * (surface.point @ bend + phase).sin()  # (B, N, 2)
        share = torch.sigmoid(5 * (surface.point @ flow + swirl).sin().sum(-1, keepdim=True))  # (B, N, 1)
        colour = torch.where((region == r)[..., None], first + share * (second - first), colour)
    return (colour * (0.45 + 0.65 * surface.diffuse[..., None])).clamp(0, 1)


STYLES = {  # name -> the world it is drawn from, how it is painted
    "v2": (V2, photograph),
    "a": (World(), photograph),
    "cartoon": (World(), cartoon),
    "drawing": (World(), drawing),
    "voxels": (World(solids=VOXELS), blocks),
    "sketch": (World(), pencil),
    "stylized": (World(), stylized),
    "far": (FAR, photograph),
}


@checked
def make(
    n: int, shift: str, split: str = "test", start: int = 0, size: Count = 64, dense: bool = True, network=None
) -> Scenes:
    """The n scenes start .. start + n - 1 of a split under a natural shift, rendered at size x size.

    Their classes are those of `scenes.make`, except in "a", where scene i is the first of i, i + STRIDE, i + 2 STRIDE
    ... that `network` gets wrong (B, 3, 64, 64) -> (B, K) and `id` tells which.

    Raises:
        ValueError: unknown shift or split, a range outside of it, "a" without a network.
    """
    if shift not in SHIFTS:
        raise ValueError(f"unknown natural shift {shift!r}: choose one of {', '.join(SHIFTS)}")
    ids = scene_ids(n, split, start)
    if shift == "a":
        if network is None:
            raise ValueError(f"shift 'a' needs a network to get views wrong: load {FILTER!r}, or ask for a stream")
        if start + n > STRIDE:
            raise ValueError(f"scenes {start} to {start + n - 1} asked for: shift 'a' has 0 to {STRIDE - 1} of a split")
        ids = hard(ids, network)
    names = RENDITIONS if shift == "r" else (shift,)
    which = (_uniform(ids, 1, "rendition")[:, 0] * len(names)).long()  # (n,)
    rows = [(which == i).nonzero()[:, 0] for i in range(len(names))]
    parts = [paint(ids[r], name, size, dense) for r, name in zip(rows, names, strict=True) if len(r)]
    back = torch.cat(rows).argsort()
    return _together(parts).map(lambda v: v[back])


@checked
def paint(ids: Index, style: str, size: Count = 64, dense: bool = True) -> Scenes:
    """The scenes with these ids (B,) in one of STYLES, rendered at size x size."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose one of {', '.join(STYLES)}")
    world, look = STYLES[style]
    return _together([render(sample(i, world=world), size, dense=dense, look=look) for i in ids.split(CHUNK)])


@torch.no_grad()
def hard(ids: Tensor, network) -> Tensor:
    """For each scene the id (B,) of the first of its alternatives id, id + STRIDE, ... that `network` gets wrong.

    Costs about one rendering for each right answer: a dozen per scene if the network is right on 92%.

    Raises ValueError if it is right on all alternatives of a scene."""
    ids, todo = ids.clone(), torch.arange(len(ids))
    for _ in range(SPLIT_SIZE // STRIDE):
        views = (render(sample(ids[rows]), dense=False) for rows in todo.split(CHUNK))
        wrong = torch.cat([network(view.image).argmax(1) != view.label for view in views])
        todo = todo[~wrong]
        if not len(todo):
            return ids
        ids[todo] += STRIDE
    raise ValueError(f"{FILTER} is right on all {SPLIT_SIZE // STRIDE} views of a scene: train it on fewer labels")


def _together(parts: list[Scenes]) -> Scenes:
    joined = {
        f.name: torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(Scenes)
        if isinstance(getattr(parts[0], f.name), Tensor)
    }
    return replace(parts[0], **joined)


def _uniform(ids: Tensor, n: int, purpose: str) -> Tensor:
    """Uniform numbers (B, n), each scene from a generator of its own."""
    return torch.stack([torch.rand(n, generator=generator(0, i, purpose)) for i in ids.tolist()])


def _grid(surface: Surface) -> tuple[Tensor, Tensor]:
    """How far down and how far right each ray is in the picture, from 0 to 1: two of (N,)."""
    S = math.isqrt(surface.instance.shape[1])
    axis = (torch.arange(S, device=surface.point.device) + 0.5) / S
    return axis.repeat_interleave(S), axis.repeat(S)


def _lines(surface: Surface, width: float, background: bool = True) -> Tensor:
    """Where a draughtsman draws a line (B, N), bool: between two things, at a crease, where a thing hides itself.

    `width` is in image sides. Without `background` the edge between floor and wall is left out."""
    S = math.isqrt(surface.instance.shape[1])
    thing, far, normal = (v.unflatten(1, (S, S)) for v in (surface.instance, surface.distance, surface.normal))
    found = torch.zeros_like(thing, dtype=torch.bool)  # (B, S, S)
    for axis in (1, 2):
        here, there = ([v.narrow(axis, i, S - 1) for v in (thing, far, normal)] for i in (0, 1))  # neighbours
        on_object = here[0] > 0
        crease = ((here[2] * there[2]).sum(-1) < 0.8) & (on_object | background)
        hides = on_object & ((here[1] - there[1]).abs() > 0.25)  # metres
        edge = (here[0] != there[0]) | crease | hides
        for i in (0, 1):
            found.narrow(axis, i, S - 1).logical_or_(edge)
    reach = max(0, round(S * width / 2) - 1)  # a line is two rays wide by itself
    thick = F.max_pool2d(found[:, None].float(), 2 * reach + 1, stride=1, padding=reach)
    return thick.flatten(1) > 0
