"""Checks of what comes in: one sentence each, before anything is computed."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

from .types import Number


def check_probabilities(p: Tensor, classes: int, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless p is float (B, classes) with non-negative rows that sum to 1."""
    if p.ndim != 2 or p.shape[1] != classes or not p.is_floating_point():
        raise ValueError(f"the condition must be float (B, {classes}), it is {p.dtype} {tuple(p.shape)}")
    q = p.detach()
    if not bool((q >= -tolerance).all() and ((q.sum(1) - 1).abs() <= tolerance).all()):
        raise ValueError("each row of the condition must be non-negative and sum to 1: pass softmax probabilities")


def check_map(maps: Tensor, images: int, channels: int, tolerance: float = 1e-3) -> None:
    """Raise ValueError unless maps is float (images, channels, h, w): probabilities of classes, or with one channel
    depth above 0."""
    if maps.ndim != 4 or maps.shape[:2] != (images, channels) or not maps.is_floating_point():
        asked, given = f"float ({images}, {channels}, h, w)", f"{maps.dtype} {tuple(maps.shape)}"
        raise ValueError(f"the map must be {asked}, it is {given}: one map per image")
    q = maps.detach()
    if channels == 1 and not bool((torch.isfinite(q) & (q > 0)).all()):
        raise ValueError("depth must be finite and above 0 metres: look at what the depth network answers")
    if channels > 1 and not bool((q >= -tolerance).all() and ((q.sum(1) - 1).abs() <= tolerance).all()):
        raise ValueError("a map's classes must be non-negative and sum to 1 at each pixel: pass softmax probabilities")


def check_subset(classes: tuple[int, ...], of: int, already: tuple[int, ...] | None = None) -> None:
    """Raise ValueError unless `classes` are different indices below `of`, of a model that is whole."""
    if already is not None:
        raise ValueError(f"this model is restricted to {len(already)} classes already: restrict the whole one")
    if not classes or len(set(classes)) != len(classes) or not set(classes) <= set(range(of)):
        raise ValueError(f"a subset of {of} classes holds different indices from 0 to {of - 1}: take `Stream.classes`")


def check_images(images: Tensor, size: int) -> None:
    """Raise ValueError unless images are float (B, 3, size, size), finite, in [0, 1]."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor (B, 3, {size}, {size}), this is a {type(images).__name__}")
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images must be (B, 3, {size}, {size}), these are {tuple(images.shape)}: resize or crop first"
        )
    check_pixels(images)


def check_pixels(images: Tensor) -> None:
    """Raise ValueError unless images are float32, one or more, finite, in [0, 1]."""
    if not isinstance(images, Tensor) or not images.numel():
        raise ValueError("there is no image: give a tensor (B, 3, H, W) of one or more")
    if images.dtype != torch.float32:
        how = "call .float()" if images.is_floating_point() else "divide by 255"
        raise ValueError(f"images must be float in [0, 1], of 32 bits, these are {images.dtype}: {how}")
    images = images.detach()
    if not bool(torch.isfinite(images).all()):
        raise ValueError("an image holds NaN or infinity: look at how it was read")
    low, high = float(images.min()), float(images.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(f"images must lie in [0, 1], these span [{low:.3g}, {high:.3g}]: divide by 255 or rescale")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError, with all choices, unless the value is one of them."""
    if value not in (known := tuple(choices)):
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")


def check_names(name: str, values: list[str] | str) -> None:
    """Raise ValueError unless the values are a list of at least one text; a text alone is no list."""
    if not isinstance(values, list | tuple) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name}={values!r}: choose a list with at least one name")


def check_ids(ids: Tensor, n: int, what: str = "ids") -> None:
    """Raise ValueError unless these are whole numbers (n,), one for each image: others would give other draws."""
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32) or ids.shape != (n,):
        given = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ValueError(f"{what} must be whole numbers, int64 ({n},), one for each image, these are {given}")


