"""The world of this course: solids on a textured floor before a wall, rendered by sphere tracing in torch.

Every scene is a function of (split, index) alone: its random numbers come from a generator of its own, drawn on the
CPU, so a scene is the same whatever is rendered beside it, in any number, at any size, on any device (to float
rounding). Images come with their class, colours, caption, per-pixel class mask and metric depth, all exact.

Lengths are in metres. x points right, y up, z away from the camera; the floor is y = 0, the wall z = WALL.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.files import DAMAGE, atomic_write, how_damaged
from ..common.paths import SCENES
from ..common.validate import Count, check_ids, checked
from .labels import CLASSES, COLOURS, MATERIALS, VOCABULARY
from .solids import SHAPES
from .tracing import camera_rays, intersect, photograph, surfaces

VERSION = "1.0"  # part of every record: raise it when any pixel of any scene changes
SHIPPED = SCENES / "test.npz"
# disjoint seeds: to fit, to choose settings, for tables, for one network of its own, to be read without labels
SPLITS = {"train": 0, "select": 1, "test": 2, "filter": 3, "unlabelled": 4}
SPLIT_SIZE = 100_000_000
_SLOTS = 128  # uniform numbers drawn for a scene, more than are used: a new attribute takes a free slot


@dataclass(frozen=True)
class World:
    """Ranges from which scenes are drawn, each (low, high) of a uniform distribution."""

    scale: tuple = (0.75, 1.1)  # size of a lone object, in units of its shape
    scale_many: tuple = (0.5, 0.75)  # the same when there are two or three
    tilt: tuple = (-0.35, 0.35)  # radians, about the horizontal axis
    yaw: tuple = (0.0, 2 * math.pi)
    x: tuple = (-0.45, 0.45)  # position of a lone object on the floor
    z: tuple = (-0.4, 0.4)
    ring: tuple = (0.75, 1.1)  # distance of each of several objects from the middle
    camera_x: tuple = (-0.8, 0.8)
    camera_y: tuple = (1.2, 2.4)
    target_x: tuple = (-0.1, 0.1)
    target_y: tuple = (0.55, 0.85)
    light_x: tuple = (-1.0, 1.0)  # the light's direction before normalisation
    light_y: tuple = (0.9, 1.6)
    light_z: tuple = (-1.2, -0.5)
    texture: tuple = (0.0, 0.1)  # amplitude of the procedural texture
    noise: float = 0.005  # standard deviation of the sensor noise
    solids: dict = field(default_factory=lambda: SHAPES)  # what the objects of each class look like


@dataclass(frozen=True)
class Scenes:
    """B scenes as tensors; O objects each. `render` fills the last four fields."""

    id: Tensor  # (B,) int64: split offset + index
    classes: Tensor  # (B, O) int64, index into CLASSES
    colour: Tensor  # (B, O) int64, index into COLOURS
    material: Tensor  # (B, O) int64, index into MATERIALS
    floor: Tensor  # (B,) int64, index into COLOURS
    wall: Tensor  # (B,) int64, index into COLOURS
    object_rgb: Tensor  # (B, O, 3)
    floor_rgb: Tensor  # (B, 3)
    wall_rgb: Tensor  # (B, 3)
    scale: Tensor  # (B, O)
    rotation: Tensor  # (B, O, 3, 3), object to world
    position: Tensor  # (B, O, 3)
    camera: Tensor  # (B, 3)
    target: Tensor  # (B, 3)
    tan_half_fov: Tensor  # (B,)
    light: Tensor  # (B, 3), unit vector towards the light
    wave: Tensor  # (B, 3, 4), spatial frequencies of the texture, radians a metre
    phase: Tensor  # (B, 4)
    amplitude: Tensor  # (B,)
    noise: float
    solids: dict = field(default_factory=lambda: SHAPES)  # class name -> Shape
    image: Tensor | None = None  # (B, 3, H, W) float32 in [0, 1], whole multiples of 1/255
    mask: Tensor | None = None  # (B, H, W) uint8 at pixel centres: 0 background, k + 1 for class k
    instance: Tensor | None = None  # (B, H, W) uint8: 0 background, o + 1 for object o
    depth: Tensor | None = None  # (B, H, W) float32 metres along the optical axis, at pixel centres

    def __len__(self) -> int:
        return len(self.id)

    @property
    def label(self) -> Tensor:
        """Class of the first object, (B,) int64: the class label of a one-object scene."""
        return self.classes[:, 0]

    @property
    def caption(self) -> list[str]:
        """One sentence per scene, about its first object."""
        rows = zip(self.material[:, 0], self.colour[:, 0], self.label, self.floor, strict=True)
        return [
            VOCABULARY["caption"].format(material=MATERIALS[m], colour=COLOURS[c], name=CLASSES[k], floor=COLOURS[f])
            for m, c, k, f in rows
        ]

    def map(self, fn) -> "Scenes":
        """The same scenes with `fn` applied to every tensor, e.g. `lambda v: v[:4]` or `lambda v: v.to(device)`."""
        changed = {f.name: fn(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **changed)


@checked
def scene_ids(n: int, split: str = "test", start: int = 0) -> Tensor:
    """Ids (n,) int64 of scenes start .. start + n - 1 of a split; ids of different splits never meet.

    Raises ValueError for an unknown split or a range outside of it."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if n < 1 or start < 0 or start + n > SPLIT_SIZE:
        raise ValueError(f"scenes {start} to {start + n - 1} asked for: a split has 0 to {SPLIT_SIZE - 1}")
    return torch.arange(start, start + n) + SPLITS[split] * SPLIT_SIZE


