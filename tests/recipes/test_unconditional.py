"""The unconditional diffusion models: the wrapper of the U-Net, its recipes, and how they are stored and judged."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused, make_classifier
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from gentta_utils import recipes
from gentta_utils.common import randomness
from gentta_utils.common.paths import DATA
from gentta_utils.diffusion import reverse
from gentta_utils.diffusion.guidance import bicubic_low_pass
from gentta_utils.diffusion.process import add_noise, alphas_cumprod_of, linear_betas
from gentta_utils.diffusion.reverse import noise_for, walk
from gentta_utils.diffusion.sampling import ddpm_step, learned_variance, sample
from gentta_utils.methods import dda, purifier
from gentta_utils.methods.base import Models
from gentta_utils.models import zoo
from gentta_utils.models.dit import PixelDiT
from gentta_utils.models.unet import PixelUNet
from gentta_utils.recipes import dit, quality, unconditional
from gentta_utils.recipes.training import Schedule
from gentta_utils.world.severities import VALIDATION

ABAR = alphas_cumprod_of(linear_betas())


def small(channels: int = 3, out: int = 0, size: int = 8, **more) -> UNet2DModel:
    """A random U-Net of two levels in ADM's style."""
    torch.manual_seed(7)
    return UNet2DModel(
        **unconditional.UNET
        | dict(
            sample_size=size,
            in_channels=channels,
            out_channels=out or channels,
            block_out_channels=(8, 16),
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            attention_head_dim=8,
            norm_num_groups=4,
            attn_norm_num_groups=4,
        )
        | more
    )


def draws(size: int = 8, n: int = 3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=g), torch.randint(1000, (n,), generator=g)


# --- the wrapper -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_it_is_the_network_of_the_library():
    network, (x, t) = small(), draws()
    model = PixelUNet(network, ABAR, 16)
    assert torch.equal(model(x, t), network(x, t).sample)
    assert torch.equal(model(x, t, None), model(x, t))
    assert model.shape == (3, 8, 8)
    eps_hat, v = model.with_variance(x, t)
    assert v is None
    assert torch.equal(eps_hat, model(x, t))
    assert model.count == {"fwd": 15, "fwd+bwd": 0}


def test_evaluations_are_counted_by_kind():
    model, (x, t) = PixelUNet(small(), ABAR, 16).requires_grad_(False), draws()
    model(x, t)
    model(x.requires_grad_(), t).sum().backward()
    assert x.grad.abs().sum() > 0
    assert model.count == {"fwd": 3, "fwd+bwd": 3}
    model.with_variance(x, t)
    assert model.count["fwd+bwd"] == 6


def test_a_condition_is_refused():
    model, (x, t) = PixelUNet(small(), ABAR, 16), draws()
    for cond in (torch.full((3, 4), 0.25), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match=r"unconditional: call it with cond=None$"):
            model(x, t, cond)


def test_other_networks_are_refused():
    for network, unshuffle, message in (
        (small(3, 4), False, "3 channels in and 4 out"),
        (small(6), True, "6 channels in"),
        (small(num_class_embeds=4), False, "conditioned on classes"),
    ):
        with pytest.raises(ValueError, match=message):
            PixelUNet(network, ABAR, unshuffle=unshuffle)


@torch.no_grad()
@pytest.mark.parametrize("unshuffle", [False, True])
def test_a_learned_variance_comes_after_the_noise(unshuffle):
    network, (x, t) = small(12 if unshuffle else 3, 24 if unshuffle else 6), draws(16 if unshuffle else 8)
    model = PixelUNet(network, ABAR, 16, unshuffle=unshuffle)
    eps_hat, v = model.with_variance(x, t)
    assert model.learned_variance
    assert eps_hat.shape == v.shape == x.shape
    assert torch.equal(model(x, t), eps_hat)
    raw = network(F.pixel_unshuffle(x, 2) if unshuffle else x, t).sample
    halves = [F.pixel_shuffle(h, 2) if unshuffle else h for h in raw.chunk(2, dim=1)]
    assert torch.equal(eps_hat, halves[0])
    assert torch.equal(v, halves[1])


