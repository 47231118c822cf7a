"""The tables of notebook 05, on records made by hand: who is paired with whom, what holds, what a part costs."""

from dataclasses import replace

import numpy as np
import pytest

from gentta_utils.course import nb05, tables
from gentta_utils.course.nb05 import orders, report
from gentta_utils.evaluation import statistics
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.statistics import ON_VALIDATION, Interval

RIGHT = 3  # the true class, where nothing else is said
RESNET, SWIN = "classifier/resnet", "classifier/swin"
STARTS = {"fog": 0, "snow": 1000, "contrast": 2000, "watermark": 3000, "clean": 4000}


def record(label, read, shift="fog", classifier=RESNET, truth=RIGHT, seconds=0.5, nfe=50.0, order="iid", noise=0.0):
    """A run whose largest logits (N, 10) are at the classes `read` (N,); the true class of all is `truth`."""
    read = np.asarray(read)
    logits = np.eye(10, dtype=np.float32)[read] * 4 + np.float32(noise)
    start, batch = STARTS.get(shift, 9000), int(label.rsplit(" ", 1)[-1]) if ", batch " in label else 100
    return Records(
        id=np.arange(start, start + len(read)),
        label=np.full(len(read), truth),
        before=logits,
        after=logits,
        loss=np.zeros((len(read), 0), np.float32),
        seconds=np.full(len(read), seconds, np.float32),
        nfe={} if label.startswith("source") else {"denoiser fwd+bwd": nfe, "classifier fwd": 2.0},
        about={
            "label": label,
            "method": label.partition("/")[0].partition(",")[0],
            "classifier": classifier,
            "settings": {"seed": 0},
            "stream": {"shift": shift, "severity": 0 if shift in ("clean", "watermark") else 5, "split": "test"},
            "protocol": {"order": order, "reset": "per_image", "predict": "after", "batch": batch, "device": "cpu"},
            "select": "none" if label.startswith("source") else ON_VALIDATION,
        },
    )


def rights(k, n=100, wrong=0):
    """Predictions of which the first k of n are right."""
    return np.where(np.arange(n) < k, RIGHT, wrong)


# right of 100 scenes, by row, in the paper's order
PAPER = {"source/full": 40, "source/low": 45, "memo": 41, "diffpure": 30, "dda, sum": 50, "sda, sum": 60}
PAPER |= {"dda, chosen": 52, "sda, chosen": 63}


def main_runs(counts=PAPER, shifts=("fog", "snow"), classifiers=(RESNET, SWIN)):
    return [record(label, rights(k), s, c) for c in classifiers for s in shifts for label, k in counts.items()]


def row_of(rows, **wanted):
    (row,) = (r for r in rows if all(r[k] == v for k, v in wanted.items()))
    return row


def test_every_table_of_the_notebook_has_a_form():
    assert set(nb05.TABLES) < set(tables.TABLES)
    assert all(tables.TABLES[name] == entry for name, entry in nb05.TABLES.items())


def test_rows_are_paired_with_source_filter_and_dda():
    runs = main_runs()
    runs += [record("gda-like", rights(54), "fog", RESNET)]  # on one shift, one classifier
    rows = report.summaries(runs)
    sda = row_of(rows, row="sda, chosen", classifier="resnet")
    assert (sda["n"], sda["accuracy"], sda["kept"]) == (200, 63.0, pytest.approx(100 * 63 / 40))
    assert [sda[k].mean for k in ("minus source", "minus low view", "minus DDA")] == pytest.approx([23, 18, 11])
    gda = row_of(rows, row="gda-like", classifier="resnet")
    assert (gda["n"], gda["minus source"].mean, gda["minus DDA"].mean) == (100, pytest.approx(14), pytest.approx(4))
    assert not [r for r in rows if r["row"] == "gda-like" and r["classifier"] == "swin"]
    source = row_of(rows, row="source/full", classifier="all")
    assert source["minus source"] is None
    assert source["minus low view"] is None
    assert source["n"] == 400


