"""The tables of notebook 02: which rule to trust, the map of when feedback helps, ablations."""

import dataclasses

import numpy as np
import pytest
import torch

import gentta_utils  # noqa: F401
from gentta_utils.common import cache
from gentta_utils.course import side_by_side, trials
from gentta_utils.course.nb02 import (
    choose,
    experiments,
    few_labels,
    frontier,
    hindsight,
    leave_one_out,
    one_by_one,
    report,
    rivals,
    seeds,
    streams,
    trust,
    when_it_helps,
)
from gentta_utils.evaluation import records, tables
from gentta_utils.methods import cotta, diffusion_tta, dusa, memo, source, tea, tent, ttt_mae
from gentta_utils.models import lora
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world.scenes import scene_ids
from gentta_utils.world.severities import TEST, VALIDATION


def record(label, after, before, shift="fog", classifier="classifier/resnet", method="diffusion_tta", loss=None):
    """Logits (N, 3) whose largest entry is the given class; the true class is 0."""
    after, before = (np.eye(3)[np.array(v)] * 4.0 for v in (after, before))
    n = len(after)
    return records.Records(
        id=np.arange(n),
        label=np.zeros(n, int),
        before=before,
        after=after,
        loss=np.ones((n, 2)) if loss is None else np.array(loss, float),
        seconds=np.full(n, 0.5),
        nfe={"denoiser fwd+bwd": 96.0},
        about={
            "label": label,
            "method": method,
            "classifier": classifier,
            "settings": {"seed": 0},
            "stream": {"shift": shift, "severity": 5, "split": "test"},
            "protocol": {"order": "iid", "reset": "per_image", "predict": "after", "batch": n, "device": "cpu"},
        },
    )


def test_evidence():
    adapted = record("x", after=[0, 1, 2, 0], before=[1, 1, 0, 2], loss=[[1, 0.5], [1, 1], [1, 1.5], [2, 1]])
    reader = record("reader", after=[0, 1, 0, 1], before=[0, 0, 0, 0])
    e = trust.evidence([adapted], [reader])
    assert e.agrees.tolist() == [1, 1, -1, 0]  # adapted, both, the source, neither
    assert e.drop.tolist() == [0.5, 0, -0.5, 0.5]
    assert e.right_after.tolist() == [True, False, False, True]
    np.testing.assert_allclose(e.sure, np.exp(4) / (np.exp(4) + 2))
    np.testing.assert_allclose(e.sure + e.doubt, 1)
    with pytest.raises(ValueError, match="no record of 4 images"):
        trust.evidence([adapted], [record("reader", [0], [0], shift="snow")])


def test_a_rule_is_chosen_by_right_predictions_and_keeps_the_better_side():
    """The loss falls exactly where adaptation is right: the rule must find that and reach the oracle."""
    rng = np.random.default_rng(0)
    good = rng.random(200) < 0.5
    after, before = np.where(good, 0, 1), np.where(good, 1, 0)
    loss = np.stack([np.ones(200), np.where(good, 0.8, 1.2)], 1)
    readers = [record("reader", rng.integers(0, 3, 200), before)]
    e = trust.evidence([record("x", after, before, loss=loss)], readers)
    rule, threshold = trust.choose(e)
    assert rule == "loss fell"
    assert trust.accepted(e, rule, threshold).all()
    verdict = trust.judge(e, rule, threshold)
    assert verdict["over always"].mean == pytest.approx(100 * (~good).mean())
    assert verdict["over never"].mean == pytest.approx(100 * good.mean())
    assert not trust.accepted(e, rule, np.inf)[good].any()  # a threshold that nothing reaches keeps the source


def phase_runs():
    """Classes of 8 images of each cell; the source is right on the first four. Every other image from the first on is
    for the lead, the rest for the gain."""
    runs, source = [], [0, 0, 0, 0, 1, 1, 1, 1]
    for d in ("dit-10min", "dit"):
        for pairs in experiments.BUDGETS:
            read = (
                [0, 1, 0, 1, 0, 1, 0, 1] if d == "dit" else [1, 0, 1, 0, 1, 0, 1, 0]
            )  # right on all of its half, or none
            runs.append(record(f"reader/{pairs} pairs/150..600 {d}", read, source, method="diffusion_classifier"))
            for c in experiments.RESNETS:
                after = [1, 0, 1, 0, 1, 0, 1, 1] if d == "dit" else [0, 0, 0, 1, 0, 1, 0, 1]  # 3 or 1 of the other half
                runs.append(record(f"{d}/{pairs}", after, source, classifier=c))
    return runs


