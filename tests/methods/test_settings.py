"""Settings of every method are checked when they are made, one by one from the types that their fields state."""

import math
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Literal, get_args, get_origin

import pytest

from gentta_utils.common.validate import Checked, Count, Fraction, Window
from gentta_utils.diffusion.synthesis import Synthesis
from gentta_utils.methods import METHODS, diffusion_classifier, diffusion_tta, sda
from gentta_utils.recipes.aligned import Data

CLASSES = {f"{name}.Settings": module.Settings for name, module in METHODS.items()}
CLASSES |= {"FineTune": sda.FineTune, "Synthesis": Synthesis, "Data": Data}
NEEDED = dict(lr=0.1, optimizer="sgd", weight_decay=0.0)  # fields without a default


def made(cls, **changes):
    needed = {f.name: NEEDED[f.name] for f in fields(cls) if f.default is f.default_factory is MISSING}
    return cls(**(needed | changes))


def wrong_values(hint) -> list:
    """Values that no field of this type can have."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:  # on both sides of zero, as far as its rule refuses them
        numbers = [v for v in (-2, 0, 10**6) if inner[0] in (int, float) and not inner[1].holds(v)]
        return wrong_values(inner[0]) + [inner[0](v) for v in numbers]
    if kind is Literal:
        return ["none of them", 1, None]
    if kind is tuple and inner[-1] is ...:
        return [("a",), (None,), [1.0], 150, "150"]
    if kind is tuple:
        return [(600, 150), (-50, 100), (100,), (0.5, 3), [150, 600], 150, "150"]
    if inner:
        return [v for v in wrong_values(inner[0]) if v is not None]
    texts = {int: [2.5, "8", True], float: ["3.0", math.nan, math.inf, True], bool: [1, "True"], str: [1]}
    return [*texts.get(hint, [1, "text"]), None]


CASES = [(name, f.name) for name, cls in CLASSES.items() for f in fields(cls)]


@pytest.mark.parametrize("name, field", CASES, ids=map(".".join, CASES))
def test_a_wrong_value_is_refused_with_one_sentence(name, field):
    cls = CLASSES[name]
    for value in wrong_values(cls.__dataclass_fields__[field].type):
        with pytest.raises(ValueError) as error:
            made(cls, **{field: value})
        assert str(error.value).startswith(f"{field}={value!r}: choose ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_settings_class_is_checked_and_stands_at_values_that_pass(cls):
    assert issubclass(cls, Checked)
    assert is_dataclass(cls)
    made(cls)


@pytest.mark.parametrize(
    "wrong", [dict(updates=2.5), dict(pairs="8"), dict(top_k=-1), dict(window=(-50, 100)), dict(window=(600, 150))]
)
def test_of_diffusion_tta(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        diffusion_tta.Settings(lr=0.1, **wrong)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_a_temperature_is_above_0(temperature):
    for cls in (diffusion_tta.Settings, diffusion_classifier.Settings):
        with pytest.raises(ValueError, match=r"temperature=.*: choose a number above 0"):
            made(cls, temperature=temperature)


def test_an_int_does_for_a_float_and_values_stay_as_they_were_given():
    @dataclass(frozen=True)
    class Toy(Checked):
        share: Fraction | None = None
        n: Count = 1
        window: Window = (0, 1)

    assert type(Toy(share=1).share) is int
    assert (Toy().share, Toy(window=(0, 1000)).window) == (None, (0, 1000))
    with pytest.raises(ValueError, match="share=2: choose a number from 0 to 1 or None"):
        Toy(share=2)
    with pytest.raises(ValueError, match="n=0: choose a whole number above 0"):
        Toy(n=0)
