"""TENT: entropy minimisation by scale and shift of the norm layers."""

from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, assert_refused, make_classifier, make_family, same, weights
from torch import nn

from gentta_utils.diffusion.entropy import entropy
from gentta_utils.evaluation import evaluate, statistics
from gentta_utils.methods import METHODS, source, tent
from gentta_utils.methods.base import Models
from gentta_utils.methods.tent import Settings, configure
from gentta_utils.models.classifier import Classifier
from gentta_utils.streams.stream import Stream

S = Settings(lr=1e-2)
SGD = Settings(lr=0.1, optimizer="sgd")
IDS = torch.arange(6) + 40


def train_mode(models: Models) -> Classifier:
    """A second, equal classifier whose batch norms are in train mode."""
    twin = make_classifier()
    twin.load_state_dict(models.classifier.state_dict())
    twin.network.bn.train()
    return twin


# --- the loss --------------------------------------------------------------------------------------------------------


def test_gradient_of_the_entropy_is_the_closed_form():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    p = z.softmax(1)
    H = entropy(z)
    torch.testing.assert_close(H, -(p * p.log()).sum(1))
    (grad,) = torch.autograd.grad(H.sum(), z)
    torch.testing.assert_close(grad, -p * (p.log() + H[:, None]))


def test_entropy_survives_saturated_logits():
    z = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    H = entropy(z)
    H.sum().backward()
    assert H.item() == 0
    assert z.grad.abs().max() == 0


# --- the method ------------------------------------------------------------------------------------------------------


def test_returned_logits_are_those_of_the_network_before_the_update(tiny, images):
    with torch.no_grad():
        expected = train_mode(tiny)(images)
    torch.testing.assert_close(configure(tiny, S).adapt(images, IDS[:5]).logits, expected, rtol=1e-4, atol=1e-5)
    one = configure(tiny, replace(S, updates=1, predict="after")).adapt(images, IDS[:5])
    two = configure(tiny, replace(S, updates=2)).adapt(images, IDS[:5])
    torch.testing.assert_close(two.logits, one.logits, rtol=1e-5, atol=1e-6)  # the last forward saw one update
    assert not torch.allclose(two.logits, expected, atol=1e-3)


@pytest.mark.parametrize("s", [S, SGD, replace(S, updates=2), replace(SGD, predict="after")])
def test_a_stream_equals_the_plain_loop(tiny, images, s):
    """One network in train mode, torch.optim on its norm layers, three batches."""
    method, twin = configure(tiny, s), train_mode(tiny)
    twin.requires_grad_(False)
    affine = [*twin.network.bn.parameters(), *twin.network.norm.parameters()]
    for p in affine:
        p.requires_grad_(True)
    sgd = s.optimizer == "sgd"
    optimizer = torch.optim.SGD(affine, s.lr, momentum=0.9) if sgd else torch.optim.Adam(affine, s.lr)
    for rows in torch.tensor([0, 1, 2, 3, 4, 2]).split(2):
        out = method.adapt(images[rows], IDS[rows])
        for step in range(s.updates):
            z = twin(images[rows])
            p = z.softmax(1)
            loss = -(p * p.log()).sum(1)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            torch.testing.assert_close(out.loss[step], loss.detach(), rtol=1e-3, atol=1e-5)
        if s.predict == "after":
            z = twin(images[rows])
        torch.testing.assert_close(out.logits, z.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_norm_layers_change_and_the_source_survives(images32, family):
    models = make_family(family)
    kept, method = weights(models.classifier), configure(models, replace(S, updates=2))
    inside = weights(method.adapted)
    method.adapt(images32, IDS)
    assert same(kept, weights(models.classifier))
    assert same(inside, weights(method.adapted))  # buffers too; what changes are the copies
    assert all(p.grad is None for p in [*models.classifier.parameters(), *method.adapted.parameters()])
    named = dict(models.classifier.named_parameters())
    copies = method.state[0].values
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
    norms = [m for m in models.classifier.modules() if isinstance(m, kinds)]
    assert len(copies) == 2 * len(norms) > 4
    assert any(not torch.equal(v, named[n]) for n, v in copies.items())
    assert {id(named[n]) for n in copies} == {id(p) for m in norms for p in m.parameters()}


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_entropy_falls_for_a_small_step(images32, family, online):
    s = Settings(lr=1e-3, optimizer="sgd", momentum=0.0, predict="after", online=online)
    out = configure(make_family(family), s).adapt(images32, IDS)
    before, after = out.loss[0], entropy(out.logits)
    assert after.mean() < before.mean()
    assert online or bool((after < before + 1e-6).all())


@pytest.mark.parametrize("s", [S, SGD])
def test_one_hot_predictions_give_no_update(tiny, images, s):
    with torch.no_grad():
        tiny.classifier.network.fc.bias += torch.tensor([300.0, 0, 0, 0])
    method = configure(tiny, s)
    method.adapt(images, IDS[:5])
    named = dict(tiny.classifier.named_parameters())
    assert all(torch.allclose(v, named[n], atol=1e-7) for n, v in method.state[0].values.items())
    with torch.no_grad():
        tiny.classifier.network.fc.bias -= torch.tensor([300.0, 0, 0, 0])
    method = configure(tiny, s)
    method.adapt(images, IDS[:5])
    assert any(not torch.allclose(v, named[n], atol=1e-5) for n, v in method.state[0].values.items())


def test_reset_restores_parameters_and_moments(tiny, images):
    method = configure(tiny, replace(S, updates=2))
    run = lambda: torch.cat([method.adapt(images[r], IDS[r]).logits for r in torch.arange(4).split(2)])  # noqa: E731
    first, carried = run(), run()
    method.reset()
    assert method.state is None
    assert torch.equal(first, run())
    assert not torch.equal(first, carried)
    method.reset()
    task, optimizer = method._fresh(None)
    source_values = dict(tiny.classifier.named_parameters())
    assert all(torch.equal(v, source_values[n]) for n, v in task.values.items())
    assert not optimizer.state


@pytest.mark.parametrize("s", [S, SGD])  # SGD also sees the size of the gradient
def test_episodic_results_do_not_depend_on_order_or_company(tiny, images, s):
    method = configure(tiny, replace(s, online=False, updates=2, images_at_once=3))
    whole = method.adapt(images, IDS[:5])
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        whole.logits[order], method.adapt(images[order], IDS[order]).logits, rtol=1e-4, atol=1e-5
    )
    alone = configure(tiny, replace(s, updates=2))
    for b in range(5):
        alone.reset()
        one = alone.adapt(images[b : b + 1], IDS[b : b + 1])
        torch.testing.assert_close(one.logits[0], whole.logits[b], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.loss[:, 0], whole.loss[:, b], rtol=1e-3, atol=1e-5)
    assert method.state is None


