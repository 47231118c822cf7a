"""Other projections and training sets of notebook 05: what each changes, what a row subtracts, guided training sets."""

from dataclasses import replace

import pytest
import torch
from test_experiments_05 import ALIGNED, SET, SPEC, TUNED, models  # noqa: F401
from test_report_05 import RESNET, SWIN, record, rights

from gentta_utils.course import recheck
from gentta_utils.course.nb05 import controls, gap_report
from gentta_utils.course.purified import input_job
from gentta_utils.methods import dda
from gentta_utils.methods.purifier import what_changes
from gentta_utils.recipes import aligned


def test_a_projection_changes_what_its_name_says():
    found = {name: what_changes(d.alignment) for name, d in controls.projections().items()}
    base = found["dda"]
    changed = {name: {k for k, v in how.items() if base.get(k) != v} for name, how in found.items()}
    assert changed["no guidance"] == {"scale"}
    assert changed["diffpure, t 149"] == {"scale", "start", "steps"}
    assert (found["diffpure, t 149"]["start"], found["diffpure, t 149"]["scale"]) == (149, 0.0)
    assert changed["gda-like"] == {"entropy_scale"}
    assert changed["one norm for 10"] == changed["one norm for 5"] == {"norm", "scale", "images_at_once"}
    assert set(controls.SEEDS_OF) <= set(found)
    for n in (10, 5):
        how = found[f"one norm for {n}"]
        assert (how["norm"], how["scale"], how["images_at_once"]) == ("batch", 2 * base["scale"], n)


def test_its_scenes_are_of_no_other_table():
    taken = [i for spec in controls.control_specs() for i in range(spec.start, spec.start + spec.n)]
    assert len(set(taken)) == len(taken) == 150
    assert (min(taken), max(taken)) == (35_200, 35_349)


def test_rows_subtract_what_their_columns_say():
    percent = {"source/full": 40, "source/low": 45, "dda, dda, alone": 60, "dda, dda, sum": 50}
    percent |= {"gda-like, dda, alone": 62, "gda-like, sda, alone, seed 0": 65, "gda-like, dda, sum": 51}
    percent |= {f"{controls.OTHER}, sda, alone, seed 0": 55, "one norm for 5, dda, alone": 58}
    names = [name for name in controls.projections() if f"{name}, dda, alone" not in percent]
    percent |= {f"{name}, dda, alone": 50 for name in names}
    runs = [record(label, rights(v), "fog", c) for label, v in percent.items() for c in (RESNET, SWIN)]
    rows = {r["projection"]: r for r in controls.rows_of(runs)}
    gda = {k: v.mean if hasattr(v, "mean") else v for k, v in rows["gda-like"].items()}
    assert gda == {
        "projection": "gda-like", "classifier": "all", "alone": 62, "alone, minus source": 22,
        "alone, minus low view": pytest.approx(17), "alone, minus DDA": pytest.approx(2),
        "sum, minus source": pytest.approx(11), "SDA adds, alone": pytest.approx(3), "SDA adds, sum": None,
    }  # fmt: skip
    assert rows["dda"]["alone, minus DDA"] is None
    assert rows[controls.OTHER]["SDA adds, alone"].mean == pytest.approx(-3)
    assert rows[controls.OTHER]["alone, minus source"] is None
    assert "| swin" in controls.report(runs)


def test_training_sets_stand_beside_dda_in_both_readings():
    percent = {"source/full": 40, "dda, alone": 60, "dda, sum": 50, "30 a class, alone": 64, "30 a class, sum": 51}
    percent |= {"30 a class, agreed, alone": 84, "30 a class, agreed, sum": 51}
    runs = [record(label, rights(v), shift) for label, v in percent.items() for shift in ("fog", "watermark")]
    row = next(r for r in controls.set_rows(runs) if (r["scenes"], r["set"]) == ("watermark", "30 a class"))
    assert (row["alone, minus DDA"].mean, row["sum, minus DDA"].mean) == (pytest.approx(4), pytest.approx(1))
    assert "watermark: the filter, projected image alone: +20.0 [" in controls.set_report(runs)


def test_rows_are_compared_on_the_scenes_that_both_met():
    """More scenes were added for some rows: what only one of two rows met counts for neither."""
    one, other = record("t 300, sda, alone, seed 0", rights(70)), record("source/full", rights(60))
    more = record("source/full", rights(0), "snow")
    for r, start in ((one, 0), (other, 0), (more, 1000)):
        r.about["stream"]["start"] = start
    assert gap_report.apart([one, other, more], "t 300, sda, alone", "source/full").mean == pytest.approx(10)
    assert gap_report.shared([one], [other, more]) == [[one], [other]]


def test_a_guided_training_set_is_guided_by_its_source(models):  # noqa: F811
    how = replace(ALIGNED, entropy_scale=0.1, entropy_views=1)
    data, source = replace(SET, alignment=how), models["classifier/resnet"]
    source.name = "classifier/resnet"
    images, _ = aligned.images_of(data, source)
    raw = aligned.raw_images(data)
    expected = dda.align(models[aligned.ALIGNER], raw.images, -1 - raw.ids, how, source)
    torch.testing.assert_close(images, expected)
    assert not torch.equal(images, aligned.images_of(SET)[0])
    with pytest.raises(ValueError, match="entropy_scale"):
        aligned.align_images(data, raw.images)


def test_a_copy_may_meet_another_alignment_where_that_is_asked(models):  # noqa: F811
    other = replace(ALIGNED, start=200)
    with pytest.raises(ValueError, match="another alignment"):
        input_job("sda", other, "classifier/resnet", SPEC, "sda", TUNED)[1]()
    about, work = input_job("sda", other, "classifier/resnet", SPEC, "sda", TUNED, elsewhere=True)
    r = work()
    assert len(r) == 4
    assert about["elsewhere"]
    assert recheck.obstacle(r)[0] == "sda"
    again = input_job("sda", ALIGNED, "classifier/resnet", SPEC, "sda", TUNED)[1]()  # the kept copy is as it was
    assert len(again) == 4
