"""No empty row: what a row of a committed table claims to change did change.

Two rows of a table are compared on the predictions that both made, those of all classifiers together. Rows of different
methods, or a row and its own source, are one where 97% agree; of one method, whose settings may matter little, where
99.5% do."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from gentta_utils.course.tables import TABLES
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.tables import results

OTHER, SAME = 0.97, 0.995
OWN = "its source"
TENT = "TENT at five batches of 10 or one of 50 does not move off the batch's statistics: longer streams (notebook 02)"
FLAT = "so few batches that the rate does not matter: a grid on longer streams (notebook 02)"
MIX = "two rules to weigh two opinions that agree on these scenes: a grid to choose from"
WORDS = "the CLIPs saw all these wordings in training, so templates add nothing: a finding of notebook 03"
TAUGHT = (
    "a text model that reads 56 to 100% as it is: adapters fitted to one image hardly move a decision (notebook 03)"
)
SHIFT = "with all else frozen, prompt features move the logits, and little else"
FEW = "ten scenes, which all of them read but one"
OURS = "diffusion_tta/full"
CACHE = "forty images do not fill a cache whose weight was chosen on streams of a hundred (notebook 06)"
SD_ROWS = [f"sd_lora lr {lr}" for lr in ("0.01", "0.1")]
BOTH_ROWS = [f"clip_lora+sd_lora lr {lr}" for lr in ("0.01", "0.1")]
# 20 scenes a set, and a tuned prompt flips few predictions: which rows of notebook 06 are one for that reason
PROMPTS = json.loads((Path(__file__).parent / "rows_of_prompts.json").read_text(encoding="utf-8"))
# streams of 15 to 100 images: which rows of notebook 07 are one for that reason
STREAMS = json.loads((Path(__file__).parent / "rows_of_streams.json").read_text(encoding="utf-8"))
# low rates, or few batches: which candidates of the long streams are one for that reason
RATES = json.loads((Path(__file__).parent / "rows_of_rates.json").read_text(encoding="utf-8"))
FEW_IMAGES = "so few images that a state, a batch or a cache hardly matters: longer streams in data/grid.yaml"
TUNED = "the logits of every image differ, but few scenes do not tell such rows apart (notebook 06)"
BATCHES = [f"{kind}, batch {n}" for kind in ("per image", "fixed chunk") for n in (20, 1)] + ["batch norm, batch 1"]
TURNED = [  # the same scenes in another order
    (f"{method}, {one}", f"{method}, {other}")
    for method in ("diffpure", "memo")
    for one, other in (("correlated", "iid"), ("mixed", "mixed correlated"))
]
KNOWN = {name: dict.fromkeys(map(tuple, pairs), TUNED) for name, pairs in PROMPTS.items()}
LEARNED = "the source was fitted on these scenes: projected early, they teach it nothing new (notebook 05)"
OUTVOTED = "a sure source outvotes what the copy learned (notebook 05)"
KNOWN["sda_gap"] = {
    ("t 300, dda, alone", "t 300, own scenes, alone, seed 2"): LEARNED,
    ("t 494, dda, sum", "t 494, sda, sum, seed 2"): OUTVOTED,
    ("1000 steps, dda, sum", "1000 steps, sda, sum, seed 1"): OUTVOTED,
}
KNOWN["sda_sets"] = {
    (f"{kind}, sum", "dda, sum"): "a sure source outvotes what the copy learned, on few scenes (notebook 05)"
    for kind in ("30 a class, agreed", "100 a class")
}
KNOWN["digits"] = {
    ("naive ensemble", "reader/48 pairs/150..600"): "the reader is so sure that the other vote hardly counts",
    ("bn_adapt", "tea"): "few batches: TEA hardly moves off the batch's statistics",
}
LOW_RATES = ("diffusion_tta lr 0.001", "dusa lr 0.0001", "dusa lr 0.001", "dusa lr 1e-05")
FLAT_CLIP = "DUSA answers few batches before it moves; of Diffusion-TTA it is the lowest rate of the grid"
NOTHING_MORE = "a depth network starts from the low view alone: it has no batch statistics (notebook 04)"
KNOWN["maps_depth"] = {("its start, no feedback", row): NOTHING_MORE for row in ("its source", "low view")}
KNOWN["photographs"] = {
    ("TENT, batches of 16", "batch statistics of 16"): "four batches at the published rate for ImageNet (notebook 02)"
}
KNOWN["select_leave_one_out"] = {("Adam, lr 0.0003", "Adam, lr 0.001"): "two rates, and few scenes to choose on"}
KNOWN["select_streams"] = dict.fromkeys(map(tuple, RATES), "a low rate, or so few batches that it does not matter")
KNOWN["grid_streams"] = dict.fromkeys(map(tuple, STREAMS), FEW_IMAGES)
KNOWN["select_prompt"]["eta 0.2", "eta 0.8"] = "the weight reaches the lower bound only at the end of this stream"
KNOWN |= {  # table -> {two rows: why they are one}
    "select_text": {
        **dict.fromkeys(combinations(SD_ROWS, 2), TAUGHT),
        **{(row, OWN): TAUGHT for row in SD_ROWS},
        **{("reader/48", row): TAUGHT for row in SD_ROWS},
        **dict.fromkeys(combinations(BOTH_ROWS, 2), TAUGHT),
        **{(row, other): FEW for row in BOTH_ROWS for other in (*SD_ROWS, "reader/48", "clip_lora, delta 0.35")},
        ("tent lr 0.0001", "tent lr 1e-05"): FLAT,
    },
    "text_test": {("source/full", "source/templates"): WORDS},
    "text_clean": {
        ("source/full", "source/templates"): WORDS,
        ("source/full", "tent"): "clean scenes: batch statistics leave right predictions alone",
        ("source/templates", "tent"): "clean scenes: batch statistics leave right predictions alone",
        ("tent", OWN): "clean scenes: batch statistics leave right predictions alone",
        **{(OURS, f"reader/{n}"): "clean scenes: both are right on 97 to 99%" for n in (48, 144)},
        **{(OURS, row): "clean scenes are to be kept, and are" for row in ("source/full", "source/templates", OWN)},
    },
    "text_k13": {
        ("source/full", "source/templates"): WORDS,
        ("clip_text/floors", "logits/floors"): SHIFT,
        ("clip_text/one", "logits/one"): SHIFT,
        ("sd_lora/one", OWN): TAUGHT,
    },
    "winoground": {("reader/24 pairs/300..850", OWN): "subtracting the unconditional error moves image scores alone"},
    "reading": {
        ("reader/12 pairs/150..600", "reader/12 pairs/150..600 (25 scenes)"): "the same settings again, beside a sweep",
    },
    "why": {
        (alone, row): "taken alone, at a rate made for all together, it moves one prediction in thirty"
        for alone in ("alone: temperature", "alone: window")
        for row in ("source/full", OWN)
    },
    "select_rivals": {
        ("cotta lr 0.0001", "cotta lr 0.001"): FLAT,
        ("cotta lr 0.0001", "cotta lr 0.003"): FLAT,
        ("cotta lr 0.0001", "cotta lr 0.01"): FLAT,
        ("cotta lr 0.001", "cotta lr 0.003"): FLAT,
        ("cotta lr 0.001", "cotta lr 0.01"): FLAT,
        ("cotta lr 0.003", "cotta lr 0.01"): FLAT,
        ("tea lr 0.001", "tea lr 0.003"): FLAT,
        ("dusa lr 1e-05", OWN): "one of the two lowest rates of the grid, which do nothing",
        ("dusa lr 0.0001", OWN): "one of the two lowest rates of the grid, which do nothing",
    },
    "select_one_by_one": {
        (f"online, {row}", OWN): "one of the lowest rates: its one update hardly changes what the carried state says"
        for row in (
            "all, lr 0.0118, share 0.01",
            "all, lr 0.014, share 0.01",
            "all, lr 0.0354, share 0.03",
            "all, lr 0.0372, share 0.01",
            "all, lr 0.042, share 0.03",
            "all, lr 0.112, share 0.03",
            "norm, lr 0.566, share 0.01",
            "norm, lr 1.7, share 0.03",
            "norm, lr 12.6, share 0.03",
            "norm, lr 2.99, share 0.01",
            "norm, lr 4.19, share 0.01",
            "norm, lr 8.97, share 0.03",
        )
    },
    "one_by_one": dict.fromkeys(
        (("online", OWN), ("online, order 2, seed 1", OWN)),
        "one update hardly changes what the carried state says: what it carries does (notebook 02)",
    ),
    "select_dit": {("DiT lr 0.01", "DiT lr 0.1"): "sixteen scenes; the losses differ, and the higher rate is taken"},
    "online": {
        ("bn_adapt/iid", "tent/iid"): TENT,
        ("bn_adapt/correlated", "tent/correlated"): TENT,
        ("bn_adapt/mixed", "tent/mixed"): TENT,
    },
    "frontier": {("BN-adapt", "tent"): TENT},
    "streams": {("cotta batch 50", "cotta views batch 50"): "two batches: one update, and the teacher hardly moves"},
    "select_sda": {
        ("sda 16 x lr, entropy", "sda 16 x lr, sum"): MIX,
        ("sda 16 x lr, confidence", "sda 16 x lr, sum"): MIX,
        ("sda 16 x lr, confidence", "sda 16 x lr, entropy"): MIX,
        ("sda 1 x lr, confidence", "sda 1 x lr, sum"): MIX,
        ("sda 1 x lr, confidence", "sda 1 x lr, entropy"): MIX,
        ("sda 1 x lr, calibrated 8", "sda 1 x lr, purified"): MIX,
        ("dda base, confidence", "dda base, sum"): MIX,
    },
    "select_sda_wider": {("memo lr 5e-05", "its source"): "a tenth of the least rate that was tried: beyond the edge"},
    "grid": {
        ("BN-adapt", "tent"): TENT,
        ("DUSA", OWN): "one of the two lowest rates of its grid, which do nothing (notebook 02)",
        ("DOTA", "TDA"): CACHE,
        ("DOTA", "DUSA"): CACHE,
        ("DUSA", "TDA"): CACHE,
        **{(row, OWN): CACHE for row in ("DOTA", "TDA")},
    },
    "select_grid": {
        ("cotta lr 0.0001", "cotta lr 0.001"): FLAT,
        ("cotta lr 0.0001", "cotta lr 0.01"): FLAT,
        ("cotta lr 0.001", "cotta lr 0.01"): FLAT,
        ("tea lr 0.001", "tea lr 0.01"): FLAT,
        **dict.fromkeys(combinations([*LOW_RATES, OWN], 2), FLAT_CLIP),
    },
    "unseen": {
        **{
            ("DUSA", other): "one of the two lowest rates of its grid, which do nothing"
            for other in (OWN, "source/full")
        },
        ("DUSA", "roughness"): "one of the two lowest rates of its grid, which do nothing",
        ("roughness", "source/full"): "the source, with how rough its images are in the place of a loss",
    },
    "sda_clean": {
        ("dda, sum", "source/full"): "clean scenes: the sum leaves right predictions alone",
        ("dda, sum", OWN): "clean scenes: the sum leaves right predictions alone",
        ("dda, sum", "sda, sum"): "clean scenes: the sum leaves right predictions alone",
    },
    "sda_number": {("dda, sum", "sda, 0 a class"): "no synthetic image: SDA is DDA, which is what the row shows"},
    # one image or twenty at a time is what these rows compare, and nothing depends on it but one published norm
    "sda_batches": dict.fromkeys([*combinations(sorted(BATCHES), 2), *TURNED], "that they are one is what they show"),
}


def place_of(r: Records) -> tuple:
    """What two predictions for an image have in common if they can be compared: the question to it is part of that, and
    so is the order of a stream that came in several, each shuffled by seeds."""
    at = r.about["stream"]
    order = (at.get("order", "iid"), at["order_seed"]) if "order_seed" in at else ()
    shift = "" if "parts" in at else at["shift"]
    return (
        r.about["classifier"],
        shift,
        at["severity"],
        at["seed"],
        at.get("labels", "category"),
        at.get("target"),
        order,
    )


def answers(runs: list[Records], when: str) -> dict[str, dict]:
    """Row -> the logits, "before" or "after", of every image where the row met it; none is there twice."""
    rows: dict[str, dict] = {}
    for r in runs:
        met = dict(zip(((place_of(r), i) for i in r.id.tolist()), getattr(r, when), strict=True))
        row = rows.setdefault(r.about["label"], {})
        assert len(met) == len(r)
        twice = met.keys() & row.keys()
        assert not twice or r.about["method"] == "source", "one prediction would hide another of the same image"
        for at in twice:  # the source beside rows of fewer scenes: the same prediction again
            assert np.array_equal(met[at], row[at]), "one prediction would hide another of the same image"
        row |= met
    return rows


def agreements(runs: list[Records]) -> dict[tuple[str, str], tuple[float, float]]:
    """Two rows, or a row and its source -> the share of equal predictions, and from what share on they are one."""
    rows, own = (
        {label: {at: said(z, runs[0].target) for at, z in row.items()} for label, row in answers(runs, when).items()}
        for when in ("after", "before")
    )
    method, found = {r.about["label"]: r.about["method"] for r in runs}, {}
    for one, other in combinations(sorted(rows), 2):
        if share := equal(rows[one], rows[other]):
            found[one, other] = share, SAME if method[one] == method[other] else OTHER
    for label, predictions in rows.items():
        if method[label] != "source":  # on the low view it is its own source
            found[label, OWN] = equal(predictions, own[label]), OTHER
    return found


def said(z, target: str):
    """A prediction; of a map its scores, of which two alike are as good as the same map."""
    return z.argmax() if target == "class" else z.tobytes()


def equal(one: dict, other: dict) -> float | None:
    """The share of equal predictions among those of the same images; None where there are none."""
    common = one.keys() & other.keys()
    return float(np.mean([one[key] == other[key] for key in common])) if common else None


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_row(name):
    """Those in `KNOWN` are still one: what is fixed leaves the list."""
    empty = {pair for pair, (share, one_from) in agreements(results(name)).items() if share >= one_from}
    assert empty == set(KNOWN.get(name, {}))


@pytest.mark.parametrize("name", PROMPTS)
def test_what_a_tuned_row_changes_reaches_every_logit(name):
    """Rows that are one because they flip so few predictions are not copies: no image has the same logits in both."""
    rows, own = (answers(results(name), when) for when in ("after", "before"))
    for one, other in map(tuple, PROMPTS[name]):
        first, second = rows[one], own[one] if other == OWN else rows[other]
        common = first.keys() & second.keys()
        assert common, (one, other)
        assert not any(np.array_equal(first[at], second[at]) for at in common), (one, other)


def test_an_empty_row_is_found():
    """A copied row, and one that leaves its source as it is, in a table that has neither."""
    runs = results("natural")
    r = next(r for r in runs if r.about["method"] == "diffusion_tta")
    assert not any(share >= one_from for share, one_from in agreements(runs).values())
    copied = [replace(r, about=r.about | {"label": "copied"})]
    still = [replace(r, after=r.before, about=r.about | {"label": "still"})]
    found = agreements([*runs, *copied, *still])
    pairs = {frozenset(pair) for pair, (share, one_from) in found.items() if share >= one_from}
    assert {frozenset({"copied", r.about["label"]}), frozenset({"still", OWN})} <= pairs
