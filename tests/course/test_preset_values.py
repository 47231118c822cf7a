"""Presets: each parameter reaches what the notebook runs, and what a row claims to adapt does move.

The cells that the live stream needs run with the preset's values, on the shipped networks in the place of the large
ones; what would take long is watched instead of run."""

import copy
import re
from dataclasses import asdict

import notebook_rules as rules
import pytest
import torch

from gentta_utils import evaluation
from gentta_utils.common.paths import NOTEBOOKS
from gentta_utils.course import plots, profiles
from gentta_utils.course.nb02 import figures
from gentta_utils.course.nb03.choose import KINDS
from gentta_utils.diffusion.synthesis import Synthesis
from gentta_utils.methods import dda, diffpure, difftpt, diffusion_tta, sda, tpt
from gentta_utils.models import hub, zoo
from gentta_utils.recipes import aligned
from gentta_utils.recipes.aligned import ALIGNER
from gentta_utils.runner.notebook import check_parameters, find, read_preset
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Lazy, stream

PRESETS = sorted((NOTEBOOKS / "presets").glob("*.yaml"))
LAST = {  # of each notebook, the beginnings of the cells in which a parameter is used last
    "00": ("n_each = ",),
    "02": ("per_shift = ",),
    "05": ("g_dit = ", "def read_by("),
    "07": ("def configured(",),
}
NAMES = {  # parameters whose values are seen by other names
    "classifier_names": "classifier_name",
    "rivals": "rows",
    "shift": "shifts",
    "synthesis_steps": "levels",
}


class Watched(dict):
    """What the cells used: parameter -> list of values; and the settings of each row that was run."""

    def __init__(self):
        self.rows: dict[str, dict] = {}

    def add(self, name: str, value) -> None:
        self.setdefault(name, []).append(value)

    def add_settings(self, settings) -> None:
        for name, value in asdict(settings).items():
            self.add(name, value)