def sample(
    ids: Tensor,
    n_objects: int = 1,
    classes: Tensor | None = None,
    world: World | None = None,
    colours: dict[str, Tensor] | None = None,
) -> Scenes:
    """Draw the scenes with these ids (B,), without rendering them.

    Args:
        n_objects: 1, or 2 or 3 objects of different classes on a ring.
        classes: (B, n_objects) int64 to fix the classes instead of drawing them; all else stays as it is.
        world: ranges to draw from.
        colours: "colour" (B, n_objects), "floor" (B,), "wall" (B,), int64, any of them, to fix these likewise; the
            shade within a colour stays as it is.
    """
    if n_objects not in (1, 2, 3):
        raise ValueError(f"n_objects={n_objects}: scenes hold 1, 2 or 3 objects")
    check_ids(ids, len(ids))
    if not len(ids):
        raise ValueError("no scene is asked for: give one id or more")
    world = world or World()
    generator = torch.Generator()
    u = torch.stack([torch.rand(_SLOTS, generator=generator.manual_seed(int(i))) for i in ids])  # (B, slots)
    B, O = len(u), n_objects

    def between(slots: Tensor, bounds: tuple) -> Tensor:
        return slots * (bounds[1] - bounds[0]) + bounds[0]

    per = u[:, :48].view(B, 3, 16)[:, :O]  # 16 slots for each of three possible objects
    one = u[:, 48:]  # slots of the whole scene
    if classes is None:
        classes = one[:, 40:50].argsort(1)[:, :O]  # different classes within a scene
    rgb = torch.tensor(list(VOCABULARY["colours"].values()))
    drawn = {"colour": per[..., 0], "floor": one[:, 0], "wall": one[:, 1]}
    colour, floor, wall = ({n: (v * len(COLOURS)).long() for n, v in drawn.items()} | (colours or {})).values()
    material = (per[..., 1] * 2).long()
    scale = between(per[..., 5], world.scale if O == 1 else world.scale_many)
    rotation = _rotation(between(per[..., 6], world.yaw), between(per[..., 7], world.tilt))  # (B, O, 3, 3)
    if O == 1:
        x, z = between(per[..., 8], world.x), between(per[..., 9], world.z)
    else:
        step = torch.arange(O) * 2 * math.pi / O + 0.4 * (2 * per[..., 10] - 1)
        angle, radius = step + 2 * math.pi * one[:, 2:3], between(per[..., 11], world.ring)
        x, z = radius * angle.cos(), radius * angle.sin()
    light = torch.stack(
        [between(one[:, 3 + i], b) for i, b in enumerate((world.light_x, world.light_y, world.light_z))], -1
    )
    camera = torch.stack(
        [between(one[:, 6], world.camera_x), between(one[:, 7], world.camera_y), torch.full((B,), -4.2)], -1
    )
    target = torch.stack([between(one[:, 8], world.target_x), between(one[:, 9], world.target_y), torch.zeros(B)], -1)
    return Scenes(
        id=ids,
        classes=classes,
        colour=colour,
        material=material,
        floor=floor,
        wall=wall,
        object_rgb=(rgb[colour] + between(per[..., 2:5], (-0.08, 0.08))).clamp(0, 1),
        floor_rgb=(rgb[floor] * 0.8 + 0.05 + between(one[:, 10:13], (-0.1, 0.1))).clamp(0, 1),
        wall_rgb=(rgb[wall] * 0.6 + 0.3 + between(one[:, 13:16], (-0.1, 0.1))).clamp(0, 1),
        scale=scale,
        rotation=rotation,
        position=torch.stack([x, _standing_height(classes, rotation, scale, world.solids), z], -1),
        camera=camera,
        target=target,
        tan_half_fov=torch.full((B,), 0.29 if O == 1 else 0.42),
        light=F.normalize(light, dim=-1),
        wave=between(one[:, 16:28], (-5, 5)).view(B, 3, 4),
        phase=between(one[:, 28:32], (0, 2 * math.pi)),
        amplitude=between(one[:, 32], world.texture),
        noise=world.noise,
        solids=world.solids,
    )