@torch.no_grad()
def test_other_predictions_become_noise():
    network, (x, t) = small(), draws()
    raw, abar = network(x, t).sample, ABAR[t].float()[:, None, None, None]
    v = PixelUNet(network, ABAR, 16, "v_prediction")
    torch.testing.assert_close(v(x, t), abar.sqrt() * raw + (1 - abar).sqrt() * x)


@torch.no_grad()
def test_unshuffled_pixels_are_a_permutation():
    """x_t, eps and x0 are images of twice the side; noise stays noise, and the loss is that of the shuffled ones."""
    network = small(12)
    model = PixelUNet(network, ABAR, 16, unshuffle=True)
    x, t = draws(16)
    assert model.shape == (3, 16, 16)
    hidden = F.pixel_unshuffle(x, 2)
    assert torch.equal(F.pixel_shuffle(hidden, 2), x)
    assert torch.equal(hidden.flatten().sort().values, x.flatten().sort().values)
    out = model(x, t)
    assert torch.equal(F.pixel_unshuffle(out, 2), network(hidden, t).sample)
    eps = torch.randn_like(x)
    error = (out - eps).square().mean()
    torch.testing.assert_close(error, (network(hidden, t).sample - F.pixel_unshuffle(eps, 2)).square().mean())


def test_encode_and_decode():
    images = torch.rand(2, 3, 16, 16)
    shrinking = PixelUNet(small(), ABAR, 16)
    assert torch.equal(shrinking.encode(images), F.avg_pool2d(images, 2) * 2 - 1)
    whole = PixelUNet(small(12), ABAR, 16, unshuffle=True)
    torch.testing.assert_close(whole.encode(images), images * 2 - 1, atol=0, rtol=0)
    torch.testing.assert_close(whole.decode(whole.encode(images)), images)
    growing = PixelUNet(small(), ABAR, 6)  # as 224 px at 256
    constant = torch.full((1, 3, 6, 6), 0.3)
    assert growing.encode(constant).shape == (1, 3, 8, 8)
    torch.testing.assert_close(growing.decode(growing.encode(constant)), constant)
    for model in (shrinking, whole, growing):
        shown = model.decode(3 * torch.randn(2, *model.shape))
        assert shown.shape == (2, 3, model.image_size, model.image_size)
        assert shown.min() >= 0
        assert shown.max() <= 1


def test_among_some_classes_it_is_the_same_network():
    model = PixelUNet(small(), ABAR, 16)
    x, t = draws()
    model(x, t)
    models = Models(make_classifier(), model).restrict((1, 3))
    assert models.denoiser.network is model.network
    assert torch.equal(models.denoiser(x, t), model(x, t))
    assert models.denoiser.count["fwd+bwd"] == 3


@torch.no_grad()
def test_bf16_is_near_float32():
    x, t = draws()
    full, half = (PixelUNet(small(), ABAR, 16, precision=p) for p in ("fp32", "bf16"))
    assert half(x, t).dtype == torch.float32
    assert F.cosine_similarity(full(x, t).flatten(), half(x, t).flatten(), dim=0) > 0.999


# --- the learned variance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t, t_prev", [(999, 998), (494, 484), (10, 0)])
def test_the_learned_variance_lies_between_the_fixed_ones(t, t_prev):
    beta = 1 - ABAR[t] / ABAR[t_prev]
    beta_tilde = beta * (1 - ABAR[t_prev]) / (1 - ABAR[t])
    v = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    expected = torch.stack([beta_tilde, (beta * beta_tilde).sqrt(), beta])
    torch.testing.assert_close(learned_variance(v, t, t_prev, ABAR), expected, rtol=1e-12, atol=0)
    zero = torch.zeros(1, dtype=torch.float64)
    small = ddpm_step(zero, zero, t, t_prev, ABAR, zero + 1) ** 2  # one standard deviation of its noise
    torch.testing.assert_close(learned_variance(zero - 1, t, t_prev, ABAR), small, rtol=1e-9, atol=0)


def test_no_noise_on_the_way_to_the_clean_image():
    assert learned_variance(torch.ones(2, 3, 4, 4), 0, -1, ABAR).abs().max() == 0


