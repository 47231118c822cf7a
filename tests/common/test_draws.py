"""Draws belong to an image: bit-equal whatever its neighbours, batch size or order; samplers keep their promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gentta_utils.common.randomness import generator
from gentta_utils.diffusion.pairs import draw_noise, draw_pairs, draw_timesteps

SHAPE = (3, 8, 8)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_draws_do_not_depend_on_the_batch(size):
    ids = torch.randperm(1000)[:70]
    t, eps = draw_pairs(ids, 5, SHAPE, step=3)
    parts = [draw_pairs(part, 5, SHAPE, step=3) for part in ids.split(size)]
    assert torch.equal(t, torch.cat([p[0] for p in parts]))
    assert torch.equal(eps, torch.cat([p[1] for p in parts]))


def test_draws_do_not_depend_on_the_order():
    ids = torch.arange(30)
    order = torch.randperm(30)
    t, eps = draw_pairs(ids, 4, SHAPE)
    t2, eps2 = draw_pairs(ids[order], 4, SHAPE)
    assert torch.equal(t[order], t2)
    assert torch.equal(eps[order], eps2)


def test_every_part_of_the_seed_counts():
    first = torch.rand(4, generator=generator(0, 1, "a", 0))
    for other in ((1, 1, "a", 0), (0, 2, "a", 0), (0, 1, "b", 0), (0, 1, "a", 1)):
        assert not torch.equal(first, torch.rand(4, generator=generator(*other)))
    assert torch.equal(first, torch.rand(4, generator=generator(0, 1, "a", 0)))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 200),
    low=st.integers(0, 900),
    width=st.integers(1, 100),
    mode=st.sampled_from(["stratified", "even", "iid", "fixed"]),
    seed=st.integers(0, 1000),
)
def test_exactly_n_timesteps_inside_the_window(n, low, width, mode, seed):
    t = draw_timesteps(n, (low, low + width), mode, torch.Generator().manual_seed(seed))
    assert t.shape == (n,)
    assert t.dtype == torch.int64
    assert low <= int(t.min())
    assert int(t.max()) < low + width


def test_stratified_puts_one_in_each_stratum_and_is_uniform_on_the_whole():
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([draw_timesteps(10, (0, 1000), "stratified", g) for _ in range(3000)])
    assert torch.equal(draws // 100, torch.arange(10).expand(3000, 10))
    assert draws.float().mean() == pytest.approx(499.5, abs=1)
    assert draws.float().std() == pytest.approx(1000 / 12**0.5, rel=0.01)
    even = draw_timesteps(15, (0, 1000), "even", g)
    assert set(even.diff().tolist()) <= {66, 67}


def test_noise_modes():
    g = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    antithetic = draw_noise(5, SHAPE, "antithetic", g())
    assert antithetic.shape == (5, *SHAPE)
    assert torch.equal(antithetic[0], -antithetic[1])
    assert torch.equal(antithetic[2], -antithetic[3])
    shared = draw_noise(4, SHAPE, "shared", g())
    assert torch.equal(shared[0], shared[3])
    fresh = draw_noise(4, SHAPE, "fresh", g())
    assert fresh.flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 0.5
    with pytest.raises(ValueError, match="choose one of"):
        draw_noise(4, SHAPE, "blue", g())
    with pytest.raises(ValueError, match="choose one of"):
        draw_timesteps(4, (0, 10), "odd", g())
