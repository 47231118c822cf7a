"""The tables: disjoint scenes, no test corruption in a choice, keys that see every change, reports that pair."""

from dataclasses import asdict

import numpy as np
import pytest

from gentta_utils.common import cache
from gentta_utils.common.paths import RESULTS, ROOT
from gentta_utils.course import nb02, nb05, purified, trials
from gentta_utils.course import tables as course_tables
from gentta_utils.course.nb02 import choose as nb02_choose
from gentta_utils.course.nb02 import experiments, frontier, leave_one_out, one_by_one, report, rivals, seeds
from gentta_utils.course.nb05 import choose
from gentta_utils.course.nb05 import experiments as nb05_experiments
from gentta_utils.course.trials import CLASSIFIERS, job, source_jobs
from gentta_utils.evaluation import chosen as evaluation_chosen
from gentta_utils.evaluation import records, statistics
from gentta_utils.evaluation import rows as evaluation_rows
from gentta_utils.evaluation import tables as evaluation_tables
from gentta_utils.methods import METHODS, diffpure, diffusion_tta, sda, source
from gentta_utils.models import zoo
from gentta_utils.recipes import aligned
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world.scenes import scene_ids
from gentta_utils.world.severities import TEST, VALIDATION

# tables about the very same scenes, so that they can be paired
ONE_SET_OF_SCENES = [
    {"reading", "clean", "natural", "sda_clean", "information", "few_labels"},
    {
        f"sda_{k}"
        for k in ["corruptions", "watermark", "parts", "number", "cfg", "order", "faults", "steps", "controls", "sets"]
        + ["unmarked"]
    },
    {"test", "backbones", "information", "common_draws", "frontier", "seeds", "few_labels"},
    {"heldout", "trust", "common_draws"},
    {"online", "ablations", "rivals", "leave_one_out"},
    {"phase", "phase_output", "soft"},
    {"one_by_one", "streams"},
    {"select_one_by_one", "select_streams"},
    {"select_sda", "select_sda_wider"},
]


def sda_selection() -> dict:
    """As `measure select_sda` writes it, before it was run."""
    content = {"alignment": asdict(sda.Settings()), "diffpure": asdict(diffpure.Settings()), "entropy_scale": 0.3}
    content |= {"dda_ensemble": "calibrated 4", "sda_ensemble": "confidence"}
    return content | {"memo": dict.fromkeys(aligned.BACKBONES, 5e-3)}


@pytest.fixture(scope="module")
def tables():
    """Name -> the jobs of every table, none of them run."""
    found = {}

    def collect(name, jobs, **_):
        found[name] = list(jobs)
        return evaluation_tables.results(name) if name == "select" else []  # it looks at its runs

    with pytest.MonkeyPatch.context() as patch:  # undone when this fails, too
        of_02 = (rivals, one_by_one, frontier, seeds, leave_one_out, experiments, nb02_choose)
        for module in (trials, purified, *of_02, nb05_experiments, choose):
            patch.setattr(module, "table", collect, raising=False)
            patch.setattr(module, "write_json", lambda *a: None, raising=False)
            patch.setattr(module, "with_rate", lambda c, s, *a: diffusion_tta.Settings(lr=0.1, **s), raising=False)
        patch.setattr(nb02_choose, "best_window", lambda: (150, 600))
        for module in (rivals, frontier, nb05_experiments):
            patch.setattr(module, "rival", lambda row, c: METHODS[row.split(" ")[0]].Settings(lr=0.1))
        patch.setattr(nb05_experiments, "chosen", lambda c: (aligned.Data(), sda.published(c)))
        for module in (purified, nb05_experiments):
            patch.setattr(module, "selection", sda_selection)
        for module in (rivals, nb02_choose, seeds, leave_one_out, trials):
            tuned = lambda c, *a, **more: diffusion_tta.Settings(lr=0.1, **more)  # noqa: E731
            patch.setattr(module, "tuned", tuned, raising=False)
        patch.setattr(nb05.domain, "extend", list)  # of images, which are no jobs
        patch.setattr(nb05.unmarked, "carried", dict)
        patch.setattr(nb05.gap, "done", lambda name, jobs: [])
        for name, (measure, _) in (nb02.TABLES | nb05.TABLES).items():
            if name != "photographs":  # which has no scenes
                measure()
    return found


def ids(stream: dict) -> set[int]:
    return set(scene_ids(stream["n"], stream["split"], stream["start"]).tolist())


