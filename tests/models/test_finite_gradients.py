"""Where an image is black, white or saturated a power, a norm or a quotient can have an infinite slope, and infinity
times the 0 of a clamp is no number: every view, filter, energy, encoder and decoder has a finite gradient there."""

import ast

import fake_hub
import notebook_rules as rules
import pytest
import torch
from conftest import make_dit, make_mae
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel
from tiny_maps import map_unet
from torch.nn.functional import interpolate

from gentta_utils.common.paths import ROOT
from gentta_utils.common.resize import resized
from gentta_utils.course.digits import DigitDenoiser
from gentta_utils.course.nb07.digits import PictureDenoiser, pictures
from gentta_utils.diffusion.guidance import PADS, bicubic_low_pass, structure_energy
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.methods.dda import entropy_energy
from gentta_utils.models import zoo
from gentta_utils.models.dit import LatentDiT, share_embedder
from gentta_utils.models.mae import targets
from gentta_utils.models.unet import PixelUNet
from gentta_utils.world import views
from gentta_utils.world.views import VIEWS, low_pass, view_of
from gentta_utils.world.watermark import watermark

COLOURS = {"black": (0, 0, 0), "nearly black": (1e-30,) * 3, "gray": (0.5,) * 3, "white": (1, 1, 1)}
COLOURS |= {"red": (1, 0, 0), "cyan": (0, 1, 1), "out of range": (-0.2, 1.2, 0)}
SIZE = 32


def plain(size: int = SIZE) -> torch.Tensor:
    """An image of each colour, and one of black and white stripes."""
    flat = torch.tensor(list(COLOURS.values()), dtype=torch.float32)[:, :, None, None].repeat(1, 1, size, size)
    stripes = (torch.arange(size) % 2).float().expand(1, 3, size, size)
    return torch.cat([flat, stripes])


IDS = torch.arange(len(plain()))


def assert_finite(function, x: torch.Tensor) -> None:
    """Value and gradient of a function, each image's own; the weights keep gradients from cancelling."""
    x = x.clone().requires_grad_()
    y = function(x)
    assert torch.isfinite(y).all()
    (slope,) = torch.autograd.grad((y * torch.linspace(1, 2, y.numel()).view_as(y)).sum(), x)
    bad = ~torch.isfinite(slope).flatten(1).all(1)
    assert not bad.any(), [[*COLOURS, "stripes"][i] for i in bad.nonzero().flatten()]


# --- the list of them, and that it is whole --------------------------------------------------------------------------


def latent_dit() -> LatentDiT:
    torch.manual_seed(0)
    vae = AutoencoderKL(**fake_hub.VAE | dict(sample_size=64))
    network = DiTTransformer2DModel(**fake_hub.DIT | dict(sample_size=8, patch_size=4))
    return LatentDiT(share_embedder(network), vae, torch.linspace(0.99, 0.01, 1000), SIZE)


def pixel_unet() -> PixelUNet:
    torch.manual_seed(0)
    config = {k: v for k, v in fake_hub.ADM.items() if k != "num_class_embeds"}
    return PixelUNet(UNet2DModel(**config | dict(sample_size=16)), torch.linspace(0.99, 0.01, 1000), SIZE)


def latents(model, x: torch.Tensor) -> torch.Tensor:
    """What the model decodes from images in the place of latents."""
    C, H, W = model.shape
    return model.decode((2 * x - 1).repeat(1, 3, 1, 1)[:, :C, :H, :W])


def of_low_frequencies(x: torch.Tensor) -> torch.Tensor:
    """The energy at its minimum, where a norm has no derivative, and away from it; of each image and of the batch."""
    terms = [
        structure_energy(reference, 0.75, 4, pad, norm)(x, 7)
        for reference in (x.detach(), torch.zeros_like(x))
        for pad in PADS
        for norm in ("image", "batch")
    ]
    return torch.cat(terms)


