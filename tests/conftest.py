"""Shared objects of the tests; `gentta_utils` is imported first, so that torchvision imports on a CPU-only torch."""

import os

os.environ.setdefault("GENTTA_PROGRESS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import gentta_utils  # noqa: F401, I001
import pytest
import torch
from gentta_utils import zoo
from gentta_utils.classifier import Classifier
from gentta_utils.conditioning import PixelDiT, share_embedder
from gentta_utils.diffusion import alphas_cumprod_of, linear_betas
from gentta_utils.methods.base import Models
from gentta_utils.mixture import GaussianMixture
from torch import nn


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shipped():
    """The shipped ResNet and DiT in float32."""
    return Models(zoo.load("classifier/resnet"), zoo.load("denoiser/dit", precision="fp32"))


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
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
