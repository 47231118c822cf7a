"""Which diffusion model may teach: readings of cards, rates that the other half chose, on records made by hand."""

import numpy as np
import pytest
from test_report_04 import record

from gentta_utils.course.nb04 import candidates, choose, clean_costs, rows
from gentta_utils.evaluation import tables
from gentta_utils.evaluation.chosen import tuned_maps
from gentta_utils.methods.base import stated
from gentta_utils.models import zoo
from gentta_utils.world.severities import VALIDATION

FIRST = candidates.BASE
OTHER = "32 px averages"


def made(label, after, half, shift="spatter"):
    """A run on one half of the scenes of a corruption."""
    r = record(label, after, shift="fog", n=candidates.HALF)
    start = candidates.FIRST + 20 * VALIDATION.index(shift) + candidates.HALF * half
    r.id[:] = np.arange(start, start + len(r))
    stream = r.about["stream"] | {"shift": shift, "start": start, "n": len(r), "split": "select"}
    r.about.update(stream=stream, method="source" if label == rows.SOURCE else "diffusion_tta")
    return r


def runs():
    """The shipped model and two others: the usual rate is best on both halves, or a rate is good on one half alone."""
    gains = {
        (candidates.SHIPPED, 0.3): (56, 56),
        (candidates.SHIPPED, 1.0): (61, 61),
        (candidates.SHIPPED, 3.0): (54, 54),
        (candidates.SHIPPED, 10.0): (53, 53),
        (FIRST, 0.3): (55, 55),
        (FIRST, 1.0): (60, 60),
        (FIRST, 3.0): (52, 52),
        (FIRST, 10.0): (51, 51),
        (OTHER, 0.3): (53, 51),
        (OTHER, 1.0): (52, 52),
        (OTHER, 3.0): (40, 58),
        (OTHER, 10.0): (40, 40),
    }
    found = [made(rows.SOURCE, 50, half) for half in (0, 1)]
    for (row, times), after in gains.items():
        found += [made(candidates.label_of(row, times), v, half) for half, v in enumerate(after)]
    return found


def test_a_half_gets_the_rate_that_gains_most_on_the_other():
    taken, rates = candidates.at_best_rate(runs(), OTHER)
    assert rates == [3.0, 0.3]  # of the first half by the second, and the other way round
    assert [r.about["stream"]["start"] for r in taken] == [r.about["stream"]["start"] for r in runs()[:2]]
    assert candidates.at_best_rate(runs(), FIRST)[1] == [1.0, 1.0]
    shipped, first, other = candidates.taught(runs())
    assert first["mean class accuracy, usual rate"] == first["mean class accuracy, its rates"] == "60.0"
    assert (other["mean class accuracy, usual rate"], other["mean class accuracy, its rates"]) == ("52.0", "45.5")
    assert other["rates of the halves"] == "x 3 and x 0.3"
    assert other[f"mean class accuracy, minus {FIRST}"].endswith("reversed")
    assert first[f"mean class accuracy, minus {FIRST}"] == ""
    assert shipped[f"mean class accuracy, minus {FIRST}"].endswith("holds")
    assert first[f"mean class accuracy, minus {candidates.SHIPPED}"].endswith("reversed")


def trained_on():
    """The model on averages, `OTHER`, trained for longer."""
    row = f"{candidates.AVERAGED}, softened maps, {candidates.LONGER}"
    return [made(candidates.label_of(row, times), 30, half) for times in candidates.RATES for half in (0, 1)]


