"""Grad-CAM as an instrument (Selvaraju et al., ICCV 2017): which region drives the score of a class.

    a_k = mean_ij d z_c / d A_k(i, j),   M = ReLU(sum_k a_k A_k),   resized to the image and divided by its maximum

By captum, on the last feature maps of each family. To compare maps, fix the class c: the prediction of the first panel.

Card: docs/methods/gradcam.md
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..common.types import Index, PerImage
from ..models.classifier import Classifier, SomeLogits

Maps = Float[Tensor, "B H W"]


def layer_of(classifier: Classifier) -> tuple[nn.Module, str]:
    """The layer whose output is looked at, and how that is laid out: "BCHW", "BHWC" (Swin) or "BNC" (ViT).

    ResNet and ConvNeXt: the last block. Swin: the last norm. ViT: the first norm of the last block, because of its
    output only the class token is read. Raises ValueError for another architecture."""
    network = classifier.network
    if isinstance(network, SomeLogits):
        network = network.network
    if hasattr(network, "layer4"):
        return network.layer4[-1], "BCHW"
    if hasattr(network, "blocks") and hasattr(network, "num_prefix_tokens"):
        return network.blocks[-1].norm1, "BNC"
    if hasattr(network, "layers") and hasattr(network, "norm"):
        return network.norm, "BHWC"
    if hasattr(network, "stages"):
        return network.stages[-1].blocks[-1], "BCHW"
    raise ValueError(f"no layer is known for {classifier.name or type(network).__name__}: pass layer=(module, 'BCHW')")


def layer_at(classifier: Classifier, side: int, size: int) -> tuple[nn.Module, str]:
    """The last stage of a network whose output is `side` pixels wide, for images of `size` pixels, and its layout.

    The last feature maps of small images are too coarse to point at anything: 2 x 2 at 64 pixels. Raises ValueError
    where no stage has this side."""
    network = classifier.network.network if isinstance(classifier.network, SomeLogits) else classifier.network
    if hasattr(network, "layer4"):
        stages, layout = [getattr(network, f"layer{i}") for i in (1, 2, 3, 4)], "BCHW"
    elif hasattr(network, "stages"):
        stages, layout = list(network.stages), "BCHW"
    elif hasattr(network, "layers"):
        stages, layout = list(network.layers), "BHWC"
    else:  # of a ViT every block has the same tokens; any other network is unknown
        return layer_of(classifier)
    sides: list[int] = []
    hooks = [stage.register_forward_hook(lambda module, x, y: sides.append(y.shape[2])) for stage in stages]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, size, size, device=classifier.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    if side not in sides:
        raise ValueError(f"no stage is {side} pixels wide: choose one of {', '.join(map(str, sorted(set(sides))))}")
    return stages[len(sides) - 1 - sides[::-1].index(side)], layout


def _as_maps(layout: str, probe: nn.Module) -> Callable:
    """A forward hook that shows the layer's output to `probe` as (B, C, h, w) and hands it on as it was."""

    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        if layout == "BCHW":
            return probe(output)
        if layout == "BHWC":
            return probe(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        side = int(output.shape[1] ** 0.5)  # class and register tokens come first and are dropped from the map
        prefix, tokens = output[:, : -(side**2)], output[:, -(side**2) :]
        seen = probe(tokens.transpose(1, 2).unflatten(2, (side, side)))
        return torch.cat([prefix, seen.flatten(2).transpose(1, 2)], 1)

    return hook


def grad_cam(
    classifier: Classifier,
    images: Float[Tensor, "B 3 S S"],
    classes: Index,
    layer: tuple[nn.Module, str] | None = None,
) -> Float[Tensor, "B S S"]:
    """Maps (B, S, S) in [0, 1] of images (B, 3, S, S) in [0, 1] for the classes (B,); 0 where nothing speaks for one.

    Args:
        layer: a module and the layout of its output, in place of that of `layer_of`.
    """
    from captum.attr import LayerGradCam  # here: no other cell of the course needs it, and it takes a second

    module, layout = layer or layer_of(classifier)
    probe = nn.Identity()
    hook = module.register_forward_hook(_as_maps(layout, probe))
    try:
        x = classifier.normalise(images).detach().requires_grad_()
        with torch.enable_grad():
            maps = LayerGradCam(classifier.network, probe).attribute(
                x, classes.to(x.device), relu_attributions=True
            )  # (B, 1, h, w)
    finally:
        hook.remove()
    maps = F.interpolate(maps.detach(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)


@dataclass(frozen=True)
class Panel:
    """One of the four panels of the SDA paper's figure, over B images.

    Attributes:
        title: which image, read by which classifier.
        maps: (B, S, S) for the class that the first panel predicts. predicted: (B,) the panel's own prediction.
        correlation, overlap: (B,) with the maps of the first panel.
    """

    title: str
    maps: Maps
    predicted: Index
    correlation: PerImage
    overlap: PerImage


def panels(
    source: Classifier,
    tuned: Classifier,
    clean: Float[Tensor, "B 3 S S"],
    target: Float[Tensor, "B 3 S S"],
    changed: Float[Tensor, "B 3 S S"],
    side: int | None = None,
) -> list[Panel]:
    """The four panels: the source classifier on the clean, the shifted and the aligned image, `tuned` on the aligned.

    Take images at random, never selected ones. `side` asks for maps of so many pixels, see `layer_at`; None: of the
    last layer."""
    shown = {
        "source image, source model": (source, clean),
        "target image, source model": (source, target),
        "aligned image, source model": (source, changed),
        "aligned image, aligned model": (tuned, changed),
    }
    with torch.no_grad():
        predicted = [classifier(images).argmax(1) for classifier, images in shown.values()]
    at = [layer_at(c, side, clean.shape[-1]) if side else None for c, _ in shown.values()]
    maps = [grad_cam(c, x, predicted[0], layer) for (c, x), layer in zip(shown.values(), at, strict=True)]
    return [
        Panel(title, m, p, correlation(maps[0], m), overlap(maps[0], m))
        for title, m, p in zip(shown, maps, predicted, strict=True)
    ]


def correlation(a: Maps, b: Maps) -> PerImage:
    """Pearson correlation (B,) of two sets of maps (B, H, W), float64 on the CPU; 0 where one of them is constant."""
    a, b = (m.flatten(1).cpu().double() for m in (a, b))  # Apple's graphics have no float64
    a, b = (m - m.mean(1, keepdim=True) for m in (a, b))
    length = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(length > 0, (a * b).sum(1) / length.clamp_min(1e-300), 0.0)


def overlap(a: Maps, b: Maps, share: float = 0.2) -> PerImage:
    """Intersection over union (B,) of the top `share` of the area of two sets of maps (B, H, W), float64 on the CPU."""
    n = max(1, round(share * a[0].numel()))
    top = [
        torch.zeros(m.flatten(1).shape, dtype=torch.bool, device=m.device).scatter(
            1, m.flatten(1).topk(n).indices, True
        )
        for m in (a, b)
    ]
    return (top[0] & top[1]).sum(1).cpu().double() / (top[0] | top[1]).sum(1).cpu()