# --- settings --------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What else holds for a value of a type, and how that is said: stands beside the type in `Annotated`."""

    words: str
    holds: Callable[[Any], bool]


def between(low: Number, high: Number) -> Rule:
    """A number from low to high, both allowed."""
    return Rule(f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else ""), lambda v: low <= v <= high)


_ABOVE_0 = Rule("a number above 0", lambda v: v > 0)
Positive = Annotated[float, _ABOVE_0]
NotNegative = Annotated[float, between(0, math.inf)]
Fraction = Annotated[float, between(0, 1)]
Count = Annotated[int, Rule("a whole number above 0", _ABOVE_0.holds)]
Natural = Annotated[int, Rule("a whole number from 0", lambda v: v >= 0)]
Window = Annotated[tuple[int, int], Rule("(low, high) with 0 <= low < high", lambda v: 0 <= v[0] < v[1])]


@dataclass(frozen=True)
class Checked:
    """Base of settings, which are checked when they are made: raises ValueError as `check_settings`."""

    __no_type_check__ = True  # of jaxtyping in tests, whose refusal would come before ours

    def __post_init__(self):
        check_settings(self)


def check_settings(settings) -> None:
    """Raise ValueError for the first field of a dataclass whose value is not of its annotated type, by its `Rule` too.

    An int does for a float, True for neither; no number may be NaN or infinite."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if not _fits(value, f.type):
            raise ValueError(f"{f.name}={value!r}: choose {_words(f.type)}")


def _fits(value, hint) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _fits(value, inner[0]) and inner[1].holds(value)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is tuple and inner[-1] is ...:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind in (list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if kind in (Callable, dict) or hint in (Callable, Any, Parameter.empty):
        return callable(value) if Callable in (kind, hint) else kind is not dict or isinstance(value, dict)
    if inner:  # one of several types
        return any(_fits(value, one) for one in inner)
    if hint is float:
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    return type(value) is hint if hint in _WORDS else isinstance(value, hint)


_WORDS = {float: "a finite number", int: "a whole number", bool: "True or False", str: "text", NoneType: "None"}


def _words(hint) -> str:
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return inner[1].words
    if kind is Literal:
        return f"one of {', '.join(inner)}"
    if inner and kind in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        dims = ", ".join(hint.dim_str.split())
        return f"{hint.__name__.partition('[')[0].lower()} ({dims}), where one letter is one size in all arguments"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)) if not inner else str(hint))


def guarded(check: Callable[..., None]) -> Callable:
    """Decorator: `check` meets a function's arguments before it does, for what annotations cannot say, so that the body
    stays the formula that a notebook shows."""

    def wrap(function: Callable) -> Callable:
        @wraps(function)
        def inner(*args, **kwargs):
            check(*args, **kwargs)
            return function(*args, **kwargs)

        return inner

    return wrap


def checked(function):
    """A decorator: a public function says in one sentence which argument is not what its annotation states.

    Tensors are held to dtype and shape, sizes of one letter to each other (jaxtyping), all else as fields of settings
    are. Values of tensors are not looked at. The function raises ValueError, before it computes anything."""
    known = signature(function)

    @wraps(function)
    def inner(*args, **kwargs):
        with jaxtyped("context"):  # in which letters get their sizes
            for name, value in known.bind(*args, **kwargs).arguments.items():
                hint = known.parameters[name].annotation
                if not _fits(value, hint):
                    raise ValueError(f"{name} is {_shown(value)}: choose {_words(hint)}")
        return function(*args, **kwargs)

    return inner


def _shown(value) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = repr(value) if isinstance(value, int | float | str | tuple | NoneType) else f"a {type(value).__name__}"
    return text if len(text) < 80 else f"{text[:77]}..."


def frozen(value):
    """What JSON made of a settings' field as it was: lists as tuples, in the values of a dict too."""
    if isinstance(value, dict):
        return {name: frozen(v) for name, v in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value
