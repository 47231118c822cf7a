"""DOTA: Gaussians of the classes, fitted to the stream."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from gentta_utils.methods import METHODS, dota
from gentta_utils.methods.dota import Gaussians, Settings, configure, start
from gentta_utils.models.clip import image_features, text_head

IDS = torch.arange(5) + 40


def test_one_batch_is_a_weighted_gaussian_fit_in_any_order():
    x, p = torch.randn(20, 4, dtype=torch.float64), torch.rand(20, 3, dtype=torch.float64)
    text = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    g, other, order = *(start(text, 0.5) for _ in range(2)), torch.randperm(20)
    g = Gaussians(g.mu, g.sigma.double(), g.count)
    other = Gaussians(other.mu, other.sigma.double(), other.count)
    g.fit(x, p)
    other.fit(x[order], p[order])
    for k in range(3):
        total = 1 + p[:, k].sum()
        torch.testing.assert_close(g.mu[k], (text[k] + (p[:, k, None] * x).sum(0)) / total)
        spread = sum(w * torch.outer(v - text[k], v - text[k]) for w, v in zip(p[:, k], x, strict=True))
        torch.testing.assert_close(g.sigma[k], (0.5 * torch.eye(4, dtype=torch.float64) + spread) / total)
    torch.testing.assert_close(g.sigma, other.sigma)
    torch.testing.assert_close(g.mu, other.mu)


def test_with_true_labels_and_many_images_it_is_linear_discriminant_analysis():
    generator = torch.Generator().manual_seed(0)
    means, mix = torch.randn(3, 4, generator=generator), 0.3 * torch.randn(4, 4, generator=generator)
    labels = torch.arange(30_000) % 3
    x = means[labels] + torch.randn(30_000, 4, generator=generator) @ (torch.eye(4) + mix)
    g = start(F.normalize(torch.randn(3, 4, generator=generator), dim=1), 0.1)
    for rows in torch.arange(30_000).split(50):
        g.fit(x[rows], F.one_hot(labels[rows], 3).float())
    ours = g.scores(x[:500], 0.0)
    lda = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(x.numpy(), labels.numpy())
    theirs = torch.tensor(lda.decision_function(x[:500].numpy())).float()
    one, two = (s - s.mean(1, keepdim=True) for s in (ours, theirs))
    assert (one.argmax(1) == two.argmax(1)).float().mean() > 0.99
    assert (one - two).abs().mean() < 0.05 * two.abs().mean()


def test_without_its_weight_it_is_zero_shot(clip_models, images64):
    out = configure(clip_models, Settings(eta=0.0)).adapt(images64, IDS)
    torch.testing.assert_close(out.logits, out.before, rtol=1e-4, atol=1e-4)
    assert out.nfe == {"classifier fwd": 5}


def test_it_predicts_before_it_takes_an_image_in(clip_models, images64):
    """The first image meets the text features alone, and what comes later cannot change it."""
    s = Settings(rho=0.1)
    method = configure(clip_models, s)
    out = method.adapt(images64, IDS)
    x = image_features(clip_models.classifier, images64).detach()
    z, text = clip_models.classifier(images64).detach(), F.normalize(text_head(clip_models.classifier), dim=1)
    g = start(text, s.sigma)
    for b in range(5):
        weight = min(0.1 * float(g.count.mean()), s.eta)
        expected = z[b] + weight * g.scores(x[b : b + 1], s.epsilon)[0]
        torch.testing.assert_close(out.logits[b], expected, rtol=1e-3, atol=1e-2)
        g.fit(x[b : b + 1], z[b : b + 1].softmax(1))
    torch.testing.assert_close(method.state.mu, g.mu, rtol=1e-4, atol=1e-5)
    assert method.state.count.sum() == pytest.approx(15, abs=1e-3)


def test_order_matters_batches_do_not_and_reset_is_the_source(clip_models, images64):
    method, order = configure(clip_models), torch.tensor([3, 0, 4, 1, 2])
    whole = method.adapt(images64, IDS).logits
    method.reset()
    parts = [method.adapt(images64[r], IDS[r]).logits for r in torch.arange(5).split(2)]
    assert torch.equal(whole, torch.cat(parts))
    method.reset()
    assert not torch.equal(whole[order], method.adapt(images64[order], IDS[order]).logits)


@pytest.mark.parametrize("change", [{"sigma": 0.0}, {"epsilon": 2.0}, {"eta": -1.0}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(Settings(), change)


def test_the_method_has_its_name():
    assert METHODS["dota"] is dota