def test_the_map_of_when_it_helps():
    cells = when_it_helps.points_of_phase(phase_runs())
    assert len(cells) == 2 * 3 * 3
    assert {(c["ahead"], c["gain"]) for c in cells if c["denoiser"] == "dit"} == {(50.0, 25.0)}
    assert {(c["ahead"], c["gain"]) for c in cells if c["denoiser"] != "dit"} == {(-50.0, -25.0)}
    assert when_it_helps.predicted_sign(cells) == {"percent": 100.0, "cells": 18, "ties": 0}
    against = [*cells, {"ahead": 1.0, "gain": -1.0}, {"ahead": 0.0, "gain": 3.0}]
    assert when_it_helps.predicted_sign(against) == {"percent": pytest.approx(100 * 18 / 19), "cells": 19, "ties": 1}
    assert "+50 -> +25" in when_it_helps.phase(phase_runs())


def test_lead_and_gain_share_no_image():
    """What happens to the images of one half does not move the other number; fewer labelled images are the first."""
    runs = phase_runs()
    changed = [dataclasses.replace(r, after=r.after.copy()) for r in runs]
    for r in changed:
        r.after[1 if r.about["method"] == "diffusion_classifier" else 0 :: 2] = np.eye(3)[2]
    keys = ("ahead", "gain")
    found, other = (
        [tuple(c[k] for k in keys) for c in when_it_helps.points_of_phase(these)] for these in (runs, changed)
    )
    assert found == other
    one = when_it_helps.points_of_phase(runs, labelled=1)
    assert {c["ahead"] for c in one if c["denoiser"] == "dit"} == {0.0}  # the source is right on the first image too


def test_chance_is_what_shuffles_of_the_adapted_accuracies_give():
    rng = np.random.default_rng(0)
    cells = [
        {"shift": f"s{i % 6}", "ahead": a, "before": 50.0, "after": 50 + a, "gain": a}
        for i, a in enumerate(rng.normal(size=60))
    ]
    found = when_it_helps.agreement(cells)
    assert found["r"] == pytest.approx(1)
    assert abs(found["r by chance"]) < 0.05
    assert abs(found["sign by chance"] - 50) < 5
    assert found["low"] == pytest.approx(1)


def test_the_ensemble_of_logits_is_computed_from_the_record():
    r = record("K11: logits", after=[0, 0], before=[1, 0])
    r.before[0] = [3.9, 4.0, 0.0]  # nearly undecided, so the mean of both is right
    text = report.ablations([r])
    (row,) = (line for line in text.splitlines() if "ensemble" in line)  # nobody read these images
    assert "parameters: logits, ensemble with the source" in row
    assert "100.0" in row


def test_runs_on_parts_of_a_stream_are_one_row():
    """Each scene once, and the share of a corruption over all its runs."""
    whole = trials.small_grid()
    parts = trials.in_parts(whole, (10, 40))
    assert [(s.n, s.start) for s in parts[:4]] == [(10, 22_000), (40, 22_010), (10, 22_050), (40, 22_060)]
    assert sum(s.n for s in parts) == sum(s.n for s in whole)
    runs = [record("K12: x", after, [1] * len(after)) for after in ([0], [0, 0, 1])]
    runs[1] = dataclasses.replace(runs[1], id=np.arange(1, 4))
    row = report.ablations(runs).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["4", "0.0", "75.0", "75"]


def test_the_published_ensemble_is_with_the_reading_of_the_diffusion_model():
    runs = tables.results("ablations")
    text = report.ablations(runs)
    assert "parameters: logits, ensemble with the reader" in text
    (mine, *_) = (r for r in runs if r.about["label"] == "K11: logits")
    (q, *_) = report._readings([mine])
    assert q.shape == mine.after.shape
    np.testing.assert_allclose(q.sum(1), 1)
    assert text.count(" minus components: ") == 4 + 6  # components and other parameters


@pytest.fixture
def few_images():
    s = stream(SceneSpec(2, "gaussian_noise", 5, "select", 9990))
    return s.images, s.ids


