"""Notebook 07's plan: the same scenes for all rows, records of other notebooks where they are of these scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from gentta_utils.common.cache import ImageSet, fingerprint
from gentta_utils.course import purified as purifying
from gentta_utils.course import trials
from gentta_utils.course.nb05 import gap
from gentta_utils.course.nb07 import board, choose, experiments, plan
from gentta_utils.evaluation.tables import missing_jobs
from gentta_utils.methods import METHODS
from gentta_utils.methods.base import source_logits
from gentta_utils.recipes.aligned import describe
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world.severities import TEST, VALIDATION


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """Settings for the CLIP, whether or not `select_grid` was run."""
    found = {m: next(iter(of.values())) for m, of in choose.options().items()}
    monkeypatch.setattr(choose, "clip_rival", lambda m, clip: found.get(m) or METHODS[m].Settings())


def scenes(about: dict) -> list[int]:
    parts = about["stream"].get("parts", [about["stream"]])
    return [i for s in parts for i in range(s["start"], s["start"] + s["n"])]


def test_all_rows_meet_the_first_scenes_of_one_stream():
    for shift in ("fog", "v2", "watermark"):
        whole = [i for s in plan.consecutive(shift, (40, 60)) for i in range(s.start, s.start + s.n)]
        for row in plan.plan():
            for block in row.networks:
                sizes = row.sizes(block, shift)
                met = [i for about, _ in plan.jobs_of(row, block, shift, sizes) for i in scenes(about)] if sizes else []
                assert met == whole[: sum(sizes)], (row.row, shift)
    with pytest.raises(ValueError, match="parts that end at 40"):
        plan.consecutive("fog", (30, 30))


def test_records_of_other_notebooks_are_found_again():
    """Source, low view, reader and Diffusion-TTA of notebook 02 need not be run once more."""
    known = {"source/full", "source/low", "diffusion_tta/full", "diffusion_tta/low", "reader/48 pairs/150..600"}
    rows = [row for row in plan.plan() if row.label in known]
    jobs = [
        j for row in rows for b in row.networks if b in ("resnet", "vit") for j in plan.jobs_of(row, b, "fog", row.grid)
    ]
    assert len(jobs) >= 16
    assert missing_jobs(jobs) == []
    fresh = [(about | {"label": "another"}, work) for about, work in jobs[:1]]
    assert len(missing_jobs(fresh)) == 1


def test_no_test_scene_was_chosen_on_and_no_row_twice():
    jobs = [*plan.grid_jobs(), *plan.unseen_jobs()]
    for about, _ in jobs:
        for s in about["stream"].get("parts", [about["stream"]]):
            assert (s["split"], s["shift"] in VALIDATION) == ("test", False)
    assert len({fingerprint(about) for about, _ in plan.grid_jobs()}) == len(plan.grid_jobs())
    names = [(row.label, model) for row in plan.plan() for model in set(row.networks.values())]
    assert len(set(names)) == len(names)  # the records tell rows apart


def test_how_a_row_is_met_does_not_depend_on_the_rows_before_it():
    alone = {(row.row, m): dict(plan.met(row, m)) for row in plan.plan()[::-1] for m in row.networks.values()}
    assert alone == {(row.row, m): plan.met(row, m) for row in plan.plan() for m in row.networks.values()}
    assert dict(reset="per_shift", batch=10) == trials.ONLINE
    assert {how["batch"] for how in alone.values() if how.get("reset") == "per_shift"} == {50}


def test_a_row_on_changed_images_says_by_what():
    (row,) = (r for r in plan.plan() if r.row == "DDA, then TENT")
    ((about, _),) = plan.jobs_of(row, "vit", "fog", (40,))
    assert about["purified"]["by"] == "dda"
    assert "classifier/vit" in about["purified"]["source"]
    plain = trials.method_job(
        "tent", plan.settings_of(row, "classifier/vit"), "classifier/vit", plan.spec_of("fog", 0, 40), "x"
    )
    assert fingerprint(about | {"label": "x"}) != fingerprint(plain[0])


def test_changed_images_come_from_the_parts_that_hold_them(monkeypatch):
    """A row on purified scenes may be extended: each image is its own, whatever part it was kept in."""
    (row,) = (r for r in plan.plan() if r.row == "DDA, then TENT")
    row, made = replace(row, grid=(3,), changed_by=replace(row.changed_by, grid=(2, 2, 2))), []

    def purified(method, settings, spec):
        made.append(spec.n)
        s = spec.load()
        return ImageSet(s.ids, s.images.flip(-1), float(len(made)), {"denoiser fwd": 2.0})

    monkeypatch.setattr(purifying, "purified", purified)
    ((_, work),) = plan.jobs_of(row, "resnet", "fog", (3,))
    r, s = work(), plan.spec_of("fog", 0, 3).load()
    assert made == [2, 2]  # the third part is not needed
    assert r.id.tolist() == s.ids.tolist()
    assert r.nfe["denoiser fwd"] == pytest.approx(2.0)
    assert r.seconds.mean() > (2 * 1 + 1 * 2) / 3
    tent = METHODS["tent"].configure(trials.models("classifier/resnet"), plan.settings_of(row, "classifier/resnet"))
    np.testing.assert_allclose(r.after, tent.adapt(s.images.flip(-1), s.ids).logits.numpy(), atol=1e-3)
    made.clear()
    ((about, work),) = plan.jobs_of(row, "clip", "fog", (2, 2))  # one stream, and of a CLIP
    r, s = work(), plan.spec_of("fog", 0, 4).load()
    assert (made, r.id.tolist()) == ([2, 2], s.ids.tolist())
    assert (about["stream"]["n"], about["text"]["labels"]) == (4, "category")
    clip = trials.models("clip/large", None, wording=plan.CATEGORIES)
    tent = METHODS["tent"].configure(clip, plan.settings_of(row, "clip/large"))
    np.testing.assert_allclose(r.after, tent.adapt(s.images.flip(-1), s.ids).logits.numpy(), atol=1e-2)
    np.testing.assert_allclose(r.before, source_logits(clip, s.images).numpy(), atol=1e-3)


def test_a_row_from_the_papers_start_has_a_classifier_of_its_own():
    """It reads images projected from t 494, by a network that was fine-tuned on such: that of notebook 05's dial."""
    (row,) = (r for r in plan.plan() if r.row == "SDA, the paper's start")
    (about, _), dial = plan.jobs_of(row, "vit", "fog", (10,))[0], gap.dials()[f"t {plan.PAPER_START}"]
    assert about["settings"]["start"] == about["aligned"]["data"]["alignment"]["start"] == plan.PAPER_START
    assert about["aligned"] == describe("classifier/vit", gap.set_at(dial), gap.how_at("classifier/vit"))
    usual = next(r for r in plan.plan() if r.row == "SDA")
    assert plan.jobs_of(usual, "vit", "fog", (10,))[0][0]["aligned"] != about["aligned"]


