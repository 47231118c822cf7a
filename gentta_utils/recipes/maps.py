"""Diffusion models that see a map: `maps/classes` and `maps/depth`, one recipe with two targets (notebook 04).

Both go on from `unconditional/unet-unshuffle`, whose first convolution gets channels for the map, zero at first: step 0
is the unconditional model. In training the map is MAP_RATE times as large, so that under Adam, whose steps do not know
the size of a gradient, its weights move as much faster; `save` folds the factor into them.

Ground-truth maps are softened at random, so that the soft and wrong maps of a task network are nothing new: edges
moved and blurred, classes mixed with a wrong one and with all (label noise, temperature), depth bent by a smooth field.
A tenth of the maps is dropped. The loss is that of `recipes.unconditional`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ..common.paths import MODELS
from ..common.resize import resized
from ..diffusion.process import add_noise, alphas_cumprod_of, eps_error, linear_betas
from ..models.denoiser import write_out_attention
from ..models.map_unet import MapUNet, at_map, scaled_depth
from ..world.maps import MAP_CLASSES
from . import dit
from .data import dense_set
from .map_quality import of_map_model
from .training import Schedule, halved
from .unconditional import UNET, WEIGHTS

START = "unconditional/unet-unshuffle"
MAP_RATE = 5.0
DROPPED = 0.1
SHIFT = 2  # pixels, the farthest an edge is moved
WRONG = 0.5  # the largest probability that label noise gives to others than the true class


@dataclass(frozen=True)
class MapRecipe:
    """One map-conditioned model.

    Attributes:
        target: "classes" or "depth".
        scenes: how many of the training split, with their true maps.
        soften: False trains on exact maps alone, for comparison.
    """

    target: str
    schedule: Schedule
    scenes: int = 60_000
    soften: bool = True

    @property
    def channels(self) -> int:
        """Of the map."""
        return 1 if self.target == "depth" else len(MAP_CLASSES)

    @property
    def config(self) -> dict:
        """Of the network: 12 image channels and those of the map in."""
        return UNET | dict(in_channels=12 + self.channels, out_channels=12)

    def network(self) -> UNet2DModel:
        """The bare network."""
        return UNet2DModel(**self.config)

    def build(self) -> UNet2DModel:
        """The network with the weights of START, and zeros where the map comes in."""
        weights = {name: w.float() for name, w in load_file(MODELS / START / "unet" / WEIGHTS).items()}
        weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, self.channels))
        network = self.network()
        network.load_state_dict(weights, strict=True)
        return write_out_attention(network)

    def describe(self) -> dict:
        """What the card says of it, beside its schedule."""
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in self.config.items()}
        softened = {"shift": SHIFT, "wrong": WRONG, "dropped": DROPPED} if self.soften else {"dropped": DROPPED}
        about = {"target": self.target, "scenes": self.scenes, "start": START, "softened": softened}
        return about | {"loss": "eps, min-SNR-5", "map_rate": MAP_RATE, "config": config}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded."""
        images, maps = dense_set(self.scenes, self.target)
        batch, side = self.schedule.batch, UNET["sample_size"]
        alphas_cumprod = alphas_cumprod_of(linear_betas()).float()
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weights = (snr.clamp_max(5) / snr).to(device)

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, len(images), (batch,), generator=generator)
            flip = torch.rand(batch, generator=generator) < 0.5
            order = torch.randperm(batch, generator=generator)
            t = dit.timesteps(batch, len(alphas_cumprod), generator)[order]
            x, y = images[rows].float() / 127.5 - 1, maps[rows]
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
            y = torch.where(flip[:, None, None], y.flip(-1), y)
            seen = conditions(y, self.target, side, generator, self.soften)
            eps = F.pixel_unshuffle(torch.randn(x.shape, generator=generator), 2).to(device)
            x0, t, seen = F.pixel_unshuffle(x, 2).to(device), t.to(device), seen.to(device)
            x_t = add_noise(x0, t, eps, alphas_cumprod)
            eps_hat = model(torch.cat([x_t, MAP_RATE * seen], 1), t, return_dict=False)[0]
            return (weights[t] * eps_error(eps_hat.float(), eps)).mean()

        return loss_of

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write float16 weights, configuration and schedule in the library's own format."""
        whole = self.network()  # half of a copy: the run may go on
        whole.load_state_dict(network.state_dict())
        with torch.no_grad():
            whole.conv_in.weight[:, 12:] *= MAP_RATE
        halved(whole).save_pretrained(folder / "unet", safe_serialization=True)
        dit.scheduler().save_pretrained(folder / "scheduler")

    def measure(self, model: MapUNet) -> dict:
        """See `of_map_model`."""
        return of_map_model(model)


