"""Images and maps at another size, differentiable: areas averaged where it is smaller, bilinear where it is larger."""

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, side: int) -> Tensor:
    """Images or maps (B, C, h, w) at side x side. Probabilities stay probabilities; at its own size nothing changes."""
    if side <= images.shape[-1]:
        return F.interpolate(images, (side, side), mode="area")
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
