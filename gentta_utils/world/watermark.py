"""The watermark of ImageNet-W (Li et al., CVPR 2023): half-transparent white characters across the image.

The original writes one word of two Chinese characters three times. At 64 px a character has ten pixels, too few for a
font: here two block glyphs of the same extent stand for it. At larger sizes a font file may be given.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..common.validate import check_pixels, checked

ALPHA = 128 / 255  # round(.5 * 255): the original's opacity
TEXT = "\u6377\u5f84" * 3
_FONT_SIZES = {224: 36, 384: 62, 512: 82, 518: 84}
_GLYPHS = np.array(
    [
        [list(map(int, row)) for row in glyph.split()]
        for glyph in (
            "010011111 111000100 010111111 010000101 111111111 010000101 010111111 110100100 010100111",
            "001011111 010000010 101000101 001011000 011000000 101001110 001000100 001000100 001011111",
        )
    ],
    dtype=bool,
)  # (2, 9, 9): a tenth column and row are left free between characters


def font_size(side: int) -> int:
    """Height of a character in pixels on an image of this side (Li et al., CVPR 2023: 36 at 224, else side / 6.22)."""
    return _FONT_SIZES.get(side, int(side / 6.22))


def coverage(height: int, width: int, font: str | Path | None = None) -> Float[Tensor, "height width"]:
    """Where the watermark lies: (height, width) float32 in [0, 1]. Anchor at (.01 width, .4 height).

    Args:
        font: a TrueType or OpenType file with the two characters; block glyphs when None.

    Raises:
        ValueError: the image is too small to hold the characters.
        OSError: `font` cannot be read.
    """
    cell = font_size(min(height, width))
    if cell < 5:
        raise ValueError(f"a watermark needs images of at least 32 x 32 pixels, these are {height} x {width}")
    left, top = round(0.01 * width), round(0.4 * height)
    layer = Image.new("L", (width, height))
    if font is None:
        word = np.concatenate([np.pad(g, ((0, 1), (0, 1))) for g in _GLYPHS], axis=1)  # (10, 20)
        text = Image.fromarray(np.tile(word, 3).astype(np.uint8) * 255)  # (10, 60)
        layer.paste(text.resize((6 * cell, cell), Image.Resampling.BOX), (left, top))
    else:
        ImageDraw.Draw(layer).text((left, top), TEXT, fill=255, font=ImageFont.truetype(str(font), cell))
    return torch.from_numpy(np.asarray(layer, dtype=np.float32) / 255)


@checked
def watermark(images: Float[Tensor, "B 3 H W"], font: str | Path | None = None) -> Float[Tensor, "B 3 H W"]:
    """Images (B, 3, H, W) in [0, 1] with the watermark alpha-composited in white; whole multiples of 1/255."""
    check_pixels(images)
    alpha = ALPHA * coverage(*images.shape[-2:], font).to(images.device)  # (H, W)
    return ((images + alpha * (1 - images)) * 255).round() / 255
