"""Views of an image for the task model: the image itself, or what is left of it below half the resolution."""

import torch.nn.functional as F

from .arrays import Images

VIEWS = ("full", "low")


def low_pass(images: Images, factor: int = 2) -> Images:
    """Area-average (B, C, H, W) by `factor`, then bilinear back: a filter that removes much of any pixel noise.

    It is the control of every table here: what a generative model gains under noise, this gains too, for nothing."""
    small = F.avg_pool2d(images, factor)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def view_of(images: Images, view: str) -> Images:
    """Images (B, C, H, W) as the task model shall see them: "full" or "low"."""
    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}: choose full or low")
    return images if view == "full" else low_pass(images)
