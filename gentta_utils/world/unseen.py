"""Ten corruptions in the manner of ImageNet-C-bar (Mintun, Kirillov and Xie, NeurIPS 2021): unlike the nineteen.

Written from the names and the idea of that benchmark, so these are not its images. No setting was chosen on them
and no network was trained on them (`tests/world/test_unseen.py` looks): they tell what choices are worth elsewhere.
Each takes an image x (S, S, 3) in [0, 1], one constant c and a generator. Lengths are shares of the side, so that one
constant serves any size. The constants are set at 64 px: at severity 1 and 5 they cost the shipped ResNet what the
fifteen cost it on average, with even steps between (`bench/unseen.py`). The caller clips to [0, 1].

Card: docs/methods/shifts.md
"""

import numpy as np
from scipy import ndimage

from ..common.types import Number
from .fields import Array, Rng, coloured, gradient_noise, plasma, standard

CELL = 1 / 4  # of the board, as a share of the side
RIPPLE = 1 / 8  # of the water's surface: the blur of its height
DARKEST = 0.4  # least area, of what it was, that a patch of light shrinks to
STARS = 8


def _places(side: int) -> tuple[Array, Array]:
    """Centres of the pixels, y (S, 1) and x (1, S), as shares of the side."""
    at = (np.arange(side) + 0.5) / side
    return at[:, None], at[None]


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def blue_noise(x: Array, c: Number, rng: Rng) -> Array:
    """x + c n: noise of each channel whose amplitudes grow as the frequency."""
    return x + c * np.stack([coloured(len(x), 1, rng) for _ in range(3)], -1)


def brown_noise(x: Array, c: Number, rng: Rng) -> Array:
    """x + c n: noise of each channel whose amplitudes fall as 1 / frequency."""
    return x + c * np.stack([coloured(len(x), -1, rng) for _ in range(3)], -1)


def caustic_refraction(x: Array, c: Number, rng: Rng) -> Array:
    """x(p + c S g) / max(det, .4): seen through rippled water, g = grad h of a smooth surface h at unit rms.

    Rays that leave p meet the ground at p + c S g; det = |d(p + c S g) / dp| is the area over which their light is
    spread, so it is bright where rays gather."""
    side = len(x)
    h = ndimage.gaussian_filter(rng.normal(size=(side, side)), RIPPLE * side, mode="wrap")
    g = np.stack(np.gradient(h))  # (2, S, S)
    moved = c * side * g / np.sqrt((g**2).sum(0).mean())
    (yy, yx), (xy, xx) = (np.gradient(m) for m in moved)
    det = np.abs((1 + yy) * (1 + xx) - yx * xy)
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")) + moved
    seen = np.stack([ndimage.map_coordinates(x[..., i], at, order=1, mode="mirror") for i in range(3)], -1)
    return seen / np.maximum(det, DARKEST)[..., None]


def checkerboard_cutout(x: Array, c: Number, rng: Rng) -> Array:
    """x (1 - m) + m mean(x): in every second cell of a board at a random place a square of the share c of the cell.

    It has the mean colour of the image. Pixels on an edge are covered in part."""
    side = len(x)
    half = c**0.5 * CELL * side / 2  # of a square, in pixels
    offset = rng.uniform(0, 2, 2)

    def stripes(shift: Number) -> tuple[Array, Array]:
        """Number of the cell, and what share of a pixel lies within `half` of its middle, (S,) each."""
        at = (np.arange(side) + 0.5) / (CELL * side) + shift
        middle = np.abs(at - np.floor(at) - 0.5) * CELL * side
        return np.floor(at).astype(int), np.clip(half - middle + 0.5, 0, 1) * min(1.0, 2 * half)

    (rows, high), (columns, wide) = map(stripes, offset)
    m = ((rows[:, None] + columns) % 2 == 0) * high[:, None] * wide
    return x * (1 - m[..., None]) + m[..., None] * x.mean((0, 1))


def concentric_sine_waves(x: Array, c: Number, rng: Rng) -> Array:
    """x + c sin(2 pi f r + phase): r from a random point in the image, f from 5 to 15 waves per side."""
    y, x_ = _places(len(x))
    centre, f, phase = rng.uniform(0, 1, 2), rng.uniform(5, 15), rng.uniform(0, 2 * np.pi)
    r = np.hypot(y - centre[0], x_ - centre[1])
    return x + c * np.sin(2 * np.pi * f * r + phase)[..., None]


def _sparks(side: int, c: Number, rng: Rng) -> Array:
    """Light (S, S, 1) in [0, 1] of `STARS` stars with 4 to 8 rays: exp(-r / reach), reach c along a ray, c / 5 between.

    c is a share of the side."""
    y, x = _places(side)
    light = np.zeros((side, side))
    for _ in range(STARS):
        at, rays, turn = rng.uniform(0, 1, 2), rng.integers(4, 9), rng.uniform(0, 2 * np.pi)
        dy, dx = y - at[0], x - at[1]
        along = np.cos(rays * (np.arctan2(dy, dx) - turn) / 2) ** 8
        light += np.exp(-np.hypot(dy, dx) / (c * (0.2 + 0.8 * along)))
    return np.minimum(light, 1)[..., None]


def inverse_sparkles(x: Array, c: Number, rng: Rng) -> Array:
    """x (1 - s): stars with rays of length c, in black."""
    return x * (1 - _sparks(len(x), c, rng))


def perlin_noise(x: Array, c: Number, rng: Rng) -> Array:
    """x + c n: grey gradient noise in three octaves, from 4 cells per side."""
    return x + c * gradient_noise(len(x), 4, 3, rng)[..., None]


def plasma_noise(x: Array, c: Number, rng: Rng) -> Array:
    """x + c n: a diamond-square map of each channel, of unit spread, bright and dark alike."""
    side = len(x)
    maps = [plasma(_power_of_two(side), 1.6, rng)[:side, :side] for _ in range(3)]
    return x + c * np.stack(list(map(standard, maps)), -1)


def single_frequency_greyscale(x: Array, c: Number, rng: Rng) -> Array:
    """x + c sin(2 pi f (y sin a + x cos a) + phase): one plane wave, f from 4 to 16 waves per side."""
    y, x_ = _places(len(x))
    f, a, phase = rng.uniform(4, 16), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    return x + c * np.sin(2 * np.pi * f * (y * np.sin(a) + x_ * np.cos(a)) + phase)[..., None]


def sparkles(x: Array, c: Number, rng: Rng) -> Array:
    """x + s: stars with rays of length c, in white."""
    return x + _sparks(len(x), c, rng)
