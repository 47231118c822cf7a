"""Notebook 03's tables: disjoint scenes, no test corruption in a choice, equal evaluations, records that say all."""

from dataclasses import replace

import numpy as np
import pytest

from gentta_utils.common.cache import fingerprint
from gentta_utils.course import nb03, trials
from gentta_utils.course.nb03 import choose, composition, experiments
from gentta_utils.course.recheck import again
from gentta_utils.course.trials import Wording
from gentta_utils.evaluation import chosen, evaluate
from gentta_utils.evaluation import tables as evaluation_tables
from gentta_utils.evaluation.records import Records
from gentta_utils.methods import METHODS, diffusion_tta, source, tent
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world.scenes import scene_ids
from gentta_utils.world.severities import TEST, VALIDATION

GRID = {"text_k13", "text_rank", "text_topk", "text_batch", "text_information"}  # compared on the very same scenes


def choice() -> dict:
    """As `measure select_text` writes it."""
    values, delta = choose.candidate("start")
    settings = diffusion_tta.Settings(lr=0.1, **values)
    kinds = {clip: {kind: {"denoiser_lr": 0.1} for kind in choose.KINDS} for clip in choose.CLIPS}
    return {
        "candidate": dict.fromkeys(choose.CLIPS, "start"),
        "deltas": {clip: dict.fromkeys(choose.KINDS, delta) for clip in choose.CLIPS},
        "window": [150, 850],
        "kinds": kinds,
        "settings": settings,
    }


@pytest.fixture(scope="module")
def tables():
    """Name -> the jobs of every table, none of them run."""
    found = {}

    def collect(name, jobs, **_):
        found[name] = list(jobs)
        return evaluation_tables.results(name) if name == "select_text" else []  # it looks at its runs

    patch = pytest.MonkeyPatch()
    rate = lambda clip, values, delta, *a: diffusion_tta.Settings(lr=0.1, **values)  # noqa: E731
    for module in (choose, experiments, composition):
        patch.setattr(module, "table", collect)
        patch.setattr(module, "with_rate", rate, raising=False)
    patch.setattr(choose, "write_json", lambda *a: None)
    patch.setattr(choose, "best_window", lambda: (150, 850))
    patch.setattr(experiments, "text_choice", choice)
    patch.setattr(experiments, "tuned_text", lambda clip, view: replace(choice()["settings"], view=view))
    reader = choose.reader_of(0.1, choose.START)
    patch.setattr(experiments, "text_rival", lambda clip, row: tent.Settings() if row == "tent" else reader)
    patch.setattr(composition, "by_rule", lambda clip, delta, **values: diffusion_tta.Settings(lr=0.1, **values))
    try:
        for measure, _ in nb03.TABLES.values():
            measure()
    finally:
        patch.undo()
    return found


def test_choices_are_made_on_validation_corruptions_and_selection_scenes(tables):
    for about, _ in tables["select_text"]:
        assert about["stream"]["split"] == "select"
        assert about["stream"]["shift"] in (*VALIDATION, "clean")
    for name in set(tables) - {"select_text"}:
        assert {about["stream"]["split"] for about, _ in tables[name]} == {"test"}
        assert not {about["stream"]["shift"] for about, _ in tables[name]} & set(VALIDATION)
    assert {about["stream"]["shift"] for about, _ in tables["text_test"]} == set(TEST)


def test_tables_do_not_share_scenes_and_each_shift_has_its_own(tables):
    used = {}
    for name in set(tables) - {"select_text", "winoground"}:  # pairs of scenes have ids of their own
        streams: dict[str, set] = {}
        for a, _ in tables[name]:
            ids = scene_ids(a["stream"]["n"], a["stream"]["split"], a["stream"]["start"])
            streams.setdefault(a["stream"]["shift"], set()).update(ids.tolist())
        assert sum(map(len, streams.values())) == len(set().union(*streams.values())), name
        used[name] = set().union(*streams.values())
        assert min(used[name]) >= 50_000  # those below are of other notebooks
    for one in used:
        for other in set(used) - {one}:
            assert not used[one] & used[other] or {one, other} <= GRID, (one, other)


def test_rows_are_named_once(tables):
    for name in set(tables) - {"winoground"}:
        at = ("shift", "severity", "start", "labels")
        rows = [(a["label"], a["classifier"], *(a["stream"].get(key) for key in at)) for a, _ in tables[name]]
        assert len(set(rows)) == len(rows), name


