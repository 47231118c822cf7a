"""The second measure of the synthetic domain, on features made by hand."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from gentta_utils.course.nb05 import domain, gap


def drawn(n, shift=0.0, wide=1.0, seed=0):
    """Features (n, 6) around `shift`."""
    return np.random.default_rng(seed).normal(shift, wide, (n, 6))


def test_two_samples_of_one_world_are_not_told_apart():
    same = np.mean([domain.told_apart(drawn(300, seed=s), drawn(300, seed=s + 1)).mean for s in range(0, 40, 2)])
    assert same == pytest.approx(50, abs=1.5)
    far = domain.told_apart(drawn(300), drawn(300, 2.0, seed=1))
    assert far.low > 95
    near = domain.told_apart(drawn(300), drawn(300, 0.5, seed=1))
    assert same < near.low
    assert near.high < far.low


def test_an_image_is_judged_by_a_fit_that_did_not_see_it():
    """With as many directions as images a fit separates any two sets that it saw."""
    rng = np.random.default_rng(0)
    found = [domain.told_apart(rng.normal(size=(50, 90)), rng.normal(size=(50, 90))).mean for _ in range(20)]
    assert np.mean(found) == pytest.approx(50, abs=3)


def test_frechet_distance_of_known_gaussians():
    one, other = drawn(20_000), drawn(20_000, 1.0, 2.0, seed=1)
    assert domain.frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert domain.frechet(one, other) == pytest.approx(6 + 6 * (1 - 2) ** 2, rel=0.05)
    mixed, turned = (v @ np.random.default_rng(seed).normal(size=(6, 6)) for seed, v in ((2, one), (3, other)))
    c, c_ = np.cov(mixed.T), np.cov(turned.T)  # covariances that do not commute
    expected = ((mixed.mean(0) - turned.mean(0)) ** 2).sum() + np.trace(c + c_ - 2 * sqrtm(c @ c_).real)
    assert domain.frechet(mixed, turned) == pytest.approx(expected)


def test_spread_is_within_a_class():
    """Two images of each of ten classes, a step apart, the classes far from each other."""
    centres = 100 * np.arange(10)[:, None] * np.ones((10, 3))
    step = np.array([1.0, 0, 0])
    assert domain.spread(np.concatenate([centres, centres + step])) == pytest.approx(1)


def test_the_samples_are_what_the_dial_is_trained_on(monkeypatch, tmp_path):
    """Every set is asked for as the dial asks for it; what comes is written down and shown."""
    asked = []

    def images_of(data):
        asked.append(data)
        seed = len(asked)
        return torch.rand(10 * data.per_class, 3, generator=torch.Generator().manual_seed(seed)), None

    monkeypatch.setattr(domain, "images_of", images_of)
    monkeypatch.setattr(domain, "features", lambda images: images.double().numpy())
    monkeypatch.setattr(domain, "FILE", tmp_path / "sda_domain.json")
    content = domain.measure(list(gap.WHOLE))
    projected = [d for d in asked if d.aligned]
    assert [d.alignment for d in projected[::2]] == [gap.dials()[name].alignment for name in gap.WHOLE]
    assert {d.kind for d in projected[::2]} == {"synthetic"}
    assert {d.kind for d in projected[1::2]} == {"own"}
    assert [d.synthesis.cfg for d in asked[-2:]] == list(domain.GUIDED)
    apart, diverse = domain.tables()
    assert [row["images"] for row in apart] == ["as they are", "real and other real ones", *gap.WHOLE]
    assert [row["images"] for row in diverse] == list(content["diversity"])