def test_longer_training_is_held_against_the_same_for_less(monkeypatch):
    steps = {
        candidates.USUAL: 6000,
        "maps/classes-short": 800,
        "maps/classes-averaged": 880,
        "maps/classes-long": 12_000,
    }
    monkeypatch.setattr(zoo, "card", lambda name: {"steps": steps[name]})
    at_64, on_averages = candidates.longer(runs() + trained_on())
    assert (at_64["diffusion model"], at_64["steps"]) == (candidates.BASE, "800 and 6,000")
    assert (on_averages["diffusion model"], on_averages["steps"]) == (candidates.AVERAGED, "880 and 12,000")
    assert at_64["mean class accuracy, the longer one minus the other"] == "+1.0 [+1.0, +1.0], holds"
    apart = on_averages["mean class accuracy, the longer one minus the other"]  # 30 against 40 and 51
    assert apart.startswith("-15.5 [")
    assert apart.endswith("reversed")


def test_readings_are_held_against_the_bars(monkeypatch):
    good, low = {"read": [50, 100]}, {"read": [50, 94]}
    quality = {name: dict.fromkeys(candidates.WRONG, good) for name in ("clean", *VALIDATION)}
    quality |= {"windows": [[20, 150], [300, 500]], "clean": dict.fromkeys(candidates.WRONG, good) | {"swapped": low}}
    cards = {candidates.USUAL: {"quality": quality | {"clean": dict.fromkeys(candidates.WRONG, good)}}}
    cards["maps/classes-averaged"] = {"quality": quality}
    about = {"parameters": 4_200_000, "steps": 880, "minutes": 17.5, "recipe": {"scenes": 20_000}}
    monkeypatch.setattr(candidates, "CANDIDATES", {k: v for k, v in candidates.CANDIDATES.items() if v in cards})
    monkeypatch.setattr(zoo, "card", lambda name: cards[name] | about)
    usual, averaged = candidates.bars()
    assert (usual["reads in"], usual["bars missed there"]) == ("300..500", "none")
    assert (averaged["reads in"], averaged["best window"]) == ("none", "300..500")
    assert averaged["bars missed there"] == "(b) swapped clean 94"
    assert [averaged[k] for k in ("parameters, M", "scenes", "steps", "minutes")] == ["4.2", 20_000, 880, "18"]
    row = candidates.readings()[1]
    assert row["(b) swapped, clean"] == "50 / 94"
    assert row["(a) the segmentor's, corrupted"] == "50 / 100"


def test_what_is_shown_is_all_there_is():
    text = candidates.show(runs() + trained_on())
    assert text.startswith("protocol: ")
    assert "mean class accuracy 50.0, mean IoU" in text
    assert "diffusion model, each at its rates" in text


def test_the_search_names_the_best_option_of_each_kind():
    after = {rows.SOURCE: 50, rows.OURS: 60, "1 pairs": 61, "4 pairs": 58, "T 1": 50, "t 0..1000": 70, "no judge": 60}
    altered = [record(label, v, shift=s) for s in ("fog", "clean") for label, v in after.items()]
    for r in altered:
        r.about["stream"]["n"] = len(r)
    found = {row["varied"]: row for row in candidates.search(altered, runs())}
    assert found["pairs per update"]["best of them in hindsight"] == "1 pairs"
    assert found["pairs per update"]["other options"] == 2
    assert found["window of t"]["mean class accuracy, minus ours"].endswith("holds")
    assert found["softness: temperature"]["mean IoU, minus ours"].endswith("reversed")
    assert found["step: rate"]["best of them in hindsight"] == "x 0.3"
    assert found[f"diffusion model, each at its rates, minus {FIRST}"]["best of them in hindsight"] == OTHER
    kinds = {candidates.tried(label) for label in ("free map", "free map, t 20..150", "norms alone", "3 updates")}
    assert kinds == {"a free map in place of weights", "weights that move", "updates"}
    assert candidates.tried(rows.OURS) == candidates.tried(rows.SOURCE) == ""


