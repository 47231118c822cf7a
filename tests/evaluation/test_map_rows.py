"""Records of maps: what a run keeps, how rows of them are compared, what the files hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_maps import K, map_unet, task

from gentta_utils.evaluation import evaluate, map_rows, records
from gentta_utils.evaluation.dense import DEPTH_SCORES, confusion, depth_scores, mean_class_accuracy, mean_iou, scored
from gentta_utils.methods import diffusion_tta, source
from gentta_utils.methods.base import Models
from gentta_utils.streams.stream import Stream
from gentta_utils.world.maps import VOID

IDS = torch.arange(4) + 70
TTA = diffusion_tta.Settings(lr=0.3, updates=1, pairs=2, window=(200, 700))


def stream_of(target: str, shift: str = "fog", severity: int = 3, start: int = 0) -> Stream:
    g = torch.Generator().manual_seed(4)
    labels = torch.rand(4, 32, 32, generator=g) * 9 + 0.5
    if target == "classes":
        labels = torch.randint(0, K, (4, 32, 32), generator=g).byte()
        labels[:, 0, :3] = VOID
    about = {"shift": shift, "severity": severity, "seed": 0, "target": target}
    return Stream(torch.rand(4, 3, 32, 32, generator=g), labels, IDS + start, about)


def measured(kind: str, method: str = "diffusion_tta", **where) -> records.Records:
    target = {"pyramid": "classes", "densedepth": "depth"}[kind]
    models = Models(task(kind), map_unet(1 if target == "depth" else K))
    made = source.configure(models) if method == "source" else diffusion_tta.configure(models, TTA)
    return evaluate.run(made, stream_of(target, **where), batch=3, about={"method": method, "label": method})


# --- what a run keeps ------------------------------------------------------------------------------------------------


def test_a_run_keeps_pixels_by_true_and_predicted_class_and_fits_a_file(tmp_path):
    seen = []
    models, s = Models(task("pyramid"), map_unet()), stream_of("classes")
    r = evaluate.run(diffusion_tta.configure(models, TTA), s, batch=3, about={"label": "x"}, seen=seen)
    answer, before = (torch.cat([getattr(o, k) for o in seen]) for k in ("logits", "before"))
    np.testing.assert_array_equal(r.after, confusion(answer, s.labels).numpy())
    np.testing.assert_array_equal(r.before, confusion(before, s.labels).numpy())
    assert r.after.dtype == np.uint16
    assert (r.after.sum((1, 2)) == 32 * 32 - 3).all()
    assert (r.label == 0).all()
    records.save(tmp_path / "t.npz", [r])
    (kept,) = records.load(tmp_path / "t.npz")
    assert kept.target == "classes"
    assert kept.after.dtype == np.uint16
    np.testing.assert_array_equal(kept.after, r.after)
    with pytest.raises(ValueError, match="take its scores"):
        _ = kept.right_after


def test_a_run_of_depth_keeps_its_scores(tmp_path):
    r = measured("densedepth")
    assert r.after.shape == (4, len(DEPTH_SCORES))
    s = stream_of("depth")
    expected = depth_scores(task("densedepth")(s.images).detach(), s.labels)
    for i, name in enumerate(DEPTH_SCORES):
        np.testing.assert_allclose(r.before[:, i], expected[name], rtol=1e-3, atol=1e-3)
    records.save(tmp_path / "t.npz", [r])
    (kept,) = records.load(tmp_path / "t.npz")
    np.testing.assert_allclose(kept.after, r.after, rtol=1e-3)


def test_large_maps_are_counted_in_more_bits():
    answer, truth = torch.zeros(1, 2, 8, 8), torch.zeros(1, 512, 512, dtype=torch.uint8)
    counts = scored(answer, truth)
    assert counts.dtype == np.uint32
    assert counts[0, 0, 0] == 512 * 512


@pytest.mark.parametrize(
    "kind, target, message", [("pyramid", "depth", "answers with classes"), ("densedepth", "classes", "with depth")]
)
def test_a_stream_of_other_maps_is_refused(kind, target, message):
    with pytest.raises(ValueError, match=message):
        evaluate.run(source.configure(Models(task(kind))), stream_of(target))


def test_labels_that_the_network_does_not_know_are_refused():
    s = stream_of("classes")
    s.labels[0, 5, 5] = K
    with pytest.raises(ValueError, match=f"labels from {K} on"):
        evaluate.run(source.configure(Models(task("pyramid"))), s)


# --- rows ------------------------------------------------------------------------------------------------------------


def counts(rng, n=6):
    return rng.integers(0, 50, (n, K, K)).astype(np.uint16)


def row(before, after, target="classes", shift="fog", start=0, label="x", severity=3):
    stream = {"shift": shift, "severity": severity, "seed": 0, "target": target}
    n = len(before)
    about = {"label": label, "classifier": "c", "method": "m", "stream": stream}
    return records.Records(
        np.arange(n) + start, np.zeros(n, int), before, after, np.zeros((n, 0)), np.ones(n), {}, about
    )


def test_scores_are_those_of_the_counts_per_image_and_of_the_set():
    rng = np.random.default_rng(0)
    runs = [row(counts(rng), counts(rng)), row(counts(rng), counts(rng), shift="snow", start=50)]
    together = torch.from_numpy(np.concatenate([r.after for r in runs]).astype(np.int64))
    for metric, of in (("mean class accuracy", mean_class_accuracy), ("mean IoU", mean_iou)):
        assert map_rows.mean_score(runs, metric) == pytest.approx(float(of(together).mean()), rel=1e-5)
        assert map_rows.set_score(runs, metric) == pytest.approx(float(of(together.sum(0))), rel=1e-5)
    assert map_rows.metrics_of(runs) == ("mean class accuracy", "mean IoU")


def test_differences_are_paired_and_positive_where_it_is_better():
    rng = np.random.default_rng(1)
    before = rng.uniform(0.1, 0.2, (5, len(DEPTH_SCORES))).astype(np.float32)
    after = before.copy()
    after[:, DEPTH_SCORES.index("absrel")] -= 0.02
    after[:, DEPTH_SCORES.index("ssim")] -= 1.5
    ours, other = row(before, after, "depth"), row(before, before, "depth", label="y")
    assert map_rows.gain_of([ours], "AbsRel").mean == pytest.approx(2.0, abs=1e-3)
    assert map_rows.gain_of([ours], "SSIM").mean == pytest.approx(-1.5, abs=1e-3)
    assert map_rows.minus([ours], [other], "AbsRel").low == pytest.approx(2.0, abs=1e-3)
    assert str(map_rows.set_minus([ours], [other], "SSIM")) == str(map_rows.minus([ours], [other], "SSIM"))
    with pytest.raises(ValueError, match="cannot be paired"):
        map_rows.minus([ours], [row(before, before, "depth", start=1)], "SSIM")
    with pytest.raises(ValueError, match="one kind of map"):
        map_rows.metrics_of([ours, row(counts(rng), counts(rng))])


def test_the_order_of_streams_does_not_matter_and_severities_are_told_apart():
    rng = np.random.default_rng(2)
    a = [row(counts(rng), counts(rng), severity=s) for s in (3, 5)]
    b = [replace(r, about=r.about | {"label": "y"}) for r in reversed(a)]
    for compare in (map_rows.minus, map_rows.set_minus):
        assert compare(a, b, "mean IoU").mean == pytest.approx(0, abs=1e-9)
        assert compare(a, b, "mean IoU").high == pytest.approx(0, abs=1e-9)
    other = [replace(b[1], after=b[0].after), b[0]]
    assert map_rows.minus(a, other, "mean IoU").mean != 0


def test_the_interval_of_the_set_adds_the_pixels_of_a_scene_up():
    """Two severities of one scene are drawn together: with one scene there is nothing to draw."""
    rng = np.random.default_rng(3)
    one = [row(counts(rng, 1), counts(rng, 1), severity=s) for s in (3, 5)]
    other = [row(r.before, r.before, severity=s) for r, s in zip(one, (3, 5), strict=True)]
    found = map_rows.set_minus(one, other, "mean IoU")
    assert found.low == pytest.approx(found.high)
    expected = [
        mean_iou(torch.from_numpy(sum(getattr(r, k)[0].astype(np.int64) for r in one))) for k in ("after", "before")
    ]
    assert found.mean == pytest.approx(float(expected[0] - expected[1]), abs=1e-4)
    many = [row(counts(rng, 40), counts(rng, 40))]
    spread = map_rows.set_minus(many, [row(many[0].before, many[0].before)], "mean IoU")
    assert spread.low < spread.mean < spread.high


def test_how_far_two_results_of_an_image_are_apart():
    a = np.zeros((K, K), np.uint16)
    a[0, 0], a[1, 1] = 90, 10
    b = a.copy()
    b[0, 0], b[0, 1] = 85, 5
    assert map_rows.map_apart(a, b) == pytest.approx(0.05)
    assert map_rows.map_apart(a, a) == 0
    d = np.array([90.0, 0.1, 0.5, 0.9, 0.1], np.float32)
    other = d + np.array([1.0, 0, 3.0, 0.002, 0], np.float32)
    assert map_rows.map_apart(d, other) == pytest.approx(0.01, abs=1e-5)
