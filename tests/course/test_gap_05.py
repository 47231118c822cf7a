"""The gap as a dial: its settings, what its rows stand on, the slope and its null on records made by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest
from test_report_05 import RESNET, SWIN, record, rights

from gentta_utils.course import plots
from gentta_utils.course.nb05 import figures, gap, gap_report
from gentta_utils.evaluation import tables
from gentta_utils.evaluation.statistics import Interval
from gentta_utils.methods.purifier import what_changes
from gentta_utils.models import zoo
from gentta_utils.recipes.aligned import ALIGNER, GENERATOR

SETTINGS = ("t 300", "t 494", "t 600", "t 700")


def test_the_dial_changes_one_thing_at_a_time():
    dials = gap.dials()
    base = what_changes(dials["t 300"].alignment)
    for name, dial in dials.items():
        changed = {k for k, v in what_changes(dial.alignment).items() if base.get(k) != v}
        if name == "t 700, cut":
            assert changed == {"start", "longest"}
        elif dial.kind == "A":
            assert changed == ({"start"} if name != "t 300" else set())
            assert dial.aligner == ALIGNER
        elif dial.kind == "B":
            assert changed == {"start"}
            assert dial.aligner == f"{ALIGNER}-{name.removesuffix(' steps')}"
        else:
            assert changed <= {"start", "scale"}
            assert (dial.kind, dial.aligner, dial.alignment.scale) == ("control", GENERATOR, 0.0)
    assert [d.alignment.start for d in dials.values() if d.kind == "A"] == [300, 494, 550, 600, 650, 700, 700]


def list_dial_b(monkeypatch, *steps):
    """Only these snapshots stand in the list of models; none has weights here."""
    named = [name for name in zoo.shipped() if not name.startswith(f"{ALIGNER}-")]
    monkeypatch.setattr(zoo, "names", lambda: [*named, *(f"{ALIGNER}-{k}" for k in steps)])


def test_models_of_dial_b_take_part_once_they_are_listed(monkeypatch):
    list_dial_b(monkeypatch)
    assert not [d for d in gap.dials().values() if d.kind == "B"]
    list_dial_b(monkeypatch, 2000)
    (dial,) = (d for d in gap.dials().values() if d.kind == "B")
    assert (dial.aligner, dial.alignment.start) == (f"{ALIGNER}-2000", 494)
    assert {f"{ALIGNER}-{k}" for k in gap.SNAPSHOTS} <= set(zoo.ON_DEMAND)


def test_what_decides_the_next_jobs_writes_no_table(tmp_path):
    """A table that was written with the first jobs would forget the records of the others."""
    jobs = [({"method": "source", "n": i}, lambda i=i: replace(record("x", [i]), about={"method": "source", "n": i}))
            for i in range(2)]  # fmt: skip
    paths = dict(folder=tmp_path, cache=tmp_path / "runs")
    tables.table("t", jobs, **paths)
    for kept in (tmp_path / "runs").iterdir():
        kept.unlink()
    assert len(tables.done("t", jobs[:1], **paths)) == 1
    assert not tables.missing_jobs(jobs, **paths)
    assert not list((tmp_path / "runs").iterdir())


def test_training_sets_differ_in_what_their_name_says_and_get_as_many_updates():
    dial = gap.dials()["t 494"]
    sets = {row: gap.set_at(dial, **changes) for row, changes in (gap.SETS | gap.MORE).items()}
    assert {s.per_class for s in sets.values()} == {gap.PER_CLASS}
    assert all(s.alignment == dial.alignment for s in sets.values())
    kinds = {"sda": "synthetic", "own scenes": "own", "unaligned": "synthetic", "real": "real"}
    assert {k: s.kind for k, s in sets.items()} == kinds | {"read labels": "synthetic"}
    assert [k for k, s in sets.items() if not s.aligned] == ["unaligned"]
    assert [k for k, s in sets.items() if s.labels == "source"] == ["read labels"]
    for c in gap.NETWORKS:
        how = gap.how_at(c, 2)
        assert (how.updates, how.batch, how.frozen_norm, how.seed) == (gap.UPDATES, gap.BATCH, True, 2)


def test_a_seed_moves_the_images_and_the_fine_tuning():
    dial = gap.dials()["t 494"]
    parts = [gap.set_at(dial, seed) for seed in gap.SEEDS]
    assert [(p.first, p.per_class) for p in parts] == [(0, 10), (10, 10), (20, 10)]
    about = [j[0]["aligned"] for seed in gap.SEEDS for j in gap.tuned_jobs("t 494", dial, gap.gap_specs()[:1], seed)]
    assert {(a["data"].get("first", 0), a["fine_tune"]["seed"]) for a in about} == {(0, 0), (10, 1), (20, 2)}


def test_its_scenes_are_of_no_other_table():
    taken = {i for spec in gap.gap_specs() + gap.more_specs() for i in range(spec.start, spec.start + spec.n)}
    assert len(taken) == 2 * (60 + 4 * 15)
    assert min(taken) >= 33_000
    assert max(taken) < 34_600


def runs_of(recover: dict, gain: dict, source=80, gap_of=20, networks=(RESNET, SWIN)):
    """Records in which, of 100 scenes each, every setting loses `gap_of`, has so much to recover, and gains so much:
    with the second of two seeds two scenes more than with the first, so that it is their mean."""
    runs = []
    for c in networks:
        for shift in ("clean", "fog"):
            runs.append(record(gap_report.SOURCE, rights(source), shift, c))
            runs.append(record("diffpure, t 149", rights(source - 5), shift, c))
            for name in recover:
                lost = source - gap_of
                runs += [record(f"{name}, dda, {how}", rights(lost), shift, c) for how in ("alone", "sum")]
                rows = {
                    "sda, alone": lost + gain[name],
                    "sda, sum": lost + gain[name],
                    "own scenes, alone": lost + recover[name],
                }
                runs += [
                    record(f"{name}, {row}, seed {s}", rights(k + by), shift, c)
                    for row, k in rows.items()
                    for s, by in ((0, -1), (1, 1))
                ]
                once = {
                    "real, alone": lost + 4,
                    "unaligned, alone": lost - 3,
                    "read labels, alone": lost + 1,
                    "sda, as it is": source - 2,
                }
                runs += [record(f"{name}, {row}, seed 0", rights(k), shift, c) for row, k in once.items()]
    return runs


RECOVER = dict(zip((*SETTINGS, "control, t 300"), (0, 4, 8, 16, 0), strict=True))


def test_scenes_that_only_the_control_met_leave_the_clean_loss_and_the_slope_alone():
    runs = runs_of(RECOVER, {k: v // 2 for k, v in RECOVER.items()})
    later = [r for r in runs if r.about["label"] in (gap_report.SOURCE, "control, t 300, dda, alone")]
    at = lambda r: r.about | {"stream": r.about["stream"] | {"start": 5_000}}  # noqa: E731
    more = [replace(r, id=r.id + 5_000, label=(r.label + 1) % 10, about=at(r)) for r in later]
    assert gap.clean_gaps(runs + more) == gap.clean_gaps(runs)
    assert gap_report.slopes(runs + more) == gap_report.slopes(runs)
    assert gap.read_first(runs + more) == runs


def test_the_control_says_what_the_first_scenes_alone_said():
    runs = runs_of(RECOVER, {k: v // 2 for k, v in RECOVER.items()})
    assert "read first" not in gap_report.control_line(runs)
    of_control = [r for r in runs if r.about["label"].startswith("control, t 300, ")]
    at = lambda r: r.about | {"stream": r.about["stream"] | {"start": 5_000}}  # noqa: E731
    more = []
    for r in of_control:  # SDA is right on all of the later scenes, DDA on none
        logits = np.eye(10)[r.label if ", sda, " in r.about["label"] else (r.label + 1) % 10]
        more.append(replace(r, id=r.id + 5_000, after=logits, about=at(r)))
    alone, whole = gap_report.control_line(runs), gap_report.control_line(runs + more)
    (first,) = re.findall(r"SDA - DDA (\S+ \[\S+ \S+\]), within", alone)
    assert f"(on the scenes read first alone {first})" in whole
    assert "+50.0 [" in whole


def test_differences_are_named_for_what_they_subtract():
    runs = runs_of(RECOVER, {k: v // 2 for k, v in RECOVER.items()})
    found = {k: d.mean for k, d in gap_report.differences(runs, "t 700", RESNET).items()}
    assert found == pytest.approx(
        {"source - DDA": 20, "recoverable": 16, "SDA - DDA": 8, "in the sum": 8, "aligned - unaligned": 10,
         "SDA - real aligned": 3, "asked - read labels": 6, "SDA's network, image as it is": -2}
    )  # fmt: skip
    assert gap_report.differences(runs, "t 700") == gap_report.differences(runs, "t 700", RESNET)  # two networks alike
    text = gap_report.main(runs)
    assert {r["scenes"] for r in gap_report.table(runs)} == {"200"}
    assert re.search(r"control, t 300: SDA - DDA \+0.0 \[-\S+, \+\S+\], within two points of 0", text)
    assert text.count("first clean loss of 10 points") == 3
    row = gap_report.order_rows(runs)[2]
    assert (row["setting"], row["classifier"]) == ("t 494 (the paper's start)", "all")
    assert row["DiffPure < source"].endswith("holds")
    assert row["source < DDA"].endswith("reversed")


def test_the_two_axes_share_no_scene():
    runs = runs_of(RECOVER, RECOVER)
    one, other = gap_report.half(runs, 0), gap_report.half(runs, 1)
    for r, a, b in zip(runs, one, other, strict=True):
        assert sorted([*a.id, *b.id]) == sorted(r.id)
        assert not set(a.id) & set(b.id)
    assert len(gap_report.points(runs)) == 5 * 3  # two networks and both together


def test_the_slope_is_that_of_the_gain_by_what_is_recoverable():
    half_of = gap_report.slopes(runs_of(RECOVER, {k: v // 2 for k, v in RECOVER.items()}))
    assert half_of["slope"].mean == pytest.approx(0.5)
    assert half_of["slope"].low > 0
    assert half_of["points"] == 8  # the control is not among them
    none = gap_report.slopes(runs_of(RECOVER, dict.fromkeys(RECOVER, 5)))
    assert none["slope"].mean == pytest.approx(0)
    assert none["as large"] > 0.4
    with pytest.raises(ValueError, match="three settings"):
        gap_report.slopes(runs_of({"t 300": 1, "t 494": 2}, {"t 300": 1, "t 494": 2}))


def test_the_null_rises_where_ceiling_and_gain_have_nothing_in_common_but_the_source():
    """The source on the projected image swings between the settings, ceilings and SDA do not: both differences follow
    it alone, with a slope of 1, and exchanging ceilings and accuracies changes nothing."""
    runs = []
    for c in (RESNET, SWIN):
        runs.append(record(gap_report.SOURCE, rights(90), "clean", c))
        for name, k in zip(SETTINGS, (70, 60, 50, 30), strict=True):
            for row, right in {"dda, alone": k, "sda, alone, seed 0": 74, "own scenes, alone, seed 0": 80}.items():
                runs.append(record(f"{name}, {row}", rights(right), "clean", c))
    s = gap_report.slopes(runs)
    assert s["slope"].mean == pytest.approx(1)
    assert s["null"].mean == pytest.approx(1)
    assert s["as large"] == pytest.approx(1)


def test_gains_of_one_half_against_those_of_the_other():
    runs = []
    for shift, dda, sda in (("fog", 50, 56), ("snow", 60, 62), ("contrast", 70, 70)):
        rows = {"source/full": 40, "dda, sum": dda, "sda, sum": sda, "dda, chosen": dda, "sda, chosen": sda}
        runs += [record(label, rights(k), shift, RESNET) for label, k in rows.items()]
    assert gap_report.contrast_line(runs).endswith("correlate by -0.98")


def test_where_the_papers_order_is_asked_for():
    gaps = {"t 300": 1.0, "t 494": 12.0, "t 550": 9.9, "t 600": 10.0, "t 700": 30.0, "control, t 300": 30.0}
    assert gap.paper_like(gaps) == ["t 494"]
    assert gap.paper_like(gaps | {"t 494": 3.0}) == ["t 494", "t 600"]
    assert gap.paper_like({"t 494": 3.0}) == ["t 494"]


def test_every_point_stands_in_both_panels():
    _, axes = plots.figure(1, 2)
    runs = runs_of(RECOVER, {k: v // 2 for k, v in RECOVER.items()})
    figures.draw_gap(axes, runs)
    for ax, head in zip(axes, ("source - DDA", "recoverable"), strict=True):
        marks = {tuple(np.round(line.get_xydata()[0], 6)) for line in ax.get_lines() if line.get_marker() in ("o", "s")
                 and len(line.get_xdata())}  # fmt: skip
        expected = {(round(p[head].mean, 6), round(p["gain"].mean, 6)) for p in gap_report.points(runs)}
        assert expected <= marks
    assert axes[1].get_lines()[-1].get_label() == "null"
    assert isinstance(gap_report.slopes(runs)["null"], Interval)


def test_dial_b_has_a_mark_of_its_own_and_leaves_the_slope_alone(monkeypatch):
    list_dial_b(monkeypatch, 2000)
    _, axes = plots.figure(1, 2)
    more = RECOVER | {"2000 steps": 10}
    runs = runs_of(more, {k: v // 2 for k, v in more.items()})
    assert gap_report.slopes(runs) == gap_report.slopes(runs_of(RECOVER, {k: v // 2 for k, v in RECOVER.items()}))
    said = r" 2000 steps: SDA - DDA \+{}\.\d \[\S+, \S+\] \(holds\), {} it the \+4\.0 of dial A's line\.$"
    assert re.search(said.format(5, "within"), gap_report.slope_line(runs))
    far = runs_of(more, {k: v // 2 for k, v in more.items()} | {"2000 steps": 18})
    assert re.search(said.format(17, "outside"), gap_report.slope_line(far))
    figures.draw_gap(axes, runs)
    for ax in axes:
        assert sum(line.get_marker() == "^" and len(line.get_xdata()) > 0 for line in ax.get_lines()) == 3
