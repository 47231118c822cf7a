"""Sphere tracing of the scenes, batched in torch: camera rays, first hits, soft shadows, colours.

Rays are traced in the coordinates of each object, only where they meet its bounding sphere, and grouped by class, so
that each distance field is evaluated once for all scenes that show it. `scenes` is a `scenes.Scenes` throughout.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import CLASSES

WALL = 3.5  # the plane z = WALL, metres


@dataclass(frozen=True)
class Surface:
    """What N camera rays of each of B scenes meet: all that a picture of it can be painted from."""

    point: Tensor  # (B, N, 3) metres
    distance: Tensor  # (B, N) metres along the ray
    normal: Tensor  # (B, N, 3), unit
    instance: Tensor  # (B, N) int64: 0 background, o + 1 for object o
    colour: Tensor  # (B, N, 3) in [0, 1], without texture or light
    diffuse: Tensor  # (B, N) in [0, 1]: Lambert with soft shadows
    highlight: Tensor  # (B, N) in [0, .6]: Blinn on shiny objects

    @property
    def on_floor(self) -> Tensor:
        """(B, N) bool."""
        return (self.normal[..., 1] == 1) & (self.instance == 0)


def camera_rays(scenes, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rays through the pixel centres of a side x side image.

    Returns origin (B, 1, 3), unit directions (B, side*side, 3) in row order, and the optical axis (B, 3)."""
    axis = F.normalize(scenes.target - scenes.camera, dim=-1)
    up = torch.tensor([[0.0, 1.0, 0.0]], device=axis.device).expand_as(axis)
    right = F.normalize(torch.cross(up, axis, dim=-1), dim=-1)
    up = torch.cross(axis, right, dim=-1)
    grid = (torch.arange(side, device=axis.device) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(-grid, grid, indexing="ij")
    plane = x.reshape(-1, 1) * right[:, None] + y.reshape(-1, 1) * up[:, None]  # (B, side*side, 3)
    direction = F.normalize(axis[:, None] + scenes.tan_half_fov[:, None, None] * plane, dim=-1)
    return scenes.camera[:, None], direction, axis


def _to_object(scenes, o: int, rows: Tensor, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Rays of scenes `rows` in the coordinates of their object `o`: there one unit is `scale` metres."""
    R, scale = scenes.rotation[rows, o], scenes.scale[rows, o, None, None]
    return (point - scenes.position[rows, o, None]) @ R / scale, direction @ R


def _groups(scenes) -> Iterator[tuple[int, int, Tensor]]:
    """(object, class, rows of the scenes whose object is of that class): each group shares one distance field."""
    for o in range(scenes.classes.shape[1]):
        for k in range(len(CLASSES)):
            rows = (scenes.classes[:, o] == k).nonzero()[:, 0]
            if len(rows):
                yield o, k, rows


def _trace(sdf, origin: Tensor, direction: Tensor, near: Tensor, far: Tensor, steps: int = 48) -> Tensor:
    """Sphere tracing of rays (M, 3) between near and far (M,): distance to the surface, inf where it is missed."""
    out, t = torch.full_like(near, math.inf), near.clone()
    todo = torch.arange(len(near), device=near.device)
    for step in range(steps):
        distance = sdf(origin[todo] + t[todo, None] * direction[todo])
        t[todo] += distance
        if step % 4 == 3 or step == steps - 1:  # drop the rays that have arrived or left
            hit = distance < (1e-4 if step < steps - 1 else 1e-2)
            out[todo[hit]] = t[todo[hit]]
            todo = todo[~hit & (t[todo] < far[todo])]
            if not len(todo):
                break
    return out


def intersect(scenes, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First hit of camera rays (B, N, 3): distance (B, N), object (B, N; 0 background, o + 1) and normal (B, N, 3)."""
    down, ahead = direction[..., 1], direction[..., 2]
    t_floor = torch.where(down < -1e-3, -origin[..., 1] / down.clamp_max(-1e-3), math.inf)
    t_wall = (WALL - origin[..., 2]) / ahead.clamp_min(1e-3)
    t = torch.minimum(t_floor, t_wall)
    instance = torch.zeros_like(t, dtype=torch.long)
    normal = torch.zeros_like(direction)
    normal[..., 1], normal[..., 2] = (t_floor < t_wall).float(), -(t_floor >= t_wall).float()
    for o, k, rows in _groups(scenes):
        shape = scenes.solids[CLASSES[k]]
        p, d = _to_object(scenes, o, rows, origin[rows], direction[rows])
        p = p.expand_as(d)
        middle = -(p * d).sum(-1)
        chord = middle**2 - (p * p).sum(-1) + shape.radius**2
        scene, ray = (chord > 0).nonzero(as_tuple=True)  # only rays that meet the bounding sphere
        p, d, half, middle = p[scene, ray], d[scene, ray], chord[scene, ray].sqrt(), middle[scene, ray]
        t_object = _trace(shape.sdf, p, d, middle - half, middle + half)
        scene_id, scale = rows[scene], scenes.scale[rows[scene], o]
        hit = t_object * scale < t[scene_id, ray]
        p, d, t_object, scale = p[hit], d[hit], t_object[hit], scale[hit]
        at = (scene_id[hit], ray[hit])
        t[at], instance[at] = t_object * scale, o + 1
        local = _gradient(shape.sdf, p + t_object[:, None] * d)
        normal[at] = (scenes.rotation[at[0], o] @ local[..., None])[..., 0]
    return t, instance, normal


def _gradient(sdf, p: Tensor, h: float = 0.005) -> Tensor:
    """Unit gradient of a distance field at p (M, 3) by central differences."""
    steps = torch.eye(3, device=p.device) * h
    return F.normalize(torch.stack([sdf(p + e) - sdf(p - e) for e in steps], -1), dim=-1)


def _shadow(scenes, point: Tensor) -> Tensor:
    """Light that reaches the points (B, N, 3), in [0, 1]: soft shadow, min of 8 h / t along the way to the light."""
    lit = torch.ones(point.shape[:2], device=point.device)
    for o, k, rows in _groups(scenes):
        shape, light = scenes.solids[CLASSES[k]], scenes.light[rows, None].expand(-1, point.shape[1], -1)
        p, d = _to_object(scenes, o, rows, point[rows], light)
        scale = scenes.scale[rows, o, None]
        nearest = (-(p * d).sum(-1)).clamp_min(0)  # where the ray passes closest to the object's centre
        gap = (p + nearest[..., None] * d).norm(dim=-1) - shape.radius
        scene, ray = (gap * 8 < nearest + shape.radius).nonzero(as_tuple=True)  # elsewhere 8 h / t stays above 1
        p, d, scale = p[scene, ray], d[scene, ray], scale[scene, 0]
        end = nearest[scene, ray] + shape.radius
        t, dark = 0.08 / scale, torch.ones_like(scale)
        for _ in range(12):
            h = shape.sdf(p + t[:, None] * d)
            dark = torch.minimum(dark, torch.where(t < end, (8 * h / t).clamp(0, 1), 1.0))
            t = t + torch.minimum(torch.maximum(h, 0.05 / scale), 0.6 / scale)
        at = (rows[scene], ray)
        lit[at] = torch.minimum(lit[at], dark)
    return lit


def surfaces(scenes, origin: Tensor, direction: Tensor) -> Surface:
    """What the camera rays (B, N, 3) meet, and how it is lit."""
    t, instance, normal = intersect(scenes, origin, direction)
    point = origin + t[..., None] * direction
    lit = _shadow(scenes, point + 0.02 * normal)
    light = scenes.light[:, None]
    diffuse = (normal * light).sum(-1).clamp_min(0) * lit
    half = F.normalize(light - direction, dim=-1)
    shiny = torch.cat([torch.zeros_like(scenes.material[:, :1]), scenes.material], 1).gather(1, instance)
    highlight = 0.6 * (normal * half).sum(-1).clamp_min(0) ** 40 * lit * shiny
    palette = torch.cat([torch.zeros_like(scenes.object_rgb[:, :1]), scenes.object_rgb], 1)
    colour = palette.gather(1, instance[..., None].expand(-1, -1, 3))
    surface = Surface(point, t, normal, instance, colour, diffuse, highlight)
    background = torch.where(surface.on_floor[..., None], scenes.floor_rgb[:, None], scenes.wall_rgb[:, None])
    return replace(surface, colour=torch.where((instance > 0)[..., None], colour, background))


def photograph(scenes, surface: Surface) -> Tensor:
    """Colours (B, N, 3) in [0, 1]: procedural texture, ambient light, Lambert and Blinn."""
    w = (surface.point @ scenes.wave + scenes.phase[:, None]).sin()  # (B, N, 4)
    texture = w[..., 0] * w[..., 1] + 0.6 * w[..., 2] * w[..., 3]
    base = surface.colour * (1 + scenes.amplitude[:, None] * texture)[..., None]
    return (base * (0.38 + 0.72 * surface.diffuse[..., None]) + surface.highlight[..., None]).clamp(0, 1)