def of_a_guess(x: torch.Tensor) -> torch.Tensor:
    """The entropy of random logits under enough views that gamma falls on both sides of 1 for every image."""
    head = torch.randn(3 * SIZE * SIZE, 4, generator=torch.Generator().manual_seed(0))
    return entropy_energy(lambda v: v.flatten(1) @ head, lambda x0: x0 / 2 + 0.5, IDS, 1.0, 8)(2 * x - 1, 3)


CASES = {  # images in [0, 1] -> what is differentiated
    "jitter": lambda x: torch.cat([views.jitter(x, IDS, view) for view in range(8)]),
    "low_pass": low_pass,
    "resized": lambda x: torch.cat([resized(x, side).flatten(1) for side in (16, 96)], 1),
    "view_of": lambda x: torch.cat([view_of(x, view) for view in VIEWS]),
    "watermark": lambda x: watermark(x.clamp(0, 1)),  # which refuses all else
    "bicubic_low_pass": lambda x: torch.cat([bicubic_low_pass(x, 4, pad) for pad in PADS]),
    "structure_energy": of_low_frequencies,
    "entropy_energy": of_a_guess,
    "targets": lambda x: targets(x, 4),
    "MaskedAutoencoder.encode": lambda x: make_mae().classifier.network.encode(
        x[..., :16, :16], torch.tensor([[0, 5, 9]]).expand(len(x), -1)
    ),
    "Classifier.normalise": lambda x: make_mae().classifier.normalise(x),
    "Clip.encode_images": lambda x: zoo.cached("clip/small").encode_images(interpolate(x, zoo.IMAGE_SIZE)),
    "PixelDiT.encode": lambda x: make_dit(image_size=SIZE).encode(x),
    "PixelDiT.decode": lambda x: make_dit(size=SIZE, image_size=16).decode(2 * x - 1),
    "PixelUNet.encode": lambda x: pixel_unet().encode(x),
    "PixelUNet.decode": lambda x: pixel_unet().decode(2 * x - 1),
    "MapUNet.encode": lambda x: map_unet(image_size=SIZE).encode(x),
    "MapUNet.decode": lambda x: map_unet(image_size=SIZE).decode(2 * x - 1),
    "LatentDiT.decode": lambda x: latents(latent_dit(), x),
    "LatentUNet.decode": lambda x: latents(zoo.cached("denoiser/text", "fp32"), x),
    "GaussianMixture.encode": lambda x: GaussianMixture(plain()[:4]).encode(x),
    "GaussianMixture.decode": lambda x: GaussianMixture(plain()[:4]).decode(x),
    "DigitDenoiser.encode": lambda x: DigitDenoiser(8, 1).encode(x[:, :1, :8, :8]),
    "DigitDenoiser.decode": lambda x: DigitDenoiser(8, 1).decode(x[:, :1, :8, :8]),
    "pictures": lambda x: pictures(2 * x[:, :1, :8, :8] - 1),
    "PictureDenoiser.encode": lambda x: PictureDenoiser(8, 1).encode(x[..., :8, :8]),
    "PictureDenoiser.decode": lambda x: PictureDenoiser(8, 1).decode(2 * x[:, :1, :8, :8] - 1),
}
WITHOUT = {
    "augment": "training alone, on images that are constants",
    "augmix_views": "PIL",
    "image_views": "PIL",
    "as_jpeg": "PIL",
    "shifted": "a copy of digits, from which nothing is differentiated",
    "with_constant": "numpy, as all corruptions",
    "no_loss": "a constant",
    "stripes": "counted, and never differentiated",
    "Denoiser.encode": "of each subclass",
    "Denoiser.decode": "of each subclass",
}


def passes_gradients() -> set[str]:
    """Functions of the package from images to images, features or an energy, but for those that compute without a
    gradient and the recipes, which train on images that are constants."""
    names = set()
    for path in (ROOT / "gentta_utils").rglob("*.py"):
        if "recipes" in path.parts:
            continue
        tree = rules.parsed(path.read_text(encoding="utf-8"))
        scopes = {"": tree, **{f"{c.name}.": c for c in tree.body if isinstance(c, ast.ClassDef)}}
        for scope, node in scopes.items():
            names |= {scope + f.name for f in node.body if isinstance(f, ast.FunctionDef) and from_images(f, scope)}
    return names


