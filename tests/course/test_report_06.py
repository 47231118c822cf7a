"""The tables and figures of notebook 06, on records made by hand: who is paired with whom, what is counted."""

from dataclasses import replace

import numpy as np
import pytest

from gentta_utils.course.nb06 import calibration, choose, figures, report, rows
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.statistics import ON_VALIDATION, calibration_bins, calibration_error
from gentta_utils.world import words

SMALL, LARGE = "clip/small", "clip/large"
RIGHT, WRONG = 3, 0
STARTS = {name: 1000 * i for i, name in enumerate(("clean", "far", "a", "fog", "snow"))}


def read(k, n=20):
    """Predictions of which the first k of n are right."""
    return np.where(np.arange(n) < k, RIGHT, WRONG)


def record(label, before, after=None, shift="far", clip=SMALL, labels="category", method="tpt", sure=4.0, **about):
    """A run with its largest logit, `sure`, at `before` (N,) and `after`."""
    before = np.asarray(before)
    after = before if after is None else np.asarray(after)
    K = len(words.label_set(labels).classes)
    stream = {"shift": shift, "severity": 0, "split": "test", "seed": 0, "start": STARTS[shift], "order": "iid"}
    n = len(before)
    return Records(
        id=np.arange(n) + STARTS[shift],
        label=np.full(n, RIGHT),
        before=np.eye(K, dtype=np.float32)[before] * sure,
        after=np.eye(K, dtype=np.float32)[after] * sure,
        loss=np.linspace(1, 0, 2 * n, dtype=np.float32).reshape(n, 2),
        seconds=np.full(n, 0.5, np.float32),
        nfe={"classifier fwd": 64.0} | ({"generator fwd": 300.0} if "DiffTPT" in label else {}),
        about={
            "label": label,
            "method": method,
            "classifier": clip,
            "settings": {"seed": 0},
            "stream": stream | ({} if labels == "category" else {"labels": labels}),
            "protocol": {"order": "iid", "reset": "per_image", "predict": "after", "batch": 20, "device": "cpu"},
            "select": ON_VALIDATION,
        }
        | about,
    )


AFTER = {rows.ZERO_SHOT: 10, rows.TPT1: 10, rows.TPT4: 12, rows.TPT_MANY: 11, rows.DIFFTPT["variation"]: 15}
AFTER |= {rows.CTPT: 12, rows.TRUE: 18, **dict.fromkeys(rows.ON_THEIRS.values(), 16)}


def table(shifts=("clean", "far"), clips=(SMALL, LARGE), labels="category", after=AFTER):
    return [
        record(label, read(10), read(k), shift, clip, labels, "source" if label == rows.ZERO_SHOT else "tpt")
        for shift in shifts
        for clip in clips
        for label, k in after.items()
    ]


def row_of(found, **wanted):
    (row,) = (r for r in found if all(r[k] == v for k, v in wanted.items()))
    return row


def test_rows_are_compared_with_zero_shot_and_with_tpt():
    found = report.by_column(table(), report.shift_name)
    row = row_of(found, CLIP="small", row=rows.DIFFTPT["variation"])
    assert (row["clean"], row["far"], row["all"]) == ("75", "75", "75.0")
    assert row["minus zero-shot"].startswith("+25.0 [")
    assert row["minus TPT, 4 steps"].startswith("+15.0 [")
    assert row_of(found, CLIP="large", row=rows.TPT4)["minus TPT, 4 steps"] == ""
    assert report.claimed(table()).startswith("protocol:")
    assert report.AHEAD not in report.every_row(table())
    assert report.AHEAD in report.claimed_of_sets(table(("a",), (SMALL,)))
    assert "| category " in report.label_sets(table(("a",), (SMALL,)))


def test_the_claim_is_a_share_of_what_was_left():
    found = report.claim(table())
    row = row_of(found, CLIP="small", **{"DiffTPT minus": rows.TPT4})
    assert row["points"].startswith("+15.0 [")
    assert row["of what was left, %"] == "+38"  # 15 of the 40 that TPT leaves
    assert row["ahead"] == "holds"
    assert row_of(found, CLIP="small", **{"DiffTPT minus": rows.ON_THEIRS["zero"]})["ahead"] in (
        "undecided",
        "reversed",
    )


