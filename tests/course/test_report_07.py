"""Notebook 07's reports: pairs on common scenes, ranks, the family of intervals, the guide and its regret."""

from dataclasses import replace

import numpy as np
import pytest

from gentta_utils.course.nb07 import board as boards
from gentta_utils.course.nb07 import cost, guide, report, says
from gentta_utils.course.nb07.board import Board, Facts, board, family, forwards, frontier, heat, ranks
from gentta_utils.evaluation.records import Records

SHIFTS = ("fog 5", "gaussian_noise 5")


def made(right: dict[str, list], shift=None, facts=None) -> Board:
    """A board of two classes from right answers (1, 0, or None for a scene that was not met) by row."""
    n = len(next(iter(right.values())))
    logits = np.array([[[np.nan] * 2 if r is None else [r, 1 - r] for r in row] for row in right.values()], np.float32)
    shift = np.array(shift or [SHIFTS[0]] * n)
    usual = {row: Facts(1.0, 0.1) for row in right}
    return Board("resnet", tuple(right), shift, np.arange(n), np.zeros(n, int), 4 * logits, usual | (facts or {}))


def record(label, right, classifier="classifier/resnet", order="iid", shift="fog", start=0, **about) -> Records:
    after = np.array([[r, 1 - r] for r in right], np.float32)
    before = np.array([[1.0, 0.0]] * len(right), np.float32)
    stream = {"shift": shift, "severity": 5, "order": order}
    return Records(
        id=np.arange(start, start + len(right)), label=np.zeros(len(right), int), before=before, after=after,
        loss=np.zeros((len(right), 0), np.float32), seconds=np.full(len(right), 0.5, np.float32),
        nfe={"classifier fwd": 1.0, "denoiser fwd+bwd": 2.0},
        about={"label": label, "classifier": classifier, "stream": stream, "models": {}, "method": "source", **about},
    )  # fmt: skip


def test_two_rows_are_compared_on_the_scenes_that_both_met():
    b = made({"source": [0, 0, 1, 1], "x": [1, None, 1, 0], "y": [None, 1, 1, 1]})
    assert b.met("x", "y").tolist() == [False, False, True, True]
    assert b.versus("y", "x").mean == 50.0
    assert b.versus("x").mean == pytest.approx(0.0)
    assert b.changed("x") == (1, 1)
    assert b.accuracy("x") == pytest.approx(100 * 2 / 3)
    with pytest.raises(ValueError, match="choose one of source, x, y"):
        b.right("z")


def test_a_row_that_is_sure_and_wrong_is_badly_calibrated():
    b = made({"source": [1, 1, 1, 1], "x": [0, 0, 0, 0]})
    sure = 1 / (1 + np.exp(-4))
    assert b.calibration_error("x") == pytest.approx(100 * sure, abs=0.1)
    assert b.calibration_error("source") == pytest.approx(100 * (1 - sure), abs=0.1)
    assert b.brier("x") == pytest.approx(2 * sure**2, abs=0.01)
    assert b.brier("source") == pytest.approx(2 * (1 - sure) ** 2, abs=0.01)


def test_a_backward_pass_counts_as_two_forward_ones():
    assert forwards({"classifier fwd": 2, "denoiser fwd+bwd": 10}) == 32


def test_ranks_are_over_common_scenes_and_know_ties():
    b = made({"source": [0] * 40, "x": [1] * 40, "y": [1] * 20 + [None] * 20, "z": [1, 0] * 20})
    found = {r["row"]: r for r in ranks(b, draws=200)}
    assert (found["x"]["rank"], found["y"]["rank"], found["z"]["rank"], found["source"]["rank"]) == (1.5, 1.5, 3.0, 4.0)
    assert found["z"]["scenes"] == 20
    assert found["x"]["low"] <= 1.5 <= found["x"]["high"]
    assert found["x"]["behind"] == (0.0, 0.0)
    assert found["y"]["behind"] == (0.0, 0.0)  # the same answers: apart in no draw, however wide its own interval
    assert found["source"]["behind"][0] > 0
    noisy = made({"source": [0, 1] * 20, "x": [1, 0] * 20})
    assert all(r["low"] < r["high"] for r in ranks(noisy, draws=200))  # equal rows: either may come first


def test_the_family_counts_intervals_and_what_chance_would_do():
    shift = [SHIFTS[0]] * 20 + [SHIFTS[1]] * 20
    b = made({"source": [0] * 40, "x": [1] * 20 + [0, 0] * 10, "y": [None] * 20 + [0] * 20}, shift)
    rows, shifts, gains, clear = heat(b)
    assert (rows, shifts) == (["x", "y"], list(SHIFTS))
    assert gains[0].tolist() == [100.0, 0.0]
    assert np.isnan(gains[1, 0])
    assert clear.tolist() == [[True, False], [False, False]]
    found = family([b, b])
    assert (found["intervals"], found["leave 0 out"]) == (6, 2)
    assert found["by chance"] == pytest.approx(2 * boards.by_chance(20, 20))


