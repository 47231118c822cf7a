"""Shared objects of the tests; `gentta_utils` is imported first, so that torchvision imports on a CPU-only torch."""

import gc
import os
import sys
from dataclasses import replace

os.environ.setdefault("GENTTA_PROGRESS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

gc.disable()  # until all tests are collected: a fifth of that time

import gentta_utils  # noqa: F401, I001
import fake_hub
import forked_kernels
import pytest
import torch
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.diffusion.process import alphas_cumprod_of, linear_betas
from gentta_utils.methods.base import Models
from gentta_utils.models import zoo
from gentta_utils.models.classifier import Classifier
from gentta_utils.models.dit import PixelDiT, share_embedder
from gentta_utils.models.mae import MaskedAutoencoder
from gentta_utils.models.prompts import make_prompt
from gentta_utils.world.words import label_set
from torch import nn


def pytest_collection_modifyitems(items):
    """Each process begins with its share of the long tests, so that none is left alone with several at the end: xdist
    gives the processes equal parts of this order, and who is done takes over from the end of another's part."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    ordered, size = [], len(items) // processes
    for k in range(processes):
        mine = long[k::processes]
        ordered += mine + [short.pop(0) for _ in range(min(len(short), max(0, size - len(mine))))]
    items[:] = ordered + short


def pytest_collection_finish():
    """What is loaded by now stays: no collection of garbage has to look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def shipped():
    """The shipped ResNet and DiT in float32."""
    return Models(zoo.load("classifier/resnet"), zoo.load("denoiser/dit", precision="fp32"))


@pytest.fixture(scope="session")
def clip_models():
    """The small shipped CLIP as a zero-shot classifier of the categories, with its learnable prompt."""
    clip, asked = zoo.load("clip/small"), label_set("category")
    classifier = clip.zero_shot(asked.classes, asked.templates[:1])
    return Models(classifier, prompt=make_prompt(clip, asked.classes, asked.templates[0]))


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory):
    """An HF_HOME with a small random model in the place of each that the profile "imagenet" asks for."""
    return fake_hub.write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def image_root(tmp_path_factory):
    """A data root with noise for every data set of that profile."""
    return fake_hub.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def forked(hub_home):
    """Variables with which kernels of notebooks are forked; they know the fake hub, in the plainest of languages."""
    with forked_kernels.started(os.environ | {"HF_HOME": str(hub_home), "LC_ALL": "C"}) as variables:
        yield variables


@pytest.fixture
def images64():
    return torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(3))


class TinyNet(nn.Module):
    """A classifier with every kind of layer that a parameter set names."""

    def __init__(self, classes: int, width: int = 8):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1, 1))  # belongs to a module with children: no leaf module holds it
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x) * self.scale)).mean((2, 3))
        return self.fc(self.norm(x))


def make_classifier(classes: int = 4, size: int = 16) -> Classifier:
    torch.manual_seed(3)
    return Classifier(TinyNet(classes), (0.5,) * 3, (0.5,) * 3, size, classes, "tiny")


# timm's own classes with few channels, for images of 32 px
FAMILIES = {
    "resnet": ("resnet18", dict(layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
    "vit": ("vit_tiny_patch16_224", dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)),
    "swin": (
        "swin_tiny_patch4_window7_224",
        dict(img_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2)),
    ),
    "convnext": ("convnext_atto", dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))),
}


def make_family(family: str, **options) -> Models:
    """A random timm network of one of `FAMILIES` with 4 classes."""
    import timm

    timm.layers.set_fused_attn(False)  # as in `zoo.load`: the fused kernel has no per-sample rule for `vmap`
    torch.manual_seed(5)
    architecture, small = FAMILIES[family]
    network = timm.create_model(architecture, num_classes=4, **small, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # else the source would have the statistics of no image
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts the last of each block at 0
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)  # timm's start makes all predictions alike
    return Models(Classifier(network, (0.5,) * 3, (0.5,) * 3, 32, 4, family))


def make_mae(seed: int = 6) -> Models:
    """A random masked autoencoder with 16 patches on 16 px images and 4 classes."""
    import timm

    timm.layers.set_fused_attn(False)
    torch.manual_seed(seed)
    network = MaskedAutoencoder(4, 16, 4, embed_dim=8, depth=2, num_heads=2, decoder_dim=8, decoder_depth=1)
    nn.init.normal_(network.head.linear.weight)
    return Models(Classifier(network, (0.5,) * 3, (0.5,) * 3, 16, 4, "mae"))


def weights(module: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters and buffers."""
    return [v.clone() for v in module.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Equal bit by bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_refused(settings, change: dict) -> None:
    """Settings with this change are refused by one sentence that names the field and says what to choose."""
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*: choose") as error:
        replace(settings, **change)
    assert "\n" not in str(error.value)


def bad_images(kind: str) -> torch.Tensor:
    """Two images that every method for 16 px has to refuse."""
    good = torch.rand(2, 3, 16, 16)
    return {
        "size": torch.rand(2, 3, 15, 15),
        "range": good * 255,
        "nan": good.index_fill(0, torch.tensor([1]), float("nan")),
        "dtype": (good * 255).byte(),
        "shape": good[0],
    }[kind]


def make_dit(classes: int = 4, size: int = 8, image_size: int = 16, layers: int = 2) -> PixelDiT:
    """A random DiT in the library's own initialisation, so that gradients to the condition are not zero."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(4)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=layers,
        sample_size=size,
        patch_size=4,
        num_embeds_ada_norm=classes,
    )
    return PixelDiT(share_embedder(network), alphas_cumprod_of(linear_betas()), image_size)


@pytest.fixture
def tiny():
    """A random classifier and a random DiT on 16 px images: for identities, not for accuracies."""
    return Models(make_classifier(), make_dit())


@pytest.fixture
def mixture():
    """Four classes of 3 x 4 x 4 images with exact answers."""
    means = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(means.double(), std=0.5)


@pytest.fixture
def images32():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