def test_what_tuned_words_read_at_the_end_is_compared_in_pairs():
    assert report.taken_apart(table(("fog",), (SMALL,))) == []
    after = AFTER | {rows.PURIFIED: 15, rows.TUNED_PURIFIED: 9, rows.READ_PURIFIED: 14}
    (said,) = report.taken_apart(table(("fog",), (SMALL,), after=after))
    on_image, on_views = (said.split(f"minus *{row}* ")[1] for row in (rows.TUNED_PURIFIED, rows.PURIFIED))
    assert on_image.startswith("+25.0 [")  # 14 of 20 instead of 9
    assert on_views.startswith("-5.0 [")
    after |= {rows.ONE_PURIFIED: 12, rows.DIFFTPT["image_to_image"]: 13, rows.ALIKE: 11}
    found = report.taken_apart(table(("fog",), (SMALL,), after=after))
    assert len(found) == 3
    assert f"minus *{rows.ALIKE}* +10.0 [" in found[1]
    assert f"minus *{rows.ONE_PURIFIED}* +15.0 [" in found[2]


def test_gains_pool_both_clips():
    row = row_of(report.gains_by(table(), report.shift_name, (rows.TPT4,)), set="far")
    assert row["n"] == 40
    assert row[f"gain of {rows.TPT4}"].startswith("+10.0 [")
    assert row["DiffTPT minus TPT"].startswith("+15.0 [")


def test_corruptions_that_gain_are_counted():
    runs = table(("fog", "snow"), (SMALL,), after=AFTER | {rows.LOW: 8})
    runs = [
        replace(r, after=r.before) if r.about["stream"]["shift"] == "snow" and "TPT, 4" in r.about["label"] else r
        for r in runs
    ]
    text = report.corruptions(runs)
    (line,) = [x for x in text.splitlines() if x.startswith("| small") and f"| {rows.TPT4} " in x]
    cells = [c.strip() for c in line.split("|")[1:-1]]
    assert cells[2] == "55.0"
    assert cells[-4:-2] == ["1", "0"]
    assert "| fog " in text
    more = [replace(r, id=r.id + 100) for r in table(("fog",), (SMALL,), after=AFTER | {rows.LOW: 8, rows.TPT4: 6})]
    text = report.corruptions(runs + more)
    (line,) = [x for x in text.splitlines() if x.startswith("| small") and f"| {rows.TPT4} " in x]
    assert [c.strip() for c in line.split("|")[1:-1]][-4:-2] == ["0", "1"]  # +2 and -4 in two parts of fog: one loss


def test_costs_hold_the_generator():
    r = table()[4]
    assert r.about["label"] == rows.DIFFTPT["variation"]
    assert report.evaluations_of(r) == "64 images, 300 U-Net"
    found = report.frontier(table(clips=(SMALL,)))
    assert rows.TRUE not in {row["row"] for row in found}
    assert sum(row["on the frontier"] == "yes" for row in found) >= 1


def test_pairs_that_captions_name_stand_apart():
    truth = np.array(words.label_set("colour_category").seen)
    labels = np.r_[np.flatnonzero(truth)[:6], np.flatnonzero(~truth)[:4]]
    runs = []
    for name, after in (
        (rows.ZERO_SHOT, (labels + 1) % 80),
        ("CoOp", np.where(np.arange(10) < 6, labels, (labels + 1) % 80)),
    ):
        r = record(
            name, (labels + 1) % 80, after, labels="colour_category", method="source" if "zero" in name else "coop"
        )
        runs.append(replace(r, label=labels))
    line = report.initial(runs).splitlines()[-1]
    assert "| 6 of 6 " in line
    assert "| 0 of 4 " in line


def test_orders_show_each_seed():
    runs = []
    for seed, k in enumerate((10, 12, 14)):
        r = record("TDA", read(10), read(k), method="tda")
        runs.append(replace(r, about=r.about | {"stream": r.about["stream"] | {"order": "mixed", "order_seed": seed}}))
    line = report.orders(runs).splitlines()[-1]
    assert "50.0 60.0 70.0" in line
    assert "| 60.0 " in line


def looked(shift, kept):
    """A run of the table of views: its quantities are those of 20 images that are alike."""
    r = record(f"{rows.VIEWS}crops", read(10), read(12), shift, method="zero")
    values = [0.8, 0.9, 0.5, 0.3, 0.4, kept]
    return replace(r, loss=np.tile(np.array(values, np.float32), (20, 1)))


