"""ILVR: low frequencies are replaced by those of the equally noised reference."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused

from gentta_utils.diffusion import reverse, sampling
from gentta_utils.diffusion.guidance import bicubic_low_pass
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.diffusion.process import add_noise
from gentta_utils.diffusion.reverse import noise_for
from gentta_utils.methods import METHODS, ilvr
from gentta_utils.methods.ilvr import Settings, configure, purify

S = Settings(steps=20, clip=False, stop=-1)


@pytest.fixture
def world():
    """Two classes of 3 x 16 x 16 images that differ in their low frequencies, and images of them."""
    ramp = torch.linspace(-1, 1, 16, dtype=torch.float64).expand(3, 16, 16)
    mixture = GaussianMixture(torch.stack([ramp, -ramp]), 0.3)
    x = mixture.sample(torch.arange(6) % 2, torch.Generator().manual_seed(0))
    return mixture, x, torch.arange(6)


def steps(mixture, x, ids, s, monkeypatch):
    """(t_prev, sample after the correction) of each step."""
    seen, step = [], sampling.ddim_step
    monkeypatch.setattr(reverse, "ddim_step", lambda *a: seen.append(a) or step(*a))
    out = purify(mixture, x, ids, s)
    return [(a[2], a[0]) for a in seen[1:]] + [(-1, out)]  # the input of a step is what the one before returned


def noised(mixture, x, ids, s, t_from, level):
    noise = noise_for(ids, x.shape[1:], s, "ilvr", t_from).double()
    return add_noise(x, torch.full((len(x),), level), noise, mixture.alphas_cumprod)


def test_factor_one_returns_the_noised_reference(world, monkeypatch):
    mixture, x, ids = world
    s = replace(S, factor=1)
    seen = steps(mixture, x, ids, s, monkeypatch)
    levels = reverse.levels_of(s).tolist()
    for (level, value), t_from in zip(seen[:-1], reversed(levels), strict=False):
        torch.testing.assert_close(value, noised(mixture, x, ids, s, t_from, level))
    torch.testing.assert_close(seen[-1][1], x)  # at the clean level that is the reference itself


def test_a_late_stop_is_plain_sampling(world):
    mixture, x, ids = world
    plain = purify(mixture, x, ids, replace(S, stop=20))
    assert torch.equal(plain, purify(mixture, x.flip(0), ids, replace(S, stop=20)))  # the input has no part in it
    assert not torch.allclose(plain, purify(mixture, x, ids, replace(S, stop=10)))


def test_low_frequencies_are_those_of_the_noised_reference(world, monkeypatch):
    mixture, x, ids = world
    seen = steps(mixture, x, ids, S, monkeypatch)
    levels = reverse.levels_of(S).tolist()
    for (level, value), t_from in list(zip(seen, reversed(levels), strict=True))[:-1]:
        y = noised(mixture, x, ids, S, t_from, level)
        gap = bicubic_low_pass(value - y, 4).norm() / bicubic_low_pass(y, 4).norm()
        assert gap < 0.42  # of sqrt(2) for independent noise: Phi is no projector, 28% are left of each of the two
    clean = bicubic_low_pass(seen[-1][1] - x, 4).norm() / bicubic_low_pass(x, 4).norm()
    assert clean < 0.1


def test_it_keeps_the_class_of_the_reference_where_plain_sampling_does_not(world):
    mixture, x, ids = world
    labels = torch.arange(6) % 2
    assert (mixture.posterior(purify(mixture, x, ids, S)).argmax(1) == labels).all()
    assert not (mixture.posterior(purify(mixture, x, ids, replace(S, stop=20))).argmax(1) == labels).all()


def test_the_published_reference_is_one_level_above_the_sample(world, monkeypatch):
    mixture, x, ids = world
    s = replace(S, factor=1, reference="published")
    seen = steps(mixture, x, ids, s, monkeypatch)
    levels = reverse.levels_of(s).tolist()[::-1]
    for (_, value), t in zip(seen, levels, strict=True):
        torch.testing.assert_close(value, noised(mixture, x, ids, s, t, t))


def test_costs(tiny, images):
    out = configure(tiny, Settings(steps=8)).adapt(images, torch.arange(5))
    assert out.nfe == {"denoiser fwd": 40, "classifier fwd": 5}
    assert out.images.shape == images.shape


@pytest.mark.parametrize("change", [{"factor": 0}, {"pad": "mirror"}, {"reference": "clean"}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_the_method_has_its_name():
    assert METHODS["ilvr"] is ilvr
