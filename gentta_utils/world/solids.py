"""The ten solids of the scenes world: signed distances, support functions, bounding spheres.

Every solid is about one unit in size and centred on its own origin. `sdf` never overestimates the distance to the
surface (so sphere tracing cannot step through it), `support` is exact (so an object stands exactly on the floor).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One solid: `sdf` maps points (..., 3) to signed distances (...); `support` maps unit directions n (..., 3) to
    max over the solid of <point, n>; `radius` is that of the smallest sphere around the origin which holds it."""

    sdf: Callable[[Tensor], Tensor]
    support: Callable[[Tensor], Tensor]
    radius: float


def _length(*xs: Tensor) -> Tensor:
    return torch.sqrt(sum(x * x for x in xs) + 1e-12)  # the constant keeps the gradient finite on an axis


def _box(p: Tensor, half: tuple, centre: tuple = (0.0, 0.0, 0.0)) -> Tensor:
    x, y, z = ((p[..., i] - centre[i]).abs() - half[i] for i in range(3))
    outside = _length(x.clamp_min(0), y.clamp_min(0), z.clamp_min(0))
    return outside + torch.maximum(x, torch.maximum(y, z)).clamp_max(0)


def _box_support(n: Tensor, half: tuple, centre: tuple = (0.0, 0.0, 0.0)) -> Tensor:
    return sum(n[..., i].abs() * half[i] + n[..., i] * centre[i] for i in range(3))


def _union(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).amin(0)


def _farthest(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).amax(0)


def _boxes(boxes: list[tuple]) -> tuple[Callable, Callable]:
    """A union of axis-aligned boxes, each (half sizes, centre)."""
    return (lambda p: _union([_box(p, *b) for b in boxes]), lambda n: _farthest([_box_support(n, *b) for b in boxes]))


def _cylinder(p: Tensor, radius=0.55, half=0.75) -> Tensor:
    side, cap = _length(p[..., 0], p[..., 2]) - radius, p[..., 1].abs() - half
    return _length(side.clamp_min(0), cap.clamp_min(0)) + torch.maximum(side, cap).clamp_max(0)


def _cone(p: Tensor, radius=0.8, half=0.8) -> Tensor:
    """Apex at y = half, base at y = -half; the larger of the distances to the mantle and to the base plane."""
    slant = math.hypot(2 * half, radius)
    mantle = ((_length(p[..., 0], p[..., 2]) - radius) * 2 * half + (p[..., 1] + half) * radius) / slant
    return torch.maximum(mantle, -half - p[..., 1])


def _torus(p: Tensor, ring=0.6, tube=0.25) -> Tensor:
    return _length(_length(p[..., 0], p[..., 2]) - ring, p[..., 1]) - tube


def _dumbbell(p: Tensor, ball=0.4, reach=0.5, bar=0.15) -> Tensor:
    x, radial = p[..., 0].abs(), _length(p[..., 1], p[..., 2])
    return torch.minimum(_length(x - reach, radial) - ball, torch.maximum(radial - bar, x - reach))


def _arch(p: Tensor, half=(0.8, 0.7, 0.3), hole=0.45) -> Tensor:
    return torch.maximum(_box(p, half), hole - _length(p[..., 0], p[..., 1] + half[1]))


_CROSS = _boxes([((0.85, 0.28, 0.28),), ((0.28, 0.85, 0.28),), ((0.28, 0.28, 0.85),)])
_STAIRS = _boxes(
    [
        ((0.26, 0.25, 0.5), (-0.5, -0.45, 0.0)),
        ((0.26, 0.5, 0.5), (0.0, -0.2, 0.0)),
        ((0.26, 0.75, 0.5), (0.5, 0.05, 0.0)),
    ]
)
SHAPES = {
    "sphere": Shape(lambda p: p.norm(dim=-1) - 0.8, lambda n: 0.8 * n.norm(dim=-1), 0.8),
    "cube": Shape(lambda p: _box(p, (0.65,) * 3), lambda n: _box_support(n, (0.65,) * 3), 1.126),
    "cylinder": Shape(_cylinder, lambda n: 0.55 * _length(n[..., 0], n[..., 2]) + 0.75 * n[..., 1].abs(), 0.931),
    "cone": Shape(
        _cone, lambda n: _farthest([0.8 * n[..., 1], 0.8 * _length(n[..., 0], n[..., 2]) - 0.8 * n[..., 1]]), 1.132
    ),
    "torus": Shape(_torus, lambda n: 0.6 * _length(n[..., 0], n[..., 2]) + 0.25, 0.85),
    "octahedron": Shape(lambda p: (p.abs().sum(-1) - 1.05) / math.sqrt(3), lambda n: 1.05 * n.abs().amax(-1), 1.05),
    "cross": Shape(*_CROSS, 0.939),
    "dumbbell": Shape(_dumbbell, lambda n: 0.5 * n[..., 0].abs() + 0.4, 0.9),
    "arch": Shape(_arch, lambda n: _box_support(n, (0.8, 0.7, 0.3)), 1.105),
    "stairs": Shape(*_STAIRS, 1.215),
}

EDGE = 0.2  # of a voxel, in units of the shape


def voxels(shape: Shape) -> Shape:
    """The solid built of cubes whose edges are EDGE long: all those whose centres, multiples of EDGE, lie in it."""
    reach = math.ceil(shape.radius / EDGE) + 2  # empty layers all around, so that no look-up falls outside
    axis = torch.arange(-reach, reach + 1) * EDGE
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)  # (G, G, G, 3)
    filled = shape.sdf(cells) <= 0  # (G, G, G)
    centres = cells[filled]  # (V, 3)

    def sdf(p: Tensor) -> Tensor:
        low, near, table = (p / EDGE).floor(), torch.full_like(p[..., 0], EDGE / 2), filled.to(p.device)
        for corner in product((0, 1), repeat=3):  # all other cells are at least half an edge away
            cell = low + p.new_tensor(corner)
            i, j, k = (cell.long() + reach).clamp(0, 2 * reach).unbind(-1)
            near = torch.where(table[i, j, k], torch.minimum(near, _box(p - cell * EDGE, (EDGE / 2,) * 3)), near)
        # no cube reaches farther out of the solid than half its diagonal: far away this allows long steps
        return torch.maximum(near, shape.sdf(p) - EDGE * math.sqrt(3) / 2)

    def support(n: Tensor) -> Tensor:
        return (n @ centres.T.to(n)).amax(-1) + EDGE / 2 * n.abs().sum(-1)

    return Shape(sdf, support, float((centres.abs() + EDGE / 2).norm(dim=-1).max()))


VOXELS = {name: voxels(shape) for name, shape in SHAPES.items()}
