"""Diffusion-TTA of maps that starts from other statistics, and that takes an adapted map only where the loss falls."""

from dataclasses import replace

import pytest
import torch
from tiny_maps import K, map_unet, task

from gentta_utils.diffusion.feedback import map_errors
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.methods import bn_adapt, source
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_tta import Settings, configure
from gentta_utils.models.map_unet import one_hot_map

S = Settings(lr=3.0, updates=2, pairs=4, window=(200, 700), images_at_once=4, micro_batch=8)
IDS = torch.arange(6) + 40


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def models(kind: str) -> Models:
    return Models(task(kind), map_unet(1 if kind == "densedepth" else K))


@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_each_image_gets_the_map_of_lower_loss(kind, images):
    """By hand: the adapted map, the source's on the full view, and the loss of each as it is scored."""
    both = models(kind)
    s = replace(S, view="low", lr=3.0 if kind == "pyramid" else 0.03)
    adapted = configure(both, s).adapt(images, IDS).logits
    out = configure(both, replace(s, trust=6)).adapt(images, IDS)
    plain = source.configure(both).adapt(images, IDS).logits
    torch.testing.assert_close(out.before, plain)  # what is fallen back to, on the full view
    pairs = draw_pairs(IDS, 6, both.denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "trust")
    told = lambda z: z if kind == "densedepth" else one_hot_map(z.argmax(1).to(torch.uint8), K)  # noqa: E731
    x0 = both.denoiser.encode(images)
    was, now = (map_errors(both.denoiser, x0, told(z), *pairs).mean(1) for z in (plain, adapted))
    assert 0 < (now < was).sum() < len(images)  # else one side is not met
    for i in range(len(images)):
        torch.testing.assert_close(out.logits[i], (adapted if now[i] < was[i] else plain)[i])


def test_a_margin_asks_for_more(images):
    both, s = models("pyramid"), replace(S, view="low", trust=6)
    plain = source.configure(both).adapt(images, IDS).logits
    taken = [
        {
            i
            for i, z in enumerate(configure(both, replace(s, margin=m)).adapt(images, IDS).logits)
            if (z != plain[i]).any()
        }
        for m in (0.0, 0.9)
    ]
    assert taken[0]
    assert not taken[1]


def test_the_choice_alone_spends_no_update(images):
    both = models("pyramid")
    out = configure(both, replace(S, view="low", updates=0, trust=6)).adapt(images, IDS)
    low, full = (source.configure(both, source.Settings(v)).adapt(images, IDS).logits for v in ("low", "full"))
    kept = [torch.equal(z, f) for z, f in zip(out.logits, full, strict=True)]
    taken = [torch.allclose(z, v, atol=1e-5) for z, v in zip(out.logits, low, strict=True)]
    assert all(a != b for a, b in zip(kept, taken, strict=True))
    assert any(kept)
    assert any(taken)
    assert out.loss.shape == (0, 6)
    assert out.nfe["denoiser fwd"] == 6 * 2 * 6
    assert "denoiser fwd+bwd" not in out.nfe


def test_statistics_are_those_of_bn_adapt(images):
    """The first map is BN-adapt's of each image alone; `before` stays the frozen source."""
    both = models("pyramid")
    out = configure(both, replace(S, lr=1e-12, updates=1, statistics=0.3)).adapt(images, IDS)
    alone = bn_adapt.configure(both, bn_adapt.Settings(alpha=0.3, statistics="image")).adapt(images, IDS)
    torch.testing.assert_close(out.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert (out.logits - out.before).abs().max() > 1e-3
    torch.testing.assert_close(out.before, source.configure(both).adapt(images, IDS).logits)


def test_misfits_are_refused(images):
    with pytest.raises(ValueError, match="online=False"):
        configure(models("pyramid"), replace(S, online=True, statistics=0.1))
    with pytest.raises(ValueError, match="updates=0 on the full view"):
        configure(models("pyramid"), replace(S, updates=0))
