"""Checks of what comes in: one sentence each, before anything is computed."""

import torch
from torch import Tensor


def check_probabilities(p: Tensor, classes: int, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless p is float (B, classes) with non-negative rows that sum to 1."""
    if p.ndim != 2 or p.shape[1] != classes or not p.is_floating_point():
        raise ValueError(f"the condition must be float (B, {classes}), it is {p.dtype} {tuple(p.shape)}")
    q = p.detach()
    if not bool((q >= -tolerance).all() and ((q.sum(1) - 1).abs() <= tolerance).all()):
        raise ValueError("each row of the condition must be non-negative and sum to 1: pass softmax probabilities")


def check_subset(classes: tuple[int, ...], of: int, already: tuple[int, ...] | None = None) -> None:
    """Raise ValueError unless `classes` are different indices below `of`, of a model that is whole."""
    if already is not None:
        raise ValueError(f"this model is restricted to {len(already)} classes already: restrict the whole one")
    if not classes or len(set(classes)) != len(classes) or not set(classes) <= set(range(of)):
        raise ValueError(f"a subset of {of} classes holds different indices from 0 to {of - 1}: take `Stream.classes`")


def check_images(images: Tensor, size: int) -> None:
    """Raise ValueError unless images are float (B, 3, size, size), finite, in [0, 1]."""
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images must be (B, 3, {size}, {size}), these are {tuple(images.shape)}: resize or crop first"
        )
    if not images.is_floating_point():
        raise ValueError(f"images must be float in [0, 1], these are {images.dtype}: divide by 255")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image holds NaN or infinity: look at how it was read")
    low, high = float(images.min()), float(images.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(f"images must lie in [0, 1], these span [{low:.3g}, {high:.3g}]: divide by 255 or rescale")


def check_settings(settings, choices: dict[str, tuple], positive: tuple = (), fraction: tuple = ()) -> None:
    """Raise ValueError for the first field that is not among its choices, not above 0, or not in [0, 1]."""
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(f"{name}={getattr(settings, name)!r}: choose one of {', '.join(map(str, allowed))}")
    for name in positive:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name}={getattr(settings, name)}: choose a number above 0")
    for name in fraction:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name}={getattr(settings, name)}: choose a number from 0 to 1")
