"""Checks of the exercises: an answer against an oracle on random inputs of random shapes.

A check raises `Wrong` with a sentence that says what is wrong, and names the error where it is a well-known one.
`attempt` is what a notebook calls: it prints the outcome and never stops the notebook.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.process import alphas_cumprod_of, linear_betas

ABAR = alphas_cumprod_of(linear_betas())


class Wrong(AssertionError):
    """What is wrong with an answer, in a sentence."""


def attempt(check: Callable[[Callable], None], answer: Callable) -> None:
    """Print whether `answer` passes: "right", "not written yet", or what is wrong."""
    try:
        check(answer)
    except Wrong as wrong:
        print(f"{answer.__name__}: {wrong}")
    except Exception as error:  # the answer's own
        print(f"{answer.__name__}: it raised {type(error).__name__}: {error}")
    else:
        print(f"{answer.__name__}: right")


def compare(got: object, wanted: Tensor, known: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Raise `Wrong` unless got is wanted; `known` are outcomes of typical mistakes, by what to say of them."""
    if got is None:
        raise Wrong("not written yet: it returns None")
    got = torch.as_tensor(got)
    if got.shape != wanted.shape:
        raise Wrong(f"the result has shape {tuple(got.shape)}, wanted is {tuple(wanted.shape)}")

    def near(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)

    if near(got, wanted):
        return
    for says, outcome in known.items():
        if outcome.shape == got.shape and near(got, outcome):
            raise Wrong(says)
    gap = (got.double() - wanted.double()).abs().max().item()
    raise Wrong(f"values differ from the right ones by up to {gap:.3g}")


def whole_numbers(answers: list) -> Tensor | None:
    """Whole numbers as a tensor (N,), None where the first is not written yet."""
    return None if answers[0] is None else torch.tensor([int(a) for a in answers])


def random_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two batches (B, C, H, W) float64 of a random shape, and timesteps (B,)."""
    shape = (random.randint(2, 5), random.randint(1, 3), random.randint(2, 6), random.randint(2, 6))
    return torch.randn(shape).double(), torch.randn(shape).double(), torch.randint(20, 980, shape[:1])