@pytest.mark.parametrize("label", experiments.ablation_rows())
def test_what_a_row_of_the_ablations_adapts_does_move(label, few_images):
    """By more than 1e-4 of its size, the diffusion model too where it takes steps, in the updates of the row."""
    settings, _ = experiments.ablation_rows()[label]
    settings = dataclasses.replace(settings, pairs=min(2, settings.pairs), online=True)
    exact = {"precision": "fp32"} if settings.adapt_denoiser else {}
    method = diffusion_tta.configure(trials.models("classifier/resnet", **exact), settings)
    (task, phi, _), _ = method._fresh(None), method.adapt(*few_images)
    for fresh, moved in ((task.tensors(), method.state[0].tensors()), *_of_denoiser(phi, method.state[1])):
        change = sum((a - b).square().sum() for a, b in zip(fresh, moved, strict=True)) ** 0.5
        size = sum(a.square().sum() for a in fresh) ** 0.5
        assert change > 1e-4 * max(size, 1.0 if label == "K11: logits" else size)


def _of_denoiser(fresh, moved) -> list[tuple]:
    return [] if fresh is None else [(lora.flat(fresh), lora.flat(moved))]


def test_a_network_that_forgot_all_is_the_same_each_time():
    trained = trials.models("classifier/resnet", None).classifier
    before = {name: value.clone() for name, value in trained.named_parameters()}
    one, other = experiments.forgotten(trained), experiments.forgotten(trained)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if name.endswith("conv1.weight"):
            assert not torch.allclose(a, before[name], atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in trained.named_parameters())


def test_a_row_of_a_stream_is_compared_on_its_own_scenes():
    one, other = record("tent batch 1", [0, 1], [1, 1]), record("bn_adapt batch 1", [1, 1, 0], [1, 1, 1])
    assert one_by_one.common([one], [other]).mean == 50.0  # the first two scenes alone
    with pytest.raises(ValueError, match="did not meet 1 scenes"):
        one_by_one.common([other], [one])


def test_what_an_update_adds_is_counted_from_its_own_twin(monkeypatch):
    """On the scenes that the row met; the twin of CoTTA has its views, that of TENT and TEA the batch's statistics."""
    monkeypatch.setattr(streams, "SIZES", {10: 4})
    monkeypatch.setattr(streams, "SHORTER", {10: 2})
    runs = [record("source/full", [1, 1, 1, 1], [1, 1, 1, 1], method="source")]
    runs += [record("bn_adapt batch 10", [0, 1, 1, 1], [1] * 4), record("tent batch 10", [0, 0, 1, 1], [1] * 4)]
    runs += [record("cotta views batch 10", [0, 1], [1, 1]), record("cotta batch 10", [0, 0], [1, 1])]
    runs.append(record("tea batch 10", [1, 1], [1, 1]))
    found = {line.split("|")[2].strip(): line for line in streams.contributions(runs).splitlines()[3:]}
    adds = {row: line.split("|")[6].split()[:1] for row, line in found.items()}
    assert adds == {"bn_adapt": [], "tent": ["+25.0"], "tea": ["-50.0"], "cotta views": [], "cotta": ["+50.0"]}
    assert "| 2 " in found["cotta"]


def test_the_best_candidate_of_a_batch_size_is_taken(monkeypatch):
    """For TENT that of its own size, for CoTTA that of the one size it was tried in; of equals the last one."""

    def tried(label, after, lr):
        r = record(label, after, [1] * len(after), method=label.split(" ")[0])
        return dataclasses.replace(r, about=r.about | {"settings": {"lr": lr}})

    runs = [tried("tent batch 1, lr 0.1", [1, 1], 0.1), tried("tent batch 1, lr 0.2", [0, 1], 0.2)]
    runs += [tried("tent batch 10, lr 0.3", [0, 1], 0.3), tried("tent batch 10, lr 0.4", [1, 0], 0.4)]
    runs.append(tried("cotta batch 10, lr 0.5", [0, 1], 0.5))
    monkeypatch.setattr(streams, "results", lambda name: runs)
    assert [streams.chosen_for("tent", size).lr for size in (1, 10)] == [0.2, 0.4]
    assert [streams.chosen_for("cotta", size).lr for size in (1, 50)] == [0.5, 0.5]
    assert streams.chosen_for(streams.VIEWS, 10).teacher_momentum == 1.0


def test_no_choice_of_a_stream_stands_at_the_edge_of_its_grid():
    """But at the lowest rate, where the update all but vanishes: the row is its twin."""
    for method, grid in streams.GRIDS.items():
        for size in streams.scenes_of(method):
            chosen = streams.chosen_for(method, size)
            assert chosen.lr < max(s.lr for s in grid)
            for name in ("teacher_momentum", "restore") if method == "cotta" else ():
                values = [getattr(s, name) for s in grid]
                assert min(values) < getattr(chosen, name) < max(values)


