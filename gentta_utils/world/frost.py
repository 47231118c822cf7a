"""Pictures of ice on glass for the corruption "frost": drawn, not photographed.

The benchmark blends in crops of six photographs that cannot be shipped. Six pictures are drawn in their place, each of
grains with needles, six-armed ferns and cracked cells at several scales; then the share of every scale is set, so that
crops have the statistics of the published ones (`python bench/frost.py` prints both): fine crystals of low contrast,
whose brightness differs from crop to crop. They are a stand-in and not the benchmark.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from ..common.types import Number

Array = np.ndarray
Rng = np.random.Generator
SIDE = 512  # pixels of a picture
SCALE = {32: 0.2, 64: 0.3}  # a picture is made smaller by that for images of this side, as the benchmark does


@dataclass(frozen=True)
class Look:
    """What one picture shows: brightness, and how much there is of needles, ferns and cells."""

    mean: Number
    needles: Number
    ferns: Number
    cells: Number
    grain: Number  # pixels of a grain of needles
    fern: Number  # pixels of a fern


LOOKS = (
    Look(0.44, 1.0, 0.3, 0.3, 90, 260),
    Look(0.52, 0.3, 1.0, 0.2, 60, 220),
    Look(0.61, 0.6, 0.3, 1.0, 70, 180),
    Look(0.70, 0.5, 1.0, 0.4, 50, 150),
    Look(0.78, 1.0, 0.6, 0.2, 130, 300),
    Look(0.85, 0.5, 0.5, 0.8, 60, 200),
)

# standard deviation of what lies between neighbouring blurs of 0, 1, 2, 4 ... pixels: these set the statistics of crops
BANDS = (0.05, 0.003, 0.004, 0.031, 0.016, 0.021)


def _smooth(rng: Rng, sigma: Number) -> Array:
    """Noise (SIDE, SIDE) of unit spread without anything finer than some `sigma` pixels; edges wrap."""
    step = max(1, int(sigma // 2))
    coarse = ndimage.gaussian_filter(rng.normal(size=(SIDE // step + 2,) * 2), sigma / step, mode="wrap")
    field = ndimage.zoom(coarse, step, order=1)[:SIDE, :SIDE] if step > 1 else coarse[:SIDE, :SIDE]
    return _spread(field)


def _cells(rng: Rng, size: Number, y: Array, x: Array) -> tuple[Array, Array, Array, Array]:
    """Cells of some `size` pixels: which one, (dy, dx) from its seed, and how much farther the next seed is."""
    n = int(SIDE / size) + 4
    lattice = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    seeds = (lattice - 1.5 + rng.uniform(0, 1, lattice.shape)) * size
    distance, which = cKDTree(seeds).query(np.stack([y, x], -1).reshape(-1, 2), k=2)
    nearest = which[:, 0].reshape(y.shape)
    border = (distance[:, 1] - distance[:, 0]).reshape(y.shape)
    return nearest, y - seeds[nearest, 0], x - seeds[nearest, 1], border


def _needles(rng: Rng, size: Number, width: Number, y: Array, x: Array) -> Array:
    """Grains of parallel needles, each grain in its own direction: noise stretched along it."""
    which, dy, dx, _ = _cells(rng, size, y, x)
    turn = rng.uniform(0, np.pi, which.max() + 1)[which]
    shift = rng.uniform(0, 256, which.max() + 1)[which]
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    table = rng.normal(size=(256, 256))
    at = np.stack([along / (14 * width) + shift, across / width + 3 * shift])
    noise = ndimage.map_coordinates(table, at, order=1, mode="grid-wrap")
    return np.maximum(noise - 0.4, 0)


def _ferns(rng: Rng, size: Number, width: Number, y: Array, x: Array) -> Array:
    """Six-armed ferns: from every arm barbs at 60 degrees, from every barb finer ones along the arm."""
    which, dy, dx, border = _cells(rng, size, y, x)
    turn = rng.uniform(0, np.pi / 3, which.max() + 1)[which]
    shift = rng.uniform(0, 4096, which.max() + 1)[which]
    radius = np.hypot(dy, dx)
    angle = (np.arctan2(dy, dx) + turn) % (np.pi / 3) - np.pi / 6
    arm, off = radius * np.cos(angle), radius * np.abs(np.sin(angle))
    table = rng.normal(size=4096)

    def ridges(place: Array, w: Number) -> Array:
        return np.exp(-3 * np.abs(ndimage.map_coordinates(table, (place / w + shift)[None], order=1, mode="grid-wrap")))

    barbs = ridges(arm - off / np.sqrt(3), width)
    fine = ridges(off, 0.6 * width)
    return np.exp(-off / width) + barbs + 0.6 * fine * (0.3 + barbs) + 0.7 * np.exp(-border / width)


def _cracks(rng: Rng, size: Number, y: Array, x: Array) -> Array:
    """Cells with bright borders, each of its own brightness."""
    which, _, _, border = _cells(rng, size, y, x)
    return rng.normal(0, 0.35, which.max() + 1)[which] + np.exp(-border / (0.12 * size))


def _spread(field: Array) -> Array:
    return (field - field.mean()) / field.std()


def _bands(field: Array) -> list[Array]:
    """What lies between neighbouring blurs of 0, 1, 2, 4 ... pixels, as many as `BANDS`."""
    blurs = [field] + [ndimage.gaussian_filter(field, 2.0**i, truncate=3) for i in range(len(BANDS))]
    return [fine - coarse for fine, coarse in pairwise(blurs)]


@lru_cache
def picture(number: int) -> Array:
    """Picture `number` of `LOOKS`, (SIDE, SIDE) float32: grey, in [0, 1]."""
    look, rng = LOOKS[number], np.random.default_rng([17, number])
    y, x = np.meshgrid(np.arange(SIDE, dtype=float), np.arange(SIDE, dtype=float), indexing="ij")
    y, x = (c + 4 * _smooth(rng, 40) + 0.6 * _smooth(rng, 5) for c in (y, x))  # nothing in ice is quite straight
    needles = np.max([_needles(rng, size * look.grain, w, y, x) for size, w in ((1, 1.8), (1, 1.8), (2, 4))], 0)
    ferns = _ferns(rng, look.fern, 6, y, x) + 0.5 * _ferns(rng, look.fern / 3, 3, y, x)
    cells = sum(_cracks(rng, size, y, x) for size in (6, 20, 64))
    drawn = look.needles * _spread(needles) + look.ferns * _spread(ferns) + look.cells * _spread(cells)
    ice = sum(share * _spread(band) for share, band in zip(BANDS, _bands(drawn), strict=True))
    return np.clip(ice + look.mean + 0.05 * _smooth(rng, 150), 0, 1).astype(np.float32)


@lru_cache
def _scaled(number: int, side: int) -> Array:
    """The picture as images of this side meet it: each pixel the mean of the area that it covers."""
    small = (round(SIDE * SCALE.get(side, 1)),) * 2
    return np.asarray(Image.fromarray(picture(number)).resize(small, Image.Resampling.BOX))


def texture(side: int, rng: Rng) -> Array:
    """A random crop of a random picture, (side, side, 3) in [0, 1], slightly blue."""
    ice = _scaled(int(rng.integers(len(LOOKS))), side)
    top, left = rng.integers(0, len(ice) - side, 2, endpoint=True)
    grey = ice[top : top + side, left : left + side, None].astype(float)
    return np.clip(grey * np.array([0.97, 1.0, 1.03]), 0, 1)


def statistics(side: int, crops: int = 100) -> tuple[float, float, float, float, float]:
    """Of so many crops in grey: mean, spread within a crop, mean absolute difference of horizontal neighbours, share of
    the power above 1/8 cycle per pixel, spread of the crops' means."""
    grey = np.stack([texture(side, np.random.default_rng(i)).mean(-1) for i in range(crops)])
    means = grey.mean((1, 2))
    frequency = np.fft.fftfreq(side)
    fine = np.hypot(frequency[:, None], frequency) > 1 / 8
    power = np.abs(np.fft.fft2(grey - means[:, None, None])) ** 2
    share = (power[:, fine].sum(1) / power.sum((1, 2))).mean()
    return means.mean(), grey.std((1, 2)).mean(), np.abs(np.diff(grey, axis=2)).mean(), share, means.std()
