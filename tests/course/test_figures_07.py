"""Figures and sentences of notebook 07, on boards made by hand: who stands where, what is drawn, what is said."""

import numpy as np
import pytest

from gentta_utils.course import plots, side_by_side
from gentta_utils.course.nb07 import exercises, figures, says
from gentta_utils.course.nb07.board import Board, Facts, ranks
from gentta_utils.methods.base import Models
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world.labels import CLASSES
from gentta_utils.world.scenes import scene_ids

ROWS = {"source": (1.0, 0.4), "cheap": (2.0, 0.6), "level": (50.0, 0.6), "best": (300.0, 0.9), "worse": (400.0, 0.2)}


def made(each: int = 20, shifts=("fog 5", "snow 5", "jpeg 5")) -> Board:
    """Rows that are right on the first share of each shift's scenes; `worse` met half of them."""
    n, K = each * len(shifts), len(CLASSES)
    label = np.arange(n) % K
    logits = np.zeros((len(ROWS), n, K), np.float32)
    for i, (_, share) in enumerate(ROWS.values()):
        right = np.arange(n) % each < share * each
        logits[i, np.arange(n), np.where(right, label, (label + 1) % K)] = 3
    logits[-1, np.arange(n) % each >= each // 2] = np.nan
    facts = {row: Facts(cost, 0.1) for row, (cost, _) in ROWS.items()}
    scene = np.concatenate([scene_ids(each, "test", 1000 * i) for i in range(len(shifts))])
    return Board("resnet", tuple(ROWS), np.repeat(shifts, each), scene, label, logits, facts)


def texts(ax) -> list[str]:
    return [t.get_text() for t in ax.texts]


def test_rows_are_numbered_by_cost_and_the_frontier_is_marked():
    fig = figures.cost(made(), {"TENT": 3.0, "DDA": 152.0, "SDA": 153.0, "Diffusion-TTA": 2880.0}, tuple(ROWS)[:4])
    ax, names = fig.axes[:2]
    assert texts(ax) == ["1", "2", "3", "4"]
    assert texts(names) == [" 1  source", " 2  cheap", " 3  level", " 4  best"]
    assert [t.get_weight() for t in names.texts] == ["bold", "bold", "normal", "bold"]
    (top,) = (child for child in ax.child_axes)
    assert [t.get_text() for t in top.get_xticklabels()] == ["TENT", "DDA, SDA", "Diffusion-TTA"]
    plots.show(fig, "Four rows by cost.")


def test_the_heat_map_has_a_cell_for_what_was_met_and_a_column_for_all():
    b = made()
    b.logits[1, b.shift == "fog 5"] = np.nan
    fig = figures.heat(b)
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["fog", "snow", "jpeg", "all"]
    assert len(ax.texts) == 4 * 4 - 1
    assert texts(ax)[0] == "+20"  # `cheap` under snow
    assert all((t.get_weight() == "bold") == (t.get_text() != "+0") for t in ax.texts)
    plots.show(fig, "Gains of four rows under three shifts.")


def test_ranks_are_sorted_and_other_classifiers_stand_beside_them():
    found = ranks(made(), tuple(ROWS)[:4], draws=50)
    fig = figures.ranks(found, {"ViT": found[1:]})
    (ax,) = fig.axes
    assert ax.get_yticklabels()[0].get_text() == "best"
    marks = [line for line in ax.lines if line.get_label() == "ViT"]
    assert len(marks[0].get_xdata()) == len(found) - 1
    plots.show(fig, "Ranks of four rows.")


def test_the_shown_scenes_are_those_that_all_rows_met_and_are_rendered_again():
    b = made()
    places = figures.same_scenes(b, 5, seed=1)
    assert len(set(places)) == 5
    assert b.met(*b.rows)[places].all()
    assert {b.shift[i] for i in places[:3]} == set(b.shift)
    assert places == figures.same_scenes(b, 5, seed=1) != figures.same_scenes(b, 5, seed=2)
    assert len(figures.same_scenes(b, 99)) == b.met(*b.rows).sum()
    for s, i in zip(figures.images_of(b, places[:2]), places, strict=False):
        assert (int(s.ids), s.about["shift"]) == (b.scene[i], b.shift[i].split(" ")[0])


def test_what_rows_say_is_named_where_it_is_wrong():
    b = made()
    places = [0, 1, 25]
    fig = figures.said(b, places, list(CLASSES))
    answers = b.logits[:, places].argmax(2)
    wrong = [
        CLASSES[k][:9] for k, label in zip(answers.flat, np.tile(b.label[places], len(ROWS)), strict=True) if k != label
    ]
    assert texts(fig.axes[0]) == wrong
    plots.show(fig, "Five rows and three scenes.")


@pytest.mark.parametrize("answer, joins", [(lambda c, x: c(x) + c(x.flip(-1)), True), (lambda c, x: None, False)])
def test_an_own_row_joins_the_live_table_if_it_obeys(shipped, answer, joins):
    s, models = stream(SceneSpec(4, "fog", 5)), Models(shipped.classifier)
    live = {"source": [exercises.run(exercises.Mine(models, lambda c, x: c(x)), s, about={"label": "source"})]}
    found = exercises.joined(answer, models, s, live)
    assert [line["method"] for line in found] == ["source"] + ["mine"] * joins
    assert found[-1]["forward equivalents"] == ("2" if joins else "1")
    assert len(side_by_side.live(live)) == 1


# --- sentences --------------------------------------------------------------------------------------------------------


def test_the_answer_is_the_best_row_that_a_budget_allows():
    found = {(line["images come"], line["forward equivalents"]): line for line in says.answer(made())}
    assert found["one by one", "up to 5"]["use"] == "cheap"
    assert found["one by one", "up to 100"]["use"] == "cheap"  # as good as `level`, and cheaper
    assert found["in batches", "any"]["use"] == "best"
    assert found["in batches", "any"]["it costs"] == "300"
    assert found["in batches", "any"]["gain"].startswith("+50.0 [")
    b = made()
    b.logits[0, :5] = np.nan  # scenes that the source did not meet
    assert {line["scenes"] for line in says.answer(b) if line["use"] == "best"} == {len(b.shift) - 5}


def test_a_row_that_needs_a_batch_is_no_answer_for_single_images():
    b = made()
    b.facts["best"] = Facts(300.0, 0.1, batch=True)
    uses = {(line["images come"], line["forward equivalents"]): line["use"] for line in says.answer(b)}
    assert (uses["one by one", "any"], uses["in batches", "any"]) == ("cheap", "best")


def test_who_gains_and_who_loses_is_said():
    text = says.of_grid(made())
    assert "of 4 methods 3 clearly gain over all corruptions, 1 clearly lose. Most: best +50.0 [" in text
    assert "Lose: worse -" in text


def test_the_cheapest_row_that_is_known_to_lose_little():
    text = says.of_cost(made())
    assert "on the frontier: source (1), cheap (2) and best (300)" in text
    assert text.endswith("Of no cheaper row is it known that it loses less than 5 points to the best, best.")
    b = made(each=80)
    b.logits[2, 0] = b.logits[2, 0][::-1]  # `level` is wrong once more than `cheap`, now the best
    b.logits[3] = b.logits[0]
    assert says.of_cost(b).endswith("loses less than 5 points to the best, cheap.")  # for `level` costs more
    b.facts["level"] = Facts(1.5)
    assert "points to the best, cheap: level, -0.4 [" in says.of_cost(b)


def test_rows_that_cannot_be_told_from_the_first_are_counted():
    first = [
        {"row": name, "rank": r, "behind": (low, low + 3)}
        for name, r, low in (("a", 1, 0), ("b", 2, -0.2), ("c", 5, 1))
    ]
    text = says.of_ranks(first, [{"row": "c", "rank": 1}, {"row": "b", "rank": 2}, {"row": "a", "rank": 3}])
    assert "First: a. Of the other 2 rows 1 cannot be told from it (the interval of the difference" in text
    assert "reaches 0): b. Kendall" in text
    assert text.endswith("-1.00.")


def test_where_the_variance_of_gains_lies():
    b = made()
    b.logits[4] = b.logits[0]  # no row without scenes, and each gains the same under every shift
    assert "4 rows: of the variance of their gains 100% lies between rows, 0% between corruptions" in says.of_heat(b)


def test_names_are_listed():
    assert [says.listed(names) for names in ([], ["a"], ["a", "b", "c"])] == ["none", "a", "a, b and c"]
