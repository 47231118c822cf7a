"""BN-adapt, TENT, DDA and the placebos of Diffusion-TTA on networks that answer with maps."""

from dataclasses import replace

import pytest
import torch
from conftest import same, weights
from tiny_maps import TASKS, K, map_unet, small, task

from gentta_utils.diffusion.entropy import entropy_of
from gentta_utils.diffusion.process import alphas_cumprod_of, linear_betas
from gentta_utils.methods import bn_adapt, dda, diffusion_tta, tent
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_tta import random_direction
from gentta_utils.models.unet import PixelUNet

IDS = torch.arange(3) + 40
TTA = diffusion_tta.Settings(lr=0.2, updates=2, pairs=4, window=(200, 700), micro_batch=8)
OTHERS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def models(kind: str) -> Models:
    return Models(task(kind), map_unet(1 if TASKS[kind] == "depth" else K))


@pytest.mark.parametrize("kind", ["pyramid", "segformer", "densedepth"])
def test_bn_adapt_normalises_each_image_by_itself(kind, images):
    method = lambda alpha: bn_adapt.configure(Models(task(kind)), bn_adapt.Settings(alpha, statistics="image"))  # noqa: E731
    out = method(0.5).adapt(images, IDS)
    assert (out.logits - out.before).flatten(1).abs().amax(1).min() > 0
    torch.testing.assert_close(method(0.5).adapt(images[1:2], IDS[1:2]).logits, out.logits[1:2])
    still = method(0.0).adapt(images, IDS)
    torch.testing.assert_close(still.logits, still.before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["pyramid", "segformer"])
def test_tent_lowers_the_mean_entropy_over_pixels(kind, images):
    network = task(kind)
    kept = weights(network)
    s = tent.Settings(lr=1e-2, updates=4, predict="after", online=False)
    out = tent.configure(Models(network), s).adapt(images, IDS)
    assert out.loss.shape == (4, 3)
    assert (out.loss[-1] < out.loss[0]).all()
    assert (entropy_of(out.logits) < out.loss[0]).all()
    assert same(kept, weights(network))
    with pytest.raises(ValueError, match="no entropy"):
        tent.configure(Models(task("densedepth")))


def test_entropy_of_a_map_is_the_mean_over_pixels():
    z = torch.randn(2, K, 3, 4)
    p = z.softmax(1)
    torch.testing.assert_close(entropy_of(z), -(p * p.log()).sum(1).mean((1, 2)))
    torch.testing.assert_close(entropy_of(z[:, :, 0, 0]), -(p * p.log()).sum(1)[:, 0, 0])


@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_dda_reads_maps_of_both_images(kind, images):
    denoiser = PixelUNet(small(0, 16, 3), alphas_cumprod_of(linear_betas()), 32)
    both, ready = Models(task(kind), denoiser), {int(i): x for i, x in zip(IDS, images.flip(-1), strict=True)}
    network = both.classifier
    first, second = network(images).detach(), network(images.flip(-1)).detach()
    for ensemble in ("sum", "purified"):
        s = dda.Settings(start=300, steps=2, ensemble=ensemble)
        out = dda.configure(both, s, ready).adapt(images, IDS)
        if kind == "densedepth":
            expected = second if ensemble == "purified" else (first + second) / 2
            torch.testing.assert_close(out.logits, expected, rtol=1e-3, atol=1e-3)
        else:
            p = second.softmax(1) if ensemble == "purified" else (first.softmax(1) + second.softmax(1)) / 2
            torch.testing.assert_close(out.logits.exp(), p, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(out.before, first, rtol=1e-3, atol=1e-3)
    if kind == "densedepth":
        with pytest.raises(ValueError, match="depth has no confidence"):
            dda.configure(both, replace(s, ensemble="entropy"))


# --- placebos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_another_image_in_the_loss_is_chosen_by_the_id(kind, images):
    both, s = models(kind), replace(TTA, feedback_from="another")
    out = diffusion_tta.configure(both, s, OTHERS).adapt(images, IDS)
    usual = diffusion_tta.configure(both, TTA).adapt(images, IDS)
    torch.testing.assert_close(out.before, usual.before)
    assert (out.loss[0] - usual.loss[0]).abs().min() > 1e-5
    alone = diffusion_tta.configure(both, s, OTHERS[1:]).adapt(images[1:2], IDS[1:2])  # id 41: number 1 of two
    torch.testing.assert_close(alone.logits, out.logits[1:2])
    itself = diffusion_tta.configure(both, s, images[:1]).adapt(images[:1], IDS[:1])
    torch.testing.assert_close(itself.logits, usual.logits[:1])  # its own image is no placebo


@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_a_random_direction_moves_as_far_and_elsewhere(kind, images):
    both = models(kind)
    s = replace(TTA, param_set="logits", updates=1, momentum=0.0, lr=1.0)
    out = diffusion_tta.configure(both, replace(s, feedback_from="random")).adapt(images, IDS)
    usual = diffusion_tta.configure(both, s).adapt(images, IDS)
    moved, wanted = ((o.logits - o.before).flatten(1) for o in (out, usual))
    torch.testing.assert_close(moved.norm(dim=1), wanted.norm(dim=1), rtol=1e-2, atol=1e-6)
    assert torch.cosine_similarity(moved, wanted).abs().max() < 0.4
    torch.testing.assert_close(out.loss[0], usual.loss[0])


def test_a_random_direction_belongs_to_its_image():
    grad = torch.randn(3, K, 4, 4)
    found = random_direction(grad, IDS)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), grad.flatten(1).norm(dim=1))
    torch.testing.assert_close(random_direction(grad[1:2], IDS[1:2]), found[1:2])
    assert not torch.equal(random_direction(grad, IDS, step=1), found)


def test_placebos_say_what_is_missing():
    both = models("pyramid")
    for s, others in ((replace(TTA, feedback_from="another"), None), (TTA, OTHERS)):
        with pytest.raises(ValueError, match="goes with the images"):
            diffusion_tta.configure(both, s, others)
