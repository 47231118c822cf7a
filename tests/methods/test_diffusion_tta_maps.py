"""Diffusion-TTA with maps: per-pixel classes and depth as the condition, and mixing of predictions per pixel."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_classifier, make_dit, same, weights
from tiny_maps import TASKS, K, map_unet, task

from gentta_utils.common.resize import resized
from gentta_utils.diffusion.feedback import condition_gradient, probabilities
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.diffusion.process import add_noise, diffusion_loss
from gentta_utils.methods import diffusion_tta
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_tta import Settings, configure, frequent
from gentta_utils.methods.feedback import told
from gentta_utils.models.copies import Copies

S = Settings(lr=0.2, updates=2, pairs=4, window=(200, 700), images_at_once=2, micro_batch=8)
IDS = torch.arange(3) + 40


def models(kind: str) -> Models:
    return Models(task(kind), map_unet(1 if TASKS[kind] == "depth" else K))


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- the gradient ----------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_pixel_vanishes_where_it_is_one_hot():
    denoiser, (t, eps) = map_unet(), draw_pairs(IDS, 3, (3, 16, 16))
    z = torch.randn(3, K, 8, 8)
    z[:, 2, :4] = 200  # the upper half is certain
    z.requires_grad_()
    p = z.softmax(1)
    G, loss = condition_gradient(denoiser, torch.randn(3, 3, 16, 16), p, t, eps)
    assert G.shape == p.shape
    assert loss.shape == (3,)
    assert G[:, :, :4].abs().max() > 0
    (p * G).sum().backward()
    assert z.grad[:, :, :4].abs().max() == 0
    assert z.grad[:, :, 4:].abs().max() > 0


@pytest.mark.parametrize("kind", TASKS)
def test_the_fast_route_equals_the_plain_loop(kind, images):
    """One update: G gathered over all pairs, then one backward through copies, is autograd through everything."""
    both, one = models(kind), replace(S, updates=1, optimizer="sgd", momentum=0.0)
    found = configure(both, one).adapt(images, IDS)
    network, denoiser = both.classifier, both.denoiser
    t, eps = draw_pairs(IDS, S.pairs, denoiser.shape, S.window, S.timesteps, S.noise, S.seed, "diffusion_tta", 0)
    for i in range(3):
        copies, x0 = Copies(network, "all", None), denoiser.encode(images[i : i + 1]).expand(S.pairs, -1, -1, -1)
        p = told(network, copies(images[i : i + 1]), S.temperature).expand(S.pairs, -1, -1, -1)
        loss = diffusion_loss(denoiser, x0, t[i], eps[i], p, denoiser.alphas_cumprod).mean()
        torch.testing.assert_close(loss.detach(), found.loss[0, i], rtol=1e-4, atol=1e-6)
        loss.backward()
        with torch.no_grad():
            for v in copies.tensors():
                v -= S.lr * (v.grad if v.grad is not None else 0)
            torch.testing.assert_close(copies(images[i : i + 1])[0], found.logits[i], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_the_gradient_reaches_the_network_through_the_condition_alone(kind, images):
    """A denoiser whose channels of the map are dead changes nothing."""
    both = models(kind)
    with torch.no_grad():
        both.denoiser.network.conv_in.weight[:, 12:] = 0
    out = configure(both, S).adapt(images, IDS)
    assert torch.equal(out.logits, out.before)
    assert (out.loss > 0).all()


@pytest.mark.parametrize("kind", TASKS)
def test_episodes_do_not_depend_on_order_or_company_and_the_source_stays(kind, images):
    both = models(kind)
    kept = weights(both.classifier) + weights(both.denoiser)
    method = configure(both, S)
    whole = method.adapt(images, IDS)
    assert whole.logits.shape == (3, *both.classifier.answer)
    assert (whole.logits - whole.before).flatten(1).abs().amax(1).min() > 0
    torch.testing.assert_close(whole.before, both.classifier(images).detach(), rtol=1e-4, atol=1e-5)
    assert whole.nfe == {"classifier fwd": 3, "classifier fwd+bwd": 6, "denoiser fwd+bwd": 3 * 2 * 4}
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(method.adapt(images[order], IDS[order]).logits, whole.logits[order])
    method.reset()
    torch.testing.assert_close(method.adapt(images[1:2], IDS[1:2]).logits, whole.logits[1:2])
    assert same(kept, weights(both.classifier) + weights(both.denoiser))


def test_the_loss_falls_of_a_free_map(images):
    """Below what it is on the same pairs where the map hardly moves: the right direction of the step."""
    both, s = models("pyramid"), replace(S, updates=6, pairs=8, param_set="logits")
    loss, still = (configure(both, replace(s, lr=lr)).adapt(images, IDS).loss for lr in (300.0, 1e-9))
    torch.testing.assert_close(loss[0], still[0])
    assert (loss[-1] < still[-1]).all()


# --- predictions mixed per pixel -------------------------------------------------------------------------------------


def by_hand(denoiser, x0, P, t, eps, of_class):
    """mean over pairs of |sum_k P_k(u) eps_k(u) - eps(u)|^2, written out."""
    total = 0
    for j in range(t.shape[1]):
        x_t = add_noise(x0, t[:, j], eps[:, j], denoiser.alphas_cumprod)
        mixed = sum(
            resized(P, x_t.shape[-1])[:, k, None] * denoiser(x_t, t[:, j], of_class(k, len(x0))).detach()
            for k in range(P.shape[1])
        )
        total = total + (mixed - eps[:, j]).square().flatten(1).mean(1) / t.shape[1]
    return total


@pytest.mark.parametrize("which", ["map", "class"])
@pytest.mark.parametrize("side", [4, 8, 32])
def test_predictions_are_mixed_at_each_pixel(which, side):
    if which == "map":
        denoiser = map_unet()
        of_class = lambda k, n: F.one_hot(torch.full((n, 8, 8), k), K).movedim(-1, 1).float()  # noqa: E731
    else:
        denoiser = make_dit(K).requires_grad_(False)
        of_class = lambda k, n: F.one_hot(torch.full((n,), k), K).float()  # noqa: E731
    x0, (t, eps) = torch.randn(2, *denoiser.shape), draw_pairs(IDS[:2], 3, denoiser.shape)
    P = torch.randn(2, K, side, side).softmax(1).requires_grad_()
    loss = by_hand(denoiser, x0, P, t, eps, of_class)
    loss.sum().backward()
    G, found = condition_gradient(denoiser, x0, P, t, eps, "output", 16)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(G, P.grad, rtol=1e-3, atol=1e-7)


def test_a_map_that_is_the_same_everywhere_mixes_as_the_probabilities_of_an_image():
    denoiser = make_dit(K).requires_grad_(False)
    x0, (t, eps) = torch.randn(2, *denoiser.shape), draw_pairs(IDS[:2], 3, denoiser.shape)
    p = torch.randn(2, K).softmax(1)
    G, loss = condition_gradient(denoiser, x0, p, t, eps, "output")
    G_map, of_map = condition_gradient(denoiser, x0, p[..., None, None].expand(-1, -1, 4, 4), t, eps, "output")
    torch.testing.assert_close(of_map, loss)
    centred = [v - (p * v).sum(1, keepdim=True) for v in (G_map.sum((2, 3)), G)]  # what reaches the logits
    torch.testing.assert_close(*centred, rtol=1e-3, atol=1e-6)


def test_output_mixing_uses_the_same_pairs_and_forward_evaluations_alone(images):
    both, s = models("pyramid"), replace(S, mixing="output", updates=1)
    out = configure(both, s).adapt(images, IDS)
    assert out.nfe["denoiser fwd"] == 3 * 4 * K
    assert "denoiser fwd+bwd" not in out.nfe
    few = configure(both, replace(s, map_classes=2)).adapt(images, IDS)
    assert few.nfe["denoiser fwd"] == 3 * 4 * 2
    P = probabilities(both.classifier(images).detach(), S.temperature)
    how = (S.pairs, both.denoiser.shape, S.window, S.timesteps, S.noise, S.seed, "diffusion_tta", 0)
    _, loss = condition_gradient(both.denoiser, both.denoiser.encode(images), P, *draw_pairs(IDS, *how), "output")
    torch.testing.assert_close(out.loss[0], loss, rtol=1e-4, atol=1e-6)
    assert (out.logits - out.before).abs().max() > 0


def test_the_most_frequent_classes_are_chosen():
    z = torch.zeros(1, 6, 4, 4)
    z[0, 0] = 0.5
    z[0, 4] = 3.0
    z[0, 1, :3] = 5.0
    z[0, 2, 0] = 4.0  # rows: 1 and 2, 1 and 4 twice, 4 and 0
    assert frequent(z, 2, best=2).tolist() == [[1, 4]]
    assert frequent(z, 9, best=2).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_adapters_of_a_diffusion_model_that_sees_maps(images):
    both = models("pyramid")
    out = configure(both, replace(S, adapt_denoiser=True, denoiser_set="lora")).adapt(images[:1], IDS[:1])
    frozen = configure(both, S).adapt(images[:1], IDS[:1])
    torch.testing.assert_close(out.loss[0], frozen.loss[0])
    assert not torch.equal(out.loss[1], frozen.loss[1])


# --- misfits ---------------------------------------------------------------------------------------------------------


def test_misfits_are_refused():
    depth, classes = models("densedepth"), models("pyramid")
    for both, change, message in (
        (depth, dict(mixing="output"), "depth has no classes to mix"),
        (Models(depth.classifier, make_dit(1)), {}, "conditioned on 'class'"),
        (Models(classes.classifier, make_dit(K)), {}, "answers with 'classes'"),
        (Models(make_classifier(K, 32), classes.denoiser), {}, "answers with 'class' "),
        (classes, dict(map_classes=2), "map_classes is for maps"),
        (classes, dict(map_classes=2, mixing="output", top_k=2), "map_classes is for maps"),
        (Models(classes.classifier, map_unet(1)), {}, "same classes"),
    ):
        with pytest.raises(ValueError, match=message):
            configure(both, replace(S, **change))
    with pytest.raises(ValueError, match="a margin at each pixel"):
        diffusion_tta.learning_rate(classes, torch.rand(1, 3, 32, 32), IDS[:1], S)


def test_a_step_that_is_too_large_is_said(images):
    with pytest.raises((FloatingPointError, ValueError), match=r"diverged|sum to 1|finite"):
        configure(models("pyramid"), replace(S, lr=1e30, updates=4)).adapt(images, IDS)
