"""Random views of an image: crops (TPT), AugMix (MEMO, TTA-averaging, TPT), the colour and pose jitter of CoTTA.

Any image size: shifts and margins are fractions of the side, where public code has constants for 32 or 224 px. Every
view has its own generator (docs/methods/protocol.md), so the first n of many views are the n views.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from ..common.randomness import generator, numpy_generator
from ..common.types import Images, Index, Number
from ..common.validate import Count, checked

CROPS = ("pad", "resized", "none")
CHAINS, DEPTHS = 3, (1, 2, 3)  # AugMix: so many chains, each of 1 to 3 operations
FILL = 128  # outside of a moved image, MEMO's own argument: on RGB Pillow takes it for (128, 0, 0), a dark red
VERSION = 2  # of the views; in 1 the outside was black


# --- AugMix (Hendrycks et al., ICLR 2020) with the settings of MEMO --------------------------------------------------


def _affine(image: Image.Image, *matrix: Number) -> Image.Image:
    """Output (x, y) is read at (a x + b y + c, d x + e y + f) for the matrix a .. f; `FILL` outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _rotate(image: Image.Image, degrees: int) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)


# (image, amount in [0, 1], +1 or -1) -> image; the amount is a tenth of AugMix's level
_OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "autocontrast": lambda im, amount, sign: ImageOps.autocontrast(im),
    "equalize": lambda im, amount, sign: ImageOps.equalize(im),
    "posterize": lambda im, amount, sign: ImageOps.posterize(im, max(1, 4 - int(4 * amount))),
    "rotate": lambda im, amount, sign: _rotate(im, sign * int(30 * amount)),
    "solarize": lambda im, amount, sign: ImageOps.solarize(im, 256 - int(256 * amount)),
    "shear_x": lambda im, amount, sign: _affine(im, 1, sign * 0.3 * amount, 0, 0, 1, 0),
    "shear_y": lambda im, amount, sign: _affine(im, 1, 0, 0, sign * 0.3 * amount, 1, 0),
    "translate_x": lambda im, amount, sign: _affine(im, 1, 0, sign * int(im.width / 3 * amount), 0, 1, 0),
    "translate_y": lambda im, amount, sign: _affine(im, 1, 0, 0, 0, 1, sign * int(im.width / 3 * amount)),
}


def _augmix(image: Image.Image, severity: float, rng: np.random.Generator) -> np.ndarray:
    """m x + (1 - m) sum_i w_i chain_i(x), (S, S, 3) in [0, 255], with w ~ Dirichlet(1, 1, 1) and m ~ Beta(1, 1)."""
    weights, m = rng.dirichlet(np.ones(CHAINS)), rng.beta(1, 1)
    mixed = m * np.asarray(image, np.float64)
    for weight in weights:
        chain = image
        for _ in range(rng.choice(DEPTHS)):
            name = list(_OPERATIONS)[rng.integers(len(_OPERATIONS))]
            amount, sign = rng.uniform(0.1, severity) / 10, 1 if rng.random() < 0.5 else -1
            chain = _OPERATIONS[name](chain, amount, sign)
        mixed += (1 - m) * weight * np.asarray(chain, np.float64)
    return mixed


