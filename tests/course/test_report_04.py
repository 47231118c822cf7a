"""The tables and figures of notebook 04, on records made by hand: who is held against whom, what is counted."""

import numpy as np
import pytest

from gentta_utils.course.nb04 import figures, report, rows, where
from gentta_utils.evaluation.dense import DEPTH_SCORES
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.statistics import ON_VALIDATION

NETWORK = "segmentor/resnet"
STARTS = {"clean": 0, "fog": 100, "snow": 200}


def counts(right, n):
    """n images of two classes of 100 pixels each, so many of each right."""
    return np.broadcast_to(np.array([[right, 100 - right], [100 - right, right]], np.uint16), (n, 2, 2)).copy()


def record(label, after, before=50, shift="fog", severity=3, network=NETWORK, n=6, target="classes", loss=None):
    values = counts if target == "classes" else lambda v, n: np.full((n, len(DEPTH_SCORES)), v, np.float32)
    method = (
        "source"
        if label == rows.SOURCE
        else "diffusion_tta"
        if label in (rows.OURS, rows.BOLD, *rows.PARTS, *rows.PLACEBOS)
        else "tent"
    )
    stream = {"shift": shift, "severity": severity if shift != "clean" else 0, "seed": 0, "split": "test"}
    return Records(
        id=np.arange(n) + STARTS[shift],
        label=np.zeros(n, int),
        before=values(before, n),
        after=values(after, n),
        loss=np.zeros((n, 2), np.float32) if loss is None else loss,
        seconds=np.full(n, 0.5, np.float32),
        nfe={"denoiser fwd+bwd": 72.0} if method == "diffusion_tta" else {"classifier fwd": 1.0},
        about={
            "label": label,
            "method": method,
            "classifier": rows.beside(network, label),
            "settings": {"seed": 0},
            "stream": stream | {"target": target, "start": STARTS[shift]},
            "protocol": {"order": "iid", "reset": "per_image", "predict": "after", "batch": 12, "device": "cpu"},
            "select": ON_VALIDATION,
        },
    )


AFTER = {
    rows.SOURCE: 50,
    rows.OURS: 70,
    rows.BOLD: 80,
    rows.START: 65,
    rows.CHOICE: 67,
    rows.LOW: 62,
    rows.MEDIAN: 60,
    rows.TENT: 72,
    rows.ANOTHER: 45,
    rows.CEILING: 95,
}


@pytest.fixture
def runs(monkeypatch):
    best, rival = (dict.fromkeys(("mean class accuracy", "mean IoU"), row) for row in (rows.MEDIAN, rows.TENT))
    monkeypatch.setattr(report, "maps_choice", lambda: {"best": {NETWORK: best}, "rival": {NETWORK: rival}})
    found = [record(label, v, shift=s) for s in ("fog", "snow") for label, v in AFTER.items()]
    found += [record(label, v, shift="fog", severity=5) for label, v in AFTER.items()]
    found += [record(label, v, shift="snow", severity=5) for label, v in AFTER.items()]
    return found + [record(label, 49 if label == rows.OURS else 50, shift="clean") for label in AFTER]


def other_settings(runs):
    """The variant that gains most has settings of its own."""
    for r in runs:
        if r.about["label"] == rows.BOLD:
            r.about["settings"] = {"seed": 0, "view": "low"}


def test_claims_are_held_against_the_source_the_best_control_and_the_placebo(runs):
    assert report.IGNORED not in report.claims(runs)  # the same settings under two names
    other_settings(runs)
    bars, others, ignored = report.claims(runs).values()
    (accuracy, iou), (known, _), (bold, _) = bars, others, ignored
    assert accuracy["score"] == "mean class accuracy"
    assert accuracy["minus source"].startswith("+20.0 [")
    assert accuracy["minus best control"].startswith("+10.0 [")
    assert accuracy["minus source"].endswith("holds")
    assert accuracy["minus best control"].endswith(f"holds ({rows.MEDIAN})")
    assert accuracy[report.CLEAN].startswith("-1.0 [")
    assert accuracy[report.CLEAN].endswith("reversed")
    assert known["minus another image's"].startswith("+25.0 [")
    assert known["minus best rival"].startswith("-2.0 [")
    assert known["minus best rival"].endswith(f"reversed ({rows.TENT})")
    assert known["ceiling: minus source"].startswith("+45.0 [")
    assert bold["minus source"].startswith("+30.0 [")
    assert bold["minus best control"].startswith("+20.0 [")
    assert bold["minus its start"].startswith("+15.0 [")
    assert bold["minus its start, judged alone"].startswith("+13.0 [")
    assert bold[report.CLEAN].startswith("+0.0 [")
    assert bold[report.CLEAN].endswith("holds")  # half a point may be lost
    assert iou[report.SET].endswith(f"holds ({rows.MEDIAN})")


def test_rows_of_other_networks_stand_beside_theirs(runs):
    found = {row["row"]: row for row in report.rivals(runs, NETWORK, "mean class accuracy")}
    assert found[rows.CEILING]["severity 3"] == "95.0"
    assert found[rows.CEILING]["ours minus it"].startswith("-25.0 [")
    assert found[rows.SOURCE]["minus source"] == ""
    assert found[rows.OURS]["ours minus it"] == ""
    assert {f"{rows.MEDIAN} (best control on validation)", f"{rows.TENT} (best rival on validation)"} <= set(found)
    assert found[rows.OURS]["clean"] == "49.0"
    assert found[rows.OURS]["diffusion model"] == "72 fwd+bwd"


