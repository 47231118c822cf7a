"""Every preset fits its notebook's parameters, and those of published tables hold the published settings."""

import re

import pytest

import gentta_utils  # noqa: F401
from gentta_utils import batch, hub
from gentta_utils.datasets import SHIFTS
from gentta_utils.methods.diffusion_tta import PUBLISHED, Settings
from gentta_utils.paths import NOTEBOOKS

PRESETS = sorted((NOTEBOOKS / "presets").glob("*.yaml"))
each = pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)


@each
def test_names_and_types_are_those_of_the_notebook(path):
    values = batch.read_preset(path)
    assert values
    notebook = batch.find(path.stem[:2])
    assert set(batch.check_parameters(notebook, values)) >= set(values)


@each
def test_the_comment_says_how_to_run_it(path):
    comment = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"-f notebooks/presets/{path.name}" in comment
    for name, options in re.findall(r"(\w+)=(\S+)", comment.partition("--grid")[2]):
        assert name in batch.parameters_of(batch.find(path.stem[:2]))
        for value in options.split(","):
            batch.check_parameters(batch.find(path.stem[:2]), {name: batch.read_value(value)})


@pytest.mark.parametrize("path", [p for p in PRESETS if "_k" in p.stem], ids=lambda p: p.stem)
def test_published_tables_have_the_published_settings(path):
    values = batch.read_preset(path)
    assert values["profile"] == "imagenet"
    assert values["classifier_name"] in hub.REPOSITORIES
    assert set(values["shifts"]) <= set(SHIFTS)
    for name in ("updates", "pairs", "timesteps"):
        assert values[name] == PUBLISHED[name]
    assert values["noise"] == Settings(lr=1.0).noise
    assert (values["optimizer"], values["lr"]) in ((PUBLISHED["optimizer"], PUBLISHED["lr"]), ("sgd", 5e-3))