def _crop(image: Image.Image, crop: str, rng: np.random.Generator, lowest: float = 0.08) -> Image.Image:
    """ "pad": a black margin of an eighth of the side (4 px at 32), cropped back at random. "resized": a share of the
    area from `lowest` to 1, ratio 3/4 to 4/3, brought back to full size. Both with a flip in half of the cases."""
    side = image.width
    if crop == "none":
        return image
    if crop == "pad":
        margin = round(side / 8)
        x, y = rng.integers(-margin, margin + 1, 2).tolist()
        image = image.crop((x, y, x + side, y + side))
    else:
        for _ in range(10):  # a rectangle that does not fit is drawn again; after ten the whole image stays
            area, ratio = side**2 * rng.uniform(lowest, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= side and 0 < h <= side:
                x, y = int(rng.integers(side - w + 1)), int(rng.integers(side - h + 1))
                image = image.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
                break
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def augmix_views(
    image: Float[Tensor, "3 S S"],
    image_id: int,
    n: int,
    crop: str = "pad",
    severity: float = 1.0,
    seed: int = 0,
    step: int = 0,
) -> Float[Tensor, "n 3 S S"]:
    """n AugMix views (n, 3, S, S) float32 in [0, 1] of an image (3, S, S) in [0, 1].

    Args:
        crop: before AugMix: "pad" (as on CIFAR), "resized" (as on ImageNet) or "none".
        severity: upper end of AugMix's level, above .1, at most 10.
        step: of the adaptation: other steps, other views.

    Raises ValueError for an unknown crop or a severity outside of its range."""
    if crop not in CROPS:
        raise ValueError(f"unknown crop={crop!r}: choose one of {', '.join(CROPS)}")
    if not 0.1 <= severity <= 10:
        raise ValueError(f"severity={severity}: choose a number from 0.1 to 10")
    picture, out = _picture(image), []
    for view in range(n):
        rng = numpy_generator(seed, image_id, f"augmix/{view}", step)
        out.append(_augmix(_crop(picture, crop, rng), severity, rng))
    return _tensor(out).to(image.device)


def _picture(image: Float[Tensor, "3 S S"]) -> Image.Image:
    pixels = (image.detach().permute(1, 2, 0).cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _tensor(pictures: list) -> Float[Tensor, "n 3 S S"]:
    """Pictures, or arrays (S, S, 3) in [0, 255], as one float32 tensor in [0, 1]."""
    stacked = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).clamp(0, 255).float() / 255  # (n, S, S, 3)
    return stacked.permute(0, 3, 1, 2).contiguous()


# --- the views of prompt tuning (TPT, Shu et al., NeurIPS 2022; DiffTPT), and what else may be shown ------------------


@dataclass(frozen=True)
class ViewKind:
    """What is done to an image for a view, in this order."""

    low: bool = False  # the low view, so that nothing is finer than what a generator of half the side draws
    crop: bool = False  # resized, with a flip in half of the cases
    flip: bool = False  # in half of the cases, without a crop
    chains: bool = False  # AugMix
    light: bool = False  # brightness and contrast within 20%, a blur of up to a pixel


VIEW_KINDS = {
    "crops": ViewKind(crop=True),  # published, for ImageNet and the sets like it
    "augmix": ViewKind(crop=True, chains=True),  # published, for fine-grained sets
    "low": ViewKind(low=True, crop=True),
    "flips": ViewKind(flip=True, light=True),
    "light": ViewKind(light=True),
}
MOVED = {"pose": "light", "size": "flips", "count": "flips"}  # attribute that a crop changes -> views that keep it


def keeping(asks: Sequence[str]) -> str:
    """The kind of views that keep the label where these attributes are asked: "crops", unless crops or flips move it.

    A flip changes where an object is; a crop also how large it looks and how many are seen."""
    kinds = {MOVED.get(name, "crops") for name in asks}
    return next(kind for kind in ("light", "flips", "crops") if kind in kinds)


def _light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = change(image).enhance(rng.uniform(0.8, 1.2))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, image.width / 64)))


def image_views(
    image: Float[Tensor, "3 S S"], image_id: int, n: int, kind: str = "crops", lowest: float = 0.08, seed: int = 0
) -> Float[Tensor, "n 3 S S"]:
    """The image (3, S, S) in [0, 1] itself and n - 1 random views of it: (n, 3, S, S) float32 in [0, 1].

    Args:
        kind: one of `VIEW_KINDS`; the crops of "crops" and "low" are the same.
        lowest: share of the area that a crop has at least; 8% is torchvision's default, and TPT's.

    Raises ValueError for an unknown kind, no view, or a share outside of (0, 1]."""
    if kind not in VIEW_KINDS:
        raise ValueError(f"unknown kind={kind!r} of views: choose one of {', '.join(VIEW_KINDS)}")
    if n < 1 or not 0 < lowest <= 1:
        raise ValueError(f"n={n}, lowest={lowest}: choose at least one view, and crops of a share from above 0 to 1")
    how, pictures = VIEW_KINDS[kind], []
    picture = _picture(low_pass(image[None])[0] if how.low else image)
    for view in range(1, n):
        rng, seen = numpy_generator(seed, image_id, f"view/{view}"), picture
        if how.crop:
            seen = _crop(seen, "resized", rng, lowest)
        if how.flip and rng.random() < 0.5:
            seen = ImageOps.mirror(seen)
        if how.light:
            seen = _light(seen, rng)
        pictures.append(_augmix(seen, 1.0, rng) if how.chains else seen)
    first = image.detach().float()[None]
    return first if n == 1 else torch.cat([first, _tensor(pictures).to(image.device)])


# --- the jitter of CoTTA (Wang et al., CVPR 2022) --------------------------------------------------------------------


_RANGES = {
    "brightness": (0.6, 1.4),
    "contrast": (0.7, 1.3),
    "saturation": (0.5, 1.5),
    "hue": (-0.06, 0.06),  # turns
    "gamma": (0.7, 1.3),
    "angle": (-15.0, 15.0),  # degrees
    "x": (-1 / 16, 1 / 16),  # of the side
    "y": (-1 / 16, 1 / 16),
    "scale": (0.9, 1.1),
    "blur": (0.001, 0.5),  # standard deviation in pixels
    "flip": (-1.0, 1.0),  # below 0: mirrored
}
_NOISE = 0.005