def test_what_is_compared_costs_the_same(tables):
    """A forward evaluation counts as a third of one with backward."""

    def spent(settings: dict) -> float:
        reading = 8 * settings.get("wording_pairs", 4) / 3 if settings.get("wording", "drawn") != "drawn" else 0
        return settings["updates"] * settings["pairs"] + reading

    for name in ("select_text", "text_k13", "text_rank", "text_topk"):
        costs = {spent(a["settings"]) for a, _ in tables[name] if a["method"] == "diffusion_tta"}
        assert max(costs) <= 48.01, name
        assert min(costs) > 42, name
    for evaluations, stages in choose.STAGES.items():
        from gentta_utils.methods.diffusion_classifier import staged_cost

        pairs, keep = zip(*stages, strict=True)
        assert staged_cost(pairs, keep, pairs[-1], 10) == evaluations


def test_a_candidate_is_chosen_for_each_clip_and_clean_scenes_decide_among_equals():
    """Of those that the corruptions do not tell from the best: the one that surely keeps most clean scenes."""
    names = list(choose.CANDIDATES)

    def runs(clip: str, rights: dict[str, tuple[int, int]]) -> list[Records]:
        """Of 100 scenes each, all right before, so many clean and shifted ones right after."""
        made = []
        for name, (clean, shifted) in rights.items():
            for shift, right in (("clean", clean), ("fog", shifted)):
                after = np.zeros((100, 2), np.float32)
                after[np.arange(100), (np.arange(100) >= right).astype(int)] = 1
                about = {"label": f"{name}/full", "classifier": clip, "stream": {"shift": shift, "severity": 5}}
                zeros, ids = np.zeros(100, int), np.arange(100)
                before = np.tile(np.array([[1.0, 0.0]], np.float32), (100, 1))
                made.append(Records(ids, zeros, before, after, np.zeros((100, 1)), np.zeros(100), {}, about))
        return made

    a, b = choose.CLIPS
    level = dict(zip(names, ((90, 81), (97, 80), (97, 80), (100, 60)), strict=True))
    assert choose.best_candidate(runs(a, level), a) == names[1]  # the best is not told from it; the last one is
    first = dict(zip(names, ((97, 80), (97, 80), (97, 80), (97, 80)), strict=True))
    assert choose.best_candidate(runs(a, first), a) == names[0]
    assert choose.best_candidate(runs(a, first) + runs(b, level), b) == names[1]  # each CLIP by its own scenes


def test_prompts_change_what_the_text_model_is_told_and_one_prompt_is_clips():
    one, templates, floors = (Wording(prompts=name) for name in ("one", "templates", "floors"))
    assert floors.templates[0] == "a photo of a {} on a red floor."
    assert len(floors.templates) == 8
    assert templates.templates[0] == one.templates[0]
    for wrong in ({"prompts": "many"}, {"labels": "taste"}):
        with pytest.raises(ValueError, match="choose one of"):
            Wording(**wrong)


def test_a_description_sees_the_prompts():
    spec, how = SceneSpec(2, "fog", 3), diffusion_tta.Settings(lr=0.1)
    wordings = (Wording(), Wording("colour"), Wording(prompts="templates"))
    keys = {fingerprint(choose.text_job("diffusion_tta", how, "clip/small", spec, "row", w)[0]) for w in wordings}
    assert len(keys) == 3


def test_a_record_of_the_text_half_is_made_again(tmp_path):
    """A zero-shot classifier under a label set and prompts comes back from what its record says."""
    _, work = choose.source_job("clip/small", SceneSpec(3, "fog", 5, labels="colour"), wording=Wording("colour"))
    r = work()
    assert r.after.shape == (3, 8)
    stream, _, after = again(r, range(1, 3))
    assert stream.labels.tolist() == r.label[1:].tolist()
    assert abs(after - r.after[1:]).max() < 1e-3


def test_chosen_settings_come_back_as_they_were():
    for clip in choose.CLIPS:
        for view in ("full", "low"):
            assert chosen.tuned_text(clip, view).view == view
        assert chosen.tuned_text(clip, kind="clip_norm").param_set == "norm"
        assert chosen.tuned_text(clip, kind=choose.DEFAULT) == chosen.tuned_text(clip)
        assert isinstance(chosen.text_rival(clip, "tent"), tent.Settings)
    assert chosen.text_rival("clip/small", "sd_lora").reader.stages == choose.STAGES[48]
    assert chosen.tuned_text("clip/small", seed=3).seed == 3


def test_a_source_row_has_no_denoiser_and_templates_are_averaged():
    about, work = choose.source_job("clip/small", SceneSpec(2), wording=Wording(prompts="templates"))
    assert "denoiser" not in about["models"]
    assert about["label"] == "source/templates"
    plain = evaluate.run(
        METHODS["source"].configure(trials.models("clip/small", None, wording=Wording()), source.Settings()),
        SceneSpec(2).load(),
    )
    assert abs(work().after - plain.after).max() > 1e-3
