"""The tables and figures of notebook 03, on records made by hand: who is paired with whom, what holds."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt

from gentta_utils.course import nb03, profile, tables
from gentta_utils.course.nb03 import figures, report
from gentta_utils.evaluation import chosen
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.statistics import ON_VALIDATION, Interval
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world import words

SMALL, LARGE, CONTROL = "clip/small", "clip/large", "clip/small-32"
RIGHT, WRONG = 3, 0  # the true class, where nothing else is said
STARTS = {name: 1000 * i for i, name in enumerate(("fog", "snow", "gaussian_noise", "clean", "v2", "a"))}
SOURCE, READER = report.SOURCE, report.READER


def record(label, before, after=None, shift="fog", clip=SMALL, labels="category", truth=RIGHT, method=None, start=0):
    """A run whose largest logits are at `before` (N,) and `after`: those too where nothing else is said."""
    before = np.asarray(before)
    after = before if after is None else np.asarray(after)
    K, method = len(words.label_set(labels).classes), method or label.partition("/")[0]
    stream = {"shift": shift, "severity": 0 if shift in report.NATURAL else 5, "split": "test", "seed": 0}
    return Records(
        id=np.arange(len(before)) + STARTS[shift] + start,
        label=np.broadcast_to(np.asarray(truth), len(before)).copy(),
        before=np.eye(K, dtype=np.float32)[before] * 4,
        after=np.eye(K, dtype=np.float32)[after] * 4,
        loss=np.linspace(1, 0, 3 * len(before), dtype=np.float32).reshape(len(before), 3),
        seconds=np.full(len(before), 0.5, np.float32),
        nfe={} if method in ("source", "tent") else {"denoiser fwd+bwd": 96.0},
        about={
            "label": label,
            "method": method,
            "classifier": clip,
            "settings": {"seed": 0, "temperature": 3.0},
            "stream": stream | {"start": start} | ({} if labels == "category" else {"labels": labels}),
            "protocol": {"order": "iid", "reset": "per_image", "predict": "after", "batch": 25, "device": "cpu"},
            "select": ON_VALIDATION,
        },
    )


def read(k, n=20, wrong=WRONG):
    """Predictions of which the first k of n are right."""
    return np.where(np.arange(n) < k, RIGHT, wrong)


def headline(small=(5, 15), large=(8, 12), reader=14, shifts=("fog", "snow")):
    """All rows of the headline: zero-shot and adapted right answers of each CLIP, the reader's once."""
    runs = []
    for shift in shifts:
        for clip, (before, after) in {SMALL: small, LARGE: large}.items():
            runs += [record(SOURCE, read(before), shift=shift, clip=clip)]
            runs += [record("source/low", read(before + 2), shift=shift, clip=clip)]
            runs += [record(report.OURS, read(before), read(after), shift, clip)]
            runs += [record("diffusion_tta/low", read(before + 2), read(after - 1), shift, clip)]
            runs += [record("tent", read(before), read(before + 1), shift, clip)]
        runs += [record(READER, read(small[0]), read(reader), shift, method="diffusion_classifier")]
    return runs


@pytest.fixture
def validation(monkeypatch):
    """What the temperature of the ensemble is chosen from."""
    monkeypatch.setattr(report, "results", lambda table: headline(shifts=("gaussian_noise",)))


def row_of(rows, **wanted):
    (row,) = (r for r in rows if all(r[k] == v for k, v in wanted.items()))
    return row


def test_every_table_of_the_notebook_has_a_form():
    assert all(tables.TABLES[name] == entry for name, entry in nb03.TABLES.items())
    assert {"text_test", "text_k7", "text_k13", "winoground"} <= set(nb03.TABLES)


@pytest.mark.parametrize(
    "low, high, negative, said",
    [(1, 3, False, "holds"), (-3, -1, False, "reversed"), (-1, 3, False, "undecided"), (-3, -1, True, "holds"),
     (1, 3, True, "reversed"), (0, 3, False, "undecided"), (0, 3, True, "undecided")],
)  # fmt: skip
def test_a_shape_gets_one_of_three_words(low, high, negative, said):
    assert report.verdict(Interval((low + high) / 2, float(low), float(high)), negative) == said


def test_the_reader_stands_beside_each_clip_with_what_that_clip_says():
    beside = [r for r in report.readers_beside(headline()) if r.about["method"] == "diffusion_classifier"]
    right = {(r.about["classifier"], r.about["stream"]["shift"]): int(r.right_before.sum()) for r in beside}
    assert right == {(SMALL, "fog"): 5, (SMALL, "snow"): 5, (LARGE, "fog"): 8, (LARGE, "snow"): 8}
    assert {int(r.right_after.sum()) for r in beside} == {14}
    without = [r for r in headline() if (r.about["label"], r.about["classifier"]) != (SOURCE, LARGE)]
    assert {r.about["classifier"] for r in report.readers_beside(without) if r.about["label"] == READER} == {SMALL}