def watched(preset, monkeypatch, folder) -> tuple[dict, Watched]:
    """The parameters of a preset, and what the cells of its notebook made of them."""
    path, seen = find(preset.stem[:2]), Watched()
    parameters = check_parameters(path, read_preset(preset))
    shipped, here, load = {}, stream(SceneSpec(2)), zoo.load

    def load_shipped(name, profile, device, **how):
        kind = "classifier/resnet" if name.startswith("classifier/") else ALIGNER if name == hub.ADM else name
        if kind not in shipped:
            shipped[kind] = load(kind)
        model = copy.copy(shipped[kind])
        model.name = name
        if name.startswith("classifier/"):
            seen.add("loaded", name)
        return model

    def draw(kit, n, shift="clean", severity=0, *_):
        for name, value in {"profile": kit.name, "n": n, "shifts": shift, "severity": severity}.items():
            seen.add(name, value)
        return here

    def run(method, *_, about=None, **__):
        seen.add("rows", (about or {}).get("label"))
        seen.add_settings(method.settings)
        seen.add("classifier_name", method.models.classifier.name)
        seen.rows.setdefault(type(method.settings).__module__.split(".")[-1], []).append(method.settings)

    def change(denoiser, images, ids, settings, *_):
        seen.add_settings(settings)
        return images[:, :, :1, :1]

    def synthesize(denoiser, labels, ids, how):
        if "levels" not in seen:
            seen.add_settings(how)
            seen.add("levels", how.steps)
        seen.add("synthetic", int(ids[-1]) + 1)  # of the last ones the number that was asked for
        seen["at once"] = max(len(ids), seen.get("at once", 0))
        return torch.zeros(len(labels), 3, 1, 1)

    def ends_on_disk(about, make, n, chunk):
        """The first chunk and the last, instead of all 50,000 images."""
        for part in (torch.arange(chunk), torch.arange(n - chunk, n)):
            made = make(part)
        return Lazy(lambda at: made[:1].expand(len(at), -1, -1, -1), torch.arange(n))

    monkeypatch.setattr(zoo, "load", load_shipped)
    monkeypatch.setattr(aligned, "on_disk", ends_on_disk)
    for kind in (profiles.Scenes, profiles.ImageNet):
        monkeypatch.setattr(kind, "require", lambda *_: None)
        monkeypatch.setattr(kind, "stream", draw)
        monkeypatch.setattr(kind, "classes", lambda *_: tuple(map(str, range(10))))
    monkeypatch.setattr(evaluation, "run", run)
    monkeypatch.setattr(plots, "show", lambda *_: None)
    monkeypatch.setattr(figures, "live", lambda *_: [{"row": "of no run"}])
    monkeypatch.setattr(evaluation, "protocol_line", lambda *_: "")
    monkeypatch.setattr(dda, "align", change)
    monkeypatch.setattr(diffpure, "purify", change)
    monkeypatch.setattr(aligned, "CACHE", folder)
    shipped_as = zoo.fingerprint
    of = lambda name, profile="scenes": shipped_as(name) if profile == "scenes" else f"of {name}"  # noqa: E731
    monkeypatch.setattr(zoo, "fingerprint", of)
    monkeypatch.setattr(sda, "fine_tune", lambda source, *_: copy.copy(source))
    nb = rules.load(path)
    sources = [rules.source(c) for c in rules.code_cells(nb)]
    last = [i for i, s in enumerate(sources) if s.startswith(LAST[path.stem[:2]])]
    assert len(last) == len(LAST[path.stem[:2]])
    space: dict = {}
    for i in sorted(set().union(*(rules.needed_cells(sources, k) for k in last))):
        exec(compile(sources[i], f"{path.stem}, cell {i}", "exec"), space)
        if sources[i] == rules.source(rules.tagged(nb)[0]):
            space |= parameters
        if "synthesize" in space:
            space["synthesize"] = synthesize
    if path.stem.startswith("05"):
        seen["classifier_name"] = seen["loaded"]
    return parameters, seen


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem[:2] not in ("03", "04", "06")], ids=lambda p: p.stem)
def test_every_parameter_of_a_preset_reaches_what_runs(preset, monkeypatch, tmp_path):
    parameters, seen = watched(preset, monkeypatch, tmp_path)
    for name, value in parameters.items():
        used = seen[NAMES.get(name, name)]
        assert all(v in used for v in (value if isinstance(value, list) else [value])), (name, value, used)
    if preset.stem.startswith("05"):
        assert seen["at once"] <= Synthesis().images_at_once  # not all of them in memory
    for settings in seen.rows.get("diffusion_tta", []):  # episodic and online
        own = {name: value for name, value in parameters.items() if hasattr(settings, name)}
        assert {name: getattr(settings, name) for name in own} == own


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem.startswith("03")], ids=lambda p: p.stem)
def test_parameters_of_a_preset_of_clip_reach_its_settings(preset):
    parameters = read_preset(preset)
    (cell,) = (
        c
        for c in rules.code_cells(rules.load(find("03")))
        if "kit.text_settings" in rules.source(c)[:900] and "changes = " in rules.source(c)
    )
    asked = {k: v for k, v in parameters.items() if k in diffusion_tta.Settings.__dataclass_fields__}
    assert {"updates", "pairs", "temperature", "lr"} <= set(asked)
    assert all(f"{name}={name}" in rules.source(cell) for name in asked)
    kit = profiles.profile("imagenet")
    settings = kit.text_settings(parameters["clip_name"], kind=parameters["adapt"], **asked)
    assert {name: getattr(settings, name) for name in asked} == asked
    assert settings.param_set == KINDS[parameters["adapt"]]["param_set"]


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem.startswith("04")], ids=lambda p: p.stem)
def test_parameters_of_a_preset_of_maps_reach_the_live_stream(preset):
    parameters = check_parameters(find("04"), read_preset(preset))
    sources = "\n".join(rules.source(c) for c in rules.code_cells(rules.load(find("04"))))
    assert "live_stream = kit.map_stream(3 if fast else n, target, shift, severity, start=97_200)" in sources
    kit = profiles.profile(parameters["profile"])
    for target, name in (("classes", "segmentor_name"), ("depth", "depth_name")):
        assert parameters[name] in kit.task_models[target]
        assert parameters[name] in hub.REPOSITORIES
    asked = {k: v for k, v in parameters.items() if k in diffusion_tta.Settings.__dataclass_fields__}
    assert all(f"{name}={name}" in sources for name in asked)
    settings = kit.map_settings(parameters["segmentor_name"], **asked)
    assert {name: getattr(settings, name) for name in asked} == asked
    assert (settings.optimizer, settings.lr, settings.adapt_denoiser) == ("adamw", 8e-5, False)  # as published
    assert parameters["target"] in kit.map_models or parameters["target"] == "depth"  # which is told to no public model


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem.startswith("06")], ids=lambda p: p.stem)
def test_presets_of_prompts_are_as_published(preset):
    """128 views to 102 to 30 and four steps of DiffTPT, one step of TPT; the notebook hands on what a preset says."""
    asked = check_parameters(find("06"), read_preset(preset))
    sources = "\n".join(rules.source(c) for c in rules.code_cells(rules.load(find("06"))))
    assert "dict(views=views - generated, generated=generated)" in sources
    kit = profiles.profile("imagenet")
    views = dict(views=asked["views"] - asked["generated"], generated=asked["generated"])
    theirs = kit.prompt_settings("difftpt", asked["clip_name"], asked["label_set"], rho_c=asked["rho_c"], **views)
    assert asdict(theirs) == asdict(difftpt.Settings(**difftpt.PUBLISHED))
    assert kit.prompt_settings("tpt", asked["clip_name"]) == tpt.Settings(**tpt.PUBLISHED)
    assert asked["clip_name"] in hub.REPOSITORIES
    drawn = kit._drawn(asked["generator"])
    assert (drawn.settings.steps, drawn.settings.guidance) == (50, 3.0)


def grids() -> list:
    """Each preset of notebook 02 with each set of parameters that its comment asks for."""
    cases = []
    for preset in (p for p in PRESETS if p.stem.startswith("02")):
        asked = re.search(r"param_set=(\S+)", preset.read_text(encoding="utf-8"))
        for name in asked[1].split(",") if asked else [read_preset(preset).get("param_set", "all")]:
            cases.append(pytest.param(preset, name, id=f"{preset.stem}-{name}"))
    return cases


@pytest.mark.parametrize("preset, param_set", grids())
def test_what_a_preset_adapts_does_move(preset, param_set, shipped):
    """A logit of each image moves by more than a thousandth: how far the weights go depends on optimiser, rate
    and number of updates, so few pairs are as good as many."""
    asked = {k: v for k, v in read_preset(preset).items() if k in diffusion_tta.Settings.__dataclass_fields__}
    settings = diffusion_tta.Settings(**asked | {"param_set": param_set, "pairs": 2, "adapt_denoiser": False})
    s = stream(SceneSpec(2, "gaussian_noise", 5))
    out = diffusion_tta.configure(shipped, settings).adapt(s.images, s.ids)
    moved = (out.logits - out.before).abs().max(1).values
    assert moved.min() > 1e-3
