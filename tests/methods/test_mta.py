"""MTA: a mean shift over the views' features that doubts outliers."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused

from gentta_utils.methods import METHODS, mta
from gentta_utils.methods.mta import Settings, configure, mean_shift

S, IDS = Settings(views=8), torch.arange(5) + 40


def cloud(B: int = 3, V: int = 12, D: int = 6, spread: float = 0.1, seed: int = 0):
    """Unit features (B, V, D) about a direction, and logits (B, V, 4) of some head."""
    g = torch.Generator().manual_seed(seed)
    f = F.normalize(torch.ones(B, V, D) + spread * torch.randn(B, V, D, generator=g), dim=-1)
    return f, 5 * f @ torch.randn(D, 4, generator=g)


def by_hand(f, z, s):
    """The steps of the paper for one image, view by view, with densities as they stand there."""
    V = len(f)
    p, k = z.softmax(1), max(1, int(s.neighbours * (V - 1)))
    squared = (f[:, None] - f[None]).square().sum(-1)
    h2 = torch.stack([squared[v].sort().values[1 : 1 + k].mean() / 2 for v in range(V)])
    m, y = f[0], torch.full((V,), 1 / V)
    for _ in range(s.rounds):
        K = torch.exp(-(f - m).square().sum(1) / (2 * h2))
        for _ in range(s.inner):
            y = ((K + s.lambda_q * (p @ p.T) @ y) / s.lambda_y).softmax(0)
        for _ in range(s.inner):
            K = torch.exp(-(f - m).square().sum(1) / (2 * h2))
            m = F.normalize(((K * y)[:, None] * f).sum(0), dim=0)
    return m, y


def test_it_equals_the_paper_for_every_image():
    f, z = cloud()
    m, y = mean_shift(f[:, 0], f, z, S)
    for b in range(3):
        own_m, own_y = by_hand(f[b], z[b], S)
        torch.testing.assert_close(m[b], own_m, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(y[b], own_y, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(y.sum(1), torch.ones(3))


def test_views_that_are_one_return_it():
    f, z = cloud(V=1)
    m, y = mean_shift(f[:, 0], f.expand(-1, 9, -1), z.expand(-1, 9, -1), S)
    torch.testing.assert_close(m, f[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(y, torch.full_like(y, 1 / 9))
    assert torch.equal(mean_shift(f[:, 0], f, z, S)[0], f[:, 0])


def test_an_outlier_far_away_is_not_believed():
    f, z = cloud()
    f[:, 5], z[:, 5] = -f[:, 5], torch.tensor([0, 0, 0, 50.0])  # the other way, sure of something else
    z[:, :5, 3], z[:, 6:, 3] = -20, -20
    m, y = mean_shift(f[:, 0], f, z, S)
    assert (y[:, 5] < 0.02).all()
    without = [v for v in range(12) if v != 5]
    torch.testing.assert_close(m, mean_shift(f[:, 0], f[:, without], z[:, without], S)[0], rtol=0, atol=0.02)


def test_the_order_of_the_other_views_does_not_matter():
    f, z = cloud()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(11)])
    one, two = mean_shift(f[:, 0], f, z, S), mean_shift(f[:, 0], f[:, order], z[:, order], S)
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(one[1][:, order], two[1], rtol=1e-3, atol=1e-5)


def test_a_start_far_from_all_views_is_finite():
    """All densities are 0 in float32 there; the shares that they leave are not."""
    f, z = cloud(spread=1e-3)
    m, _ = mean_shift(-f[:, 0], f, z, S)
    assert torch.isfinite(m).all()
    torch.testing.assert_close(m.norm(dim=1), torch.ones(3))
    assert ((m * f[:, 0]).sum(1) > 0.99).all()


def test_the_method_predicts_the_mode(clip_models, images64):
    method = configure(clip_models, S)
    out, (f, z) = method.adapt(images64, IDS), method.encode(images64, IDS)
    m, _ = mean_shift(f[:, 0], f, z, S)
    torch.testing.assert_close(out.logits, m @ clip_models.classifier.network.head.weight.T, rtol=1e-3, atol=1e-3)
    one = configure(clip_models, Settings(views=1)).adapt(images64, IDS)
    torch.testing.assert_close(one.logits, one.before, rtol=1e-4, atol=1e-4)
    assert out.nfe == {"classifier fwd": 40}


@pytest.mark.parametrize("change", [{"lambda_y": 0.0}, {"lambda_q": -1.0}, {"rounds": 0}, {"neighbours": 1.2}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["mta"] is mta
    assert Settings(**mta.PUBLISHED) == Settings()