def test_the_best_row_at_a_cost_is_compared_with_the_next_on_the_scenes_of_both(monkeypatch):
    monkeypatch.setattr(frontier, "LEAST", 3)
    monkeypatch.setattr(frontier, "CEILINGS", (1, 400))

    def spent(label, after, **nfe):
        r = record(label, after, [1] * len(after), method=label.split("/")[0])
        return dataclasses.replace(r, nfe={k.replace("_", " "): v for k, v in nfe.items()})

    runs = [spent("source/full", [1, 1, 1], classifier_fwd=1.0), spent("source/low", [0, 1, 1], classifier_fwd=1.0)]
    runs += [spent("diffusion_tta/full", [0, 0, 1], **{"denoiser_fwd+bwd": 96.0})]
    runs += [spent("reader/48 pairs/150..600", [0, 0, 0], denoiser_fwd=480.0)]
    assert frontier.forwards(runs[2].nfe) == 288
    cheap, costly = frontier.best_at(runs)
    assert (cheap["best"], cheap["next"]) == ("source/low", "source/full")
    assert (costly["best"], costly["next"]) == ("diffusion_tta/full", "source/low")
    assert costly["best minus next"].startswith("+33.3")


def test_what_labels_buy_is_compared_view_by_view(monkeypatch):
    """Three scenes; the reader met two. The ResNet that learned from the reader is held against each row on the row's
    own view, the one with all labels against all on the low view."""
    source = dict(before=[1, 1, 1], method="source")
    known = {"backbones": [], "test": [record("reader", [0, 0], [1, 1], method="diffusion_classifier")]}
    known["test"][0].nfe["denoiser fwd"] = 480.0
    for label, after in zip(rivals.ADAPTED, ([1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]), strict=True):
        known["backbones"].append(record(label, after, [1, 1, 1]))
    monkeypatch.setattr(rivals, "results", known.get)
    runs = []
    for name, full, low in ((rivals.SAME_LABELS, [1, 1, 1], [0, 0, 1]), (rivals.DISTILLED, [0, 1, 1], [1, 1, 1])):
        runs += [record(f"source/{v}", z, classifier=name, **source) for v, z in (("full", full), ("low", low))]
        runs += [record("source/low", z, classifier=name, shift="clean", **source) for z in ([0, *low[1:]],)]
    # the first two scenes in a run of their own, as the reader met them
    cut = lambda r, rows: dataclasses.replace(  # noqa: E731
        r, **{k: getattr(r, k)[rows] for k in ("id", "label", "before", "after", "loss", "seconds")}
    )
    runs = [p for r in runs for p in ([r] if r.about["stream"]["shift"] == "clean" else [cut(r, [0, 1]), cut(r, [2])])]
    text = rivals.same_labels(runs)
    rows = [[c.strip().split(" ")[0] for c in line.split("|")[2:-1]] for line in text.splitlines()[3:] if "|" in line]
    assert [row[:2] for row in rows] == [[str(n), f"{100 * k / n:.1f}"] for k, n in
        ((2, 3), (1, 3), (0, 3), (0, 3), (1, 3), (2, 3), (3, 3), (2, 2))]  # fmt: skip
    assert [row[2] for row in rows] == ["", "+33.3", "+66.7", "+66.7", "+33.3", "+0.0", "-33.3", "+0.0"]
    assert [row[3] for row in rows] == ["-66.7", "", "", "+33.3", "-33.3", "-33.3", "-100.0", "-100.0"]
    assert text.endswith("same labels 66.7; taught by the reader 33.3")


def test_three_settings_are_those_that_their_names_say():
    """ "a" is right on all of fog, "b" on all of snow and half of fog, "c" on half of each."""
    right = {"a": ([0, 0], [1, 1]), "b": ([0, 1], [0, 0]), "c": ([0, 1], [1, 0])}
    runs = []
    for label, (fog, snow) in right.items():
        runs.append(record(label, fog, [1, 1]))
        runs.append(record(label, snow, [1, 1], shift="snow"))
        runs[-1].id[:] += 10
    row = hindsight.three(runs, published="c")
    # on fog the best of snow, "b", on snow the best of fog, "a": half, then none
    assert (row["published"], row["chosen"], row["in hindsight"]) == ("50.0", "25.0", "75.0")
    assert row["chosen minus published"].startswith("-25.0")
    assert row["in hindsight minus chosen"].startswith("+50.0")
    assert (row["settings"], row["n"]) == (3, 4)
    elsewhere = hindsight.three(runs, chosen="b")
    assert (elsewhere["published"], elsewhere["chosen"]) == ("", "75.0")
    assert elsewhere["chosen minus published"] == ""