def test_chance_is_near_5_percent_of_many_changes_and_0_of_none():
    assert boards.by_chance(40, 0) == boards.by_chance(10, 1) == 0
    assert boards.by_chance(10, 4) == pytest.approx(2 / 2**4)  # all four one way
    assert boards.by_chance(400, 200) == pytest.approx(0.05, abs=0.02)


def test_a_row_of_few_scenes_is_not_ranked_and_one_of_some_not_recommended():
    shift, few, some = ["fog 5"] * 24 + ["snow 5"] * 24, [1] * 9 + [None] * 15, [1] * 15 + [None] * 9
    b = made(
        {"source": [0] * 48, "x": [1] * 48, "few": few + [1] * 24, "some": some + [1] * 24, "ceiling": [1] * 48}, shift
    )
    assert report.ranked(b) == ("source", "x", "some")
    assert report.shared(b, b) == ("source", "x", "some")
    assert guide.candidates(b) == ("source", "x")
    assert [row["row"] for row in report.rank_rows(b)][-1] == "source"


def test_costs_stand_in_the_table_where_they_were_measured():
    b = made({"source": [0], "x": [1]}, facts={"source": Facts(1.0), "x": Facts(2.0, 0.25, 31)})
    first, second = report.rows_of(b)
    assert (first["CPU s"], first["MB"], second["CPU s"], second["MB"]) == ("", "", "0.250", "31")
    unknown = made({"source": [0]}, facts={"source": Facts(1.0)})
    assert "CPU s" not in report.rows_of(unknown)[0]


def test_the_frontier_is_of_pairs_on_shared_scenes():
    facts = {"source": Facts(1.0), "same": Facts(2.0), "lucky": Facts(3.0), "good": Facts(9.0)}
    b = made(
        {"source": [0, 0, 1, 1], "same": [0, 0, 1, 1], "lucky": [0, 1, None, None], "good": [0, 1, 1, 1]}, facts=facts
    )
    assert frontier(b) == ["source", "lucky"]  # `good` is no better where both were: their gains are of other scenes
    assert frontier(b, ("source", "same", "good")) == ["source", "good"]
    assert frontier(b, ("source", "good"), np.array([True, False, True, True])) == ["source"]


def test_published_costs_count_what_the_papers_do():
    b = made({"source": [0], "MEMO": [1]}, facts={"MEMO": Facts(97.0)})
    (line,) = cost.beside([b])
    assert (line["row"], line["here"], line["published"], line["times"]) == ("MEMO", "97", "193", "2.0")
    assert cost.published()["Diffusion-TTA"] == 3 * 900 + 3 * 60
    assert cost.gpu_hours()["reader"] > cost.gpu_hours()["DDA"] > cost.gpu_hours()["TENT"] > 0


def test_the_tail_is_the_mean_of_the_worst_tenth():
    runs = [record("x", [1] * k + [0] * (20 - k)) for k in range(20)]
    assert report.tail(runs) == pytest.approx(100 * np.mean([0, 1]) / 20)
    assert report.tail(runs[3:8]) == pytest.approx(15.0)  # of five runs the worst


def test_gains_by_position():
    r = record("x", [0] * 10 + [1] * 5)
    found = report.positions(r, (0, 10, 30))
    assert {k: (v.low, v.mean, v.high) for k, v in found.items()} == {"1 to 10": (-100.0,) * 3, "11 to 15": (0.0,) * 3}


def test_a_board_takes_the_rows_of_its_block_and_the_naive_ensemble(monkeypatch):
    monkeypatch.setattr(boards, "ensemble_temperature", lambda label: 1.0)
    reader = "reader/48 pairs/150..600"
    runs = [
        record("source/full", [0.6, 0.4, 0.9]),
        record(reader, [0.0, 1.0, 1.0], settings={"temperature": 1.0}, method="diffusion_classifier"),
        record("source/full", [0.0, 0.0, 0.0], "classifier/vit"),
    ]
    b = board(runs, "resnet")
    assert b.rows == ("source", "reader", "ensemble")
    assert b.right("source").tolist() == [True, False, True]
    assert b.right("ensemble").tolist() == [False, True, True]
    assert b.facts["reader"].forwards == 7.0
    assert (b.facts["reader"].labels, b.facts["ensemble"].labels) == (False, True)
    assert board(runs, "vit").rows == b.rows  # the reader asks no classifier
    with pytest.raises(ValueError, match="choose one of resnet"):
        board(runs, "mae")


# --- the guide -------------------------------------------------------------------------------------------------------

N = 40
NOISE = {"fog 5": "coarse", "gaussian_noise 5": "noise"}
FACTS = {"slow": Facts(300.0, 1.0), "stream": Facts(1.0, 0.1, order=True), "source": Facts(1.0, 0.1)}


