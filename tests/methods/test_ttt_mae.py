"""TTT-MAE: masks, the loss over hidden patches, the encoder alone adapted; the network and its recipe."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused, make_mae, same, weights
from resuming import assert_resumes_to_the_bit
from torch.func import functional_call, vmap

from gentta_utils import recipes
from gentta_utils.common.randomness import generator
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, base, memo, source, tent, ttt_mae
from gentta_utils.methods.ttt_mae import Settings, configure
from gentta_utils.models import zoo
from gentta_utils.models.mae import draw_masks, masked_error, targets
from gentta_utils.recipes import classifiers, mae, quality, training
from gentta_utils.streams.stream import Stream

S = Settings(lr=0.05, updates=3, masks=4)
IDS = torch.arange(6) + 40


@pytest.fixture
def model():
    return make_mae()


# --- masks and loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches, ratio, hidden", [(64, 0.75, 48), (16, 0.75, 12), (64, 0.5, 32), (49, 0.75, 37)])
def test_the_mask_ratio_is_exact(patches, ratio, hidden):
    keep = draw_masks(200, patches, ratio, torch.Generator().manual_seed(0))
    assert keep.shape == (200, patches - hidden)
    assert all(len(set(row)) == patches - hidden and row == sorted(row) for row in keep.tolist())
    seen = torch.zeros(200, patches).scatter(1, keep, 1.0).mean(0)
    assert (seen - (1 - hidden / patches)).abs().max() < 0.15  # every patch alike
    assert torch.equal(keep, draw_masks(200, patches, ratio, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_a_mask_hides_some_and_not_all(ratio):
    with pytest.raises(ValueError, match=r"hides \d+ of 16 patches: choose"):
        draw_masks(1, 16, ratio, torch.Generator())
    with pytest.raises(ValueError, match="hides"):
        configure(make_mae(), replace(S, ratio=ratio))


def test_targets_are_the_patches_each_normalised():
    x = torch.randn(2, 3, 16, 16)
    rows = targets(x, 4)
    assert rows.shape == (2, 16, 48)
    patch = x[1, :, 4:8, 12:16]  # second row, fourth column
    expected = (patch - patch.mean()) / patch.std()
    torch.testing.assert_close(rows[1, 7], expected.permute(1, 2, 0).flatten(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows.mean(2), torch.zeros(2, 16), rtol=0, atol=1e-6)
    assert torch.isfinite(targets(torch.zeros(1, 3, 16, 16), 4)).all()  # a patch of one colour has no deviation


def test_the_loss_is_over_hidden_patches_alone():
    x, keep = torch.randn(3, 3, 16, 16), draw_masks(3, 16, 0.75, torch.Generator().manual_seed(0))
    predicted = torch.randn(3, 16, 48, requires_grad=True)
    loss = masked_error(predicted, x, keep, 4)
    (grad,) = torch.autograd.grad(loss.sum(), predicted)
    seen = torch.zeros(3, 16, dtype=torch.bool).scatter(1, keep, True)
    assert grad[seen].abs().max() == 0
    assert grad[~seen].abs().amax(1).min() > 0
    errors = (predicted.detach() - targets(x, 4)).square().mean(2)
    torch.testing.assert_close(loss.detach(), torch.stack([e[~s].mean() for e, s in zip(errors, seen, strict=True)]))


# --- the network -----------------------------------------------------------------------------------------------------


def test_the_encoder_sees_what_is_kept_alone(model, images):
    network, x = model.classifier.network, model.classifier.normalise(images)
    keep = draw_masks(5, 16, 0.75, torch.Generator().manual_seed(0))
    hidden = torch.ones(5, 16, dtype=torch.bool).scatter(1, keep, False)
    pixels = hidden.view(5, 1, 4, 1, 4, 1).expand(-1, 3, -1, 4, -1, 4).reshape(5, 3, 16, 16)
    with torch.no_grad():
        predicted = network(x, keep)
        assert predicted.shape == (5, 16, 48)
        torch.testing.assert_close(network(torch.where(pixels, 7.0, x), keep), predicted)
        assert not torch.allclose(network(torch.where(pixels, x, 7.0), keep), predicted, atol=1e-3)


def test_all_patches_seen_is_timms_own_encoder(model, images):
    network = model.classifier.network
    with torch.no_grad():
        ours = network.encode(images, torch.arange(16).expand(5, -1))
        torch.testing.assert_close(ours, network.encoder.forward_features(images))
        torch.testing.assert_close(network.head(ours), network(images))


def test_each_token_comes_back_at_its_own_place(model, images):
    """Without blocks, the decoder's output at a seen patch depends on that patch, at a hidden one on its place."""
    network = model.classifier.network
    network.decoder["blocks"] = torch.nn.Identity()
    network.encoder.blocks = torch.nn.Identity()
    keep = draw_masks(5, 16, 0.75, torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = network(images, keep)
        tokens = network.decoder["embed"](network.encode(images, torch.arange(16).expand(5, -1)))[:, 1:]
        for b in range(5):
            for i in range(16):
                token = tokens[b, i] if i in keep[b].tolist() else network.mask_token
                expected = network.decoder["pixels"](network.decoder["norm"](token + network.position[i]))
                torch.testing.assert_close(predicted[b, i], expected)


def test_it_is_a_classifier_like_any_other(model, images):
    """Copies side by side, other methods, and a temperature folded into its last layer."""
    network = model.classifier.network
    copies = {n: p.detach().expand(5, *p.shape) for n, p in network.named_parameters()}
    with torch.no_grad():
        z = vmap(lambda values, x: functional_call(network, values, (x[None],))[0])(copies, images)
        torch.testing.assert_close(z, network(images), rtol=1e-4, atol=1e-5)
        classifiers.fold_temperature(network, 2.0)
        torch.testing.assert_close(network(images), z / 2, rtol=1e-4, atol=1e-5)
    for method in (tent, memo):
        assert torch.isfinite(method.configure(model).adapt(images, IDS[:5]).logits).all()


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [S, replace(S, optimizer="adamw", lr=1e-3, seed=3), replace(S, ratio=0.5, momentum=0.0)])
def test_it_equals_the_plain_loop(model, images, s):
    """torch.optim on the encoder of the module itself, a new one for each image."""
    out = configure(model, s).adapt(images, IDS[:5])
    for b in range(5):
        twin = make_mae().classifier.network
        twin.load_state_dict(model.classifier.network.state_dict())
        sgd = s.optimizer == "sgd"
        f = twin.encoder.parameters()
        optimizer = torch.optim.SGD(f, s.lr, s.momentum) if sgd else torch.optim.AdamW(f, s.lr, weight_decay=0)
        x = (images[b : b + 1] - 0.5) / 0.5
        for step in range(s.updates):
            keep = draw_masks(4, 16, s.ratio, generator(s.seed, 40 + b, "ttt_mae", step))
            errors = (twin(x.expand(4, -1, -1, -1), keep) - targets(x, 4)).square().mean(2)  # (M, L)
            hidden = torch.ones_like(errors, dtype=torch.bool).scatter(1, keep, False)
            loss = errors[hidden].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(out.loss[step, b].item(), rel=1e-4)
        torch.testing.assert_close(twin(x)[0].detach(), out.logits[b], rtol=1e-3, atol=1e-4)


