"""The tables of notebook 05: one purification for all classifiers, what a row depends on, how records are kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_dit, same, weights

from gentta_utils.common import cache
from gentta_utils.course import purified as purified_images
from gentta_utils.course import trials
from gentta_utils.course.nb05 import choose, experiments
from gentta_utils.course.purified import input_job, purified
from gentta_utils.diffusion.synthesis import Synthesis
from gentta_utils.evaluation import records as evaluation_records
from gentta_utils.methods import base, dda, diffpure, purifier, sda
from gentta_utils.methods.sda import FineTune
from gentta_utils.models import zoo
from gentta_utils.recipes import aligned
from gentta_utils.recipes.aligned import Data
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Stream

S = dda.Settings(start=300, steps=3)
SPEC = SceneSpec(4, "fog", 5)
ALIGNED = sda.Settings(**vars(S))
SET = Data(per_class=1, synthesis=Synthesis(steps=2), alignment=ALIGNED)
TUNED = (SET, FineTune("sgd", 0.01, 0.0))


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Tiny networks under the names of the shipped ones, four random images, an empty cache."""
    denoiser = make_dit(10)
    named = dict.fromkeys((aligned.ALIGNER, aligned.GENERATOR), denoiser) | {"classifier/resnet": make_classifier(10)}
    g = torch.Generator().manual_seed(0)
    images = Stream(torch.rand(4, 3, 16, 16, generator=g), torch.arange(4), torch.arange(4) + 9, SPEC.describe())
    monkeypatch.setattr(zoo, "cached", lambda name, precision="auto": named[name])
    monkeypatch.setattr(zoo, "fingerprint", lambda name: f"of {name}")
    for module in (trials, purified_images):
        monkeypatch.setattr(module, "stream", lambda spec: images)
    for module in (purified_images, aligned):
        monkeypatch.setattr(module, "CACHE", tmp_path)
    return named


def test_an_image_is_purified_once_for_all_readings(models):
    denoiser = models[aligned.ALIGNER]
    rows = [input_job("dda", replace(S, ensemble=e), "classifier/resnet", SPEC, e)[1]() for e in ("sum", "purified")]
    assert denoiser.count == {"fwd": 0, "fwd+bwd": 12}
    assert all(r.nfe["denoiser fwd+bwd"] == 3 for r in rows)  # each row says what it would cost
    assert all((r.seconds > 0).all() for r in rows)
    assert (rows[0].before == rows[1].before).all()
    assert not (rows[0].after == rows[1].after).all()
    same = purified("sda", ALIGNED, SPEC)
    assert torch.equal(same.images, purified("dda", S, SPEC).images)
    assert denoiser.count["fwd+bwd"] == 12
    purified("dda", replace(S, scale=1.0), SPEC)
    assert denoiser.count["fwd+bwd"] == 24


