"""The autoencoder: what it is shown, how it is written and read, how it is judged."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from resuming import assert_resumes_to_the_bit
from safetensors.torch import load_file

import gentta_utils  # noqa: F401
from gentta_utils.common import paths
from gentta_utils.models import zoo
from gentta_utils.recipes import autoencoder, training
from gentta_utils.streams import scenes, stream

NAMES = list(autoencoder.RECIPES)


def tiny(steps: int = 4) -> autoencoder.AutoencoderRecipe:
    schedule = replace(autoencoder.RECIPES["autoencoder/f4"].schedule, steps=steps, batch=2, warmup=1)
    return autoencoder.AutoencoderRecipe((8, 8, 8, 16), 4, schedule)


@pytest.fixture
def some_images(monkeypatch):
    images = (autoencoder.textures(8, 64, torch.Generator().manual_seed(0)) * 255).byte()
    monkeypatch.setattr(autoencoder, "training_set", lambda n: (images, None))
    return images


@pytest.mark.parametrize("name", NAMES)
def test_latents_have_the_size_of_the_race(name):
    recipe = autoencoder.RECIPES[name]
    network = recipe.build().eval()
    assert 5e5 <= sum(p.numel() for p in network.parameters()) <= 3e6
    x = torch.rand(2, 3, 64, 64)
    assert autoencoder.encode(network, x).shape == (2, recipe.latent, 8, 8)
    y = autoencoder.through(network, x)
    assert y.shape == x.shape
    assert 0 <= float(y.min()) <= float(y.max()) <= 1


def test_jitter_leaves_its_share_alone_and_stays_in_range():
    x = torch.rand(400, 3, 16, 16)
    y = autoencoder.jitter(x, torch.Generator().manual_seed(0), 0.5)
    assert 0 <= float(y.min()) <= float(y.max()) <= 1
    same = (y == x).flatten(1).all(1)
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.07)
    again = autoencoder.jitter(x, torch.Generator().manual_seed(0), 0.5)
    assert torch.equal(y, again)
    assert torch.equal(autoencoder.jitter(x, torch.Generator().manual_seed(0), 0.0), x)


def test_textures_are_of_every_scale():
    made = autoencoder.textures(60, 32, torch.Generator().manual_seed(0))
    assert made.shape == (60, 3, 32, 32)
    rough = made.diff(dim=-1).abs().mean((1, 2, 3))
    assert rough.min() < 0.01 < 0.15 < rough.max()


def test_the_error_sees_edges():
    x = torch.zeros(1, 3, 8, 8)
    even, stripes = x + 0.1, x + 0.1 * (torch.arange(8) % 2 * 2 - 1)
    assert autoencoder.reconstruction_error(even, x).item() == pytest.approx(0.1)
    assert autoencoder.reconstruction_error(stripes, x) > 0.19


def test_psnr():
    x = torch.full((2, 3, 4, 4), 0.5)
    assert autoencoder.psnr(x + 0.1, x) == pytest.approx(20.0, abs=0.01)


def test_training_resumes_to_the_bit(some_images, tmp_path):
    assert_resumes_to_the_bit(tiny(), tmp_path)


def test_it_learns_to_copy(some_images, tmp_path):
    """A few steps on one image bring the error down."""
    recipe = replace(tiny(), jittered=0.0)
    loss_of = recipe.make_loss()
    run = training.Run(recipe.build(), replace(recipe.schedule, lr=3e-3), tmp_path, "cpu")
    losses = []
    for _ in range(25):
        loss = loss_of(run.model, torch.Generator().manual_seed(0), 0)
        losses.append(loss.item())
        run.update(loss)
    assert losses[-1] < 0.8 * losses[0]


LOAD = """
import sys, time
import gentta_utils, torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
start = time.process_time()
network = AutoencoderKL.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
seconds = time.process_time() - start
saved = load_file(f"{sys.argv[1]}/diffusion_pytorch_model.safetensors")
state = network.state_dict()
assert set(saved) == set(state)
assert all(v.dtype == torch.float16 and torch.equal(v.float(), state[k]) for k, v in saved.items())
print(network.config.scaling_factor, seconds)
"""


def check_fresh(folder) -> float:
    """The scaling factor that a fresh process reads."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    factor, seconds = map(float, done.stdout.split()[-2:])
    assert seconds < 2
    return factor


def test_round_trip_and_scaling_factor(some_images, tmp_path):
    recipe, folder = tiny(), tmp_path / "autoencoder" / "f4"
    network = recipe.build().eval()
    recipe.save(network, folder)
    images = some_images.float() / 255
    std = float(autoencoder.encode(network, images, scaled=False).std())
    assert check_fresh(folder) == pytest.approx(1 / std, rel=1e-3)
    loaded = zoo.load("autoencoder/f4", folder=tmp_path)
    assert float(autoencoder.encode(loaded, images).std()) == pytest.approx(1, rel=1e-2)
    torch.testing.assert_close(
        autoencoder.through(loaded, images), autoencoder.through(network, images), rtol=1e-2, atol=5e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_shipped(name):
    if name not in zoo.names():
        pytest.skip(f"{name} is not shipped")
    check_fresh(paths.MODELS / name)
    quality = zoo.card(name)["quality"]
    model = zoo.load(name)
    s = stream.stream(scenes.SceneSpec(40, split="select", start=1000))
    found = autoencoder.psnr(autoencoder.through(model, s.images), s.images)
    assert found == pytest.approx(quality["psnr_clean"], abs=1.0)
    page = (paths.MODELS.parent / "README.md").read_text(encoding="utf-8")  # what its row of the race says
    minutes = zoo.card(name)["minutes"]
    shown = f"({minutes:.0f} minutes): ships | {quality['psnr_clean']:.1f} dB | {quality['median_points_lost']} |"
    assert shown in page
    weights = load_file(paths.MODELS / name / "diffusion_pytorch_model.safetensors")
    assert all(v.dtype == torch.float16 for v in weights.values())
