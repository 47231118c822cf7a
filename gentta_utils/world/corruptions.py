"""The 15 + 4 corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019) for images of 32 and 64 px, and
of 224 to 512; ten others stand in `unseen`.

Written from scratch from the published description and constants, in numpy, scipy, scikit-image and Pillow alone. Every
image has its own generator, so its result does not depend on its neighbours. Differences from the public code: glass
blur truly exchanges pixels (`swap=False` gives the benchmark's copy), frost blends in drawn pictures in the place
of six photographs, motion blur is a shift-and-add with repeated edges, values are rounded to 1/255 where the public
code cuts them off. Motion blur runs the other way along its angle than the public code's, and elastic exchanges rows
and columns of the displacements: both have the same distribution up to a reflection (left and right, or rows and
columns).
Severities are not comparable between image sizes.
"""

import hashlib
import io
import math

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from skimage.feature import canny
from torch import Tensor

from ..common.types import Index, Number
from ..common.validate import check_ids, check_pixels, checked
from . import unseen
from .fields import plasma
from .frost import texture
from .severities import ALL, CONSTANTS, LARGEST, UNSEEN, UNSEEN_CONSTANTS, constants_side

# The version of a corruption at a severity, where it is not the first. It is part of every record, so that only rows of
# what changed are made again: raise the number of what changes, and say in data/results/stale.json which rows are old.
CHANGED = {("frost", severity): 2 for severity in range(1, 6)} | {("spatter", severity): 2 for severity in (1, 2, 3)}
Array = np.ndarray  # one image, float64 (H, W, 3) in [0, 1]
Rng = np.random.Generator
_ELASTIC_UNIT = {32: 32, 64: 64, 224: 244}  # 244 is the benchmark's own (for 224)


def version(name: str, severity: int) -> int:
    """The version of a corruption at a severity; 1 for any other shift, which has a version elsewhere or none."""
    return CHANGED.get((name, severity), 1)


@checked
def corrupt(
    images: Float[Tensor, "..."],
    name: str,
    severity: int,
    ids: Index | None = None,
    seed: int = 0,
    **options,
) -> Float[Tensor, "B 3 S S"]:
    """Corrupt images (B, 3, S, S) in [0, 1], S = 32, 64 or 224 to 512; the same shape returns, multiples of 1/255.

    Args:
        name: one of `ALL`, or of `UNSEEN`.
        severity: 1 (mild) to 5.
        ids: (B,) image ids for the generators; 0 .. B-1 when None.
        options: `swap=False` for glass_blur.

    Raises:
        ValueError: unknown name or severity, wrong shape, size or range.
    """
    if name not in (known := ALL + UNSEEN):
        raise ValueError(f"unknown corruption {name!r}: choose one of {', '.join(known)}")
    if isinstance(severity, bool) or severity not in range(1, 6) or not isinstance(severity, int):
        raise ValueError(f"severity {severity!r}: choose 1, 2, 3, 4 or 5 (clean images need no call)")
    side = images.shape[-1] if isinstance(images, Tensor) and images.ndim else None
    at = side and constants_side(side)
    if side is None or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != side or at not in CONSTANTS:
        shape = tuple(getattr(images, "shape", ()))
        raise ValueError(f"images {shape}: corruptions take (B, 3, S, S) with S = 32, 64 or 224 to {LARGEST}")
    constants = UNSEEN_CONSTANTS if name in UNSEEN else CONSTANTS[at]
    if name not in constants:
        raise ValueError(f"{name} has no constants for {side} px: add them to CONSTANTS in world/severities.py")
    ids = torch.arange(len(images)) if ids is None else ids
    return with_constant(images, name, constants[name][severity - 1], ids, seed, severity, **options)


def with_constant(
    images: Float[Tensor, "B 3 S S"], name: str, constant, ids: Index, seed: int = 0, severity: int = 0, **options
) -> Float[Tensor, "B 3 S S"]:
    """Corrupt images (B, 3, S, S) in [0, 1] of any side with a constant of one's own; as `corrupt`, which has the
    constants of each size. `severity` is part of the seed alone.

    Raises ValueError for images that are none, and ids that do not count them."""
    check_pixels(images)
    check_ids(ids, len(images))
    apply, out = _APPLY[name], []
    for image, i in zip(images.permute(0, 2, 3, 1).cpu().double().numpy(), ids.tolist(), strict=True):
        rng = np.random.default_rng(_seed(seed, i, name, severity))
        out.append(np.clip(apply(image, constant, rng, **options), 0, 1))
    stored = np.round(np.stack(out) * 255).astype(np.float32) / np.float32(255)
    return torch.from_numpy(stored).permute(0, 3, 1, 2).contiguous().to(images.device)