def test_scenes_met_by_several_classifiers_are_resampled_as_one():
    """Two classifiers that do the same on the same scenes tell no more than one of them."""
    one, two = main_runs(classifiers=(RESNET,)), main_runs()
    alone, both = (report.minus(runs, "dda, sum", "source/full") for runs in (one, two))
    assert (alone.low, alone.high) == (both.low, both.high)


def test_the_papers_order_and_which_links_are_clear():
    holds = report.order_of(main_runs(), RESNET)
    assert list(holds) == ["DiffPure < source", "source < DDA", "DDA < SDA"]
    assert [d.mean for d in holds.values()] == pytest.approx([10, 10, 10])
    assert report.order_line(holds).startswith("the order: holds (DiffPure < source +10.0 [")
    assert [d.mean for d in report.order_of(main_runs(), None, "chosen").values()] == pytest.approx([10, 12, 11])
    broken = report.order_of(main_runs(PAPER | {"dda, sum": 35, "sda, sum": 35}), RESNET)
    line = report.order_line(broken)
    assert line.startswith("the order: reversed (")
    assert [part.split()[-1].strip(")") for part in line.split(";")] == ["holds", "reversed", "undecided"]  # a tie
    unsure = report.order_of(main_runs(PAPER | {"sda, sum": 51}, ("fog",)), RESNET)
    assert report.order_line(unsure).startswith("the order: undecided (")  # one scene of 100


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.1, 2), "holds"),
        ((-2, -0.1), "reversed"),
        ((0, 2), "undecided"),
        ((-1, 0), "undecided"),
        ((-1, 1), "undecided"),
    ],
)
def test_a_verdict_is_one_of_three_words(interval, word):
    assert report.verdict(Interval(0.0, *map(float, interval))) == word


@pytest.mark.parametrize(
    ("interval", "is_clear"), [((1, 2), True), ((-2, -1), True), ((0, 2), False), ((-1, 1), False)]
)
def test_clear(interval, is_clear):
    assert report.clear(Interval(0.0, *map(float, interval))) is is_clear


def test_gains_by_corruption_and_what_is_worsened():
    counts = {"fog": 30, "snow": 55, "contrast": 38}  # of the source's 40
    runs = [r for s, k in counts.items() for r in main_runs(PAPER | {"dda, sum": k}, (s,))]
    classifiers, shifts, points = report.gains(runs, "dda, sum")
    assert (classifiers, shifts) == ([RESNET, SWIN], ["fog 5", "snow 5", "contrast 5"])
    np.testing.assert_allclose(points, [[-10, 15, -2]] * 2)
    worse = report.worsened(runs, "dda, sum")[RESNET]
    assert list(worse) == ["fog 5", "contrast 5"]  # worst first
    assert report.clear(worse["fog 5"])
    assert not report.worsened(runs, "sda, sum")[SWIN]
    text = report.main(runs)
    assert text.startswith("protocol: stream=iid reset=per_image")
    assert " n=300 " in text
    assert "- dda, sum, resnet, worse than the source on: fog 5 -10.0" in text
    assert "- sda, sum, swin, worse than the source on: nothing." in text


def test_the_bite_of_the_shortcut():
    w = report.WATERMARKED
    assert w not in (RIGHT, 0)
    runs = []
    for label, k in PAPER.items():
        runs.append(record(label, rights(80, 200), "clean"))
        runs.append(record(label, rights(k, 200, wrong=w), "watermark"))
    row = row_of(report.shortcut_cost(runs), row="source/full")
    assert (row["clean"], row["watermark"]) == (40.0, 20.0)
    assert row["lost"].mean == pytest.approx(20)
    assert row["lost"].low < 20 < row["lost"].high
    # of two samples of 200, each with its own error
    expected = 1.96 * 100 * np.sqrt(0.4 * 0.6 / 200 + 0.2 * 0.8 / 200)
    assert report.half_width(row["lost"]) == pytest.approx(expected, rel=0.1)
    assert (row["to the class, clean"], row["to the class, watermark"]) == (0.0, 80.0)
    assert report.shortcut_share([record("x", [w, w, 0, 2], truth=w), record("x", [w, 2])]) == 50.0
    text = report.main(runs)
    assert "The shortcut" in text
    assert text.index("clean: 1 shifts") < text.index("watermark: 1 shifts") < text.index("The shortcut")
    assert "The shortcut" not in report.main(main_runs())