def test_a_row_is_what_the_method_says(models):
    stream = purified_images.stream(SPEC)
    about, work = input_job("sda", ALIGNED, "classifier/resnet", SPEC, "sda", TUNED)
    r = work()
    second = aligned.aligned_classifier("classifier/resnet", *TUNED)
    both = base.Models(models["classifier/resnet"], models[aligned.ALIGNER], second)
    out = sda.configure(both, ALIGNED).adapt(stream.images, stream.ids)
    np.testing.assert_allclose(r.after, out.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(r.before, out.before.numpy(), atol=1e-4)
    assert about["aligned"]["data"]["alignment"] == purifier.what_changes(ALIGNED)


def test_images_that_depend_on_the_classifier_are_not_shared(models):
    s = replace(S, entropy_scale=0.1, entropy_views=1)
    row = input_job("dda", s, "classifier/resnet", SPEC, "gda-like")[1]()
    assert row.nfe["denoiser fwd+bwd"] == 3
    with pytest.raises(ValueError, match="entropy_scale"):
        purified("dda", s, SPEC)  # another place in the cache


def test_a_description_sees_every_change(models):
    rows = [("dda", S), ("dda", replace(S, scale=1.0)), ("diffpure", diffpure.Settings()), ("sda", ALIGNED, TUNED)]
    rows.append(("sda", ALIGNED, (SET, replace(TUNED[1], lr=0.1))))
    rows.append(("sda", ALIGNED, (replace(SET, per_class=2), TUNED[1])))
    jobs = [input_job(method, s, "classifier/resnet", SPEC, "x", *tuned) for method, s, *tuned in rows]
    assert len({cache.fingerprint(about) for about, _ in jobs}) == len(jobs)


def test_what_runs_have_in_common_is_kept_once(tmp_path):
    g = np.random.default_rng(0)
    before = g.integers(-500, 500, (500, 10)).astype(np.float32) / 64
    columns = dict(id=np.arange(500), label=np.zeros(500, int), before=before, loss=np.zeros((500, 0), np.float32))
    runs = [
        evaluation_records.Records(
            **columns, after=g.integers(-500, 500, (500, 10)).astype(np.float32) / 64,
            seconds=np.full(500, i, np.float32), nfe={}, about={"i": i},
        )
        for i in range(4)
    ]  # fmt: skip
    evaluation_records.save(tmp_path / "t.npz", runs)
    loaded = evaluation_records.load(tmp_path / "t.npz")
    for a, b in zip(runs, loaded, strict=True):
        assert a.about == b.about
        for name in ("id", "label", "before", "after", "loss", "seconds"):
            assert (getattr(a, name) == getattr(b, name)).all()
    assert (tmp_path / "t.npz").stat().st_size < 2.75 * before.nbytes  # floats are halved; of 4 without


def test_the_second_classifier_is_the_one_of_the_description(models, monkeypatch):
    about = json.loads(json.dumps(aligned.describe("classifier/resnet", *TUNED)))
    tuned = aligned.aligned_classifier("classifier/resnet", *TUNED)
    found = aligned.from_description("classifier/resnet", about)
    assert found.alignment == tuned.alignment == purifier.what_changes(ALIGNED)
    assert same(weights(found.network), weights(tuned.network))
    assert not same(weights(found.network), weights(models["classifier/resnet"].network))

    (kept,) = (aligned.CACHE / "fine-tuned").iterdir()
    kept.unlink()
    with pytest.raises(FileNotFoundError, match="neither shipped nor in") as error:
        aligned.from_description("classifier/resnet", about)
    assert "\n" not in str(error.value)
    assert not kept.exists()  # none is trained here

    shipped = models["classifier/resnet-sda"] = make_classifier(10)
    monkeypatch.setattr(zoo, "names", lambda: ["classifier/resnet-sda"])
    monkeypatch.setattr(zoo, "card", lambda name: {"recipe": about})
    assert aligned.from_description("classifier/resnet", about) is shipped
    monkeypatch.setattr(zoo, "card", lambda name: {"recipe": about | {"fine_tune": {}}})
    with pytest.raises(FileNotFoundError):
        aligned.from_description("classifier/resnet", about)
    monkeypatch.setattr(zoo, "fingerprint", lambda name: "another")
    with pytest.raises(ValueError, match="of other models"):
        aligned.from_description("classifier/resnet", about)


@pytest.mark.parametrize("role", ["generator", "aligner"])
def test_a_description_names_the_diffusion_models_by_their_weights(role):
    """Of those that are listed: a generator or a purifier on demand too, whether it is here or not."""
    data = replace(TUNED[0], per_class=0, **{role: "denoiser/dit-10min"})
    about = json.loads(json.dumps(aligned.describe("classifier/resnet", data, TUNED[1])))
    assert aligned.read_description("classifier/resnet", about) == (data, TUNED[1])
    about["data"][role] = "0" * 12
    with pytest.raises(ValueError, match="of other models"):
        aligned.read_description("classifier/resnet", about)


def test_coarse_logits_keep_the_prediction_and_little_else():
    logits = np.random.default_rng(0).normal(0, 4, (200, 10)).astype(np.float32)
    logits[0, :3] = 9.0  # a tie: the first stays the prediction
    logits[1, 4] = logits[1].max() + 1e-4
    kept = purified_images.coarse(logits)
    assert (kept.argmax(1) == logits.argmax(1)).all()
    assert ((kept == 0).sum(1) == 1).all()
    assert (kept.min(), kept.max()) == (trials.LEAST, 0)
    assert (purified_images.coarse(kept) == kept).all()
    away = logits - logits.max(1, keepdims=True)
    free = (away > trials.LEAST) & (away < -trials.STEP)
    assert np.abs(kept - away)[free].max() <= trials.STEP / 2 + 1e-5


def test_a_mixed_stream_sorted_by_class():
    specs = tuple(SceneSpec(4, name, 5, "test", 70 + 4 * i) for i, name in enumerate(("fog", "snow")))
    s = trials.ordered(specs, "mixed correlated")
    assert s.order == "mixed correlated"
    assert s.labels.tolist() == sorted(s.labels.tolist())
    assert set(s.ids.tolist()) == set(trials.ordered(specs, "mixed").ids.tolist())


def test_there_are_nine_candidates_each_with_one_change():
    assert len(choose.CANDIDATES) == 9
    assert all(len(change) <= 1 for change in choose.CANDIDATES.values())
    assert {s.n for s in choose.select_specs()} == {50}


def test_other_levels_keep_the_way_the_guidance_goes():
    s = experiments.at_levels(replace(S, steps=50, scale=0.5), 10, 0.0)
    assert (s.steps, s.eta, s.scale) == (10, 0.0, 2.5)


def records(label: str, wrong: int) -> evaluation_records.Records:
    after = np.eye(2, dtype=np.float32)[(np.arange(200) < wrong).astype(int)]
    columns = dict(id=np.arange(200), label=np.zeros(200, int), before=after, loss=np.zeros((200, 0), np.float32))
    return evaluation_records.Records(
        **columns, after=after, seconds=np.ones(200, np.float32), nfe={}, about={"label": label}
    )


@pytest.mark.parametrize(
    ("wrong", "expected"), [((10, 11, 12, 12), "c"), ((10, 11, 13, 12), "d"), ((10, 12, 13, 13), "b")]
)
def test_the_fewest_levels_within_a_point(wrong, expected):
    """Of 200 right answers one point is two; of two settings with as many levels the better one, else the earlier."""
    settings = {label: replace(S, steps=n) for label, n in zip("abcd", (50, 20, 10, 10), strict=True)}
    runs = [records(label, n) for label, n in zip(settings, wrong, strict=True)]
    assert choose.fewest(runs, settings) is settings[expected]