def two_kinds() -> Board:
    """`slow` reads all noise, `stream` all coarse shifts; the source half of everything."""
    shift = ["fog 5"] * N + ["gaussian_noise 5"] * N
    half = [0, 0, 1, 1] * (N // 4)
    return made({"source": half * 2, "slow": half + [1] * N, "stream": [1] * N + half}, shift, FACTS)


def test_who_needs_labels_and_who_answers_by_batches():
    runs = [
        record("source/full", [1.0] * 3),
        record("tent", [1.0] * 3, how={"batch": 2}),
        record("sda, chosen", [1.0] * 3, settings={"ensemble": "calibrated"}),
    ]
    facts = board(runs, "resnet").facts
    assert (facts["TENT"].together, facts["source"].together) == (2, None)
    assert [row for row, f in facts.items() if f.labels] == ["SDA, calibrated"]


def test_a_situation_leaves_what_it_can_pay_and_feed():
    b, rows = two_kinds(), ("source", "slow", "stream")
    single, batches = (guide.Situation(batch, "noise", "up to 5") for batch in (False, True))
    assert guide.allowed(b, rows, single) == ("source",)
    assert guide.allowed(b, rows, batches) == ("source", "stream")
    chosen = guide.recommended(b, rows, NOISE)
    assert chosen[guide.Situation(True, "coarse", "any")] == "stream"
    assert chosen[guide.Situation(True, "noise", "any")] == "slow"
    assert chosen[guide.Situation(False, "coarse", "any")] == "source"  # slow is no better there, and costs more
    assert guide.Situation(True, "noise", "up to 100") in chosen


def test_the_best_of_noise_is_not_cross_fitted():
    """Many rows that guess: the best of them looks good where it was chosen, and is not."""
    s, seen, fitted = guide.Situation(False, "coarse", "any"), [], []
    for seed in range(10):
        draw = np.random.default_rng(seed)
        guesses = {f"row {i}": draw.integers(0, 2, N).tolist() for i in range(30)}
        b = made({"source": draw.integers(0, 2, N).tolist(), **guesses})
        seen.append(b.versus(guide.best(b, b.rows, np.ones(N, bool))).mean)
        fitted.append(guide.cross_fitted(b, b.rows, s, NOISE).mean)
    assert np.mean(seen) > 10
    assert abs(np.mean(fitted)) < np.mean(seen) / 2


def test_regret_against_the_overall_best_row():
    known, s = two_kinds(), guide.Situation(True, "coarse", "any")
    rows = ("source", "slow", "stream")
    found = guide.regret(known, known, rows, NOISE, s)
    assert found["regret of the guide"].mean == 0.0  # it knows both kinds
    assert found["regret of the best row"].mean == pytest.approx(25.0)  # half of the scenes, half wrong
    assert found["guide gains"].mean == pytest.approx(25.0)
    assert found["scenes"] == 2 * N
    assert set(guide.candidates(known, known)) == set(rows)


def test_what_the_guide_is_worth_is_said_of_each_situation():
    b = two_kinds()
    text = says.of_regret([(b, b)], NOISE)
    assert "single images, up to 5 forwards: no difference" in text
    assert "batches, any forwards: better, +25.0 [" in text
    assert "In 1 of 6 situations the guide and the overall best row differ: 1 clearly better, 0 clearly worse" in text


def test_noise_is_found_by_the_widest_gap():
    rough = {"a": 0.01, "b": 0.012, "c": 0.05, "d": 0.06, "e": 0.055, "f": 0.001}  # f alone is no kind
    at = guide.threshold(rough, "abcdf")
    assert 0.012 < at < 0.05
    assert guide.kinds(rough, at) == dict.fromkeys("abf", "coarse") | dict.fromkeys("cde", "noise")
    text = guide.rule(two_kinds(), ("source", "slow", "stream"), NOISE, at)
    assert f"above {at:.3f}" in text
    assert "Batches, coarse: up to 5 forwards: stream" in text
    assert "Without labelled images to calibrate on, 0 of 12 situations need another row." in text


def test_a_classifier_that_is_not_calibrated_has_rows_of_its_own():
    b = two_kinds()
    b = replace(b, facts=b.facts | {"slow": Facts(300.0, 1.0, labels=True)})
    rows = ("source", "slow", "stream")
    lines = guide.decision_table(b, rows, NOISE)
    said = [(x["calibrated"], x["use"]) for x in lines if (x["batches"], x["shift"]) == ("no", "noise")]
    assert said == [("either", "source"), ("either", "source"), ("yes", "slow"), ("no", "source")]
    assert "2 of 12 situations need another row; single images, noise, any forwards: source; batches" in guide.rule(
        b, rows, NOISE, 0.05
    )
    assert guide.allowed(b, rows, guide.Situation(False, "noise", "any", calibrated=False)) == ("source",)
