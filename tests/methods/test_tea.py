"""TEA: the classifier as an energy model, its samples, and norm layers that lower the energy of the images."""

from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, assert_refused, make_classifier, make_family, same, weights
from torch import nn

from gentta_utils.common.randomness import generator
from gentta_utils.evaluation import evaluate, statistics
from gentta_utils.methods import METHODS, bn_adapt, source, tea
from gentta_utils.methods.base import Models
from gentta_utils.methods.tea import Settings, configure, energy, langevin
from gentta_utils.models.classifier import Classifier
from gentta_utils.streams.stream import Stream

S = Settings(lr=1e-2, steps=3, step_size=1.0, buffer=8)
IDS = torch.arange(6) + 40


def noise_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- energy and samples ----------------------------------------------------------------------------------------------


def test_energy_is_minus_logsumexp_and_its_gradient_minus_the_probabilities():
    z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    E = energy(z)
    torch.testing.assert_close(E, -z.exp().sum(1).log())
    (grad,) = torch.autograd.grad(E.sum(), z)
    torch.testing.assert_close(grad, -z.softmax(1))
    assert energy(torch.tensor([[1000.0, 0.0]])).item() == -1000


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_step_without_noise_lowers_the_energy_of_every_sample(images32, family):
    classifier = make_family(family).classifier.requires_grad_(False)
    x = langevin(classifier, images32, 1, 1e-3, 0.0, False, noise_of())
    with torch.no_grad():
        before, after = classifier(images32).logsumexp(1), classifier(x).logsumexp(1)
    assert (after > before).all()


def test_a_step_is_the_gradient_and_seeded_noise(tiny, images):
    classifier = tiny.classifier.requires_grad_(False)
    x = langevin(classifier, images, 1, 0.5, 0.01, False, noise_of())
    start = images.clone().requires_grad_()
    (up,) = torch.autograd.grad(classifier(start).logsumexp(1).sum(), start)
    expected = images + 0.5 * up + 0.01 * torch.randn(images.shape, generator=noise_of())
    torch.testing.assert_close(x, expected)
    assert torch.equal(x, langevin(classifier, images, 1, 0.5, 0.01, False, noise_of()))
    assert not torch.equal(x, langevin(classifier, images, 1, 0.5, 0.01, False, noise_of(1)))


def test_the_clamp_keeps_samples_in_the_range_of_the_images(tiny, images):
    classifier = tiny.classifier.requires_grad_(False)
    free, kept = (langevin(classifier, images, 3, 50.0, 0.01, clamp, noise_of()) for clamp in (False, True))
    assert float(free.min()) < 0
    assert float(free.max()) > 1
    assert 0 <= float(kept.min()) < float(kept.max()) <= 1


# --- replay buffer ---------------------------------------------------------------------------------------------------


def test_the_buffer_starts_as_uniform_noise_in_the_range_of_the_images(tiny):
    method = configure(tiny, replace(S, noise=0.0, step_size=1e-30, buffer=100_000))
    x = method.sample(200)
    assert 0 <= float(x.min()) < 0.01
    assert 0.99 < float(x.max()) <= 1
    assert x.mean().item() == pytest.approx(0.5, abs=0.01)
    assert x.var().item() == pytest.approx(1 / 12, abs=0.005)
    assert not torch.equal(x[0], x[1])


def test_samples_go_on_from_the_buffer_unless_fresh(tiny):
    """With one place the second batch starts at the first; with fresh=1 it never does."""
    still = dict(noise=0.0, step_size=1e-30, buffer=1)
    method = configure(tiny, replace(S, fresh=0.0, **still))
    assert torch.equal(method.sample(1), method.sample(1))
    fresh = configure(tiny, replace(S, fresh=1.0, **still))
    assert not torch.equal(fresh.sample(1), fresh.sample(1))
    method = configure(tiny, replace(S, buffer=8))
    for _ in range(20):
        x = method.sample(4)
    assert set(method.buffer) == set(range(8))
    assert sum(any(torch.equal(kept, row) for row in x) for kept in method.buffer.values()) >= 3
    assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in method.buffer.values())


def test_a_share_of_the_starts_is_fresh(tiny):
    s = replace(S, noise=0.0, step_size=1e-30, buffer=1, fresh=0.3)
    method = configure(tiny, s)
    method.sample(1)
    kept = method.buffer[0]
    assert (method.sample(500) == kept).flatten(1).all(1).float().mean().item() == pytest.approx(0.7, abs=0.06)