def test_the_published_setting_of_a_rival_is_in_its_records():
    """Under the label that the table looks for, with the published rate."""
    published = {"TENT": tent.PUBLISHED_CIFAR, "CoTTA": cotta.PUBLISHED_CIFAR, "TEA": tea.PUBLISHED}
    published |= {"MEMO": memo.PUBLISHED_CIFAR, "DUSA": dusa.PUBLISHED, "TTT-MAE": ttt_mae.PUBLISHED}
    published |= {"Diffusion-TTA": diffusion_tta.PUBLISHED}
    for name, (table, start, end, chosen) in hindsight.ROWS.items():
        runs = tables.results(table)
        assert sum(r.about["label"].startswith(start) for r in runs) > 2
        assert not chosen or any(r.about["label"] == chosen for r in runs)
        made = [r.about["settings"] for r in runs if r.about["label"] == start + end]
        assert bool(end) == bool(made)
        for settings in made:
            at = published[name.split(",")[0]]
            assert settings["lr"] == at["lr"]
            assert settings["optimizer"] == at.get("optimizer", settings["optimizer"])
    assert hindsight.side_by_side().count("\n| ") == len(hindsight.ROWS) + 1


def test_updates_of_equal_displacement_go_equally_far():
    """On one gradient that does not change, as SGD itself goes."""
    gone = []
    for updates in (12, *leave_one_out.UPDATES):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([x], 1 / leave_one_out.reach(updates, 0.9), momentum=0.9)
        for _ in range(updates):
            optimizer.zero_grad()
            (-x).sum().backward()
            optimizer.step()
        gone.append(x.item())
    assert gone == pytest.approx([1.0] * len(gone))


def test_a_part_is_left_out_at_its_own_rate(monkeypatch):
    """Of equals the lowest; only what the row names is other than chosen, and all rows cost the same."""

    def tried(label, settings):
        r = record(label, [0, 1] if settings.lr in (0.5, 2.0) else [1, 1], [1, 1])
        return dataclasses.replace(r, about=r.about | {"settings": dataclasses.asdict(settings)})

    ours = diffusion_tta.Settings(lr=0.5, momentum=0.9)
    monkeypatch.setattr(leave_one_out, "tuned", lambda classifier: ours)
    changes = {row: (change, rates[:2]) for row, (change, rates) in leave_one_out.LEFT_OUT.items()}
    changes[leave_one_out.WHOLE] = ({}, (1.0, 4.0))
    monkeypatch.setattr(leave_one_out, "LEFT_OUT", changes)
    runs = [tried(label, settings) for label, settings in leave_one_out.candidates().items()]
    monkeypatch.setattr(leave_one_out, "results", lambda name: runs)
    found = leave_one_out.rows()
    assert found[leave_one_out.WHOLE] == ours
    assert found["temperature 1"] == dataclasses.replace(ours, temperature=1.0)
    assert found["Adam"] == dataclasses.replace(ours, optimizer="adamw", lr=1e-4)
    assert {s.updates * s.pairs for s in found.values()} == {ours.updates * ours.pairs}
    assert len(found) == len(changes) + len(leave_one_out.UPDATES)


def test_the_table_of_parts_says_where_a_rate_is_at_its_edge(monkeypatch):
    monkeypatch.setattr(leave_one_out, "results", lambda name: [record("source/full", [1, 1, 1], [1, 1, 1])])
    lowest, second, *_ = leave_one_out.candidates().values()
    runs = [record(leave_one_out.WHOLE, [0, 0], [1, 1]), record("temperature 1", [0, 1], [1, 1])]
    runs[0].about["settings"] = {"lr": lowest.lr}
    runs[1].about["settings"] = {"lr": second.lr * 10}
    _, _, _, whole, other = leave_one_out.without(runs).splitlines()
    assert "at the edge" in whole
    assert "+100.0" in whole
    assert "at the edge" not in other
    assert "-50.0" in other