def _seed(*parts) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _blur(image: Array, sigma: Number) -> Array:
    return ndimage.gaussian_filter(image, (sigma, sigma) + (0,) * (image.ndim - 2), truncate=4, mode="nearest")


def _uint8(image: Array) -> Array:
    return np.uint8(np.round(np.clip(image, 0, 1) * 255))


def _zoom_centre(layer: Array, factor: Number) -> Array:
    """Enlarge the middle of (H, W) or (H, W, 3) by `factor` >= 1, linearly, keeping the shape."""
    side = layer.shape[0]
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    zoom = (factor, factor) + (1,) * (layer.ndim - 2)
    big = ndimage.zoom(layer[top : top + kept, top : top + kept], zoom, order=1)
    trim = (big.shape[0] - side) // 2
    return big[trim : trim + side, trim : trim + side]


def _motion(layer: Array, radius: int, sigma: Number, angle: float) -> Array:
    """Blur (H, W) or (H, W, 3) along `angle` degrees: weights exp(-i^2 / 2 sigma^2), i = 0 .. 2 radius, one-sided.

    What the image shows moves towards +x at angle 0, where the public code's moves towards -x."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    dy, dx = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    side, out = layer.shape[0], np.zeros_like(layer)
    for i, weight in enumerate(weights):
        y, x = math.ceil(i * dy - 0.5), math.ceil(i * dx - 0.5)
        if max(abs(y), abs(x)) >= side:
            break
        rows, columns = (np.clip(np.arange(side) - shift, 0, side - 1) for shift in (y, x))
        out += weight * layer[rows][:, columns]
    return out


def _hsv(image: Array, change) -> Array:
    """The image after `change(hsv)` in hue, saturation, value, each in [0, 1]."""
    return hsv2rgb(np.clip(change(rgb2hsv(image)), 0, 1))


def _gray(image: Array) -> Array:
    return image @ np.array([0.299, 0.587, 0.114])


# --- the corruptions: (image, constant, rng) -> image, clipped by the caller ------------------------------------------


def _gaussian_noise(x: Array, sigma: Number, rng: Rng) -> Array:
    return x + rng.normal(0, sigma, x.shape)


def _shot_noise(x: Array, c: Number, rng: Rng) -> Array:
    return rng.poisson(np.maximum(x, 0) * c) / c  # `check_pixels` passes a hair below 0, which is no rate


def _impulse_noise(x: Array, share: Number, rng: Rng) -> Array:
    u = rng.random(x.shape)  # every channel value on its own
    return np.where(u < share / 2, 0, np.where(u < share, 1, x))


def _speckle_noise(x: Array, sigma: Number, rng: Rng) -> Array:
    return x + x * rng.normal(0, sigma, x.shape)


def _gaussian_blur(x: Array, sigma: Number, rng: Rng) -> Array:
    return _blur(x, sigma)


def _defocus_blur(x: Array, c: tuple, rng: Rng) -> Array:
    radius, alias = c
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    grid = np.arange(-reach, reach + 1)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    disk = ndimage.gaussian_filter(disk / disk.sum(), alias, radius=taps, mode="mirror")
    return np.stack([ndimage.correlate(x[..., i], disk, mode="mirror") for i in range(3)], -1)


def _glass_blur(x: Array, c: tuple, rng: Rng, swap: bool = True) -> Array:
    sigma, delta, iterations = c
    x = _uint8(_blur(x, sigma))
    side = x.shape[0]
    for _ in range(iterations):
        for h in range(side - delta, delta, -1):
            for w, (dy, dx) in zip(
                range(side - delta, delta, -1), rng.integers(-delta, delta, (side, 2)), strict=False
            ):
                kept = x[h, w].copy()
                x[h, w] = x[h + dy, w + dx]
                if swap:
                    x[h + dy, w + dx] = kept
    return _blur(x / 255.0, sigma)


def _motion_blur(x: Array, c: tuple, rng: Rng) -> Array:
    return _motion(x, *c, angle=rng.uniform(-45, 45))


def _zoom_blur(x: Array, c: tuple, rng: Rng) -> Array:
    length, step = c  # the list starts at 1, so the image itself counts twice
    return (x + sum(_zoom_centre(x, 1 + i * step) for i in range(length))) / (length + 1)


def _snow(x: Array, c: tuple, rng: Rng) -> Array:
    loc, scale, zoom, threshold, radius, sigma, keep = c
    layer = _zoom_centre(rng.normal(loc, scale, x.shape[:2]), zoom)
    layer[layer < threshold] = 0
    layer = _motion(np.clip(layer, 0, 1), radius, sigma, angle=rng.uniform(-135, -45))[..., None]
    x = keep * x + (1 - keep) * np.maximum(x, 1.5 * _gray(x)[..., None] + 0.5)
    return x + layer + np.rot90(layer, 2)


def _frost(x: Array, c: tuple, rng: Rng) -> Array:
    return c[0] * x + c[1] * texture(x.shape[0], rng)


def _fog(x: Array, c: tuple, rng: Rng) -> Array:
    strength, decay = c
    side = x.shape[0]
    fog = plasma(2 ** math.ceil(math.log2(side)), decay, rng)[:side, :side, None]
    return (x + strength * fog) * x.max() / (x.max() + strength)


def _brightness(x: Array, c: Number, rng: Rng) -> Array:
    return _hsv(x, lambda hsv: hsv + np.array([0, 0, c]))


def _contrast(x: Array, c: Number, rng: Rng) -> Array:
    mean = x.mean((0, 1))
    return (x - mean) * c + mean


def _saturate(x: Array, c: tuple, rng: Rng) -> Array:
    return _hsv(x, lambda hsv: hsv * np.array([1, c[0], 1]) + np.array([0, c[1], 0]))


def _elastic(x: Array, c: tuple, rng: Rng) -> Array:
    """A random affine map, then displacements of every pixel: with the same draws, those of the public code with rows
    and columns exchanged (the three points, and the two fields)."""
    side = x.shape[0]
    alpha, sigma, reach = (value * _ELASTIC_UNIT[constants_side(side)] for value in c)
    centre, third = side // 2, side // 3
    square = np.array([[centre + third, centre + third], [centre + third, centre - third], [centre - third] * 2], float)
    moved = square + rng.uniform(-reach, reach, (3, 2))
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], square)  # from output to input coordinates, (3, 2)
    y, x_ = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    grid = np.stack([y, x_, np.ones_like(y)], -1) @ affine  # (S, S, 2)
    x = np.stack(
        [ndimage.map_coordinates(x[..., i], grid.transpose(2, 0, 1), order=1, mode="mirror") for i in range(3)], -1
    )
    fields = [rng.uniform(-1, 1, (side, side)) for _ in range(2)]  # of rows, of columns; the public code: columns first
    if alpha:
        fields = [alpha * ndimage.gaussian_filter(f, sigma, mode="reflect", truncate=3) for f in fields]
    else:
        fields = [np.zeros((side, side))] * 2
    at = np.stack([y + fields[0], x_ + fields[1]])
    return np.stack([ndimage.map_coordinates(x[..., i], at, order=1, mode="reflect") for i in range(3)], -1)


def _spatter(x: Array, c: tuple, rng: Rng) -> Array:
    loc, scale, sigma, threshold, strength, mud = c
    liquid = _blur(rng.normal(loc, scale, x.shape[:2]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = _blur((liquid > threshold).astype(float), strength)
        cover[cover < 0.8] = 0
        return x * (1 - cover[..., None]) + cover[..., None] * np.array([63, 42, 20]) / 255
    return _wet(x, liquid, strength)


def equalized(levels: Array) -> Array:
    """Histogram equalisation of uint8 levels (H, W) to whole numbers from 0 to 255: (cdf - cdf_min) / (N - cdf_min)."""
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = counts[levels.min()]
    table = np.round(255 * (counts.cumsum() - lowest) / max(levels.size - lowest, 1))
    return table[levels]


def _wet(x: Array, liquid: Array, strength: Number) -> Array:
    """Water drops in pale blue: brightest where the distance to a drop's edge falls towards the lower right."""
    layer = np.floor(liquid * 255)
    distance = ndimage.distance_transform_edt(~canny(layer, sigma=0, low_threshold=50, high_threshold=150))
    distance = equalized(ndimage.uniform_filter(np.minimum(distance, 20), 3).astype(np.uint8))
    emboss = ndimage.correlate(distance, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], float), mode="mirror")
    drops = layer * ndimage.uniform_filter(np.clip(emboss, 0, 255), 3)
    mask = drops / max(drops.max(), 1e-8)
    return x + strength * mask[..., None] * np.array([175, 238, 238]) / 255


def _pixelate(x: Array, factor: Number, rng: Rng) -> Array:
    side = x.shape[0]
    small = Image.fromarray(_uint8(x)).resize((int(side * factor),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX)) / 255.0


def _jpeg(x: Array, quality: int, rng: Rng) -> Array:
    buffer = io.BytesIO()
    Image.fromarray(_uint8(x)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255.0


_APPLY = {name: globals()[f"_{name}"] for name in ALL} | {name: getattr(unseen, name) for name in UNSEEN}