def test_candidates_meet_the_same_scenes_apart_from_those_of_the_choice(monkeypatch):
    jobs, met = [], {}
    monkeypatch.setattr(candidates, "table", lambda name, made: jobs.extend(made) or [])
    candidates.candidates()
    for about, _ in jobs:
        s = about["stream"]
        met.setdefault(about["label"], set()).add((s["shift"], s["severity"], s["start"], s["n"]))
        if about["method"] == "diffusion_tta":
            now = tuned_maps(candidates.NETWORK)
            same = {k: v for k, v in about["settings"].items() if k not in ("lr", "updates", "window")}
            assert same.items() <= choose.as_recorded(now).items()
            assert about["settings"]["updates"] == candidates.UPDATES
    streams = met[rows.SOURCE]
    assert all(v == streams for v in met.values())
    assert sum(n for *_, n in streams) == 40
    scenes = {k for _, _, start, n in streams for k in range(start, start + n)}
    for r in tables.results("select_maps"):
        s = r.about["stream"]
        assert not scenes & set(range(s["start"], s["start"] + s["n"]))


@pytest.mark.parametrize("name", sorted(set(candidates.CANDIDATES.values()) - {candidates.USUAL}))
def test_what_was_tried_beside_the_shipped_model_is_made_on_demand(name):
    assert name in zoo.ON_DEMAND


# --- what gains cost clean scenes -------------------------------------------------------------------------------------


def test_gains_stand_beside_what_clean_scenes_lose():
    """The shipped model gains 10 points more at each higher rate; the one on averages is one rate ahead of it, and
    loses 10 on clean scenes."""
    after = {rows.SOURCE: (50, 50)}
    for i, times in enumerate(clean_costs.RATES):
        after[candidates.label_of(candidates.SHIPPED, times)] = (60 + 10 * i, 50)
        after[candidates.label_of(candidates.AVERAGED, times)] = (70 + 10 * i, 40)
    made = [
        record(label, v, shift=s) for label, both in after.items() for s, v in zip(("fog", "clean"), both, strict=True)
    ]
    for r in made:
        r.about["method"] = "source" if r.about["label"] == rows.SOURCE else "diffusion_tta"
    shipped, other, *more = clean_costs.gains(made)
    assert len(more) == 4
    assert (shipped["rate"], other["diffusion model"]) == ("x 0.3", candidates.AVERAGED)
    assert shipped["mean class accuracy, corrupted"] == "+10.0 [+10.0, +10.0]"
    assert other["mean class accuracy, clean"] == "-10.0 [-10.0, -10.0]"
    same, *_, higher, last = clean_costs.ahead(made)
    assert same["mean class accuracy, corrupted"] == "+10.0 [+10.0, +10.0], holds"
    assert same["mean IoU, clean"].endswith("reversed")
    assert (higher[candidates.AVERAGED], higher["minus shipped"], last["minus shipped"]) == ("x 0.3", "x 1", "x 3")
    assert higher["mean class accuracy, corrupted"] == "+0.0 [+0.0, +0.0], undecided"
    assert "images: 6 corrupted, 6 clean" in clean_costs.show(made)


def test_costs_are_measured_with_the_chosen_settings_on_selection_scenes(monkeypatch):
    jobs = []
    monkeypatch.setattr(clean_costs, "table", lambda name, made: jobs.extend(made) or [])
    clean_costs.costs()
    now = stated(tuned_maps(candidates.NETWORK))
    asked = [about for about, _ in jobs if about["method"] == "diffusion_tta"]
    assert all(about["settings"] | {"lr": 0} == now | {"lr": 0} for about in asked)
    assert {about["settings"]["lr"] / now["lr"] for about in asked} == set(clean_costs.RATES)
    streams = [about["stream"] for about in asked if about["label"] == asked[0]["label"]]
    assert {s["split"] for s in streams} == {"select"}
    assert {s["shift"] for s in streams} == {"clean", *VALIDATION}
    assert [sum(s["n"] for s in streams if (s["shift"] == "clean") == clean) for clean in (True, False)] == [30, 32]
    scenes = [(s["shift"], s["severity"], k) for s in streams for k in range(s["start"], s["start"] + s["n"])]
    assert len(set(scenes)) == len(scenes)