def test_only_the_encoder_is_adapted_and_the_source_survives(model, images, monkeypatch):
    seen, make = [], base.make_optimizer
    monkeypatch.setattr(ttt_mae, "make_optimizer", lambda *a, **k: seen.append(a[1]) or make(*a, **k))
    kept = weights(model.classifier)
    out = configure(model, S).adapt(images[:2], IDS[:2])
    assert same(kept, weights(model.classifier))
    assert all(p.grad is None and not p.requires_grad for p in model.classifier.parameters())
    values = list(model.classifier.network.encoder.parameters())
    assert [v.shape for v in seen[1]] == [v.shape for v in values]  # class token and positions too
    assert sum(not torch.equal(a, b) for a, b in zip(seen[1], values, strict=True)) > 0.9 * len(values)
    assert not torch.allclose(out.logits, out.before, atol=1e-3)


def test_the_loss_has_no_gradient_to_the_head(model, images):
    network = model.classifier.network.requires_grad_(True)
    keep = draw_masks(5, 16, 0.75, torch.Generator().manual_seed(0))
    masked_error(network(images, keep), images, keep, 4).mean().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in network.head.parameters())
    assert all(p.grad.abs().max() > 0 for p in network.decoder.parameters())
    assert all(p.grad.abs().max() > 0 for p in network.encoder.parameters())
    other = make_mae()
    with torch.no_grad():
        for value in other.classifier.network.head.parameters():
            value.normal_()
    losses = [configure(m, S).adapt(images, IDS[:5]).loss for m in (make_mae(), other)]
    assert torch.equal(*losses)  # it never sees a class