def test_streams_may_be_longer_for_some_classifiers():
    row = next(r for r in plan.plan() if r.row == "TENT")
    short = replace(row, stream={"resnet": 7})
    assert [short.stream_for(m) for m in row.networks.values()] == [7, 0, 0]
    assert replace(row, stream=3).stream_for("classifier/vit") == 3
    sizes = {about["stream"]["n"] for about, _ in experiments.stream_jobs(short, "classifier/resnet")}
    assert sizes >= {7, 5 * 7}  # alone and mixed


def test_costs_of_rows_are_those_of_the_plan(monkeypatch):
    """What was measured of a row alone, with fast bf16, is of the settings and networks that it has today."""
    monkeypatch.undo()  # the settings that were chosen
    monkeypatch.setattr(
        trials, "precision_on", lambda device, precision="auto": "bf16" if precision == "auto" else precision
    )
    jobs = {(b, row.row): plan.small_job(row, b)[0] for row in plan.plan() for b in row.networks}
    assert board.row_costs()["resnet"]
    for block, rows in board.row_costs().items():
        for row, cost in rows.items():
            assert cost["seconds"] > 0
            assert cost["job"] == fingerprint(jobs[block, row]), f"run `python bench/rows.py {block}`"


def test_the_estimate_counts_changed_images_once():
    """DDA and SDA read the same images, and so do all classifiers; those from another start are others."""
    rows = [row for row in plan.plan() if row.row in ("DDA", "DDA, projected alone", "SDA", "SDA, the paper's start")]
    left = [replace(row, grid=(10,)) for row in rows]
    found = [about for row in left for b in row.networks for about, _ in plan.jobs_of(row, b, "fog", row.grid)]
    (alone,) = {row.seconds for row in rows}
    assert len(found) == 10
    assert experiments.expected(found) == pytest.approx(10 * (experiments.RENDERED + 2 * alone + 8 * experiments.READ))
    other = [about | {"stream": about["stream"] | {"start": 0}} for about in found[:1]]
    assert experiments.expected(found + other) - experiments.expected(found) == pytest.approx(
        10 * (alone + experiments.RENDERED)
    )


