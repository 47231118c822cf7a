"""The second world: digits through the contracts of scenes, and whether an order of rows carries over."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from gentta_utils.course.digits import load
from gentta_utils.course.nb07 import digits
from gentta_utils.diffusion.error_table import error_table
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.tables import results
from gentta_utils.methods.base import Models


@pytest.fixture(scope="module")
def small():
    """Both networks after a few steps, in the place of the trained ones."""
    patch = pytest.MonkeyPatch()
    patch.setattr(digits, "STEPS", {"classifier": 120, "denoiser": 150})
    digits.models.cache_clear()
    yield digits.models()
    patch.undo()
    digits.models.cache_clear()


def test_a_picture_is_its_digit():
    test = load("test")
    pictures = digits.pictures(test.images[:5])
    assert pictures.shape == (5, 3, 8, 8)
    assert (pictures.min(), pictures.max()) == (0, 1)
    denoiser = digits.PictureDenoiser(8, 1)
    torch.testing.assert_close(denoiser.encode(pictures), test.images[:5])
    torch.testing.assert_close(denoiser.decode(test.images[:5]), pictures)


@pytest.mark.parametrize("name", [*digits.CONSTANTS, *digits.RATE_SHIFTS])
def test_shifts_belong_to_their_digit_and_stay_grey(name):
    test = load("test")
    clean = digits.pictures(test.images[:6])
    y = digits.shifted(clean, name, test.ids[:6])
    assert torch.equal(y[2:3], digits.shifted(clean[2:3], name, test.ids[2:3]))
    assert torch.equal(y[:, 0], y[:, 2])
    assert (y - clean).abs().max() > 0.1
    assert torch.equal(digits.shifted(clean, "clean", test.ids[:6]), clean)
    with pytest.raises(ValueError, match="choose one of clean"):
        digits.shifted(clean, "snow", test.ids[:6])


def test_the_stream_is_a_part_of_the_test_digits():
    ten, twenty = digits.stream("fog", 10), digits.stream("fog", 20)
    assert torch.equal(ten.images, twenty.images[:10])
    assert set(ten.ids.tolist()) <= set(load("test").ids.tolist())
    assert set(twenty.labels.tolist()) > {0, 5}  # in random order


def test_the_networks_learn(small):
    test = load("test")
    with torch.no_grad():
        said = small.classifier(digits.pictures(test.images)).argmax(1)
    assert (said == test.labels).float().mean() > 0.7
    table = error_table(small.denoiser, digits.pictures(test.images[:60]), test.ids[:60], 12)
    assert (table.scores().argmin(1) == test.labels[:60]).float().mean() > 0.5


def test_every_row_runs_and_what_adapts_changes_something(small):
    made = {about["label"]: (about, work) for about, work in digits.jobs(6) if about["stream"]["shift"] == "contrast"}
    assert len(made) == 16
    runs = {label: work() for label, (_, work) in made.items()}
    for label, r in runs.items():
        assert r.after.shape == (6, 10), label
        assert np.isfinite(r.after).all(), label
        assert np.array_equal(r.id, runs["source/full"].id), label
        if label not in ("source/full", "source/low", "dusa"):  # DUSA answers its one batch before it changes
            assert np.abs(r.after - r.before).max() > 1e-3, label
    rates = [made[f"diffusion_tta/{view}"][0]["settings"]["lr"] for view in ("full", "low")]
    assert min(rates) > 0
    assert rates[0] != rates[1]
    text = digits.show([*runs.values()])
    assert text.count("Kendall's tau of") == 2
    assert "| diffpure" in text


def test_views_are_not_mirrored():
    for label in ("memo", "tta_averaging"):
        settings = {k: s for k, (_, s) in _rows_without_rates().items()}[label]
        assert settings.crop == "none"


def _rows_without_rates():
    patch = pytest.MonkeyPatch()
    patch.setattr(digits, "with_rate", lambda s: s)
    try:
        return digits.rows()
    finally:
        patch.undo()


def test_what_scenes_call_a_row_it_is_called_here():
    both = set(digits.on_scenes()) & set(_rows_without_rates())
    assert {"source/full", "source/low", "memo", "bn_adapt", "diffusion_tta/full", "diffpure", "dda, sum"} <= both
    assert len(both) >= 10


def world(means: dict[str, float], n: int, seed: int) -> digits.Differences:
    rng = np.random.default_rng(seed)
    return {k: ((rng.random(n) < m).astype(float), np.arange(n)) for k, m in means.items()}


def test_an_order_that_carries_over_has_tau_one():
    means = {f"row {i}": i / 10 for i in range(1, 9)}
    names, same = digits.carried(world(means, 2000, 0), world(means | {"alone": 0.5}, 2000, 1), draws=200)
    assert names == list(means)
    assert same.mean == pytest.approx(100)
    assert same.low > 70
    turned = dict(zip(means, reversed(means.values()), strict=True))
    assert digits.carried(world(means, 2000, 0), world(turned, 2000, 1), draws=200)[1].high < -70
    flat = dict.fromkeys(means, 0.5)
    _, open_ = digits.carried(world(means, 2000, 0), world(flat, 200, 1), draws=200)
    assert open_.low < 0 < open_.high


def test_tau_is_scipys_of_the_means():
    one, other = (world({f"row {i}": 0.5 for i in range(6)}, 50, seed) for seed in (2, 3))
    _, tau = digits.carried(one, other, draws=50)
    wanted = kendalltau([v.mean() for v, _ in one.values()], [v.mean() for v, _ in other.values()]).statistic
    assert tau.mean == pytest.approx(100 * wanted)


def record(label: str, right: list[bool], shift: str = "fog") -> Records:
    n = len(right)
    after = np.where(np.array(right)[:, None], [0.0, 1.0], [1.0, 0.0]).astype(np.float32)
    about = {"label": label, "classifier": "digits/net", "stream": {"shift": shift, "severity": 0}}
    empty = np.zeros((n, 0), np.float32)
    return Records(np.arange(n), np.ones(n, int), after, after, empty, np.zeros(n, np.float32), {}, about)


def test_a_gain_is_over_the_source_on_the_same_digit():
    runs = [record("source/full", [True, False, False]), record("tent", [True, True, False])]
    runs += [record("source/full", [True, True, True], "contrast"), record("tent", [False, True, True], "contrast")]
    gained, ids = digits.minus_source(runs)["tent"]
    assert gained.tolist() == [0, 1, 0, -1, 0, 0]
    assert ids.tolist() == [0, 1, 2, 0, 1, 2]
    rows = digits.ranks(runs, digits.minus_source(runs))
    assert [row["rank on digits"] for row in rows] == [1, 2]


def test_a_denoiser_of_pictures_is_one_of_digits(small):
    """Its training never sees pictures: what differs is the way in and out alone."""
    assert isinstance(small, Models)
    x, ids = digits.pictures(load("test").images[:3]), load("test").ids[:3]
    plain = digits.DigitDenoiser()
    plain.load_state_dict(small.denoiser.state_dict())
    one = error_table(small.denoiser, x, ids, 4).error
    torch.testing.assert_close(one, error_table(plain, x[:, :1] * 2 - 1, ids, 4).error)


def test_the_committed_table_is_whole():
    runs = results("digits")
    shifts = {r.about["stream"]["shift"] for r in runs}
    assert shifts == {"clean", *digits.CONSTANTS}
    assert {r.about["label"] for r in runs} == set(_rows_without_rates())
    assert len(runs) == len(shifts) * len(_rows_without_rates())
    assert {len(r) for r in runs} == {digits.DIGITS}
    constants = {r.about["stream"]["shift"]: r.about["stream"].get("constant") for r in runs}
    as_stored = {k: list(c) if isinstance(c, tuple) else c for k, c in digits.CONSTANTS.items()}
    assert constants == {"clean": None} | as_stored


def test_settings_are_those_of_scenes():
    tuned = _rows_without_rates()
    assert tuned["diffusion_tta/full"][1] == digits.tuned("classifier/resnet", "full")
    assert replace(tuned["dda, sum"][1], factor=4, scale=digits.purifier("dda").scale) == digits.purifier("dda")