def _gray(x: Images) -> Float[Tensor, "B 1 H W"]:
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _colours(x: Images, d: dict[str, Tensor]) -> Images:
    """Brightness, contrast, saturation, hue, gamma, in this order; hue turns the colours about the gray axis.

    Where a channel is 0 a gamma below 1 has an infinite slope: there the gradient is 0."""
    x = (x * d["brightness"]).clamp(0, 1)
    x = torch.lerp(_gray(x).mean((2, 3), keepdim=True).expand_as(x), x, d["contrast"]).clamp(0, 1)
    x = torch.lerp(_gray(x).expand_as(x), x, d["saturation"]).clamp(0, 1)
    mean, turn = x.mean(1, keepdim=True), 2 * math.pi * d["hue"]
    across = (x.roll(-2, 1) - x.roll(-1, 1)) / math.sqrt(3)  # the cross product with the gray axis
    x = (mean + (x - mean) * turn.cos() + across * turn.sin()).clamp(0, 1)
    black = x == 0
    return torch.where(black, 0.0, torch.where(black, 1.0, x) ** d["gamma"])


def _pose(x: Images, d: dict[str, Tensor]) -> Images:
    """Rotate, zoom, shift, mirror; outside of the image its edge goes on."""
    angle, zoom, shift_x, shift_y, flip = (d[k].flatten() for k in ("angle", "scale", "x", "y", "flip"))
    cos, sin = (f(angle.deg2rad()) / zoom for f in (torch.cos, torch.sin))
    mirror = torch.where(flip < 0, -1.0, 1.0)
    rows = [torch.stack([cos * mirror, -sin, 2 * shift_x], 1), torch.stack([sin * mirror, cos, 2 * shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)  # theta (B, 2, 3)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _blur(x: Images, sigma: Float[Tensor, "B 1 1 1"]) -> Images:
    """Gaussian blur with 5 taps, each image with its own sigma."""
    B, C, H, W = x.shape
    taps = torch.exp(-(torch.arange(-2, 3, device=x.device) ** 2) / (2 * sigma.flatten()[:, None] ** 2))  # (B, 5)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(C, 0)  # (B * C, 5)
    x = F.pad(x.reshape(1, B * C, H, W), (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(F.conv2d(x, taps[:, None, None], groups=B * C), taps[:, None, :, None], groups=B * C)
    return x.view(B, C, H, W)


@checked
def jitter(images: Float[Tensor, "B 3 S S"], ids: Index, view: int = 0, seed: int = 0) -> Float[Tensor, "B 3 S S"]:
    """View number `view` of each image (B, 3, S, S) in [0, 1] with ids (B,): colours, pose, blur, noise; same range.

    The public code draws once for a whole batch, changes the colours in random order and shifts by up to an eighth of
    the side, twice what the paper says; here every image has its own draws, one order, and the paper's shift.

    Raises ValueError for no image. Values are not looked at: a denoiser's guess may leave [0, 1], or hold NaN, of which
    the gradient's own check says where it arose."""
    if not len(images):
        raise ValueError("there is no image: give a tensor (B, 3, S, S) of one or more")
    low, high = torch.tensor(list(_RANGES.values())).T
    u, noise = [], []
    for i in ids.tolist():
        g = generator(seed, i, "jitter", view)
        u.append(torch.rand(len(_RANGES), generator=g))
        noise.append(torch.randn(images.shape[1:], generator=g))
    values = (low + torch.stack(u) * (high - low)).to(images.device)  # (B, 11)
    drawn = {name: values[:, j].view(-1, 1, 1, 1) for j, name in enumerate(_RANGES)}
    x = _blur(_pose(_colours(images, drawn), drawn), drawn["blur"])
    return (x + _NOISE * torch.stack(noise).to(x.device)).clamp(0, 1)


VIEWS = ("full", "low")


@checked
def low_pass(images: Images, factor: Count = 2) -> Images:
    """Area-average (B, C, H, W) by `factor`, then bilinear back: a filter that removes much of any pixel noise.

    It is the control of every table here: what a generative model gains under noise, this gains too, for nothing."""
    if any(side % factor for side in images.shape[-2:]):
        raise ValueError(f"factor={factor}: choose a divisor of the sides {images.shape[-2]} and {images.shape[-1]}")
    small = F.avg_pool2d(images, factor)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


@checked
def view_of(images: Images, view: str) -> Images:
    """Images (B, C, H, W) as the task model sees them: "full" or "low"."""
    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}: choose full or low")
    return images if view == "full" else low_pass(images)


def augment(images: Tensor, generator: torch.Generator, pad: int = 4, flips: bool = True) -> Tensor:
    """Random flip, if wanted, and shifted crop of float images (B, C, H, W), one offset per image; nothing like a
    corruption."""
    B, _, H, W = images.shape
    flip = torch.rand(B, 1, 1, 1, generator=generator) < 0.5
    if flips:
        images = torch.where(flip, images.flip(-1), images)
    images = F.pad(images, (pad,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * pad + 1, (2, B), generator=generator).tolist()
    return torch.stack([x[:, i : i + H, j : j + W] for x, i, j in zip(images, *offset, strict=True)])
