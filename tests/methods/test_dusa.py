"""DUSA: mixed noise predictions, LogitNorm, few classes, one noise level, predicted before the update."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused, make_classifier, make_dit, make_family, same, weights

from gentta_utils.diffusion.error_table import gram
from gentta_utils.diffusion.feedback import condition_gradient, probabilities
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.diffusion.process import add_noise, eps_error
from gentta_utils.evaluation import evaluate, statistics
from gentta_utils.methods import METHODS, diffusion_tta, dusa, source
from gentta_utils.methods.base import Models
from gentta_utils.methods.dusa import Settings, choose_classes, configure, logit_norm
from gentta_utils.models.copies import Copies
from gentta_utils.streams.stream import Stream

S = Settings(lr=1e-2)
EPISODIC = replace(S, online=False, updates=3, predict="after", optimizer="sgd", lr=0.5)
IDS = torch.arange(6) + 40


@pytest.fixture
def many():
    """Nine classes, so that some are left out."""
    return Models(make_classifier(9), make_dit(classes=9))


def drawn(denoiser, n=5, t=100, pairs=1):
    return draw_pairs(IDS[:n], pairs, denoiser.shape, (t, t + 1), "fixed", purpose="dusa")


# --- the loss --------------------------------------------------------------------------------------------------------


def test_with_the_true_posterior_the_mix_is_the_unconditional_prediction(mixture):
    x0, (_, eps) = mixture.means[[0, 1, 2, 3, 0]], drawn(mixture)
    for t in (20, 100, 700):
        at = torch.full((5,), t)
        x_t = add_noise(x0, at, eps[:, 0].double(), mixture.alphas_cumprod)
        p = mixture.posterior_t(x_t, at)
        each = torch.stack([mixture(x_t, at, F.one_hot(torch.full((5,), k), 4).double()) for k in range(4)], 1)
        mix = (p[..., None, None, None] * each).sum(1)
        torch.testing.assert_close(mix, mixture(x_t, at, None), rtol=1e-9, atol=1e-9)
        score = torch.autograd.functional.jacobian(lambda x, at=at: log_density(mixture, x, at).sum(), x_t)
        abar = mixture.alphas_cumprod[t]
        torch.testing.assert_close(mix, -(1 - abar).sqrt() * score, rtol=1e-5, atol=1e-6)


def log_density(mixture, x_t, t):
    """log p(x_t) of the mixture, but for a constant."""
    abar = mixture.alphas_cumprod[t].view(-1, 1)
    gap = x_t[:, None] - abar.sqrt()[..., None, None, None] * mixture.means
    return (-gap.square().flatten(2).sum(-1) / (2 * (abar * mixture.std**2 + 1 - abar))).logsumexp(1)


def test_the_loss_is_expected_error_less_disagreement(tiny):
    """|eps_hat - eps|^2 = sum_k p_k |eps_k - eps|^2 - sum_k p_k |eps_k - eps_hat|^2, exactly."""
    denoiser, x0, (t, eps) = tiny.denoiser, torch.randn(5, *tiny.denoiser.shape), drawn(tiny.denoiser)
    p = torch.randn(5, 4).softmax(1)
    _, loss = condition_gradient(denoiser, x0, p, t, eps, "output")
    x_t = add_noise(x0, t[:, 0], eps[:, 0], denoiser.alphas_cumprod)
    with torch.no_grad():
        each = torch.stack([denoiser(x_t, t[:, 0], torch.eye(4)[k].expand(5, 4)) for k in range(4)], 1)
    mix = (p[..., None, None, None] * each).sum(1)
    squared = lambda d: d.square().flatten(2).mean(2)  # noqa: E731
    expected, disagreement = ((p * squared(each - other[:, None])).sum(1) for other in (eps[:, 0], mix))
    torch.testing.assert_close(loss, expected - disagreement, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss, eps_error(mix, eps[:, 0]), rtol=1e-6, atol=1e-6)
    assert disagreement.min() > 1e-3


def test_gradient_of_the_logits_is_the_closed_form(tiny):
    """dL/dz_i = (2 / N) p_i <eps_hat - eps, eps_i - eps_hat>."""
    denoiser, x0, (t, eps) = tiny.denoiser, torch.randn(5, *tiny.denoiser.shape), drawn(tiny.denoiser)
    z = torch.randn(5, 4, requires_grad=True)
    G, _ = condition_gradient(denoiser, x0, z.softmax(1), t, eps, "output")
    (z.softmax(1) * G).sum().backward()
    x_t, p = add_noise(x0, t[:, 0], eps[:, 0], denoiser.alphas_cumprod), z.detach().softmax(1)
    with torch.no_grad():
        each = torch.stack([denoiser(x_t, t[:, 0], torch.eye(4)[k].expand(5, 4)) for k in range(4)], 1)
    mix = (p[..., None, None, None] * each).sum(1, keepdim=True)
    expected = 2 * p * ((mix - eps) * (each - mix)).flatten(2).mean(2)
    torch.testing.assert_close(z.grad, expected, rtol=1e-3, atol=1e-6)


def test_one_hot_is_the_diffusion_classifiers_and_diffusion_ttas_error(tiny):
    denoiser, x0, (t, eps) = tiny.denoiser, torch.randn(5, *tiny.denoiser.shape), drawn(tiny.denoiser)
    errors = gram(denoiser, x0, t[:, 0], eps[:, 0]).diagonal(dim1=1, dim2=2)
    for k in range(4):
        p = torch.eye(4)[k].expand(5, 4)
        _, ours = condition_gradient(denoiser, x0, p, t, eps, "output", classes=torch.full((5, 1), k))
        _, theirs = condition_gradient(denoiser, x0, p, t, eps, "embedding")
        torch.testing.assert_close(ours, errors[:, k], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- LogitNorm and classes -------------------------------------------------------------------------------------------


def test_logit_norm_is_the_worked_example():
    z = torch.tensor([14.0, 11.0, *[1.5, -1.5] * 499], dtype=torch.float64)[None]
    assert z.norm().item() == pytest.approx(50.62, abs=5e-3)
    assert logit_norm(z).topk(3).values[0].tolist() == pytest.approx([0.2766, 0.2173, 0.0296], abs=5e-5)
    six = torch.tensor([0, 1, 2, 4, 6, 8])
    dropped = torch.ones_like(z, dtype=torch.bool).index_fill(1, six, False)
    p = probabilities(logit_norm(z), 1.0, dropped)[0, six]
    assert p.tolist() == pytest.approx([0.1973, 0.1860, *[0.1542] * 4], abs=5e-5)
    raw = probabilities(z, 1.0, dropped)[0, six]
    assert raw.tolist() == pytest.approx([0.9526, 0.0474, *[3.5e-6] * 4], rel=2e-2)


@pytest.mark.parametrize("K, largest", [(10, 0.242), (200, 0.0135), (1000, 0.0027)])
def test_logit_norm_bounds_the_largest_probability(K, largest):
    one = torch.zeros(1, K, dtype=torch.float64).index_fill(1, torch.tensor([0]), 1e3)
    centred = one - one.mean()  # a shift that raises the largest p a little
    found = max(logit_norm(z).softmax(1).max().item() for z in (one, centred))
    assert found == pytest.approx(largest, rel=1e-2)
    assert logit_norm(torch.randn(20, K)).softmax(1).max() < found


def test_classes_are_the_best_and_seeded_draws_from_the_rest():
    z = torch.randn(6, 9)
    classes = choose_classes(z, IDS, 4, 2)
    assert classes.shape == (6, 6)
    assert all(len(set(row)) == 6 and row == sorted(row) for row in classes.tolist())
    best = z.topk(4).indices
    assert all(set(b) <= set(c) for b, c in zip(best.tolist(), classes.tolist(), strict=True))
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert torch.equal(choose_classes(z[order], IDS[order], 4, 2), classes[order])
    assert not torch.equal(choose_classes(z, IDS, 4, 2, seed=1), classes)
    assert not torch.equal(choose_classes(z, IDS, 4, 2, step=1), classes)


def test_extra_classes_are_drawn_by_their_probability_without_replacement():
    z = torch.tensor([9.0, 2.0, 1.0, 0.0, -3.0]).expand(4000, -1)
    classes = choose_classes(z, torch.arange(4000), 1, 2)
    rest = z[0, 1:].double().softmax(0)
    once = torch.stack([(classes == k).any(1).double().mean() for k in range(1, 5)])
    # p(k in two draws) = p_k + sum over j != k of p_j p_k / (1 - p_j)
    expected = rest + rest * ((rest / (1 - rest)).sum() - rest / (1 - rest))
    torch.testing.assert_close(once, expected, rtol=0, atol=0.03)


def test_sure_logits_still_give_classes():
    z = torch.tensor([[900.0, 0.0, -200.0, -500.0, -900.0, -900.0]])
    assert choose_classes(z, IDS[:1], 2, 3).shape == (1, 5)


@pytest.mark.parametrize("K", [1, 4, 6])
def test_few_classes_are_all_used(K):
    z = torch.randn(3, K)
    assert torch.equal(choose_classes(z, IDS[:3], min(4, K), 2), torch.arange(K).expand(3, -1))


def test_logit_norm_and_temperature_are_independent(many, images):
    loss = {}
    for norm in (True, False):
        for T in (1.0, 0.1):
            s = replace(S, logit_norm=norm, temperature=T)
            loss[norm, T] = configure(many, s).adapt(images, IDS[:5]).loss[0]
            z = many.classifier(images).detach()
            classes = choose_classes(z, IDS[:5], 4, 2)
            p = ((z / z.norm(dim=1, keepdim=True) if norm else z) / T).gather(1, classes).softmax(1)
            x0, (t, eps) = many.denoiser.encode(images), drawn(many.denoiser)
            g = gram(many.denoiser, x0, t[:, 0], eps[:, 0], classes)
            torch.testing.assert_close(loss[norm, T], torch.einsum("bi,bij,bj->b", p, g, p), rtol=1e-4, atol=1e-5)
    assert len({tuple(v.tolist()) for v in loss.values()}) == 4


def test_it_does_not_matter_how_classes_are_numbered(tiny, images):
    """Rows of the last layer and of the label table in another order: the logits come in that order."""
    for change in ({}, {"adapt_denoiser": True}, {"mixing": "embedding"}):
        s = replace(EPISODIC, **change)
        out = configure(tiny, s).adapt(images, IDS[:5])
        order = torch.tensor([2, 0, 3, 1])
        classifier, denoiser = make_classifier(), make_dit()
        classifier.load_state_dict(tiny.classifier.state_dict())
        denoiser.load_state_dict(tiny.denoiser.state_dict())
        table = denoiser.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        with torch.no_grad():
            classifier.network.fc.weight.copy_(tiny.classifier.network.fc.weight[order])
            classifier.network.fc.bias.copy_(tiny.classifier.network.fc.bias[order])
            table[:4] = table[order]
        other = configure(Models(classifier, denoiser), s).adapt(images, IDS[:5])
        torch.testing.assert_close(other.loss, out.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.logits, out.logits[:, order], rtol=1e-3, atol=1e-4)


# --- the method ------------------------------------------------------------------------------------------------------


def plain_loss(module, denoiser, image, image_id, s, step=0):
    """Loss of one image (1, 3, S, S) by the formula, with the graph to both networks; and its logits (1, K)."""
    z = module((image - 0.5) / 0.5)
    classes = choose_classes(z, image_id, s.top, s.extra, s.seed, step)[0]
    p = ((z[0] / z[0].norm() if s.logit_norm else z[0])[classes] / s.temperature).softmax(0)
    t, eps = draw_pairs(image_id, 1, denoiser.shape, (s.t, s.t + 1), "fixed", seed=s.seed, purpose="dusa", step=step)
    x_t = add_noise(denoiser.encode(image), t[:, 0], eps[:, 0], denoiser.alphas_cumprod)
    one_hot = torch.eye(denoiser.classes)
    eps_hat = sum(q * denoiser(x_t, t[:, 0], one_hot[k][None]) for q, k in zip(p, classes, strict=True))
    return (eps_hat - eps[:, 0]).square().mean(), z


@pytest.mark.parametrize(
    "s",
    [
        S, replace(S, optimizer="sgd", lr=1.0, updates=2, predict="after"), replace(S, accumulate=2),
        replace(S, adapt_denoiser=True, denoiser_lr=1e-3), replace(S, adapt_denoiser=True, accumulate=2),
    ],
    ids=["published", "sgd", "accumulated", "with the denoiser", "both accumulated"],
)  # fmt: skip
def test_a_stream_equals_the_plain_loop(many, images, s):
    """torch.optim on the modules themselves; five batches of one or two images."""
    method = configure(many, s)
    batches = [torch.tensor(rows) for rows in ([0, 1], [2, 3], [4], [1, 2], [3, 0])]
    outs = [method.adapt(images[rows], IDS[rows]) for rows in batches]
    module, denoiser = many.classifier.network.requires_grad_(True), many.denoiser
    phi = [v for n, v in denoiser.named_parameters() if s.adapt_denoiser and "embedding_table" not in n]
    for value in phi:
        value.requires_grad_(True)
    groups = [{"params": list(module.parameters())}] + ([{"params": phi, "lr": s.denoiser_lr or s.lr}] if phi else [])
    sgd = s.optimizer == "sgd"
    optimizer = torch.optim.SGD(groups, s.lr, 0.9) if sgd else torch.optim.Adam(groups, s.lr)
    for batch, (rows, out) in enumerate(zip(batches, outs, strict=True)):
        if s.predict == "before":
            torch.testing.assert_close(out.logits, module((images[rows] - 0.5) / 0.5), rtol=1e-3, atol=1e-3)
        for step in range(s.updates):
            for j, b in enumerate(rows.tolist()):
                loss, _ = plain_loss(module, denoiser, images[b : b + 1], IDS[b : b + 1], s, step)
                assert loss.item() == pytest.approx(out.loss[step, j].item(), rel=1e-3)
                (loss / len(rows) / s.accumulate).backward()
            if (batch + 1) % s.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if s.predict == "after":
            torch.testing.assert_close(out.logits, module((images[rows] - 0.5) / 0.5), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(outs[-1].logits, outs[-1].before, atol=1e-3)


def test_predictions_are_those_before_the_update(tiny, images):
    method = configure(tiny, S)
    first = method.adapt(images, IDS[:5])
    frozen = source.configure(tiny).adapt(images, IDS[:5]).logits
    torch.testing.assert_close(first.logits, frozen, rtol=1e-5, atol=1e-6)
    second = method.adapt(images, IDS[:5])
    assert not torch.allclose(second.logits, frozen, atol=1e-3)
    assert torch.equal(second.before, frozen)
    after = configure(tiny, replace(S, predict="after")).adapt(images, IDS[:5])
    torch.testing.assert_close(after.logits, second.logits, rtol=1e-4, atol=1e-5)


def test_nothing_moves_until_enough_batches_are_accumulated(tiny, images):
    method = configure(tiny, replace(S, accumulate=3))
    logits = [method.adapt(images[:2], IDS[:2]).logits for _ in range(4)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert not torch.allclose(logits[0], logits[3], atol=1e-3)
    method.reset()  # drops what was accumulated too
    assert all(torch.equal(method.adapt(images[:2], IDS[:2]).logits, z) for z in logits)


@pytest.mark.parametrize("change", [{}, {"adapt_denoiser": True}])
def test_reset_restores_both_networks_and_the_source_survives(many, images, change):
    kept = weights(many.classifier) + weights(many.denoiser)
    method = configure(many, replace(S, **change))
    run = lambda: torch.cat([method.adapt(images[r], IDS[r]).logits for r in torch.arange(4).split(2)])  # noqa: E731
    first, carried = run(), run()
    phi = method.state[1]
    assert (phi is None) == (not change)
    if phi:
        sources = dict(many.denoiser.named_parameters())
        assert not any("embedding_table" in n for n in phi)
        assert sum(not torch.equal(v, sources[n]) for n, v in phi.items()) > 0.8 * len(phi)
    method.reset()
    assert method.state is None
    assert torch.equal(first, run())
    assert not torch.equal(first, carried)
    assert same(kept, weights(many.classifier) + weights(many.denoiser))
    assert all(p.grad is None for m in (many.classifier, many.denoiser) for p in m.parameters())


@pytest.mark.parametrize("change", [{}, {"adapt_denoiser": True}, {"view": "low", "mixing": "embedding"}])
def test_episodes_do_not_depend_on_order_or_company_and_equal_the_stream_of_one(many, images, change):
    s = replace(EPISODIC, **change)
    method = configure(many, replace(s, images_at_once=3))
    whole = method.adapt(images, IDS[:5])
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        whole.logits[order], method.adapt(images[order], IDS[order]).logits, rtol=1e-4, atol=1e-5
    )
    online = configure(many, replace(s, online=True))
    for b in range(5):
        online.reset()
        one = online.adapt(images[b : b + 1], IDS[b : b + 1])
        torch.testing.assert_close(one.logits[0], whole.logits[b], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.loss[:, 0], whole.loss[:, b], rtol=1e-3, atol=1e-5)
    assert method.state is None
    frozen = source.configure(many, source.Settings(s.view)).adapt(images, IDS[:5]).logits
    torch.testing.assert_close(whole.before, frozen, rtol=1e-5, atol=1e-6)


def test_it_is_diffusion_tta_with_the_same_mixing_at_one_level(tiny, images, monkeypatch):
    """At the settings that both have, all classes and the same draws, the two agree."""
    monkeypatch.setattr(dusa, "draw_pairs", lambda *a: draw_pairs(*a[:7], "diffusion_tta", a[8]))  # the same pairs
    for mixing in ("output", "embedding"):
        both = dict(lr=0.5, updates=3, optimizer="sgd", temperature=2.0, mixing=mixing, pairs=4)
        ours = Settings(**both, logit_norm=False, online=False, predict="after")
        theirs = diffusion_tta.Settings(**both, timesteps="fixed", window=(100, 101))
        a, b = (m.configure(tiny, s).adapt(images, IDS[:5]) for m, s in ((dusa, ours), (diffusion_tta, theirs)))
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("param_set", ["all", "norm", "head"])
def test_parameter_sets(images32, family, param_set):
    models = Models(make_family(family).classifier, make_dit(image_size=32))
    out = configure(models, replace(EPISODIC, param_set=param_set, lr=5.0)).adapt(images32[:2], IDS[:2])
    assert (out.logits - out.before).abs().amax(1).min() > 1e-4
    names = set(Copies(models.classifier, param_set, None).values)
    online = configure(models, replace(S, param_set=param_set))
    online.adapt(images32[:2], IDS[:2])
    assert set(online.state[0].values) == names


def test_costs(many, images):
    """Frozen denoiser: forward evaluations of six classes alone."""
    assert configure(many, S).adapt(images, IDS[:5]).nfe == {"classifier fwd+bwd": 5, "denoiser fwd": 5 * 6}
    out = configure(many, replace(S, adapt_denoiser=True, updates=2, predict="after")).adapt(images, IDS[:5])
    assert out.nfe == {"classifier fwd+bwd": 10, "classifier fwd": 5, "denoiser fwd+bwd": 2 * 5 * 6}
    assert out.loss.shape == (2, 5)
    embedding = configure(many, replace(S, mixing="embedding", pairs=3)).adapt(images, IDS[:5])
    assert embedding.nfe == {"classifier fwd+bwd": 5, "denoiser fwd+bwd": 5 * 3}


# --- protocol, errors ------------------------------------------------------------------------------------------------


def test_the_protocol_line_tells_when_was_predicted(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    records = evaluate.run(configure(tiny, S), stream, reset="never", batch=2)
    assert "predict=before" in statistics.protocol_line([records])
    assert "reset=never" in statistics.protocol_line([records])
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(tiny, S), stream, reset="per_image")
    records = evaluate.run(configure(tiny, EPISODIC), stream, reset="per_image")
    assert "predict=after" in statistics.protocol_line([records])


@pytest.mark.parametrize("s", [replace(S, optimizer="sgd", updates=3, predict="after"), EPISODIC])
def test_divergence_is_named(tiny, images, s):
    with pytest.raises(FloatingPointError, match=r"to image 4[0-4] diverged at update 1: lower the learning rate"):
        configure(tiny, replace(s, lr=1e38)).adapt(images, IDS[:5])


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"t": -1}, {"pairs": 0}, {"updates": 0}, {"accumulate": 0}, {"top": 0}, {"extra": -1},
        {"temperature": 0.0}, {"mixing": "both"}, {"view": "half"}, {"optimizer": "lion"}, {"momentum": 2.0},
        {"param_set": "most"}, {"predict": "during"}, {"micro_batch": 0}, {"images_at_once": 0},
        {"accumulate": 8, "updates": 2}, {"accumulate": 8, "online": False},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_settings_that_do_not_fit_the_models_are_refused(tiny):
    with pytest.raises(ValueError, match="needs a denoiser"):
        configure(Models(tiny.classifier), S)
    with pytest.raises(ValueError, match="1000 timesteps"):
        configure(tiny, replace(S, t=1000))
    with pytest.raises(ValueError, match="top=5: there are 4 classes"):
        configure(tiny, replace(S, top=5))
    tiny.denoiser.precision = "fp16"
    with pytest.raises(ValueError, match="precision='fp32'"):
        configure(tiny, replace(S, adapt_denoiser=True))


def test_the_preset_is_settings_and_the_method_has_its_name():
    assert METHODS["dusa"] is dusa
    s = Settings(**dusa.PUBLISHED)
    assert (s.t, s.top, s.extra, s.logit_norm, s.temperature, s.accumulate) == (100, 4, 2, True, 1.0, 8)
    assert (s.lr, s.optimizer, s.adapt_denoiser, s.adapt_embeddings, s.predict) == (
        1e-5,
        "adamw",
        True,
        False,
        "before",
    )
    assert replace(s, adapt_denoiser=False, accumulate=1) == Settings()