def test_rows_are_compared_with_zero_shot_low_view_and_ours(validation):
    rows = report.rivals(headline())
    ours = row_of(rows, CLIP="small", row="Diffusion-TTA")
    assert (ours["right"], ours["minus ours"], ours["denoiser"]) == ("75.0", "", "96 fwd+bwd")
    assert ours["minus zero-shot"].startswith("+50.0 [")
    assert ours["minus low view"].startswith("+40.0 [")
    reader = row_of(rows, CLIP="large", row=READER)
    assert (reader["right"], reader["minus ours"][:6]) == ("70.0", "+10.0 ")
    assert reader["minus zero-shot"].startswith("+30.0 [")
    mean = row_of(rows, CLIP="small", row=f"mean with {READER}")  # where both are wrong, nothing helps
    assert mean["right"] == "70.0"
    assert row_of(rows, CLIP="large", row="zero-shot, one prompt")["minus zero-shot"] == ""
    text = report.corruptions(headline())
    assert text.startswith("protocol:")
    assert "corruptions that gain" in text
    assert "the reader is" in text
    assert report.clean(headline()).count("\n") == len(rows) + 2


def test_repaired_images_are_split_by_what_the_reader_says():
    rows = report.repaired(headline(small=(5, 15), reader=10))
    right = row_of(rows, CLIP="small", **{"the reader is": "right"})  # scenes 5 to 9 of each shift, all repaired
    assert (right["CLIP wrong"], right["of them repaired, %"]) == (10, "100")
    assert (right["CLIP right"], right["of them broken, %"]) == (10, "0")
    wrong = row_of(rows, CLIP="small", **{"the reader is": "wrong"})
    assert (wrong["CLIP wrong"], wrong["of them repaired, %"]) == (20, "50")
    assert (wrong["CLIP right"], wrong["of them broken, %"]) == (0, "")


def sets_runs(small=(5, 15), large=(8, 12), shifts=("clean", "v2", "fog", "snow"), sets=("colour", "floor")):
    return [
        record(report.OURS, read(before), read(after), shift, clip, labels)
        for labels in sets
        for clip, (before, after) in {SMALL: small, LARGE: large}.items()
        for shift in shifts
    ]


def test_label_sets_stand_by_natural_shift_and_all_corruptions_together():
    row = row_of(report.cells(sets_runs()), **{"label set": "floor", "CLIP": "large"})
    assert row["clean"].startswith("40 +20.0 [")
    assert row[report.CORRUPTED].startswith("40 +20.0 [")
    assert row["sketch"] == ""
    runs = sets_runs()
    assert "of 12 cells 12 gain clearly, 0 lose clearly, and 0 do neither" in report.label_sets(runs)
    assert "20 scenes, in the last column 20 of each corruption" in report.label_sets(runs)
    worse = [replace(r, after=r.before, before=r.after) if r.about["classifier"] == LARGE else r for r in runs]
    assert report.no_gain(worse) == "of 12 cells 6 gain clearly, 6 lose clearly, and 0 do neither"


def test_pairs_that_captions_never_name_stand_apart():
    seen = np.array(words.label_set("colour_category").seen)
    truth = np.r_[np.flatnonzero(seen)[:6], np.flatnonzero(~seen)[:4]]
    after = np.where(np.arange(10) < 6, truth, (truth + 1) % 80)  # right where it is seen
    runs = [record(report.OURS, (truth + 1) % 80, after, "clean", labels="colour_category", truth=truth)]
    rows = report.cells(runs)
    assert [r["label set"] for r in rows] == ["colour_category", "colour_category, seen", "colour_category, unseen"]
    assert [r["clean"][:8] for r in rows] == ["0 +60.0 ", "0 +100.0", "0 +0.0 ["]


@pytest.mark.parametrize("large, said", [((8, 12), "holds"), ((2, 18), "reversed"), ((5, 15), "undecided")])
def test_the_larger_clip_gains_less(large, said):
    rows = report.smaller_gains_more(sets_runs(large=large))
    assert [r["label set"] for r in rows] == ["colour", "floor", "all"]
    assert {r["gains less"] for r in rows} == {said}
    difference = (large[1] - large[0] - 10) * 5
    assert rows[-1]["gain of the larger minus that of the smaller"].startswith(f"{difference:+.1f} [")