def conditions(maps: Tensor, target: str, side: int, generator: torch.Generator, soft: bool = True) -> Tensor:
    """True maps (B, h, w), labels or metres, as the network sees them in training: softened if `soft`, at side x side,
    some dropped. (B, K, side, side), in [0, 1] or, for depth, [-1, 1]."""
    y = at_map(target, moved(maps, generator) if soft else maps, len(MAP_CLASSES))
    y = resized(y, side)
    if soft:
        near = F.avg_pool2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), 3, 1)
        y = torch.lerp(y, near, _some(len(y), 0.5, generator))
        y = bent(y, generator) if target == "depth" else mixed(y, generator)
    y = scaled_depth(y) if target == "depth" else y
    return y * (torch.rand(len(y), 1, 1, 1, generator=generator) >= DROPPED)


def moved(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Maps (B, h, w), a quarter of them shifted by up to SHIFT pixels each way."""
    B, h, w = maps.shape
    by = torch.randint(-SHIFT, SHIFT + 1, (2, B), generator=generator) * (torch.rand(B, generator=generator) < 0.25)
    across = (torch.arange(w) + by[0, :, None]).clamp(0, w - 1)[:, None]  # (B, 1, w)
    down = (torch.arange(h) + by[1, :, None]).clamp(0, h - 1)[:, :, None]  # (B, h, 1)
    return maps[torch.arange(B)[:, None, None], down, across]


def mixed(p: Tensor, generator: torch.Generator) -> Tensor:
    """Class maps p (B, K, h, w), half of them with up to WRONG of the probability elsewhere: half of that with another
    class in each class's place, half with all classes alike."""
    B, K = p.shape[:2]
    order = torch.rand(B, K, generator=generator).argsort(1)
    other = p[torch.arange(B)[:, None], order]
    return torch.lerp(p, (other + 1 / K) / 2, WRONG * _some(B, 0.5, generator))


def bent(depth: Tensor, generator: torch.Generator) -> Tensor:
    """Depth maps (B, 1, h, w), half of them times a smooth field: 8% in the standard deviation at most, half of its
    logarithm the same in the whole image."""
    B = len(depth)
    coarse = torch.randn(B, 1, 4, 4, generator=generator) + torch.randn(B, 1, 1, 1, generator=generator)
    field = F.interpolate(coarse, depth.shape[-2:], mode="bicubic", align_corners=False) / 2**0.5
    return depth * (0.08 * _some(B, 0.5, generator) * field).exp()


def _some(n: int, share: float, generator: torch.Generator) -> Tensor:
    """(n, 1, 1, 1): uniform in [0, 1] for a share of n, 0 for the others."""
    chosen = torch.rand(n, 1, 1, 1, generator=generator) < share
    return torch.rand(n, 1, 1, 1, generator=generator) * chosen


SCHEDULE = Schedule(6_000, batch=32, lr=4e-4, warmup=100, flat=0.5, final=0.02, ema=0.9995)
RECIPES = {
    "maps/classes": MapRecipe("classes", SCHEDULE),
    "maps/depth": MapRecipe("depth", SCHEDULE),
    # the published setting: the diffusion model knows no more maps than the segmentor; and without soft maps
    "maps/classes-1500": MapRecipe("classes", SCHEDULE, scenes=1500),
    "maps/classes-exact": MapRecipe("classes", SCHEDULE, soften=False),
}