def test_seeds_are_compared_on_the_scenes_that_all_met(monkeypatch):
    """Two of three scenes. Of the three rows with other draws two predict the same; two trainings are equally often
    right and share no prediction; nor do two diffusion models, of which one is always right."""
    monkeypatch.setattr(seeds, "DRAWS", (1, 2))
    monkeypatch.setattr(seeds, "TRAINED", ("classifier/other",))
    known = [record("source/full", [1, 1, 0], [1, 1, 0], method="source")]
    known.append(record("diffusion_tta/full", [0, 1, 1], [1, 1, 0]))
    monkeypatch.setattr(seeds, "results", lambda name: known)
    runs = [record(f"diffusion_tta/full, draws {seed}", [0, 0], [1, 1]) for seed in (1, 2)]
    runs.append(record("source/full", [1, 0], [1, 0], classifier="classifier/other", method="source"))
    runs.append(record("diffusion_tta/full, draws 0", [1, 0], [1, 0], classifier="classifier/other"))
    runs += [
        record(f"diffusion_tta/full, {row}", y, [1, 1]) for row, y in zip(seeds.DITS, ([1, 1], [0, 0]), strict=False)
    ]
    monkeypatch.setattr(seeds, "DITS", dict(list(seeds.DITS.items())[:2]))
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in seeds.by_seed(runs).splitlines() if "|" in line]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["ResNet, draws 0"][:3] == ["2", "0.0", "50.0"]
    assert rows["ResNet, draws 2"][2:] == ["100.0", "+100.0 [+100.0, +100.0]"]
    assert rows["other, draws 0"][:4] == ["2", "50.0", "50.0", "+0.0 [+0.0, +0.0]"]
    assert rows["draws"] == ["3", f"{np.std([50, 100, 100], ddof=1):.1f} points", "33.3%"]
    assert rows["training the ResNet"] == ["2", "0.0 points", "100.0%"]
    assert [rows[f"ResNet, ten-minute DiT {i}"][2] for i in (1, 2)] == ["0.0", "100.0"]
    assert rows["training the diffusion model"] == ["2", f"{np.std([0, 100], ddof=1):.1f} points", "100.0%"]


def test_of_two_dits_with_few_labels_the_better_reader_of_selection_scenes_stands_for_them(monkeypatch):
    shifts = [f"{name}_5" for name in VALIDATION]
    monkeypatch.setattr(few_labels.zoo, "names", lambda: listed)
    both = listed = (few_labels.FEW, few_labels.FEW_SHORT)
    long = {"clean": 90.0} | dict.fromkeys(shifts, 40.0)
    monkeypatch.setattr(few_labels.zoo, "card", lambda name: {"quality": long if name == few_labels.FEW else short})
    for clean, shifted, name in ((80.0, 42.0, few_labels.FEW), (90.0, 42.0, few_labels.FEW_SHORT)):
        short = {"clean": clean, "loss_true_class": 99.0} | dict.fromkeys(shifts, shifted)
        assert few_labels.few(both) == name
    short = long  # of equals the longer trained
    assert few_labels.few(both) == few_labels.FEW
    listed = [few_labels.FEW_SHORT, few_labels.FEW_NULL_SHORT]
    assert few_labels.asked() == [*listed, few_labels.WEAK]
    listed = [few_labels.FEW_NULL_SHORT]
    with pytest.raises(ValueError, match="train denoiser/dit-1500-10min --promote"):
        few_labels.asked()


def test_runs_with_few_labels_are_small_and_meet_each_scene_once():
    specs = few_labels.blocks()
    assert all(spec.n <= 20 for spec in specs)
    assert sum(spec.n for spec in specs) == 15 * 20 + 100
    met = [(spec.shift, i) for spec in specs for i in scene_ids(spec.n, spec.split, spec.start).tolist()]
    assert len(set(met)) == len(met)
    assert {spec.shift for spec in specs} == {*TEST, "clean"}