def test_samples_follow_the_adapted_network_with_their_own_statistics(tiny, images):
    """A plain network without stored statistics, in eval mode as the original's: batch norm then takes the batch's."""
    method = configure(tiny, replace(S, fresh=1.0))
    method.adapt(images, IDS[:5])
    drawn = method.drawn
    x = method.sample(3)
    twin = make_classifier()
    twin.load_state_dict(tiny.classifier.state_dict())
    with torch.no_grad():
        for name, value in method.state[0].values.items():
            twin.get_parameter(name).copy_(value)
    g = generator(0, -1, "tea", drawn)
    torch.randint(8, (3,), generator=g), torch.rand(3, generator=g)
    start = torch.rand(3, 3, 16, 16, generator=g)
    noise = [torch.randn(start.shape, generator=g) for _ in range(3)]

    def walked(network):
        z = start
        for n in noise:
            z = z.detach().requires_grad_()
            (up,) = torch.autograd.grad(network(z).logsumexp(1).sum(), z)
            z = (z + 1.0 * up + 0.01 * n).clamp(0, 1)
        return z.detach()

    twin.eval()
    of_the_source = walked(twin)
    bn = twin.network.bn
    bn.track_running_stats, bn.running_mean, bn.running_var = False, None, None
    torch.testing.assert_close(x, walked(twin), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(x, of_the_source, atol=1e-3)
    unadapted = configure(tiny, replace(S, fresh=1.0))
    unadapted.drawn = drawn
    assert not torch.allclose(x, unadapted.sample(3), atol=1e-5)


# --- the method ------------------------------------------------------------------------------------------------------


def test_identical_images_and_samples_give_no_loss_and_no_step(tiny, images, monkeypatch):
    monkeypatch.setattr(tea, "langevin", lambda classifier, x, *a: images)
    for s in (S, replace(S, optimizer="sgd", lr=10.0)):
        method = configure(tiny, s)
        assert method.adapt(images, IDS[:5]).loss.abs().max() == 0
        named = dict(tiny.classifier.named_parameters())
        assert all(torch.equal(v, named[n]) for n, v in method.state[0].values.items())


@pytest.mark.parametrize("s", [S, replace(S, optimizer="sgd", lr=0.1), replace(S, updates=2)])
def test_a_stream_equals_the_plain_loop(tiny, images, s, monkeypatch):
    """A network in train mode, torch.optim on its batch norm, logits computed again after each step."""
    samples, plain = [], tea.langevin
    monkeypatch.setattr(tea, "langevin", lambda *a: samples.append(plain(*a)) or samples[-1])
    method, twin = configure(tiny, s), make_classifier()
    twin.load_state_dict(tiny.classifier.state_dict())
    twin.requires_grad_(False).network.bn.train()
    affine = list(twin.network.bn.requires_grad_(True).parameters())
    sgd = s.optimizer == "sgd"
    optimizer = torch.optim.SGD(affine, s.lr, momentum=0.9) if sgd else torch.optim.Adam(affine, s.lr)
    for rows in torch.tensor([0, 1, 2, 3, 4, 2]).split(3):
        out = method.adapt(images[rows], IDS[rows])
        for step, fake in enumerate(samples):
            real = -twin(images[rows]).logsumexp(1)
            loss = real - -twin(fake).logsumexp(1)
            torch.testing.assert_close(out.loss[step], loss.detach(), rtol=1e-3, atol=1e-4)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        torch.testing.assert_close(out.logits, twin(images[rows]).detach(), rtol=1e-3, atol=1e-3)
        samples.clear()


def test_the_energy_of_the_images_falls_against_that_of_the_samples(tiny, images, monkeypatch):
    fake = torch.rand(5, 3, 16, 16)
    monkeypatch.setattr(tea, "langevin", lambda classifier, x, *a: fake)
    loss = configure(tiny, Settings(lr=1e-3, updates=5, optimizer="sgd", momentum=0.0)).adapt(images, IDS[:5]).loss
    assert (loss.mean(1).diff() < 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_batch_norm_changes_or_else_the_norm_layers_and_the_source_survives(images32, family):
    models = make_family(family)
    kept, method = weights(models.classifier), configure(models, S)
    inside = weights(method.adapted)
    out = method.adapt(images32, IDS)
    assert same(kept, weights(models.classifier))
    assert same(inside, weights(method.adapted))
    assert all(p.grad is None for p in [*models.classifier.parameters(), *method.adapted.parameters()])
    kinds = nn.BatchNorm2d if family == "resnet" else (nn.LayerNorm, nn.GroupNorm)
    named = dict(models.classifier.named_parameters())
    copies = method.state[0].values
    norms = [m for m in models.classifier.modules() if isinstance(m, kinds)]
    assert {id(named[n]) for n in copies} == {id(p) for m in norms for p in m.parameters()}
    assert sum(not torch.equal(v, named[n]) for n, v in copies.items()) > 0.7 * len(copies)
    assert not torch.allclose(out.logits, out.before, atol=1e-3)


def test_batch_norm_alone_is_adapted_where_there_is_any(tiny, images):
    method = configure(tiny, S)
    method.adapt(images, IDS[:5])
    assert set(method.state[0].values) == {"network.bn.weight", "network.bn.bias"}


def test_without_a_step_it_is_batch_norm_with_the_statistics_of_the_batch(images32):
    models = make_family("resnet")
    out = configure(models, replace(S, lr=1e-30)).adapt(images32, IDS)
    expected = bn_adapt.configure(models).adapt(images32, IDS).logits
    torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.before, source.configure(models).adapt(images32, IDS).logits)


def test_reset_restores_parameters_moments_buffer_and_draws(tiny, images):
    method = configure(tiny, replace(S, buffer=2, fresh=0.0))
    run = lambda: torch.cat([method.adapt(images[r], IDS[r]).logits for r in torch.arange(4).split(2)])  # noqa: E731
    first, carried = run(), run()
    assert method.buffer
    method.reset()
    assert (method.state, method.buffer, method.drawn) == (None, {}, 0)
    assert torch.equal(first, run())
    assert not torch.equal(first, carried)
    kept, _ = method.buffer, method.reset()
    method.buffer = kept  # as in the public code: the samples of the stream before go on
    assert not torch.equal(first, run())
    losses = [
        configure(tiny, replace(S, buffer=2, fresh=0.0, seed=seed)).adapt(images[:2], IDS[:2]).loss
        for seed in (0, 0, 1)
    ]  # not the logits: Adam's first step is the sign of the gradient alone
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_costs(tiny, images):
    out = configure(tiny, replace(S, updates=2)).adapt(images, IDS[:5])
    assert out.nfe == {"classifier fwd+bwd": 2 * 5 * (3 + 2), "classifier fwd": 5}
    assert out.loss.shape == (2, 5)


# --- protocol, errors ------------------------------------------------------------------------------------------------


def test_the_protocol_line_tells_when_was_predicted(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    records = evaluate.run(configure(tiny, S), stream, reset="per_shift", batch=3)
    assert "predict=after" in statistics.protocol_line([records])
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(tiny, S), stream, reset="per_image")


def test_networks_without_norm_layers_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ValueError, match="holds no parameter"):
        configure(Models(Classifier(network, (0.5,) * 3, (0.5,) * 3, 16, 4)))


@pytest.mark.parametrize("change", [{"optimizer": "sgd", "lr": 1e38, "updates": 5}, {"lr": 1e37, "updates": 5}])
def test_divergence_is_named(tiny, images, change):
    tiny.classifier.network.norm = nn.Identity()  # after it no weight is too large
    with pytest.raises(FloatingPointError, match=r"to image 4[0-4] diverged at update \d: lower the learning rate"):
        configure(tiny, replace(S, **change)).adapt(images, IDS[:5])


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"updates": 0}, {"optimizer": "lion"}, {"momentum": 2.0}, {"steps": 0}, {"step_size": 0.0},
        {"noise": -0.1}, {"buffer": 0}, {"fresh": 1.5},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_the_preset_is_settings_and_the_method_has_its_name():
    assert METHODS["tea"] is tea
    s = Settings(**tea.PUBLISHED)
    assert (s.lr, s.optimizer, s.steps, s.step_size, s.noise) == (1e-3, "adam", 20, 0.1, 0.01)
    assert (s.buffer, s.fresh, s.clamp) == (10_000, 0.05, False)
    assert replace(s, clamp=True) == Settings()