def test_parts_against_dda_and_against_each_other():
    counts = {"source/full": 40, "source/low": 41, "dda, sum": 50, "+ synthetic": 48, "+ synthetic, aligned (sda)": 58}
    counts |= {"+ real": 55, "+ real, aligned": 61}
    runs = main_runs(counts) + [record(k, rights(v - 10), "watermark") for k, v in counts.items()]
    rows = report.components(runs)
    assert row_of(rows, scenes="corruptions", row="+ synthetic", classifier="all")["minus DDA"].mean == pytest.approx(
        -2
    )
    assert row_of(rows, scenes="watermark", row="+ real", classifier="resnet")["accuracy"] == 45.0
    assert row_of(rows, scenes="corruptions", row="dda, sum", classifier="swin")["minus DDA"] is None
    pairs = [r for r in report.between(runs) if r["scenes"] == "corruptions" and r["classifier"] == "swin"]
    assert [r["points"].mean for r in pairs] == pytest.approx([-3, 10])
    assert "+ synthetic, aligned (sda), minus + real, aligned" in report.training_sets(runs)
    number = [r for r in runs if r.about["label"] in ("source/full", "dda, sum")]
    assert not report.between(number)  # number and guidance have no such pair
    assert report.training_sets(number).count("protocol:") == 1


def test_corruptions_one_by_one_and_what_a_row_costs():
    runs = main_runs()
    rows = report.by_corruption(runs)
    assert [r["shift"] for r in rows] == ["fog 5", "snow 5"]
    assert [rows[0][k].mean for k in rows[0] if k != "shift"] == pytest.approx([10, 10, 12, 11])
    costs = {r["row"]: r for r in report.costs(runs)}
    assert costs["source"]["diffusion, with gradient"] == 0
    dda = costs["dda, sum"]
    assert (dda["diffusion, forward"], dda["diffusion, with gradient"], dda["classifiers"]) == (0, 50, 2)
    assert dda["s/image"] == "0.50"
    for r in runs:
        r.about["settings"] = dict(steps=10, entropy_views=4, entropy_scale=0.1)
    guided = next(r for r in report.costs(runs) if r["row"] == "dda, sum")
    assert guided["classifiers"] == 2 + 10 * 4  # and the views that guide


def test_few_steps_against_fifty():
    runs = [record("source/full", rights(40))]
    for method in ("dda", "sda"):
        runs += [
            record(f"{method}, 50 eta 1", rights(50), seconds=2.0),
            record(f"{method}, 5 eta 0", rights(49), seconds=0.25, nfe=5.0),
        ]
    row = row_of(report.few_steps(runs), method="dda", levels="5 eta 0")
    assert (row["accuracy"], row["evaluations"], row["fewer"], row["faster"]) == (49.0, 5.0, 10.0, 8.0)
    assert row["difference"].mean == pytest.approx(-1)
    assert row_of(report.few_steps(runs), method="sda", levels="50 eta 1")["difference"] is None
    text = report.steps(runs)
    assert "10.0x" in text
    assert f"| {report.half_width(row['difference']):.1f} " in text
    assert report.half_width(Interval(1.0, -2.0, 3.0)) == 2.5


def test_what_a_published_fault_costs():
    counts = {"source/full": 40, "source/low": 40, "ours, sum": 60, "jpeg 75, sum": 55}
    counts |= {"ours, purified": 50, "jpeg 75, purified": 30}
    runs = main_runs(counts)
    costs = report.fault_costs(runs)
    assert {e: list(c) for e, c in costs.items()} == {"sum": ["jpeg 75"], "purified": ["jpeg 75"]}
    assert [costs[e]["jpeg 75"].mean for e in ("sum", "purified")] == pytest.approx([5, 20])
    (line,) = (line for line in report.faults(runs).splitlines() if "purified" in line)
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[:4] == ["purified", "jpeg 75", "30.0", "50.0"]
    assert cells[-2:] == ["20.0", "20.0"]  # fog, snow