def from_images(function: ast.FunctionDef, scope: str) -> bool:
    wanted = function.name.startswith(("encode", "decode", "normalise")) if scope else function.name[0] != "_"
    arguments = [a for a in function.args.args if a.arg != "self"]
    if not wanted or not arguments or function.returns is None or "no_grad" in map_text(function.decorator_list):
        return False
    first, returns = map_text([arguments[0].annotation]), ast.unparse(function.returns)
    images = first == "Images" or "3 S S" in first or "3 H W" in first
    images |= first == "Tensor" and arguments[0].arg in ("image", "images", "x", "x0")
    return returns == "Energy" or (images and returns.startswith(("Images", "Float[Tensor", "Tensor", "PerImage")))


def map_text(nodes: list) -> str:
    return " ".join(ast.unparse(node) for node in nodes if node is not None)


def test_the_list_is_whole():
    assert passes_gradients() == set(CASES) | set(WITHOUT)
    assert not set(CASES) & set(WITHOUT)


@pytest.mark.parametrize("name", CASES)
def test_finite(name):
    assert_finite(CASES[name], plain())


# --- the shipped networks --------------------------------------------------------------------------------------------

ARCHITECTURES = sorted(
    {name.split("-")[0] for name in zoo.names()} & set(zoo.shipped()) | {"unconditional/unet-unshuffle"}
)


def test_one_of_each_architecture():
    heads = {name.split("-")[0] for name in zoo.shipped()}
    assert heads == {name.split("-")[0] for name in ARCHITECTURES}


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n.startswith(("classifier/", "clip/"))])
def test_the_entropy_of_a_shipped_classifier(name):
    """What the GDA-like term differentiates."""
    model = zoo.load(name)
    classifier = model.zero_shot(["a cube", "a ball"]) if name.startswith("clip/") else model
    energy = entropy_energy(classifier.requires_grad_(False), lambda x0: (x0 / 2 + 0.5).clamp(0, 1), IDS, 1.0, 2)
    assert_finite(lambda x: energy(2 * x - 1, 5), plain(classifier.image_size))


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if not n.startswith(("classifier/", "clip/"))])
def test_a_shipped_diffusion_model_autoencoder_or_network_of_maps(name):
    """From a clean sample to the noise estimate, and from a sample to the picture."""
    model, images = zoo.load(name, precision="fp32"), plain(zoo.IMAGE_SIZE)
    if name.startswith(("segmentor/", "depth/")):
        assert_finite(model, images)
        return
    if name.startswith("autoencoder/"):
        assert_finite(lambda x: model.decode(model.encode(2 * x - 1).latent_dist.mean).sample, images)
        return
    with torch.no_grad():
        x0 = model.encode(images)
    for t in (0, 999):
        assert_finite(lambda x, t=t: model(x, torch.full((len(x),), t)), x0)
    assert_finite(model.decode, x0)


# --- the fix of the jitter -------------------------------------------------------------------------------------------


def test_a_power_has_its_own_gradient_wherever_that_is_finite(images):
    """The zero slope at black changes nothing else: values to the bit, and gradients where no channel is 0."""
    drawn = {k: torch.full((5, 1, 1, 1), 1.0) for k in ("brightness", "contrast", "saturation")}
    drawn |= {"hue": torch.zeros(5, 1, 1, 1), "gamma": torch.tensor([0.7, 0.9, 1.0, 1.1, 1.3]).view(5, 1, 1, 1)}
    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(views._colours(x, drawn).sum(), x)
    torch.testing.assert_close(slope, drawn["gamma"] * images ** (drawn["gamma"] - 1), rtol=1e-3, atol=1e-4)
    for colour in plain(4)[:4]:
        exact = colour.expand(5, -1, -1, -1) ** drawn["gamma"]
        torch.testing.assert_close(views._colours(colour.expand(5, -1, -1, -1), drawn), exact, rtol=1e-5, atol=0)
    assert views._colours(torch.full((5, 3, 2, 2), float("nan")), drawn).isnan().all()  # no NaN becomes black