def by_hand(model, x0, ids, s, scale=0.0):
    """The published loop written out: posterior mean of the clipped estimate, learned variance, gradient of |d|."""
    noise = lambda purpose, t: noise_for(ids, x0.shape[1:], s, purpose, t)  # noqa: E731
    abar = ABAR.float()
    x = abar[s.start].sqrt() * x0 + (1 - abar[s.start]).sqrt() * noise("reverse/start", s.start)
    for t, t_prev in ((200, 100), (100, 0), (0, -1)):
        x = x.detach().requires_grad_()
        out = model.network(x, torch.full((len(x),), t)).sample
        eps, v = out[:, :3], out[:, 3:]
        x0_hat = ((x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()).clamp(-1, 1)
        d = (bicubic_low_pass(x0, 4) - bicubic_low_pass(x0_hat, 4)).square().flatten(1).sum(1).sqrt()
        push = torch.autograd.grad(scale * d.sum(), x)[0]
        before = abar[t_prev] if t_prev >= 0 else torch.tensor(1.0)
        beta = 1 - abar[t] / before
        mean = before.sqrt() * beta * x0_hat + (1 - beta).sqrt() * (1 - before) * x
        x = mean / (1 - abar[t]) - push
        if t_prev >= 0:
            small = beta * (1 - before) / (1 - abar[t])
            x = x + (small * (beta / small) ** ((v + 1) / 2)).sqrt() * noise("reverse", t)
    return x.detach()


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_reverse_loop_takes_the_learned_variance(scale):
    model = PixelUNet(small(3, 6), ABAR, 8).requires_grad_(False)
    images, ids = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([5, 9])
    s = dda.Settings(start=200, steps=3, scale=scale)
    got = dda.align(model, images, ids, s)
    expected = model.decode(by_hand(model, images * 2 - 1, ids, s, scale))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert model.count == ({"fwd": 0, "fwd+bwd": 6} if scale else {"fwd": 6, "fwd+bwd": 0})  # one for each step
    fixed = dda.align(model, images, ids, replace(s, variance="fixed"))
    assert (fixed - got).abs().max() > 1e-3


@torch.no_grad()
def test_a_fixed_variance_is_taken_where_none_was_learned_or_no_ancestral_step_is_made():
    x0, ids = torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([5, 9])
    with_v, without = PixelUNet(small(3, 6), ABAR, 8), PixelUNet(small(), ABAR, 8)
    for model, eta in ((without, 1.0), (with_v, 0.0), (with_v, 0.5)):
        s = reverse.Settings(start=200, steps=3, eta=eta)
        assert torch.equal(walk(model, x0, ids, s), walk(model, x0, ids, replace(s, variance="fixed")))
    s = reverse.Settings(start=200, steps=3, variance="fixed")
    x = add_noise(x0, torch.full((2,), 200), noise_for(ids, x0.shape[1:], s, "reverse/start", 200), ABAR)
    for t, t_prev in ((200, 100), (100, 0), (0, -1)):
        noise = noise_for(ids, x0.shape[1:], s, "reverse", t)
        x = ddpm_step(x, with_v(x, torch.full((2,), t)), t, t_prev, ABAR, noise)
    torch.testing.assert_close(walk(with_v, x0, ids, s), x, rtol=1e-4, atol=1e-5)


def test_the_variance_is_a_setting_and_named_only_where_it_is_not_the_denoisers():
    assert_refused(reverse.Settings(), {"variance": "large"})
    s = dda.Settings()
    assert "variance" not in purifier.what_changes(s)
    assert purifier.what_changes(replace(s, variance="fixed")) == purifier.what_changes(s) | {"variance": "fixed"}


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Forty grey scenes instead of sixty thousand."""
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(unconditional, "training_set", lambda n: (images, torch.arange(40) % 10))
    return images


@pytest.mark.parametrize("name", unconditional.RECIPES)
def test_recipes(few, name):
    """About 4 M parameters; a fresh U-Net says 0, so its loss is the weight of each level; a DiT starts as shipped."""
    recipe = unconditional.RECIPES[name]
    network = recipe.build()
    assert name in recipes.names()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(4.2e6, rel=0.05)
    loss_of = replace(recipe, schedule=replace(recipe.schedule, batch=16)).make_loss()
    with torch.no_grad():
        loss = loss_of(network, torch.Generator().manual_seed(0), 0)
        assert torch.equal(loss, loss_of(network, torch.Generator().manual_seed(0), 0))
    if recipe.start:
        shipped = zoo.load(recipe.start, precision="fp32").network.state_dict()
        assert all(torch.equal(v, shipped[k]) for k, v in network.state_dict().items())
    else:
        snr = ABAR / (1 - ABAR)
        mean = (snr.clamp_max(5) / snr)[:650].mean() * 0.6 + (snr.clamp_max(5) / snr).mean() * 0.4
        assert loss.item() == pytest.approx(mean.item(), rel=0.1)


def test_every_level_of_the_unet_is_joined_by_residual_blocks():
    from diffusers.models.resnet import ResnetBlock2D

    network = UNet2DModel(**unconditional.UNET)
    down = [d for block in network.down_blocks for d in block.downsamplers or []]
    up = [u for block in network.up_blocks for u in block.upsamplers or []]
    assert len(down) == len(up) == 3
    assert all(isinstance(m, ResnetBlock2D) and m.time_embedding_norm == "scale_shift" for m in down + up)
    assert network.mid_block.attentions[0].group_norm is not None


def test_the_shown_noise_is_that_of_the_scene(few, monkeypatch):
    """The loss is 0 for a network that knows the scenes: x_t is theirs, unshuffled or averaged, as is the target."""
    monkeypatch.setattr(dit, "timesteps", lambda n, T, generator: torch.arange(n) + 50)
    for name in ("unconditional/unet", "unconditional/unet-unshuffle"):
        recipe = unconditional.RECIPES[name]
        loss_of = recipe.make_loss()
        both = torch.cat([few, few.flip(-1)]).float() / 127.5 - 1
        known = F.pixel_unshuffle(both, 2) if recipe.unshuffle else F.avg_pool2d(both, 2)

        class Oracle(torch.nn.Module):
            def forward(self, x, timestep, return_dict, known=known):
                abar = ABAR.float()[timestep][:, None, None, None]
                guesses = x[:, None] - abar.sqrt()[:, None] * known  # (B, 80, C, 32, 32)
                best = guesses.flatten(2).square().sum(2).argmin(1)
                return (guesses[torch.arange(len(x)), best] / (1 - abar).sqrt(),)

        assert loss_of(Oracle(), torch.Generator().manual_seed(0), 0) < 1e-8


def tiny_recipe(name: str) -> unconditional.UnconditionalRecipe:
    schedule = Schedule(steps=3, batch=4, lr=1e-3, ema=0.9)
    if name == "unconditional/dit":
        return unconditional.UnconditionalRecipe(schedule, dit.CONFIG, dit.DIT, 40)
    channels = 12 if name.endswith("unshuffle") else 3
    config = {k: v for k, v in small(channels, size=32).config.items() if k in unconditional.UNET}
    return unconditional.UnconditionalRecipe(schedule, dict(config), scenes=40)


@pytest.mark.parametrize("steps", [1000, 2000, 4000])
def test_a_snapshot_is_the_beginning_of_the_shipped_run(steps):
    shipped, early = (unconditional.RECIPES[f"unconditional/unet-unshuffle{end}"] for end in ("", f"-{steps}"))
    assert early.describe() == shipped.describe()
    assert early.schedule.steps == steps
    assert replace(early.schedule, steps=shipped.schedule.steps, flat=shipped.schedule.flat) == shipped.schedule
    assert all(early.schedule.lr_at(step) == shipped.schedule.lr_at(step) for step in range(steps))


@pytest.mark.parametrize("name", unconditional.RECIPES)
def test_a_candidate_is_trained_resumed_and_promoted(few, tmp_path, monkeypatch, name):
    monkeypatch.setitem(recipes.OWN, name, tiny_recipe(name))
    monkeypatch.setattr(recipes, "CANDIDATES_FOLDER", tmp_path / "candidates")
    monkeypatch.setattr(recipes, "training_speed", lambda *_: 1.0)
    monkeypatch.setattr(quality, "of_purifier", lambda denoiser: {"shape": list(denoiser.shape)})
    folder = recipes.train(name)
    card = zoo.json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["steps"] == 3
    assert card["recipe"]["scenes"] == 40
    first = load_file(folder / "checkpoint.safetensors")
    recipes.train(name)  # goes on from the end: nothing changes
    assert all(torch.equal(v, first[k]) for k, v in load_file(folder / "checkpoint.safetensors").items())

    model = zoo.load(name, folder=tmp_path / "candidates", precision="fp32")
    assert isinstance(model, PixelDiT if name.endswith("dit") else PixelUNet)
    size = 64 if name.endswith("unshuffle") else 32
    assert model.shape == (3, size, size) and card["quality"]["shape"] == [3, size, size]  # noqa: PT018
    assert DDPMScheduler.from_pretrained(folder / "scheduler").config.beta_schedule == "linear"
    averages = {k.removeprefix("average."): v for k, v in first.items() if k.startswith("average.")}
    for key, value in model.network.named_parameters():
        torch.testing.assert_close(value, averages[key], atol=1e-3, rtol=1e-3)  # half precision

    monkeypatch.setattr(zoo, "MODELS", tmp_path / "models")
    monkeypatch.setattr(recipes, "MODELS", tmp_path / "models")
    monkeypatch.setattr(zoo, "CHECKSUMS", tmp_path / "models" / "checksums.json")
    assert recipes.promote(name) == []
    assert zoo.names() == [name]
    assert len(zoo.fingerprint(name)) == 12
    assert not (tmp_path / "models" / name / "checkpoint.safetensors").exists()


# --- what they are worth ---------------------------------------------------------------------------------------------


def test_purified_images_do_not_depend_on_their_neighbours(images):
    model = PixelUNet(small(), ABAR, 16)
    ids = torch.tensor([5, 9, 2, 7, 1])
    together = quality.purified(model, images, ids, 100, levels=4, eta=1.0)
    alone = torch.cat([quality.purified(model, images[i : i + 1], ids[i : i + 1], 100, 4, 1.0) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.shape == images.shape


@torch.no_grad()
def test_purified_is_a_partial_run(images):
    model = PixelUNet(small(), ABAR, 16)
    ids = torch.arange(5)
    start = quality.purified(model, images, ids, 0, levels=1)
    assert (start - model.decode(model.encode(images))).abs().max() < 0.05  # from level 0: nearly the input
    eps = torch.stack([torch.randn(model.shape, generator=randomness.generator(0, i, "purify")) for i in range(5)])
    x_t = add_noise(model.encode(images), torch.full((5,), 300), eps, ABAR.float())
    by_hand = sample(model, x_t, torch.tensor([0, 100, 200, 300]), None, ABAR.float())
    assert torch.equal(quality.purified(model, images, ids, 300, levels=4), model.decode(by_hand))
    assert model.count["fwd"] == 5 * (1 + 4 + 4)


def test_the_card_names_every_view_shift_and_classifier():
    model = zoo.load("denoiser/dit", precision="fp32")
    found = quality.of_purifier(
        model, 2, starts=(20,), etas=(0.0,), classifiers=("classifier/resnet",), levels=2, pairs=1
    )
    assert found.keys() == {"source", "low_pass", "t20_eta0", "loss"}
    assert found["source"]["classifier/resnet"].keys() == {"clean", *VALIDATION}
    assert 0 < found["loss"] < 0.2


def test_the_data_card_says_what_the_winner_reads():
    """The last row of the race: clean, then the mean of the validation corruptions, by start and eta."""
    quality_of = zoo.card("unconditional/unet-unshuffle")["quality"]
    (row,) = (
        line for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines() if "trained to its end" in line
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    for view, cell in zip(("t100_eta0", "t200_eta0", "t300_eta0", "t100_eta1", "t200_eta1"), cells, strict=True):
        accuracies = quality_of[view].values()
        clean = " / ".join(f"{a['clean']:.0f}" for a in accuracies)
        validation = " / ".join(f"{sum(a[name] for name in VALIDATION) / len(VALIDATION):.0f}" for a in accuracies)
        assert cell == f"{clean}, {validation}"