def test_choices_are_made_on_validation_corruptions_and_selection_scenes(tables):
    chosen_on = ("select", "why", "select_rivals", "select_one_by_one", "select_streams", "select_dit", "select_sda")
    chosen_on += ("select_leave_one_out", "select_sda_wider")
    for name in chosen_on:
        for about, _ in tables[name]:
            assert about["stream"]["split"] == "select"
            assert about["stream"]["shift"] in [*VALIDATION, "clean"]
    for name in set(tables) - set(chosen_on):
        assert {about["stream"]["split"] for about, _ in tables[name]} == {"test"}
    assert {about["stream"]["shift"] for about, _ in tables["test"]} == set(TEST)
    assert not {about["stream"]["shift"] for n in ("reading", "heldout", "clean") for about, _ in tables[n]} & set(TEST)


def test_every_shift_of_a_table_has_its_own_scenes_and_tables_do_not_share_any(tables):
    used = {}
    for name, jobs in tables.items():
        streams: dict[tuple, set] = {}
        for a in (a for a, _ in jobs if "parts" not in a["stream"]):  # a mixed stream is made of the others
            shift = a["stream"]["shift"].replace(", 8 draws", "")  # the same images, attacked with more draws
            streams.setdefault((shift, a["stream"]["severity"]), set()).update(ids(a["stream"]))
        assert sum(map(len, streams.values())) == len(set().union(*streams.values())), name
        used[name] = set().union(*streams.values())
    used["learning rate"] = set(nb02_choose.validation_images()[1].tolist())
    used["cards"] = ids({"n": 500, "split": "select", "start": 1000})
    names = list(used)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = used[one] & used[other]
            assert not shared or any({one, other} <= group for group in ONE_SET_OF_SCENES), (one, other)


def test_rows_are_named_once_and_settings_agree_with_the_label(tables):
    for name, jobs in tables.items():
        at = ("shift", "severity", "start", "seed")
        rows = [(a["label"], a["classifier"], *(a["stream"][key] for key in at)) for a, _ in jobs]
        assert len(set(rows)) == len(rows), name
    assert len({a["label"] for a, _ in tables["select"] if a["method"] == "diffusion_tta"}) == 10


def test_a_description_sees_every_change(monkeypatch):
    spec, settings = SceneSpec(4, "fog", 3), diffusion_tta.Settings(lr=0.1)
    base = job("diffusion_tta", settings, CLASSIFIERS[0], spec, "row")[0]
    keys = {cache.fingerprint(base)}
    others = [
        job("diffusion_tta", diffusion_tta.Settings(lr=0.2), CLASSIFIERS[0], spec, "row")[0],
        job("diffusion_tta", settings, CLASSIFIERS[1], spec, "row")[0],
        job("diffusion_tta", settings, CLASSIFIERS[0], SceneSpec(4, "fog", 4), "row")[0],
        job("diffusion_tta", settings, CLASSIFIERS[0], spec, "row", batch=7)[0],
        job("diffusion_tta", settings, CLASSIFIERS[0], spec, "row", denoiser="denoiser/dit-10min")[0],
    ]
    monkeypatch.setattr(zoo, "fingerprint", lambda name: "another")
    others.append(job("diffusion_tta", settings, CLASSIFIERS[0], spec, "row")[0])
    keys |= {cache.fingerprint(o) for o in others}
    monkeypatch.setattr(cache, "VERSION", 99)
    keys.add(cache.fingerprint(base))
    assert len(keys) == len(others) + 2


def test_two_jobs_of_one_description_are_refused(tmp_path):
    jobs = source_jobs([SceneSpec(2)])
    with pytest.raises(ValueError, match="same description"):
        evaluation_tables.table("t", jobs + jobs[:1], tmp_path, tmp_path)


def test_committed_tables_rest_on_the_shipped_models_and_chosen_settings():
    settled = dict.fromkeys(nb02.TABLES, evaluation_chosen.choice())
    settled |= dict.fromkeys(("text_test", "text_clean"), evaluation_chosen.text_choice())
    measured = {p.stem for p in RESULTS.glob("*.npz")}
    assert {"select", "reading", "heldout", "test", "clean", "why"} <= measured <= set(course_tables.TABLES)
    for name in measured - {"digits", "photographs"}:  # networks trained in seconds and shipped nowhere, or a package
        for r in evaluation_tables.results(name):
            roles = {"classifier": r.about["classifier"], "denoiser": r.about.get("denoiser", trials.DIT)}
            for role, fingerprint in r.about["models"].items():
                assert zoo.fingerprint(roles[role]) == fingerprint, name
            if r.about["label"] in ("diffusion_tta/full", "diffusion_tta/low") and name in settled:
                view = r.about["label"].split("/")[1]
                assert r.about["settings"] == settled[name]["settings"][view][r.about["classifier"]]
    # with the long streams, costs by method and windows of t
    assert sum(p.stat().st_size for p in RESULTS.iterdir()) < 16e6


