"""TPT: the confident views of one image, a step on the prompt, the image itself is predicted."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused, same, weights

from gentta_utils.diffusion.entropy import entropy, marginal_entropy
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, difftpt, many_views, mta, tpt, zero
from gentta_utils.methods.base import Models
from gentta_utils.methods.many_views import ViewSettings, kept, most_confident, nearest, select
from gentta_utils.methods.tpt import Settings, configure, dispersion
from gentta_utils.models.clip import image_features, text_head
from gentta_utils.models.prompts import make_prompt
from gentta_utils.streams.stream import Stream
from gentta_utils.world.views import image_views
from gentta_utils.world.words import label_set

S = Settings(views=8, rho_h=0.4, lr=1.0, updates=2, images_at_once=2)
IDS = torch.arange(5) + 40


# --- which views count -----------------------------------------------------------------------------------------------


def test_published_counts():
    assert (kept(0.1, 64), kept(0.8, 127), kept(0.3, 102)) == (6, 101, 30)
    assert kept(0.1, 8) == 1  # public code has none, and a mean of none is NaN
    logits = torch.randn(3, 8, 5)
    assert most_confident(logits, 0.1).shape == (3, 1)


def test_eight_views_at_a_tenth_still_adapt(clip_models, images64):
    out = configure(clip_models, replace(S, rho_h=0.1)).adapt(images64[:2], IDS[:2])
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.loss).all()
    assert (out.loss[1] < out.loss[0]).all()


def test_the_lowest_entropies_are_kept():
    logits = torch.randn(4, 20, 6) * torch.rand(4, 20, 1) * 5
    chosen = select(torch.empty(4, 20, 3), logits, ViewSettings(views=20, rho_h=0.3))
    h = entropy(logits)
    assert chosen.shape == (4, 6)
    for b in range(4):
        inside = h[b, chosen[b]]
        outside = h[b][[v for v in range(20) if v not in chosen[b]]]
        assert inside.max() < outside.min()
    alike = torch.zeros(1, 20, 6)
    assert most_confident(alike, 0.2).tolist() == [[0, 1, 2, 3]]  # of equal ones the first


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [S, replace(S, updates=1), replace(S, dispersion=2.0)], ids=["two", "one", "c-tpt"])
def test_it_equals_the_plain_loop(clip_models, images64, s):
    """One image at a time, -sum p log p of the mean p, the views of the first forward pass at every step."""
    out, (classifier, prompt) = (
        configure(clip_models, s).adapt(images64, IDS),
        (clip_models.classifier, clip_models.prompt),
    )
    scale = prompt.clip.network.logit_scale.exp()
    for b in range(5):
        with torch.no_grad():
            f = image_features(classifier, image_views(images64[b], 40 + b, 8))  # (8, D)
        context = prompt.init.clone().requires_grad_()
        optimizer = torch.optim.AdamW([context], lr=prompt.std, weight_decay=0.01)
        for step in range(s.updates):
            text = prompt(context[None])[0]  # (K, D)
            z = scale * f @ text.T
            if step == 0:
                chosen = entropy(z.detach()).argsort()[:3]
            p = z[chosen].softmax(1).mean(0)
            loss = -(p * p.log()).sum()
            if s.dispersion:
                loss = loss - s.dispersion * (text - text.mean(0)).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(out.loss[step, b].item(), rel=1e-3, abs=1e-4)
        z = scale * f[0] @ prompt(context[None])[0].T
        torch.testing.assert_close(z.detach(), out.logits[b], rtol=1e-3, atol=2e-3)


def test_the_loss_is_memos(clip_models, images64):
    method = configure(clip_models, replace(S, updates=1))
    f, z = method.encode(images64, IDS)
    chosen = many_views.chosen_of(z, select(f, z, S))
    torch.testing.assert_close(method.adapt(images64, IDS).loss[0], marginal_entropy(chosen), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("s", [replace(S, updates=0), replace(S, lr=0.0)], ids=["no step", "no rate"])
def test_without_a_step_it_is_zero_shot(clip_models, images64, s):
    out = configure(clip_models, s).adapt(images64, IDS)
    torch.testing.assert_close(out.logits, clip_models.classifier(images64), rtol=1e-4, atol=1e-4)
    assert out.loss.shape == (s.updates, 5)


def test_the_towers_and_the_prompt_stay_as_they_were(clip_models, images64):
    prompt = clip_models.prompt
    before = weights(prompt.clip), weights(clip_models.classifier), [prompt.init.clone(), prompt.embedded.clone()]
    method = configure(clip_models, S)
    out = method.adapt(images64[:2], IDS[:2])
    assert not torch.allclose(out.logits, out.before, atol=1e-2)
    method.reset()
    after = weights(prompt.clip), weights(clip_models.classifier), [prompt.init, prompt.embedded]
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    assert not prompt.init.requires_grad


@pytest.mark.parametrize("module", [tpt, difftpt, zero, mta], ids=lambda m: m.__name__.rpartition(".")[2])
def test_results_are_bit_equal_whatever_order_and_company(clip_models, images64, module):
    few = {"views": 8} | ({"generated": 0, "images_at_once": 2} if module is difftpt else {})
    method = module.configure(clip_models, S if module is tpt else module.Settings(**few))
    whole, order = method.adapt(images64, IDS).logits, torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(whole[order], method.adapt(images64[order], IDS[order]).logits)
    alone = [method.adapt(images64[i : i + 1], IDS[i : i + 1]).logits for i in range(5)]
    assert torch.equal(whole, torch.cat(alone))
    assert not torch.equal(method.encode(images64, IDS)[1], method.encode(images64, IDS + 1)[1])  # views are the id's


def test_class_names_in_another_order_are_the_same_classes(clip_models, images64):
    order = (4, 0, 9, 2, 7, 1, 3, 8, 6, 5)
    clip, names = clip_models.prompt.clip, [label_set("category").classes[k] for k in order]
    other = Models(clip.zero_shot(names, ["a photo of a {}."]), prompt=make_prompt(clip, names))
    one, two = (configure(m, replace(S, updates=1)).adapt(images64, IDS).logits for m in (clip_models, other))
    torch.testing.assert_close(one[:, list(order)], two, rtol=1e-3, atol=5e-3)


def test_costs_and_before(clip_models, images64):
    out = configure(clip_models, replace(S, updates=3)).adapt(images64, IDS)
    assert out.nfe == {"classifier fwd": 5 * 8, "text fwd+bwd": 5 * 3 * 10, "text fwd": 5 * 10}
    assert out.loss.shape == (3, 5)
    torch.testing.assert_close(out.before, clip_models.classifier(images64))


# --- C-TPT -----------------------------------------------------------------------------------------------------------


def test_dispersion_is_the_mean_distance_to_the_mean_and_has_its_gradient():
    text = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    by_hand = [sum((t - b.mean(0)).norm() for t in b) / 5 for b in text]
    torch.testing.assert_close(dispersion(text), torch.stack(by_hand))
    assert torch.autograd.gradcheck(dispersion, text)
    assert dispersion(torch.ones(1, 4, 3)) == 0


def test_without_its_term_it_is_tpt_and_with_it_features_lie_apart(clip_models, images64):
    plain, c_tpt = (configure(clip_models, replace(S, lr=0.1, dispersion=x)) for x in (0.0, 50.0))
    features, _ = plain.encode(images64, IDS)
    far = [dispersion(clip_models.prompt(m.tune(features, IDS)[0])) for m in (plain, c_tpt)]
    assert (far[1] > far[0]).all()
    assert (far[1] > dispersion(clip_models.prompt(clip_models.prompt.init[None]))).all()


# --- protocol, errors ------------------------------------------------------------------------------------------------


def test_the_protocol_has_to_fit(clip_models, images64):
    stream = Stream(images64, torch.zeros(5, dtype=torch.long), IDS, {"shift": "clean"})
    assert evaluate.run(configure(clip_models, S), stream, batch=2).about["protocol"]["predict"] == "after"
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(clip_models, S), stream, reset="per_shift")


def test_divergence_is_named(clip_models, images64):
    with pytest.raises(FloatingPointError, match=r"to image 40 diverged at update 1: lower the learning rate"):
        configure(clip_models, replace(S, lr=1e38, updates=3)).adapt(images64, IDS)


def test_models_that_do_not_fit_are_refused_in_one_sentence(clip_models, tiny):
    for models, words in (
        (tiny, "zero_shot"),
        (Models(clip_models.classifier), "give `Models` one"),
        (replace(clip_models, prompt=clip_models.prompt.restrict((0, 1))), "give `Models` one"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            configure(models, S)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="hand `configure` what makes these views"):
        configure(clip_models, replace(S, generated=3))


@pytest.mark.parametrize(
    "change",
    [
        {"views": 0}, {"kind": "none"}, {"lowest": 0.0}, {"generated": -1}, {"filter": "logits"}, {"rho_c": 1.5},
        {"rho_h": -0.1}, {"lr": -1.0}, {"updates": -1}, {"dispersion": -1.0}, {"images_at_once": 0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["tpt"] is tpt
    assert Settings(**tpt.PUBLISHED) == Settings()
    assert Settings(**tpt.PUBLISHED_FINE_GRAINED).kind == "augmix"
    assert Settings(**tpt.PUBLISHED_C_TPT) == Settings(dispersion=50.0)


def test_nearest_keeps_view_0_first_and_a_copy_of_it():
    points = torch.randn(2, 6, 4)
    points[0, 3] = 2 * points[0, 0]  # cosine 1
    found = nearest(points, 0.4)
    assert found.shape == (2, 3)
    assert found[:, 0].tolist() == [0, 0]
    assert found[0, 1] == 3
    assert nearest(points[:, :1], 0.4).tolist() == [[0], [0]]  # there is no other


def test_the_head_is_the_text_feature_times_the_scale(clip_models):
    head = text_head(clip_models.classifier)
    torch.testing.assert_close(head.norm(dim=1), clip_models.prompt.clip.network.logit_scale.exp().expand(10))
