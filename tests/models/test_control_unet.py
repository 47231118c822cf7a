"""Stable Diffusion beside a ControlNet: a map as a picture, or prompts per pixel beside a black one."""

from dataclasses import replace

import pytest
import torch
from tiny_maps import K, control_unet, task

from gentta_utils.diffusion.feedback import condition_gradient
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.diffusion.process import add_noise, eps_error
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_tta import Settings, configure
from gentta_utils.models.map_unet import one_hot_map
from gentta_utils.world import ade20k

IDS = torch.arange(2) + 40
S = Settings(lr=0.2, updates=2, pairs=4, window=(200, 700), images_at_once=2, micro_batch=8)
PROMPTS = [f"a photo of a {name}" for name in ("cube", "ball", "cone", "wall", "floor")]


@pytest.fixture(scope="module")
def painted():
    return control_unet(K, torch.rand(K, 3, generator=torch.Generator().manual_seed(2)))


@pytest.fixture(scope="module")
def channels():
    return control_unet(K)


def draws(n: int = 2):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, 8, 8, generator=g), torch.randint(1000, (n,), generator=g)


def by_hand(model, x, t, states, picture):
    """The library's own calls, one after the other, as its pipeline makes them."""
    down, middle = model.controlnet(x, t, encoder_hidden_states=states, controlnet_cond=picture, return_dict=False)
    return model.network(
        x, t, encoder_hidden_states=states, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample


@torch.no_grad()
def test_a_map_is_shown_as_a_picture_and_the_text_is_empty(painted):
    (x, t), labels = draws(), torch.randint(K, (2, 64, 64), dtype=torch.uint8)
    picture = painted.palette[labels.long()].movedim(-1, 1)
    p = one_hot_map(labels, K)
    assert (painted.target, painted.classes, painted.side) == ("classes", K, 64)
    torch.testing.assert_close(painted.paint(p), picture)
    empty = painted.states_of([""]).expand(2, -1, -1)
    torch.testing.assert_close(painted(x, t, p), by_hand(painted, x, t, empty, picture))
    torch.testing.assert_close(painted(x, t), by_hand(painted, x, t, empty, torch.zeros(2, 3, 64, 64)))
    assert (painted(x, t, p) - painted(x, t)).abs().max() > 1e-3


@torch.no_grad()
def test_soft_maps_are_mixed_colours_and_areas_are_averaged(painted):
    p = torch.randn(2, K, 128, 128).softmax(1)
    picture = painted.paint(p)
    small = p.unflatten(2, (64, 2)).unflatten(4, (64, 2)).mean((3, 5))
    torch.testing.assert_close(picture, torch.einsum("bkhw,kc->bchw", small, painted.palette))
    assert 0 <= picture.min() <= picture.max() <= 1


@torch.no_grad()
def test_without_a_palette_the_picture_is_the_map_itself(channels):
    (x, t), p = draws(), torch.randn(2, K, 64, 64).softmax(1)
    empty = channels.null.expand(2, -1, -1)
    torch.testing.assert_close(channels(x, t, p), by_hand(channels, x, t, empty, p))
    depth = control_unet(1)
    assert depth.target == "depth"
    assert torch.equal(depth.paint(torch.full((2, 1, 64, 64), 20.0)), torch.ones(2, 1, 64, 64))


@torch.no_grad()
def test_prompts_stand_beside_a_black_picture(painted):
    (x, t), text = draws(), painted.for_prompts(PROMPTS)
    assert (text.target, text.classes, text.network) == ("class", K, painted.network)
    p = torch.randn(2, K).softmax(1)
    states = torch.einsum("bk,kld->bld", p, text.states_of(PROMPTS))
    torch.testing.assert_close(text(x, t, p), by_hand(text, x, t, states, torch.zeros(2, 3, 64, 64)))
    part = text.restrict((3, 1))
    torch.testing.assert_close(
        part(x, t, p[:, :2].softmax(1)), text(x, t, text.restrict((3, 1)).widen(p[:, :2].softmax(1)))
    )
    torch.testing.assert_close(text(x, t), painted(x, t))
    assert (text.count["fwd"], painted.restrict((0, 1)).classes) == (6, K)


def test_gradients_reach_the_map_through_the_picture(painted):
    x, t = draws()
    z = torch.randn(2, K, 32, 32, requires_grad=True)
    painted(x, t, z.softmax(1)).square().sum().backward()
    assert (z.grad.abs().sum((1, 2, 3)) > 0).all()


def test_bad_conditions_are_one_sentence(painted):
    x, t = draws()
    for wrong in (torch.rand(2, K, 8, 8), torch.rand(2, K).softmax(1), torch.rand(2, K - 1, 8, 8).softmax(1)):
        with pytest.raises(ValueError, match=r"the map must be float|sum to 1 at each pixel"):
            painted(x, t, wrong)
    with pytest.raises(ValueError, match="each row of the condition"):
        painted.for_prompts(PROMPTS)(x, t, torch.rand(2, K))
    with pytest.raises(ValueError, match="at least one prompt"):
        painted.for_prompts([])


@pytest.mark.parametrize("way", ["picture", "prompts"])
def test_a_segmentor_is_adapted_by_either_way(painted, way):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    denoiser = painted if way == "picture" else painted.for_prompts(PROMPTS)
    settings = S if way == "picture" else replace(S, mixing="output", map_classes=3)
    out = configure(Models(task("pyramid"), denoiser), settings).adapt(images, IDS)
    assert out.logits.shape == (2, K, 16, 16)
    assert (out.logits - out.before).abs().max() > 0
    if way == "picture":
        assert out.nfe["denoiser fwd+bwd"] == 2 * 2 * 4
    else:
        assert out.nfe["denoiser fwd"] == 2 * 2 * 4 * 3


def test_predictions_of_prompts_are_mixed_at_each_pixel(painted):
    """Against the plain sum over classes, one prompt's own prediction after the other."""
    text = painted.for_prompts(PROMPTS)
    x0, (t, eps) = torch.randn(2, *text.shape), draw_pairs(IDS, 2, text.shape)
    P = torch.randn(2, K, 8, 8).softmax(1).requires_grad_()
    loss = torch.zeros(2)
    for i in range(2):
        x_t = add_noise(x0, t[:, i], eps[:, i], text.alphas_cumprod)
        black = torch.zeros(2, 3, 64, 64)
        each = [by_hand(text, x_t, t[:, i], s.expand(2, -1, -1), black) for s in text.states_of(PROMPTS)[:, None]]
        mixed = sum(P[:, k, None] * each[k] for k in range(K))
        loss = loss + eps_error(mixed, eps[:, i]) / 2
    loss.sum().backward()
    G, found = condition_gradient(text, x0, P, t, eps, "output", 16)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(G, P.grad, rtol=1e-3, atol=1e-7)


def test_colours_of_ade20k():
    """Against rows of the benchmark's list; road and skyscraper share a colour. And what docs/methods/maps.md says:
    for so many pairs of classes the mean of their colours is nearly that of a third one."""
    colours, names = ade20k.palette() * 255, ade20k.CLASSES
    assert colours.shape == (150, 3)
    assert len(names) == len(set(names)) == 150
    for name, rgb in (
        ("wall", (120, 120, 120)), ("building", (180, 120, 120)), ("sky", (6, 230, 230)), ("person", (150, 5, 61)),
        ("car", (0, 102, 200)), ("toilet", (0, 255, 133)), ("bicycle", (255, 245, 0)), ("flag", (92, 0, 255)),
    ):  # fmt: skip
        assert colours[names.index(name)].round().tolist() == list(rgb), name
    assert len({tuple(row) for row in colours.round().tolist()}) == 149
    assert torch.equal(colours[names.index("road")], colours[names.index("skyscraper")])
    means = (colours[:, None] + colours) / 2
    near = (means[:, :, None] - colours).abs().amax(-1) <= 5  # (150, 150, 150)
    own = (colours[:, None] == colours).all(-1)
    near &= ~own[:, None] & ~own[None]
    assert int(near.any(-1).triu(1).sum()) == 954
