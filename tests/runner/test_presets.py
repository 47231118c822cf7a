"""Every preset fits its notebook's parameters, and those of published tables hold the published settings."""

import re

import pytest

import gentta_utils  # noqa: F401
from gentta_utils.common.paths import NOTEBOOKS
from gentta_utils.course.profiles import PUBLISHED_TEXT
from gentta_utils.diffusion.reverse import levels_of
from gentta_utils.diffusion.synthesis import Synthesis
from gentta_utils.methods import dda
from gentta_utils.methods.diffusion_tta import PUBLISHED, Settings
from gentta_utils.models import hub
from gentta_utils.recipes import aligned
from gentta_utils.runner import notebook as runner_notebook
from gentta_utils.streams.open_vocabulary import LABEL_SETS
from gentta_utils.world.severities import TEST
from gentta_utils.world.shifts import SHIFTS

PRESETS = sorted((NOTEBOOKS / "presets").glob("*.yaml"))
each = pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)


def test_every_published_table_of_a_notebook_has_its_preset():
    """By name, so that none is missed when a file is; papers' tables are numbered K (Diffusion-TTA) and S (SDA)."""
    rows = {  # a preset for each row, or for each task
        "02_k4": ("resnet18", "vit", "convnext"),
        "02_k5": ("resnet50", "vit", "convnext", "convnext_large"),
        "04_k8": ("classes", "depth"),
    }
    expected = {f"{table}_{row}" for table, names in rows.items() for row in names}
    expected |= {"02_k10", "02_k11", "02_k11_logits", "02_k12", "03_k7", "03_k13"}
    assert {p.stem for p in PRESETS if p.stem[3] == "k"} == expected
    assert {p.stem for p in PRESETS if p.stem[3] == "s"} == {f"05_s{i}" for i in (1, 3, 6, 7, 8, 10)}


@each
def test_names_and_types_are_those_of_the_notebook(path):
    values = runner_notebook.read_preset(path)
    assert values
    notebook = runner_notebook.find(path.stem[:2])
    assert set(runner_notebook.check_parameters(notebook, values)) >= set(values)


@each
def test_the_comment_says_how_to_run_it(path):
    comment = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert f"-f notebooks/presets/{path.name}" in comment
    for name, options in re.findall(r"(\w+)=(\S+)", comment.partition("--grid")[2]):
        assert name in runner_notebook.parameters_of(runner_notebook.find(path.stem[:2]))
        for value in options.split(","):
            runner_notebook.check_parameters(
                runner_notebook.find(path.stem[:2]), {name: runner_notebook.read_value(value)}
            )


@pytest.mark.parametrize("path", [p for p in PRESETS if "02_k" in p.stem], ids=lambda p: p.stem)
def test_published_tables_have_the_published_settings(path):
    values = runner_notebook.read_preset(path)
    assert values["profile"] == "imagenet"
    assert values["classifier_name"] in hub.REPOSITORIES
    assert set(values["shifts"]) <= set(SHIFTS)
    for name in ("updates", "pairs", "timesteps"):
        assert values[name] == PUBLISHED[name]
    assert values["noise"] == Settings(lr=1.0).noise
    allowed = [(PUBLISHED["optimizer"], PUBLISHED["lr"]), ("sgd", 5e-3)]
    if values.get("param_set") == "logits":  # no rate is published; that of weights would leave each logit where it is
        allowed = [("adamw", 0.1)]
    assert (values["optimizer"], values["lr"]) in allowed


@pytest.mark.parametrize("path", [p for p in PRESETS if "03_k" in p.stem], ids=lambda p: p.stem)
def test_tables_of_clip_have_the_published_settings(path):
    values = runner_notebook.read_preset(path)
    assert values["profile"] == "imagenet"
    assert values["clip_name"] in hub.REPOSITORIES
    assert values["label_set"] in LABEL_SETS
    for name in ("updates", "pairs", "temperature", "lr"):
        assert values[name] == PUBLISHED_TEXT[name]


@pytest.mark.parametrize("path", [p for p in PRESETS if "_s" in p.stem], ids=lambda p: p.stem)
def test_tables_of_sda_have_the_published_alignment(path):
    """DDA's and SDA's settings without the faults of their code: the scale is that of one image."""
    values = runner_notebook.read_preset(path)
    assert values["profile"] == "imagenet"
    assert set(values["classifier_names"]) <= set(hub.REPOSITORIES)
    assert len(values["classifier_names"]) == (5 if path.stem in ("05_s1", "05_s3") else 3)
    expected = (["watermark"], 0) if path.stem == "05_s3" else (TEST, 5)
    assert (values["shifts"], values["severity"]) == expected
    for name in ("start", "steps"):
        assert values[name] == dda.PUBLISHED[name]
    assert values["scale"] == dda.scale_at(256)
    for name in ("factor", "eta", "ensemble"):
        assert values[name] == getattr(dda.Settings(), name)
    assert values["synthetic"] == aligned.Data().per_class * 1000
    assert (values["cfg"], values["synthesis_steps"]) == (Synthesis().cfg, Synthesis().steps)
    rivals = {"05_s1": ["memo"], "05_s6": ["unaligned"], "05_s10": ["tent"]}
    assert values.get("rivals", []) == rivals.get(path.stem, [])
    levels = dda.Settings(**{name: values[name] for name in ("start", "steps", "scale", "factor", "eta", "ensemble")})
    assert len(levels_of(levels)) == values["steps"]