def test_views_are_shown_with_what_they_gain():
    runs = [looked("far", 0.7), looked("a", 0.2)]
    runs += [record(f"{rows.TPT4}, crops", read(10), read(11), shift) for shift in ("far", "a")]
    row = row_of(report.quantities(runs), set="far")
    assert (row["image"], row["right, kept"], row["cosine, all"]) == ("50", "70", "0.80")
    assert row["gain of their mean"].startswith("+10.0 [")
    fig = figures.precision(runs)
    points = {
        tuple(np.round(line.get_xydata()[0].astype(float), 1))
        for line in fig.axes[0].lines
        if len(line.get_xdata()) == 1
    }
    assert {(20.0, 10.0), (-30.0, 10.0)} <= points
    assert len(figures.fidelity(runs).axes) == 2
    assert figures.gains(table(), (rows.TPT4,), SMALL).axes


def test_only_streams_that_all_rows_met_are_pooled():
    runs = table(clips=(SMALL,)) + [record(rows.TPT4, read(10), read(20), "a")]
    labels = (rows.ZERO_SHOT, rows.TPT4, rows.CTPT)
    found = calibration.calibration([runs, runs[:1]], labels)  # a run that stands in two tables counts once
    assert {row["n"] for row in found} == {40}
    row = row_of(found, row=rows.TPT4)
    assert row["right"] == "60.0"
    assert row[f"right, minus {rows.ZERO_SHOT}"].startswith("+10.0 [")
    assert row["sure, minus the same"] == "+0.0 [+0.0, +0.0]"
    assert figures.reliability({label: calibration.pooled([runs], label, labels) for label in labels}).axes


def test_chance_alone_shows_what_a_calibrated_model_shows():
    """By its own labels, drawn as it is sure; it falls with the root of the number of predictions."""
    g = np.random.default_rng(0)

    def calibrated(n):
        sure = g.uniform(0.5, 1, n)
        logits = np.log(np.stack([sure, 1 - sure], 1)).astype(np.float32)
        r = record("x", np.zeros(n, int), labels="colour")
        return replace(r, label=(g.random(n) > sure).astype(int), after=logits)

    errors = [calibration_error([calibrated(100)]) for _ in range(60)]
    by_chance = calibration.chance_error([calibrated(100)])
    assert by_chance == pytest.approx(np.mean(errors), rel=0.15)
    assert calibration.chance_error([calibrated(10_000)]) == pytest.approx(by_chance / 10, rel=0.2)
    assert calibration.ece([calibrated(100)]).endswith(f" ({by_chance:.0f})")


def test_what_counts_behind_a_filter_is_shown_by_set():
    r = record(f"{rows.VIEWS}cosine", read(10), read(12), "far", method="zero")
    runs = [replace(r, loss=np.tile(np.array([8, 2, 3, 1], np.float32), (20, 1)))]
    (row,) = report.counted(runs)
    assert (row["count"], row["drawn among them"], row["crops right, %"], row["drawn right, %"]) == (
        "8.0",
        "2.0",
        "50",
        "50",
    )
    tuned = [record("no filter", read(10), read(11)), record("cosine", read(10), read(12))]
    assert report.COUNTING in report.filters([*tuned, *runs])
    assert report.COUNTING not in report.filters(tuned)


def test_calibration_error_is_the_gap_and_runs_may_differ_in_classes():
    sure = float(np.exp(4) / (np.exp(4) + 9))
    r = record("x", read(10), read(10))
    ((confidence, right, n),) = calibration_bins([r])
    assert (confidence, right, n) == (pytest.approx(sure), 0.5, 20)
    assert calibration_error([r]) == pytest.approx(100 * (sure - 0.5), rel=1e-5)
    other = record("x", read(20), labels="colour", shift="a")
    assert calibration_error([r, other]) < calibration_error([r])


def test_where_it_fails():
    runs = table(clips=(SMALL,), after=AFTER | dict.fromkeys(rows.DIFFTPT.values(), 15))
    row = row_of(report.confirmed(runs), row=rows.TPT4)
    assert (row["wrong before"], row["of them right after"], row["right before"]) == (20, 4, 20)
    own = row_of(report.own_prompts(runs), row=rows.DIFFTPT["prompted_own"])
    assert own["right: kept, %"] == "100"
    assert own["wrong: repaired, %"] == "50"
    assert own["wrong: the same wrong class again, %"] == "50"
    assert report.headline(runs)[f"gain of {rows.TPT4}, small"].startswith("+10.0 [")


def test_past_the_end_of_a_grid_only_what_is_clearly_ahead_is_taken():
    runs = [record(label, read(10), read(k), method="tpt") for label, k in (("in", 10), ("one", 11), ("many", 18))]
    assert choose.or_beyond(runs, "in", ["one"]) == "in"
    assert choose.or_beyond(runs, "in", ["one", "many"]) == "many"
    assert choose.or_beyond(runs, "many", ["one", "in"]) == "many"