def test_two_clips_on_other_scenes_are_no_pair():
    runs = sets_runs()
    runs[-1] = replace(runs[-1], id=runs[-1].id + 1)
    with pytest.raises(ValueError, match="did not meet the same scenes"):
        report.smaller_gains_more(runs)


GRID = {"one": 12, "templates": 13, "floors": 15, "wrong floors": 9}


def grid_runs(more=2, heavy=10):
    """Two kinds by four kinds of prompts; the second is `more` scenes better, on the first `heavy` scenes alone."""
    runs = [record(label, read(8)) for label in (SOURCE, report.TEMPLATES)]
    for kind, plus, n in (("logits", 0, 20), ("clip_lora+sd_lora", more, heavy)):
        for prompts, k in GRID.items():
            after = read(k + plus, n)
            runs.append(record(f"{kind}/{prompts}", read(8)[:n], after, method="diffusion_tta"))
    return runs


def test_prompts_are_compared_within_a_kind_and_kinds_on_the_same_scenes():
    text = report.grid(grid_runs())
    (against,) = [line for line in text.splitlines() if line.startswith("| logits ") and "+15.0 [" in line]
    assert [cell.strip()[:6] for cell in against.split("|")[2:6]] == ["+5.0 [", "+15.0 ", "-15.0 ", "-30.0 "]
    assert "zero-shot: one prompt 40.0, templates 40.0" in text
    assert report.best_of_grid(grid_runs()).startswith("best on the 10 images that all met: logits/one, 100.0")
    better = grid_runs(more=2, heavy=20)
    assert "clip_lora+sd_lora/floors, 85.0, which is +25.0 [" in report.best_of_grid(better)
    assert report.best_of_grid(better).endswith("over logits/one: clear")


def test_the_adapted_reader_is_read_before_and_after():
    runs = [record("sd_lora/one", read(5), read(15), method="adapted_reader")]
    said = report.adapted_reader(runs)
    assert "25.0 → 75.0, +50.0 [" in said
    assert "median margin of the true class -4.00 → 4.00" in said
    assert "+50.0 [" in said.rpartition("fall ")[2]
    assert said in report.grid(grid_runs() + runs)
    assert "sd_lora alone" not in report.grid(grid_runs())