@torch.no_grad()
def render(
    scenes: Scenes,
    size: int = 64,
    supersample: int = 2,
    device: str = "cpu",
    dense: bool = True,
    look: Callable = photograph,
) -> Scenes:
    """Render `scenes` at size x size pixels; returns them, on the CPU, with `image` and (if `dense`) the maps filled.

    Each pixel of the image is the mean of supersample^2 rays; mask and depth come from one ray through its centre.
    `look` paints: (scenes, `tracing.Surface`) -> colours (B, N, 3) in [0, 1].
    """
    world = scenes.map(lambda v: v.to(device))
    origin, direction, _ = camera_rays(world, size * supersample)
    colour = look(world, surfaces(world, origin, direction))  # (B, S*S, 3)
    side = size * supersample
    image = F.avg_pool2d(colour.transpose(1, 2).reshape(-1, 3, side, side), supersample).cpu()
    image = image + scenes.noise * _sensor_noise(scenes.id, size)
    scenes = replace(scenes, image=((image.clamp(0, 1) * 255).round() / 255))
    if not dense:
        return scenes
    origin, direction, axis = camera_rays(world, size)
    t, instance, _ = intersect(world, origin, direction)
    label = torch.cat([torch.full_like(world.classes[:, :1], -1), world.classes], 1).gather(1, instance) + 1
    maps = {"mask": label.byte(), "instance": instance.byte(), "depth": t * (direction * axis[:, None]).sum(-1)}
    return replace(scenes, **{k: v.view(-1, size, size).cpu() for k, v in maps.items()})


@checked
def make(
    n: int, split: str = "test", start: int = 0, size: Count = 64, n_objects: int = 1, dense: bool = True
) -> Scenes:
    """The n scenes start .. start + n - 1 of a split, rendered: `sample` and `render` in one call."""
    return render(sample(scene_ids(n, split, start), n_objects), size=size, dense=dense)


def batches(n: int, split: str, start: int = 0, size: int = 64, chunk: int = 50, **kwargs) -> Iterator[Scenes]:
    """`make` in chunks, for more scenes than fit in memory at once."""
    for first in range(start, start + n, chunk):
        yield make(min(chunk, start + n - first), split, first, size, **kwargs)


def ship(n: int = 120, start: int = 90_000) -> None:
    """Write the n test scenes that travel with the repository, rendered at 64 px, to data/scenes/test.npz."""
    world = make(n, "test", start)
    arrays = {
        "id": world.id.numpy(),
        "image": (world.image * 255).round().byte().numpy(),
        "mask": world.mask.numpy(),
        "instance": world.instance.numpy(),
        "depth": world.depth.half().numpy(),
    }
    atomic_write(SHIPPED, lambda path: np.savez_compressed(path, **arrays))


def shipped() -> Scenes:
    """The test scenes that travel with the repository, at once and without rendering: (120, 3, 64, 64) and maps.

    Raises FileNotFoundError or ValueError for a missing or damaged file."""
    fix = "run `git checkout -- data/scenes`"
    try:
        with open(SHIPPED, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            maps = {name: torch.from_numpy(file[name]) for name in ("image", "mask", "instance", "depth")}
            world = sample(torch.from_numpy(file["id"]))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {SHIPPED}: {fix}") from None
    except DAMAGE as error:
        raise ValueError(f"{SHIPPED} is damaged ({how_damaged(SHIPPED, error)}): {fix}") from error
    return replace(world, **{**maps, "image": maps["image"].float() / 255, "depth": maps["depth"].float()})


def _rotation(yaw: Tensor, tilt: Tensor) -> Tensor:
    """Tilt about x, then yaw about y: (..., 3, 3)."""
    c, s, ct, st = yaw.cos(), yaw.sin(), tilt.cos(), tilt.sin()
    o = torch.zeros_like(c)
    return torch.stack([c, s * st, s * ct, o, ct, -st, -s, c * st, c * ct], -1).unflatten(-1, (3, 3))


def _standing_height(classes: Tensor, rotation: Tensor, scale: Tensor, solids: dict) -> Tensor:
    """Height of the centre at which the lowest point of each object is on the floor, (B, O)."""
    down = -rotation[..., 1, :]  # world's -y in object coordinates, (B, O, 3)
    height = torch.empty_like(scale)
    for k, name in enumerate(CLASSES):
        height[classes == k] = solids[name].support(down[classes == k])
    return height * scale


def _sensor_noise(ids: Tensor, size: int) -> Tensor:
    """Standard normal noise (B, 3, size, size), each image from its own generator."""
    generator = torch.Generator()
    return torch.stack(
        [torch.randn(3, size, size, generator=generator.manual_seed(int(i) + 1_000_000_000)) for i in ids]
    )
