"""MEMO: the entropy of the mean prediction over views, one step, one image at a time."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, assert_refused, make_classifier, make_family, same, weights

from gentta_utils.diffusion.entropy import entropy, log_mean, marginal_entropy
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, base, bn_adapt, memo, source, tent
from gentta_utils.methods.memo import Settings, configure
from gentta_utils.streams.stream import Stream
from gentta_utils.world.views import augmix_views

S = Settings(lr=0.05, views=4, alpha=0.0)
ADAMW = Settings(lr=1e-3, views=4, updates=2, optimizer="adamw", weight_decay=0.01, alpha=0.0)
IDS = torch.arange(6) + 40


# --- the loss, shared with TPT ---------------------------------------------------------------------------------------


def test_it_is_the_entropy_of_the_mean_not_the_mean_of_the_entropies():
    opposite, alike = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log(), torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    assert marginal_entropy(opposite).item() == pytest.approx(0.6931, abs=5e-5)
    assert entropy(opposite).mean().item() == pytest.approx(0.3251, abs=5e-5)
    assert marginal_entropy(alike).item() == pytest.approx(0.3251, abs=5e-5)
    assert entropy(alike).mean().item() == pytest.approx(0.3251, abs=5e-5)


def test_it_is_never_below_the_mean_and_equal_only_where_all_views_agree():
    z = torch.randn(50, 7, 5, dtype=torch.float64) * 3
    assert (marginal_entropy(z) > entropy(z).mean(1)).all()
    agreeing = z[:, :1] + torch.randn(50, 7, 1, dtype=torch.float64)  # a shift of all logits is the same prediction
    torch.testing.assert_close(marginal_entropy(agreeing), entropy(agreeing).mean(1))


def test_the_mean_prediction_in_log_space():
    z = torch.randn(3, 7, 5, dtype=torch.float64) * 3
    torch.testing.assert_close(log_mean(z), z.softmax(-1).mean(1).log())
    far = torch.tensor([[0.0, -200.0], [0.0, -200.0]])  # exp(-200) is 0 in float32
    assert log_mean(far)[1].item() == pytest.approx(-200)


def test_one_view_is_tents_loss(tiny, images):
    z = torch.randn(6, 1, 5)
    torch.testing.assert_close(marginal_entropy(z), entropy(z[:, 0]))
    tiny.classifier.network.bn = torch.nn.Identity()  # TENT takes the view's own statistics: compare without batch norm
    out = configure(tiny, replace(S, views=1)).adapt(images[:1], IDS[:1])
    other = tent.configure(tiny).adapt(augmix_views(images[0], 40, 1), IDS[:1])
    torch.testing.assert_close(out.loss, other.loss, rtol=1e-4, atol=1e-5)


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [S, replace(S, updates=3), ADAMW, replace(S, crop="resized", seed=3)])
def test_it_equals_the_plain_loop(tiny, images, s):
    """torch.optim on the module itself, a new one for each image, gradient of -sum p log p of the mean p."""
    out = configure(tiny, s).adapt(images, IDS[:5])
    for b in range(5):
        twin = make_classifier()
        twin.load_state_dict(tiny.classifier.state_dict())
        if s.optimizer == "sgd":
            optimizer = torch.optim.SGD(twin.parameters(), s.lr)
        else:
            optimizer = torch.optim.AdamW(twin.parameters(), s.lr, weight_decay=0.01)
        for step in range(s.updates):
            p = twin(augmix_views(images[b], 40 + b, 4, s.crop, seed=s.seed, step=step)).softmax(1).mean(0)
            loss = -(p * p.log()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(out.loss[step, b].item(), rel=1e-3, abs=1e-5)
        torch.testing.assert_close(twin(images[b : b + 1])[0].detach(), out.logits[b], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_adapted_and_the_source_survives(images32, family, monkeypatch):
    models, seen = make_family(family), []
    kept, method = weights(models.classifier), configure(models, replace(S, lr=1e-2))
    make = base.make_optimizer
    monkeypatch.setattr(memo, "make_optimizer", lambda *a, **k: seen.append(a[1]) or make(*a, **k))
    out = method.adapt(images32[:2], IDS[:2])
    assert same(kept, weights(models.classifier))
    assert same(list(models.classifier.parameters()), list(method.adapted.parameters()))
    assert all(p.grad is None for p in [*models.classifier.parameters(), *method.adapted.parameters()])
    values = list(models.classifier.parameters())
    assert [v.shape for v in seen[0]] == [v.shape for v in values]  # class token, position, layer scale and all
    assert sum(not torch.equal(a, b) for a, b in zip(seen[0], values, strict=True)) > 0.9 * len(values)
    assert not torch.allclose(out.logits, out.before, atol=1e-4)


@pytest.mark.parametrize("s", [S, ADAMW, replace(S, alpha=1 / 17)], ids=["sgd", "adamw", "batch norm"])
def test_results_are_bit_equal_whatever_order_and_company(tiny, images, s):
    """With AdamW this also says that its moments start again for each image, which they do not in the public code."""
    method = configure(tiny, s)
    whole = method.adapt(images, IDS[:5])
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(whole.logits[order], method.adapt(images[order], IDS[order]).logits)
    alone = [method.adapt(images[i : i + 1], IDS[i : i + 1]) for i in range(5)]
    assert torch.equal(whole.logits, torch.cat([o.logits for o in alone]))
    assert torch.equal(whole.loss, torch.cat([o.loss for o in alone], 1))


def test_without_a_step_it_is_batch_norm_with_pseudo_counts(images32):
    models = make_family("resnet")
    out = configure(models, Settings(lr=1e-30, views=2)).adapt(images32, IDS)
    expected = bn_adapt.configure(models, bn_adapt.Settings(**bn_adapt.PUBLISHED_MEMO)).adapt(images32, IDS)
    assert torch.equal(out.logits, expected.logits)
    assert not torch.allclose(out.logits, out.before, atol=1e-4)
    plain = configure(models, Settings(lr=1e-30, views=2, alpha=0.0)).adapt(images32, IDS)
    torch.testing.assert_close(plain.logits, plain.before, rtol=1e-4, atol=1e-5)


def test_the_loss_falls_for_a_small_step(tiny, images):
    """On the views of the step; a second update would draw others."""
    method, views = configure(tiny, replace(S, lr=1e-3)), augmix_views(images[0], 40, 4)
    out = method.adapt(images[:1], IDS[:1])
    again = configure(tiny, replace(S, lr=1e-3, updates=2)).adapt(images[:1], IDS[:1])
    assert again.loss[0] == out.loss[0]
    z = tiny.classifier.requires_grad_(True)(views)
    loss = marginal_entropy(z)
    assert loss.item() == pytest.approx(out.loss.item(), rel=1e-4)
    values = list(tiny.classifier.parameters())
    grads = torch.autograd.grad(loss, values)
    with torch.no_grad():
        for value, grad in zip(values, grads, strict=True):
            value -= 1e-3 * grad
        assert marginal_entropy(tiny.classifier(views)) < loss
        torch.testing.assert_close(tiny.classifier(images[:1]), out.logits, rtol=1e-4, atol=1e-5)


def test_costs_and_before(tiny, images):
    out = configure(tiny, replace(S, updates=3)).adapt(images, IDS[:5])
    assert out.nfe == {"classifier fwd+bwd": 5 * 3 * 4, "classifier fwd": 5}
    assert out.loss.shape == (3, 5)
    assert torch.equal(out.before, source.configure(tiny).adapt(images, IDS[:5]).logits)
    assert 0 < out.loss.max() <= math.log(4)


# --- protocol, errors ------------------------------------------------------------------------------------------------


def test_the_protocol_has_to_fit(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    assert evaluate.run(configure(tiny, S), stream, batch=2).about["protocol"]["predict"] == "after"
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(tiny, S), stream, reset="per_shift")


def test_divergence_is_named(tiny, images):
    with pytest.raises(FloatingPointError, match=r"to image 40 diverged at update 1: lower the learning rate"):
        configure(tiny, replace(S, lr=1e38)).adapt(images, IDS[:5])


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"views": 0}, {"updates": 0}, {"optimizer": "adam"}, {"crop": "centre"}, {"alpha": 2.0},
        {"severity": 0.0}, {"weight_decay": -1.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["memo"] is memo
    assert Settings(**memo.PUBLISHED_CIFAR) == Settings()
    resnet, rvt = Settings(**memo.PUBLISHED_RESNET50), Settings(**memo.PUBLISHED_RVT)
    assert (resnet.views, resnet.lr, resnet.alpha, resnet.crop) == (64, 2.5e-4, 1 / 17, "resized")
    assert (rvt.optimizer, rvt.lr, rvt.weight_decay) == ("adamw", 1e-5, 0.01)