def test_a_lead_and_a_gain_at_matched_labels_are_on_the_same_scenes(monkeypatch):
    """Of three scenes the DiTs met two. With few labels one reads no better than the ResNet and its feedback harms; the
    other is right on all. The first was trained for as long as one with all labels, which is right on one scene."""
    few, null, weak = few_labels.FEW_SHORT, few_labels.FEW_NULL, few_labels.WEAK
    monkeypatch.setattr(few_labels, "results", lambda name: known[name])
    of = lambda label, right, **how: record(label, [1 - r for r in right], [1 - r for r in right], **how)  # noqa: E731
    known = {"frontier": [of("reader, pruned", [1, 1, 0])]}
    known["backbones"] = [of("source/full", [0, 1, 0], method="source"), of("source/low", [1, 1, 0], method="source")]
    known["backbones"].append(of("diffusion_tta/full", [1, 1, 0]))
    known["clean"] = known["backbones"]
    runs = [of("reader, pruned, dit", [1, 1], shift="clean", method="diffusion_classifier")]
    for name, right in ((few, [0, 0]), (null, [1, 1]), (weak, [1, 0])):
        for shift in ("fog", "clean"):
            for row in ("reader, pruned", "diffusion_tta/full"):
                runs.append(of(few_labels.named(row, name), right, shift=shift))
                runs[-1].about["denoiser"] = name
    text = few_labels.matched(runs)
    cells = [[c.strip().split(" ")[0] for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = [row[2:] for row in cells if row[0] == "15"]
    assert rows[0] == ["2", "100.0", "50.0", "+50.0", "100.0", "+50.0", "+0.0", ""]
    assert rows[1] == ["2", "0.0", "50.0", "-50.0", "0.0", "-50.0", "-100.0", "-100.0"]
    assert rows[2] == ["2", "100.0", "50.0", "+50.0", "100.0", "+50.0", "+0.0", "+0.0"]
    assert text.count("the reader is ahead of the ResNet: ") == 8
    assert text.count("dit-1500-10min minus dit-10min, as many steps: reader -50.0 [") == 2
    assert text.count("as many steps: ") == 2  # the one on all scenes was trained for longer
    assert "dit (60,000 labels, 24,000 steps) 92 and 91, dit-1500-10min (1,500 labels, 3,000 steps) 76 and 69" in text


def test_the_carried_state_is_scored_before_it_sees_an_image():
    states = np.repeat([1, 0], one_by_one.BLOCK)  # wrong for a block of images, then right
    r = record("online", after=np.zeros(len(states), int), before=states)
    assert one_by_one.carried([r, r]) == [0.0, 100.0]


def test_stored_labels_are_printed_in_words():
    stored = {r.about["label"] for r in tables.results("ablations") if r.about["method"] == "diffusion_tta"}
    said = {report.spoken(label) for label in stored}
    assert len(said) == len(stored)
    assert {label.split(":")[0] for label in said} == {"components", "parameters", "pairs"}
    assert report.spoken("diffusion_tta/full: low") == "diffusion_tta/full: low"


def test_orders_of_a_stream():
    specs = [SceneSpec(4, "fog", 5, "test", 70 + 4 * i) for i in range(2)]
    mixed = trials.ordered(tuple(specs), "mixed")
    assert mixed.order == "mixed"
    assert len(mixed) == 8
    labels = trials.ordered(specs[0], "correlated").labels
    assert labels.tolist() == sorted(labels.tolist())
    alone, sorted_ = (
        trials.job("source", source.Settings(), "classifier/resnet", specs[0], "x", None, order=order)[0]
        for order in ("iid", "correlated")
    )
    assert cache.fingerprint(alone) != cache.fingerprint(sorted_)


def test_rows_are_compared_with_the_source_scene_by_scene(monkeypatch):
    """A mixed stream is told apart by its scenes; a method on another network is held against that network."""
    fog, snow = (dict(before=[1, 1, 0, 0], shift=s) for s in ("fog", "snow"))
    runs = [record("source/full", [1, 1, 0, 0], method="source", **fog), record("tent", [0, 1, 0, 0], **fog)]
    runs += [record("source/full", [1, 1, 1, 0], method="source", **snow), record("tent", [1, 1, 1, 0], **snow)]
    for r in runs[2:]:
        r.id[:] += 10
    both = record("tent/mixed", [0, 1, 1, 0, 0, 0, 1, 1], [1] * 8, shift="mixed")
    both.id[:] = [0, 10, 1, 11, 2, 12, 3, 13]  # fog and snow in turn
    other = record("source/full", [0, 0, 0, 0], method="source", classifier="classifier/mae", **fog)
    changed = record("ttt_mae", [1, 0, 0, 0], classifier="classifier/mae", **fog)
    text = side_by_side.compared([*runs, both, other, changed])
    rows = {tuple(c.strip() for c in line.split("|")[1:3]): line for line in text.splitlines() if line.startswith("|")}
    assert [c.strip() for c in rows["tent/mixed", "resnet"].split("|")][3:6] == ["50", "50", "50.0"]
    assert "+12.5" in rows["tent/mixed", "resnet"]  # 4 of 8 right, the source 3
    assert "+12.5" in rows["tent", "resnet"]
    assert "-25.0" in rows["ttt_mae", "mae"]


def test_the_ensemble_takes_its_temperature_from_validation_corruptions():
    taus = {side_by_side.ensemble_temperature(f"reader/{n} pairs/150..600") for n in (9, 48)}
    assert taus <= set(side_by_side.TAUS)
    r = record("reader/9 pairs/150..600", after=[0, 1], before=[1, 0], method="diffusion_classifier")
    r.about["settings"]["temperature"] = 3.0
    assert side_by_side.averaged(r, 0.3).tolist() == [True, False]  # at a low temperature the reader is the surer one
    assert side_by_side.averaged(r, 300.0).tolist() == [False, True]


def test_a_rate_that_was_given_stands(monkeypatch, tmp_path):
    """The rule is asked once for each question; the committed answers are those of the committed rows."""
    asked, resnet = [], "classifier/resnet"
    monkeypatch.setattr(diffusion_tta, "learning_rate", lambda *a: asked.append(a[-1]) or 56.549)
    online = choose.online_options(resnet)
    assert asked == []
    norm = [r for r in tables.results("select_rivals") if r.about["label"].endswith(", norm")]
    recorded = {r.about["settings"]["lr"] for r in norm if r.about["classifier"] == resnet}
    assert {s.lr for s in online.values() if s.param_set == "norm"} == recorded
    monkeypatch.setattr(choose, "GIVEN", tmp_path / "rates.json")
    for delta in (0.7, 0.7, 1.4):
        assert choose.with_rate(resnet, {"updates": 2}, delta).lr == 56.5
    assert asked == [0.7, 1.4]
    monkeypatch.setattr(choose.zoo, "fingerprint", lambda name: "another")
    choose.with_rate(resnet, {"updates": 2}, 1.4)
    assert asked == [0.7, 1.4, 1.4]


# --- records that do not belong in one row ---------------------------------------------------------------------------


def at(severity, runs):
    """The same runs, said to be of another severity, on other scenes."""
    return [
        dataclasses.replace(
            r, id=r.id + 1000 * severity, about=r.about | {"stream": r.about["stream"] | {"severity": severity}}
        )
        for r in runs
    ]


@pytest.mark.parametrize(
    "show",
    [
        report.ablations,
        when_it_helps.points_of_phase,
        when_it_helps.phase,
        side_by_side.signs,
        lambda runs: side_by_side.gains_by_shift(runs, runs[0].about["label"]),
        lambda runs: side_by_side.live({"source": runs}),
    ],
)
def test_two_severities_of_a_shift_are_not_averaged(show):
    runs = [record("K10: x", [0, 1], [1, 1])]
    with pytest.raises(ValueError, match="fog stands here at the severities 1, 5, which one row would average"):
        show(runs + at(1, runs))


def test_the_source_of_another_severity_is_no_reference():
    """On the same scenes, and on others."""
    ours, source = record("ours", [0, 1], [1, 1]), record("source/full", [0, 1], [1, 1], method="source")
    ours = dataclasses.replace(ours, about=ours.about | {"stream": ours.about["stream"] | {"severity": 1}})
    with pytest.raises(ValueError, match="one scene stands under two of"):
        side_by_side.compared([ours, source])
    with pytest.raises(ValueError, match="no scene of the row 'ours' was met by the source of classifier/resnet"):
        side_by_side.compared([ours, *at(5, [source])])


def test_methods_side_by_side_met_the_same_images():
    runs = [record("x", [0, 1], [1, 1])]
    with pytest.raises(ValueError, match="tent did not meet the images that source met"):
        side_by_side.live({"source": runs, "tent": at(5, runs)})


def test_each_network_takes_the_online_settings_that_did_best_for_itself():
    for classifier in one_by_one.SCENES:
        for kind in (one_by_one.ONLINE, one_by_one.EPISODIC):
            right: dict[float, int] = {}
            for r in tables.results("select_one_by_one"):
                s = r.about["settings"]
                if (r.about["classifier"], s["online"]) == (classifier, kind == one_by_one.ONLINE):
                    right[s["lr"]] = right.get(s["lr"], 0) + int(r.right_after.sum())
            taken = one_by_one.chosen_step(kind, classifier)
            assert len(right) == (7 if taken.online else 3)
            assert right[taken.lr] == max(right.values())
            assert taken.online == (kind == one_by_one.ONLINE)