def test_the_spread_of_tent_over_orders_and_batches():
    runs = main_runs(PAPER)
    for c in (RESNET, SWIN):
        for label, k in {"iid, batch 64": 48, "iid, batch 1": 12, "mixed, batch 64": 44}.items():
            shift = "mixed" if "mixed" in label else "fog"
            runs.append(record(f"tent/{label}", rights(k), shift, c, order=label.split(",")[0]))
    row = row_of(orders.spread(runs), classifier="swin")
    assert (row["TENT lowest"], row["TENT highest"], row["spread"]) == (12.0, 48.0, 36.0)
    assert (row["worst"], row["DDA"], row["SDA"], row["source"]) == ("tent/iid, batch 1", 50.0, 60.0, 40.0)
    assert "stream=iid|mixed" in orders.order(runs)


def test_batches():
    runs = [record("source/full", rights(10, 20))]
    for kind, noise, k in (("per image", 0.001, 10), ("fixed chunk", 0.0, 10), ("batch norm", 0.5, 12)):
        runs += [record(f"{kind}, batch {b}", rights(k if b == 20 else 10, 20), noise=noise * b) for b in (20, 1)]
    rows = orders.batch_effects(runs)
    assert row_of(rows, kind="fixed chunk") == {
        "kind": "fixed chunk",
        "largest difference": 0,
        "equal predictions": 100,
    }
    assert row_of(rows, kind="per image")["largest difference"] == pytest.approx(0.019, abs=1e-5)
    assert row_of(rows, kind="batch norm")["equal predictions"] == 90.0
    assert "batch=1|20" in orders.batches(runs)
    runs[-1].id[:] += 1
    with pytest.raises(ValueError, match="same scenes"):
        orders.batch_effects(runs)


def test_a_method_without_a_state_answers_alike_in_every_order():
    """Scenes are paired by their ids: in a mixed stream they stand under another shift, and in another order."""
    runs = []
    for c in (RESNET, SWIN):
        for how in ("iid", "correlated"):
            runs += [record(f"memo, {how}", rights(10, 20), shift, c, order=how) for shift in ("fog", "snow")]
        fog, snow = (record("memo, mixed", rights(10, 20), shift, c, order="mixed") for shift in ("fog", "snow"))
        both = {k: np.concatenate([getattr(snow, k), getattr(fog, k)]) for k in ("id", "label", "before", "after")}
        about = fog.about | {"stream": fog.about["stream"] | {"shift": "mixed"}}
        runs.append(replace(fog, **both, loss=np.zeros((40, 0)), seconds=np.ones(40), about=about))
    first, sorted_, mixed = orders.order_effects(runs)
    assert (first["order"], first["scenes"], first["minus iid"]) == ("iid", 40, None)
    assert first["percent"].startswith("50.0 [")
    assert (sorted_["minus iid"].low, sorted_["minus iid"].high, sorted_["largest difference"]) == (0, 0, 0)
    assert (mixed["scenes"], mixed["minus iid"].mean, mixed["largest difference"]) == (40, 0, 0)
    runs[-1].after[0] = runs[-1].after[0, ::-1]
    assert orders.order_effects(runs)[-1]["largest difference"] > 0
    assert "| memo | mixed" in orders.batches(runs)
    runs[-1].id[:] += 1
    with pytest.raises(ValueError, match="mixed and iid did not meet the same scenes"):
        orders.order_effects(runs)


def test_weights_of_the_bootstrap_are_drawn_once_and_not_changed():
    a, b = (np.random.default_rng(i).random(50) < 0.5 for i in range(2))
    first = statistics.paired_interval(a, b, np.arange(50))
    statistics.paired_interval(a, b, np.arange(50) // 2)
    assert statistics.paired_interval(a, b, np.arange(50)) == first
    statistics._resampled.cache_clear()
    assert statistics.paired_interval(a, b, np.arange(50)) == first