def test_episodes_of_a_resnet_survive_1x1_feature_maps(images32):
    out = configure(make_family("resnet"), replace(S, online=False, predict="after")).adapt(images32, IDS)
    assert torch.isfinite(out.logits).all()
    assert (out.logits - out.logits[:1])[1:].abs().amax(1).min() > 1e-4


def test_dropout_and_stochastic_depth_stay_off(images32):
    models = make_family("vit", drop_rate=0.5, drop_path_rate=0.5)
    method = configure(models, S)
    first = method.adapt(images32, IDS).logits
    torch.testing.assert_close(first, source.configure(models).adapt(images32, IDS).logits, rtol=1e-5, atol=1e-6)
    method.reset()
    assert torch.equal(first, method.adapt(images32, IDS).logits)


def test_before_is_the_frozen_source_also_later_in_the_stream(tiny, images):
    method = configure(tiny, S)
    frozen = source.configure(tiny).adapt(images, IDS[:5]).logits
    for _ in range(2):
        assert torch.equal(method.adapt(images, IDS[:5]).before, frozen)


def test_costs(tiny, images):
    assert configure(tiny, replace(S, updates=2)).adapt(images, IDS[:5]).nfe == {"classifier fwd+bwd": 10}
    after = configure(tiny, replace(S, predict="after")).adapt(images, IDS[:5])
    assert after.nfe == {"classifier fwd+bwd": 5, "classifier fwd": 5}
    assert after.loss.shape == (1, 5)


# --- collapse, protocol, errors --------------------------------------------------------------------------------------


def test_the_protocol_line_tells_when_was_predicted(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    for predict in ("before", "after"):
        records = evaluate.run(configure(tiny, replace(S, predict=predict)), stream, reset="never", batch=2)
        assert f"predict={predict}" in statistics.protocol_line([records])
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(tiny, S), stream, reset="per_image")
    evaluate.run(configure(tiny, replace(S, online=False)), stream, reset="per_image")


def test_networks_without_norm_layers_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ValueError, match="holds no parameter"):
        configure(Models(Classifier(network, (0.5,) * 3, (0.5,) * 3, 16, 4)))


@pytest.mark.parametrize("online", [True, False])
def test_divergence_is_named(tiny, images, online):
    with pytest.raises(FloatingPointError, match=r"to image 4[0-4] diverged at update 1: lower the learning rate"):
        configure(tiny, replace(SGD, lr=1e38, online=online, predict="after")).adapt(images, IDS[:5])


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"updates": 0}, {"optimizer": "lion"}, {"predict": "during"}, {"momentum": 2.0},
        {"images_at_once": 0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["tent"] is tent
    assert Settings(**tent.PUBLISHED_CIFAR) == Settings()
    imagenet = Settings(**tent.PUBLISHED_IMAGENET)
    assert (imagenet.optimizer, imagenet.lr, imagenet.momentum, imagenet.updates) == ("sgd", 2.5e-4, 0.9, 1)
