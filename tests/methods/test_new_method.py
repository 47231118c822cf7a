"""A new method is one file and one line: a toy from a temporary file goes through everything that runs methods."""

import importlib.util
from dataclasses import MISSING, fields, replace

import numpy as np
import pytest

from gentta_utils import SceneSpec
from gentta_utils.course import profile, side_by_side, trials
from gentta_utils.evaluation import tables
from gentta_utils.methods import METHODS, diffusion_tta
from gentta_utils.methods.base import Models, Needs

TOY = '''
"""A toy: the source's logits, each class moved to the next one."""

from dataclasses import dataclass

from gentta_utils.methods.base import Models, Needs, Output, no_loss, source_logits

NEEDS = Needs()


@dataclass(frozen=True)
class Settings:
    by: int = 1


@dataclass
class Toy:
    predict, online = "after", None
    models: Models
    settings: Settings

    def adapt(self, images, ids):
        before = source_logits(self.models, images)
        return Output(before.roll(self.settings.by, 1), before, no_loss(images), {})

    def reset(self):
        pass


def configure(models, settings=None):
    return Toy(models, settings or Settings())
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    path = tmp_path / "toy.py"
    path.write_text(TOY, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "toy", module)  # the one line
    return module


def test_a_toy_goes_through_a_table_a_report_and_a_notebook_row(toy, tmp_path):
    resnet, spec = trials.CLASSIFIERS[0], SceneSpec(12)
    jobs = [*trials.source_jobs([spec], (resnet,)), trials.method_job("toy", toy.Settings(), resnet, spec, "toy")]
    runs = tables.table("toy", jobs, folder=tmp_path, cache=tmp_path / "cache")
    assert [r.about["label"] for r in runs] == ["source/full", "source/low", "toy"]
    assert "denoiser" not in runs[-1].about["models"]
    assert np.array_equal(runs[-1].after.argmax(1), (runs[0].after.argmax(1) + 1) % 10)
    again = tables.table("toy", jobs, folder=tmp_path, cache=tmp_path / "cache")
    assert np.array_equal(again[-1].after, runs[-1].after)

    shown = side_by_side.compared(runs)
    assert [line.split("|")[1].strip() for line in shown.splitlines() if "| toy" in line] == ["toy"]

    row = profile("scenes").method("toy", trials.models(resnet), resnet, diffusion_tta.Settings(lr=0.1))
    assert row.settings == toy.Settings()


def settings_of(module):
    """Its defaults, with a rate where none is the default."""
    open_ = [f.name for f in fields(module.Settings) if f.default is f.default_factory is MISSING]
    return module.Settings(**dict.fromkeys(open_, 0.1))


def test_every_method_states_what_it_needs():
    for name, module in METHODS.items():
        assert module.__name__.endswith(name)
        assert isinstance(module.NEEDS, Needs), name
        own = {f.name: f.default for f in fields(module.Settings)}
        assert name == "diffusion_tta" or own.get("online", module.NEEDS.online) == module.NEEDS.online, name


def test_a_method_without_need_of_a_denoiser_runs_without_one(tiny, clip_models):
    alone = Models(tiny.classifier)
    for name, module in METHODS.items():
        if module.NEEDS.clip:
            with pytest.raises(ValueError, match="no text features"):
                module.configure(alone, settings_of(module))
            few = {"generated": 0} if name == "difftpt" else {}  # it asks for what makes them
            module.configure(clip_models, replace(settings_of(module), **few))
            continue
        if module.NEEDS.maps:
            with pytest.raises(ValueError, match="answer with maps"):
                module.configure(alone, settings_of(module))
            continue
        if module.NEEDS.denoiser:
            with pytest.raises(ValueError, match=r"denoiser|aligned"):
                module.configure(alone, settings_of(module))
        elif name != "ttt_mae":  # that one needs a network of its own
            module.configure(alone, settings_of(module))