def test_without_a_step_it_is_the_source(model, images):
    out = configure(model, replace(S, lr=1e-30)).adapt(images, IDS[:5])
    torch.testing.assert_close(out.logits, out.before, rtol=1e-5, atol=1e-6)
    assert torch.equal(out.before, source.configure(model).adapt(images, IDS[:5]).logits)


def test_results_are_bit_equal_whatever_order_and_company(model, images):
    method = configure(model, S)
    whole = method.adapt(images, IDS[:5])
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(whole.logits[order], method.adapt(images[order], IDS[order]).logits)
    alone = [method.adapt(images[i : i + 1], IDS[i : i + 1]) for i in range(5)]
    assert torch.equal(whole.logits, torch.cat([o.logits for o in alone]))
    assert torch.equal(whole.loss, torch.cat([o.loss for o in alone], 1))
    method.reset()
    assert torch.equal(whole.logits, method.adapt(images, IDS[:5]).logits)
    assert not torch.equal(whole.logits, configure(model, replace(S, seed=1)).adapt(images, IDS[:5]).logits)
    same_image = method.adapt(images[:1].expand(2, -1, -1, -1), IDS[:2])
    assert same_image.loss[0, 0] != same_image.loss[0, 1]  # masks belong to the id
    assert len(set(same_image.loss[:, 0].tolist())) == 3  # and to the update


def test_the_loss_falls(model, images):
    loss = configure(model, replace(S, updates=30, masks=16)).adapt(images, IDS[:5]).loss
    assert (loss[-5:].mean(0) < loss[:5].mean(0)).all()


def test_costs(model, images):
    out = configure(model, S).adapt(images, IDS[:5])
    assert out.nfe == {"classifier fwd+bwd": 5 * 3 * 4, "classifier fwd": 5}
    assert out.loss.shape == (3, 5)


# --- protocol, errors ------------------------------------------------------------------------------------------------


def test_the_protocol_has_to_fit(model, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    assert evaluate.run(configure(model, S), stream, batch=2).about["protocol"]["predict"] == "after"
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(model, S), stream, reset="per_shift")


def test_networks_without_a_decoder_are_refused(tiny):
    with pytest.raises(ValueError, match="load classifier/mae, or train it"):
        configure(tiny)


@pytest.mark.parametrize("updates", [1, 3])
def test_divergence_is_named(model, images, updates):
    with pytest.raises(FloatingPointError, match=r"to image 40 diverged at update 1: lower the learning rate"):
        configure(model, replace(S, lr=1e38, updates=updates)).adapt(images, IDS[:5])


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"updates": 0}, {"masks": 0}, {"ratio": 0.0}, {"ratio": 1.0}, {"optimizer": "lion"},
        {"momentum": 2.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_the_preset_is_settings_and_the_method_has_its_name():
    assert METHODS["ttt_mae"] is ttt_mae
    s = Settings(**ttt_mae.PUBLISHED)
    assert (s.lr, s.updates, s.masks, s.ratio, s.optimizer, s.momentum) == (5e-3, 20, 128, 0.75, "sgd", 0.9)
    assert replace(s, masks=16) == Settings()


# --- the recipe ------------------------------------------------------------------------------------------------------

SPEC = replace(
    mae.RECIPES["classifier/mae"],
    labels=8,
    unlabelled=16,
    schedule=mae.TwoPhases(steps=4, batch=4, lr=1e-2, warmup=1, share=0.5),
    model_args=dict(img_size=64, patch_size=16, embed_dim=8, depth=1, num_heads=2, decoder_dim=8, head_depth=1),
)


@pytest.fixture
def scenes_of_noise(monkeypatch):
    """No scene is rendered here."""
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (16, 3, 64, 64), generator=g).byte(), torch.arange(16) % 10
    monkeypatch.setattr(mae, "training_set", lambda n, split: (images[:n], labels[:n]))