def test_margin_is_to_the_best_rival():
    logits = np.array([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert report.margin(logits, np.array([1, 2])).tolist() == [2.0, -2.0]


def test_scenes_that_one_row_did_not_meet_are_left_out():
    one, other = [record("a", read(5, 10)), record("a", read(5), shift="snow")], [record("b", read(4, 20), start=5)]
    mine, theirs = report.on_shared(one, other)
    assert [len(r) for r in mine + theirs] == [5, 5]
    assert report.minus(one, other).mean == pytest.approx(-80)  # of scenes 5 to 9 none is right, of the other four


def test_top_k_says_how_often_the_truth_is_among_them():
    r = record("top 2", read(4), read(8), method="diffusion_tta", labels="colour_category")
    r.before[4:10, 70:] = 1  # the truth is far behind
    r.before[10:, RIGHT] = 1  # second best
    assert report.recall([r], 1) == 20
    assert report.recall([r], 2) == 70
    assert report.recall([r], 80) == 100
    runs = [record(SOURCE, read(4), labels="colour_category"), r]
    row = report.top_k(runs).splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[1:3]] == ["top 2", "40.0"]
    assert row[4].strip() == "70.0"
    whole = record("all 80", read(4), read(12), method="diffusion_tta", labels="colour_category")
    assert cells_of(report.top_k([*runs, whole]), "top 2")[4].startswith("-20.0 [")


def cells_of(text, first):
    """The cells of the one row of a table that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_control_is_compared_on_the_same_scenes():
    runs = []
    for shift in ("fog", "clean"):
        for clip, before, after in ((SMALL, 5, 15), (CONTROL, 9, 13)):
            for view, more in (("full", 0), ("low", 1)):
                runs += [record(f"source/{view}", read(before + more), shift=shift, clip=clip)]
                runs += [record(f"diffusion_tta/{view}", read(before + more), read(after), shift, clip)]
    text = report.information(runs)
    shifted, clean = cells_of(text, "small-32 minus small, both zero-shot, full view")
    assert shifted == clean
    assert shifted.startswith("+20.0 [")
    assert cells_of(text, "small adapted minus small-32 zero-shot, low view")[0].startswith("+25.0 [")
    assert cells_of(text, "small-32 adapted minus itself zero-shot, full view")[1].startswith("+20.0 [")
    assert cells_of(text, "small-32 adapted minus small adapted, low view")[0].startswith("-10.0 [")
    assert "reader minus" not in text
    runs += [record(READER, read(5), read(14), shift, method="diffusion_classifier") for shift in ("fog", "clean")]
    assert cells_of(report.information(runs), "reader minus small-32 zero-shot, full view")[0].startswith("+25.0 [")


def test_rows_are_compared_with_each_other_and_what_is_undecided_is_said():
    runs = [record(SOURCE, read(5))]
    runs += [record(f"rank {k}", read(5), read(n), method="diffusion_tta") for k, n in ((1, 15), (4, 14), (16, 5))]
    text = report.against_each_other(runs)
    assert cells_of(text, "rank 4 minus rank 1")[0].startswith("-5.0 [")
    assert cells_of(text, "rank 4 minus rank 1")[0].endswith("], undecided")
    assert cells_of(text, "rank 16 minus rank 1")[0].startswith("-50.0 [")
    assert cells_of(text, "rank 16 minus rank 1")[0].endswith("]")
    assert "source/full minus" not in text


# --- settings --------------------------------------------------------------------------------------------------------


def test_both_profiles_know_what_is_adapted(monkeypatch):
    photos = profile("imagenet", seed=3)
    assert photos.text_settings("clip/small").param_set == "tower"  # as published
    norm = photos.text_settings("clip/small", kind="clip_norm", lr=0.1, pairs=None)
    assert (norm.param_set, norm.lr, norm.pairs, norm.seed) == ("norm", 0.1, 192, 3)
    both = photos.text_settings("clip/small", kind="clip_lora+sd_lora")
    assert (both.adapt_denoiser, both.denoiser_set) == (True, "lora")
    asked = []

    def tuned(*args, **how):
        asked.append((*args, how))
        return norm

    monkeypatch.setattr(chosen, "tuned_text", tuned)
    profile("scenes").text_settings("clip/small", updates=2, lr=None)
    profile("scenes").text_settings("clip/large", "low", "logits")
    assert asked == [
        ("clip/small", "full", None, {"seed": 0, "updates": 2}),
        ("clip/large", "low", "logits", {"seed": 0}),
    ]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_gains_are_drawn_in_their_order():
    runs = headline()
    runs = [replace(r, after=r.before) if r.about["stream"]["shift"] == "fog" else r for r in runs]
    fig = figures.gains(runs)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["snow", "fog"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["CLIP small", "CLIP large"]
    widths = sorted(round(p.get_width()) for p in ax.patches)
    assert widths == [0, 0, 20, 50]
    plt.close(fig)


def test_what_changed_is_drawn_by_the_seed():
    runs = [record(report.OURS, [0, 0, 3, 3, 0], [3, 3, 0, 3, 0]), record(report.OURS, [0], [3], "snow")]
    fixed, broken = figures.changed(runs, seed=0)
    assert sorted((r.about["stream"]["shift"], i) for r, i in fixed) == [("fog", 0), ("fog", 1), ("snow", 0)]
    assert [(r.about["stream"]["shift"], i) for r, i in broken] == [("fog", 2)]
    assert len(figures.changed(runs, 0, each=1)[0]) == 1
    orders = {tuple(i for _, i in figures.changed(runs, seed)[0]) for seed in range(8)}
    assert len(orders) > 1


def test_the_gallery_shows_the_image_of_the_record():
    spec = SceneSpec(2, "fog", 5, "test", 40)
    r = record(report.OURS, [0, 0], [3, 3], start=40)
    assert (figures.image_of(r, 1) == spec.load().images[1]).all()
    fig = figures.gallery([(r, 1)], tuple(words.VALUES["category"]))
    assert fig.axes[0].get_title() == "sphere →\ncone"
    assert "true: cone" in fig.axes[1].get_title()
    plt.close(fig)


def test_harm_by_corruption_comes_worst_first():
    rows = figures.by_corruption(
        [
            record("a", read(10)),
            record("a", read(3), shift="snow"),
            record("b", read(8)),
            record("b", read(8), shift="snow"),
        ],
        "a",
        "b",
    )
    assert [r["shift"] for r in rows] == ["snow", "fog"]
    assert rows[0]["a minus b"].startswith("-25.0 [")


def test_the_corruptions_that_gain_least_stand_with_the_reader():
    rows = figures.least(headline(), n=1)
    assert [r["CLIP"] for r in rows] == ["small", "large"]
    assert (rows[1]["zero-shot"], rows[1]["adapted"], rows[1]["low view"], rows[1]["reader"]) == (
        "40",
        "60",
        "50",
        "70",
    )
