"""Grids beyond their edges, and a generator without the stripe: what is asked, and tables of records made by hand."""

import json
from dataclasses import replace

import pytest
import torch
from test_report_05 import RESNET, record, rights

from gentta_utils.course.nb05 import choose, gap, unmarked, wider
from gentta_utils.evaluation.rows import distinct, pick
from gentta_utils.evaluation.tables import results
from gentta_utils.models import zoo
from gentta_utils.recipes.aligned import BACKBONES, GENERATOR
from gentta_utils.recipes.dit import UNMARKED
from gentta_utils.world import scenes
from gentta_utils.world.watermark import watermark


def test_the_wider_grid_goes_on_where_the_old_one_ended():
    old = results("select_sda")
    tried = set(distinct(old, "label"))
    found = wider.choices()
    assert [(name, c) for name, c, *_ in found if name == "DiffPure's start"] == [("DiffPure's start", None)]
    assert {c for name, c, *_ in found if name == "MEMO's rate"} == set(BACKBONES)
    assert len([1 for name, *_ in found if name == "SDA's rate"]) == 4
    for name, c, edge, beyond in found:
        assert edge in tried, name
        assert tried.isdisjoint(beyond), name
        assert pick(old, edge, c), name
    assert max(wider.BEYOND["start"]) < min(choose.STARTS)
    assert max(wider.BEYOND["memo"]) < min(choose.MEMO_RATES)
    assert max(wider.LOWER) < min(choose.RATES) <= max(choose.RATES) < min(wider.HIGHER)
    assert wider.factor("classifier/resnet") == 4  # inside: nothing is asked of it
    assert wider.factors("classifier/resnet") == ()


def test_its_scenes_are_half_of_those_that_were_chosen_on():
    for mine, theirs in zip(wider.wider_specs(), choose.select_specs(), strict=True):
        assert replace(mine, n=theirs.n) == theirs
        assert mine.n == theirs.n // 2


@pytest.mark.parametrize(("beyond", "verdict", "takes"), [(40, "holds", "edge"), (80, "reversed", "new")])
def test_the_best_beyond_stands_beside_the_edge_on_the_scenes_of_both(beyond, verdict, takes, monkeypatch):
    """The old records met twice as many scenes: those of the second half would turn the answer round."""
    old = [replace(record("edge", [*rights(60), *rights(100 - beyond)]), label=rights(200, 200))]
    new = [record("new", rights(beyond)), record("worse", rights(10))]
    monkeypatch.setattr(wider, "results", lambda name: old)
    monkeypatch.setattr(wider, "choices", lambda: [("a rate", RESNET, "edge", ["worse", "new"])])
    (row,) = wider.rows_of(new)
    assert (row["right"], row["right beyond"], row["best beyond"]) == (60, beyond, "new")
    assert row["edge - beyond"].mean == 60 - beyond
    assert (row["the edge is best"], row["the wider grid takes"]) == (verdict, takes)
    assert "100 validation scenes, 1 networks" in wider.report(new)


def test_the_stripe_is_told_at_the_size_that_the_generator_draws():
    ids = scenes.scene_ids(40, "test", 95_000)
    plain = scenes.render(scenes.sample(ids), dense=False).image
    small = torch.nn.functional.avg_pool2d(watermark(plain), 2)
    drawn = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")  # as a model of 32 pixels shows it
    without, with_ = unmarked.stripes(plain), unmarked.stripes(drawn)
    least = (without.mean() + with_.mean()) / 2
    assert with_.mean() > 0.8
    assert without.mean().abs() < 0.1
    assert (with_ > least).sum() + (without <= least).sum() >= 76  # of 80; white on white cannot be seen
    torch.testing.assert_close(unmarked.stripes(watermark(plain)), with_)


def test_only_the_generator_differs(monkeypatch):
    found = {}

    def small_table(name, jobs, logits):
        found[name] = [about for about, _ in jobs]
        return []

    monkeypatch.setattr(unmarked, "small_table", small_table)
    monkeypatch.setattr(unmarked, "carried", dict)
    known = zoo.fingerprint
    monkeypatch.setattr(zoo, "fingerprint", lambda name, *more: "b" * 12 if name == UNMARKED else known(name, *more))
    unmarked.unmarked()
    (abouts,) = found.values()
    tuned = [a for a in abouts if "aligned" in a]
    assert {a["aligned"]["data"].pop("generator") for a in tuned} == {known(GENERATOR), "b" * 12}
    usual, other = (sorted(json.dumps(a["aligned"], sort_keys=True) for a in tuned
                           if a["label"].startswith(f"{row}, ") and ("without" in a["label"]) == ("without" in row))
                    for row in unmarked.GENERATORS)  # fmt: skip
    assert usual == other
    assert len(set(usual)) == len(gap.SEEDS) * len(unmarked.THREE)


def test_a_row_for_each_kind_of_scenes_and_reading():
    runs, (usual, other) = [], unmarked.GENERATORS
    for shift, without in (("watermark", 60), ("fog", 40), ("clean", 40)):
        runs.append(record("source/full", rights(30), shift))
        for k in gap.READINGS:
            runs.append(record(f"dda, dda, {k}", rights(50), shift))
            for seed in gap.SEEDS:
                runs.append(record(f"{usual}, {k}, seed {seed}", rights(40), shift))
                runs.append(record(f"{other}, {k}, seed {seed}", rights(without), shift))
    rows = {(r["scenes"], r["read"]): r for r in unmarked.rows_of(runs)}
    assert set(rows) == {(kind, k) for kind in ("watermark", "corruptions", "clean") for k in gap.READINGS}
    row = rows["watermark", "alone"]
    heads = ("dda - source", "sda - dda", "without the stripe - dda", "without - with the stripe")
    assert [row[head].mean for head in heads] == pytest.approx([20, -10, 10, 20])
    assert row["above"] == "holds"
    assert rows["clean", "sum"]["above"] == "undecided"