def test_the_first_phase_trains_encoder_and_decoder_the_second_the_head(scenes_of_noise, tmp_path):
    network, loss_of = SPEC.build(), mae.make_loss(SPEC)
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    halves = []
    for stop in (2, 4):

        def until(model, generator, step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return loss_of(model, generator, step)

        if stop == 2:
            with pytest.raises(KeyboardInterrupt):
                training.train(network, until, SPEC.schedule, tmp_path)
        else:
            training.train(network, until, SPEC.schedule, tmp_path)
        halves.append({n: p.detach().clone() for n, p in network.named_parameters()})
    pretrained, probed = halves
    for name in start:
        first, second = not name.startswith("head."), name.startswith("head.")
        assert torch.equal(start[name], pretrained[name]) == (not first), name
        assert torch.equal(pretrained[name], probed[name]) == (not second), name


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(scenes_of_noise, tmp_path):
    assert_resumes_to_the_bit(SPEC, tmp_path, lambda: mae.make_loss(SPEC), at=3)


def test_the_schedule_rises_and_falls_twice():
    s = mae.TwoPhases(steps=100, batch=1, lr=1.0, second_lr=0.1, share=0.6, warmup=10)
    first, second = training.Schedule(60, 1, 1.0, 10), training.Schedule(40, 1, 0.1, 10)
    assert [s.lr_at(i) for i in range(100)] == [first.lr_at(i) for i in range(60)] + [
        second.lr_at(i) for i in range(40)
    ]
    assert replace(s, steps=10).first == 6


@pytest.mark.parametrize("minutes", [None, 0.01])
def test_training_leaves_a_candidate_that_the_zoo_loads(scenes_of_noise, tmp_path, monkeypatch, minutes):
    monkeypatch.setattr(recipes, "CANDIDATES_FOLDER", tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "classifier/mae", SPEC)
    monkeypatch.setattr(quality, "of_classifier", lambda classifier: {"clean": 10.0})
    monkeypatch.setattr(classifiers, "_clean_logits", lambda model: (torch.randn(50, 10), torch.arange(50) % 10))
    assert "classifier/mae" in recipes.names()
    folder = recipes.train("classifier/mae", minutes=minutes)
    assert {p.name for p in folder.iterdir()} == {
        "card.json",
        "checkpoint.safetensors",
        "config.json",
        "model.safetensors",
    }
    classifier = zoo.load("classifier/mae", folder=tmp_path)
    assert (classifier.image_size, classifier.classes) == (64, 10)
    out = configure(base.Models(classifier), S).adapt(torch.rand(2, 3, 64, 64), IDS[:2])
    assert torch.isfinite(out.logits).all()
    other = SPEC.build()
    assert set(other.state_dict()) == set(classifier.network.state_dict())
    assert not all(torch.equal(a, b) for a, b in zip(weights(other), weights(classifier.network), strict=True))


def test_the_shipped_size():
    recipe = mae.RECIPES["classifier/mae"]
    network = recipe.build()
    assert network.patches == 64
    assert sum(p.numel() for p in network.parameters()) < 1.2e6
    assert recipe.labels == classifiers.RECIPES["classifier/vit"].labels
    assert recipe.model_args["depth"] == classifiers.RECIPES["classifier/vit"].model_args["depth"]