def test_the_readme_says_what_the_records_say():
    """Beside the tables, which `test_readme` holds to their script."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        f"{evaluation_chosen.selection()['alignment']['steps']} evaluations of an unconditional diffusion model" in text
    )
    reader = [r for r in evaluation_tables.results("test") if r.about["method"] == "diffusion_classifier"]
    assert f"stands at {evaluation_rows.accuracy(reader):.1f}" in text
    assert str(statistics.gain(evaluation_rows.pick(evaluation_tables.results("clean"), "diffusion_tta/full"))) in text


def test_changed_models_make_the_chosen_settings_void(monkeypatch):
    monkeypatch.setattr(zoo, "fingerprint", lambda name: "another")
    with pytest.raises(ValueError, match="were chosen for another"):
        evaluation_chosen.tuned("classifier/resnet")


def record(label, after, before=None, shift="fog", start=0, classifier="classifier/resnet", method="diffusion_tta"):
    n = len(after)
    logits = lambda rights: np.stack([1.0 - np.array(rights), np.array(rights, float)], 1)  # noqa: E731
    return records.Records(
        id=np.arange(start, start + n),
        label=np.ones(n, int),
        before=logits(after if before is None else before),
        after=logits(after),
        loss=np.zeros((n, 0)),
        seconds=np.full(n, 0.5),
        nfe={"denoiser fwd": 10.0},
        about={
            "label": label,
            "method": method,
            "classifier": classifier,
            "settings": {"seed": 0},
            "stream": {"shift": shift, "severity": 5, "split": "test"},
            "protocol": {"order": "iid", "reset": "per_image", "predict": "after", "batch": n, "device": "cpu"},
            "select": statistics.ON_VALIDATION,
        },
    )


def test_versus_pairs_scenes_and_refuses_what_cannot_be_paired():
    a = [record("a", [1, 1, 0, 1]), record("a", [1, 1, 1, 1], shift="snow", start=4)]
    b = [record("b", [0, 1, 0, 1], shift="snow", start=4), record("b", [1, 0, 0, 1])]
    assert evaluation_rows.versus(a, b).mean == pytest.approx(100 * (7 - 4) / 8)
    with pytest.raises(ValueError, match="cannot be paired"):
        evaluation_rows.versus(a, b[:1])
    with pytest.raises(ValueError, match="cannot be paired"):
        evaluation_rows.versus(a + a[:1], b)


def test_effect_counts_fixed_and_broken_and_scenes_once():
    runs = []
    for c in CLASSIFIERS:
        runs += [record(f"source/{v}", [0, 1, 1, 0], classifier=c, method="source") for v in ("full", "low")]
        runs += [record(f"diffusion_tta/{v}", [1, 1, 0, 1], [0, 1, 1, 0], classifier=c) for v in ("full", "low")]
    text = report.effect(runs)
    assert " n=4 " in text
    assert "2/1" in text
    assert "Gain over both classifiers, full view: +25.0" in text
    summary = statistics.summary(evaluation_rows.pick(runs, "diffusion_tta/full"))
    assert (summary["fixed"], summary["broken"], summary["n"]) == (4, 2, 8)


def test_source_needs_no_choice():
    about = job("source", source.Settings(), CLASSIFIERS[0], SceneSpec(2), "source/full", denoiser=None)[0]
    assert about["select"] == "none"
    assert "denoiser" not in about["models"]


@pytest.mark.parametrize("name", course_tables.TABLES)
def test_committed_tables_can_be_reported(name):
    text = course_tables.report(name)
    below = name in ("grid", "grid_streams", "unseen")  # there it says something of all rows
    of_streams = ("online", "select_one_by_one", "one_by_one", "select_streams", "streams", "prompt_order")
    of_streams += ("sda_order", "sda_batches")
    line = "protocol: stream=" + "iid reset=per_image" * (not below and name not in (*of_streams, "select_grid"))
    assert f"\n{line}" in text if below else text.startswith(line)
    assert "nan" not in text