def test_shifts_stand_beside_what_the_paper_printed(runs):
    found = report.by_shift(runs, NETWORK, "mean class accuracy")
    fog = next(row for row in found if row["shift"] == "fog" and row["severity"] == 5)
    assert fog["the paper"] == "63.0 → 65.1"
    assert fog["gain"].startswith("+20.0")
    assert (fog[rows.MEDIAN], fog[rows.TENT]) == ("60.0", "72.0")
    assert report.k8(runs).startswith("protocol: stream=iid reset=per_image")


def test_one_scene_has_no_interval_and_no_verdict(runs):
    one = [record(label, v, shift="fog", n=1) for label, v in AFTER.items()]
    (row,) = report.by_shift(one, NETWORK, "mean IoU")
    assert "[" not in row["gain"]
    assert row["gain"].startswith("+")
    assert "one scene each" in report.all_corruptions(one)


def test_the_readme_has_a_second_line_where_another_variant_gains_most(runs):
    (ours,) = report.in_short(runs, NETWORK, "mean class accuracy")
    assert (ours["row"], ours["minus source"]) == (rows.OURS, "+20.0 [+20.0, +20.0]")
    assert ours["scenes"] == "12, 6 clean"  # those of two corruptions, the same at both severities
    other_settings(runs)
    _, bold = report.in_short(runs, NETWORK, "mean class accuracy")
    assert (bold["row"], bold["minus its start"]) == (rows.BOLD, "+15.0 [+15.0, +15.0]")


def test_corruptions_that_gain_are_counted(runs):
    text = report.all_corruptions([r for r in runs if r.about["stream"]["severity"] == 3])
    (line,) = [x for x in text.splitlines() if "mean IoU" in x and "+" in x and "[" in x]
    assert [cell.strip() for cell in line.split("|")[8:12]] == ["2", "2", "0", "0"]
    assert "| fog " in text


def test_the_choice_shows_the_source_on_the_scenes_of_the_rows_beside_it():
    """The source met the controls' scenes too, where it is better: a gain is still the difference of two cells."""
    found = []
    for shift in ("clean", "fog"):
        found += [record(row, v, shift=shift) for row, v in ((rows.SOURCE, 50), (rows.OURS, 60))]
        found += [record(row, v, shift=shift, n=3) for row, v in ((rows.SOURCE, 90), (rows.DILATE, 92))]
    for r in found:
        r.about["stream"]["n"] = len(r)
    table = [[c.strip() for c in line.split("|")] for line in report.selection(found).splitlines()]
    corrupted = {cells[2]: cells[4] for cells in table if cells[1:2] == ["resnet"]}
    assert corrupted[rows.SOURCE] == "50.0 (+0.0)"
    assert corrupted[rows.OURS] == "60.0 (+10.0)"
    assert corrupted[rows.DILATE] == "92.0 (+2.0)"


def test_ablations_are_held_against_the_chosen_row(runs):
    found = {row["row"]: row for row in report.against(runs, rows.OURS)}
    assert found[rows.ANOTHER][f"mean IoU, corrupted, minus {rows.OURS}"].startswith("-")
    assert found[rows.SOURCE].get(f"mean IoU, corrupted, minus {rows.OURS}", "") == ""
    few = [record("2 scenes", 60, shift="fog", n=2)]
    assert found.keys() | {"2 scenes"} == {row["row"] for row in report.against([*runs, *few], rows.OURS)}
    assert report.ablations(runs).count("protocol:") == 1


def looked(**values):
    q = np.zeros((6, len(where.QUANTITIES)), np.float32)
    for name, v in values.items():
        q[:, where.QUANTITIES.index(name.replace("_", " "))] = v
    return q


def test_where_it_fails_is_counted_over_all_pixels():
    q = looked(
        wrong=40, pointing_to_the_truth=30, wrong_inside=20, repaired_inside=5, right_inside=100, broken_inside=1
    )
    q[:, where.QUANTITIES.index("objects wrong")] = 2
    q[:, where.QUANTITIES.index("objects relabelled")] = [1, 0, 0, 0, 0, 1]
    row = report._where([record(rows.OURS, 60, loss=q)])
    assert row["wrong pixels pointing to the truth, %"] == "75"
    assert (row["repaired inside, %"], row["broken inside, %"]) == ("25", "1")
    assert row["repaired near edges, %"] == ""
    assert row["objects of a wrong class, of them relabelled"] == "12, 2"
    assert "wrong pixels" in report.where([record(rows.OURS, 60, loss=q)])


def test_figures_are_drawn(runs):
    at_3 = [r for r in runs if r.about["stream"]["severity"] == 3]
    assert len(figures.gains(at_3).axes) == 2
    fig = figures.controls(runs, NETWORK)
    assert len(fig.axes) == 2
    assert rows.CEILING in [t.get_text() for t in fig.axes[0].get_yticklabels()]
    windows = [record(f"t {a}..{b}", 50 + i, shift="fog") for i, (a, b) in enumerate(figures.WINDOWS)]
    assert len(figures.windows(windows).axes) == 2
    assert len(figures.repaired([record(rows.OURS, 60, loss=looked(wrong_inside=4, repaired_inside=1))]).axes) == 2


def test_the_headline_names_networks_and_scores(runs):
    found = report.headline(runs)
    assert found["gain in mean IoU, resnet"].startswith("+")
    assert len(found) == 2