def test_a_line_of_the_plan_that_is_wrong_is_named(monkeypatch, tmp_path):
    good = yaml.safe_load(plan.GRID.read_text(encoding="utf-8"))
    for line, said in (
        ({"row": "x", "method": "nothing"}, "unknown method 'nothing'"),
        ({"row": "x", "method": "tent", "networks": ["resnet", "vgg"]}, "unknown network 'vgg'"),
        ({"row": "x", "method": "tent", "after": "y"}, "unknown row 'y'"),
        ({"row": "x", "method": "tent", "scenes": 3}, "row 'x'.*scenes"),
    ):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**good, "rows": [*good["rows"], line]}), encoding="utf-8")
        monkeypatch.setattr(plan, "GRID", path)
        with pytest.raises(ValueError, match=said):
            plan.plan.__wrapped__()


def test_streams_hold_what_their_order_says():
    for order in experiments.ORDERS:
        for spec in experiments.specs_of(order, 10):
            s = trials.ordered(spec if order != "continual" else spec[:2], order, 1)
            assert s.order == order or order == "iid"
            assert len(set(s.ids.tolist())) == len(s)
    first, other = (trials.ordered(experiments.specs_of("iid", 10)[0], "iid", seed).ids.tolist() for seed in (0, 1))
    assert sorted(first) == sorted(other) != first != other


def test_the_state_of_a_stream_reaches_the_clean_scenes_after_it(monkeypatch):
    """TENT after the 15 corruptions answers otherwise than TENT from the source."""
    monkeypatch.setattr(experiments, "TEST", TEST[:2])
    row = replace(next(r for r in plan.plan() if r.row == "TENT"), stream=10)
    about, work = experiments.clean_after_job(row, "classifier/resnet")
    after = work()
    clean = SceneSpec(100, split="test", start=experiments.CLEAN)
    _, fresh = plan.row_job(row, "classifier/resnet", clean, "x", reset="per_shift", order_seed=0)
    plain = fresh()
    assert after.id.tolist() == plain.id.tolist()
    np.testing.assert_allclose(after.before, plain.before, atol=1e-3)
    assert not np.allclose(after.after, plain.after, atol=1e-3)
    assert about["how"]["reset"] == "never"


def test_noise_is_rough():
    noise, clean = (
        experiments.rough_job(SceneSpec(4, *shift, "test", 10))[1]().loss.mean()
        for shift in (("gaussian_noise", 5), ("gaussian_blur", 5))
    )
    assert noise > 2 * clean > 0


def test_continual_shuffles_the_shifts_by_the_seed():
    specs = tuple(SceneSpec(1, shift, 5, "test", 10 * i) for i, shift in enumerate(TEST[:5]))
    found = [trials.ordered(specs, "continual", seed).ids.tolist() for seed in (None, 0, 1)]
    assert len({tuple(ids) for ids in found}) == 3
    assert len({tuple(sorted(ids)) for ids in found}) == 1
    assert torch.equal(torch.tensor(found[0]), torch.cat([s.load().ids for s in specs]))
