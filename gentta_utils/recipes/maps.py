"""Diffusion models that see a map: `maps/classes` and `maps/depth`, one recipe with two targets (notebook 04).

Both go on from `unconditional/unet-unshuffle`, whose first convolution gets channels for the map, zero at first: step 0
is the unconditional model. In training the map is MAP_RATE times as large, so that under Adam, whose steps do not know
the size of a gradient, its weights move as much faster; `save` folds the factor into them.

Ground-truth maps are softened at random, so that the soft and wrong maps of a task network are nothing new: edges
moved and blurred, classes mixed with a wrong one and with all (label noise, temperature), depth bent by a smooth field.
A tenth of the maps is dropped. The loss is that of `recipes.unconditional`.

Three other ways to show a map, to be compared with that (`SPACES`); none of them is shipped.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ..common.paths import MODELS
from ..common.resize import resized
from ..diffusion.process import add_noise, alphas_cumprod_of, eps_error, linear_betas
from ..models import zoo
from ..models.control_unet import beside
from ..models.denoiser import write_out_attention
from ..models.map_unet import MapUNet, at_map, scaled_depth
from ..models.text_unet import TextUNet
from ..world.maps import MAP_CLASSES
from . import dit
from .data import at_default, dense_set
from .dit import WEIGHTS
from .map_quality import of_map_model
from .training import Schedule, halved
from .unconditional import UNET, UnconditionalRecipe

START = "unconditional/unet-unshuffle"
MAP_RATE = 5.0
DROPPED = 0.1
TEXT = "denoiser/text"  # whose latents two of the spaces are
SPACES = {  # what is denoised and where the map comes in: channels of that, side of the map, n x n of it as one pixel
    "unshuffled": (12, 32, 1),  # 64 px, every 2 x 2 as one; concatenated, going on from START
    "averaged": (3, 32, 1),  # 32 px, areas averaged; concatenated
    "latents": (8, 32, 4),  # of TEXT's autoencoder; concatenated
    "control": (8, 32, 4),  # the same latents: a `ControlNetModel` on TEXT, which stays as it is, without text
}
LATENTS = dict(  # of the U-Net on latents of 8 x 8, beside those of UNET
    sample_size=8,
    block_out_channels=(96, 128),
    down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
)
SHIFT = 2  # pixels, the farthest an edge is moved
WRONG = 0.5  # the largest probability that label noise gives to others than the true class


class Controlled(nn.Module):
    """The U-Net of a text model, frozen and without text, beside a fresh ControlNet that starts with its weights."""

    def __init__(self, text: TextUNet, config: dict):
        super().__init__()
        self.unet = copy.deepcopy(text.network).requires_grad_(False)
        self.controlnet = ControlNetModel.from_unet(self.unet, **config)
        self.register_buffer("null", text.null.clone(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """eps_hat (B, C, h, w) of latents with the map behind them, every n x n of its pixels as one, and t (B,)."""
        C, halvings = self.unet.config.in_channels, len(self.controlnet.config.conditioning_embedding_out_channels) - 1
        picture, states = F.pixel_shuffle(x[:, C:], 2**halvings), self.null.expand(len(x), -1, -1)
        return (beside(self.unet, self.controlnet, x[:, :C], t, states, picture),)


@dataclass(frozen=True)
class MapRecipe:
    """One map-conditioned model.

    Attributes:
        target: "classes" or "depth".
        scenes: how many of the training split, with their true maps.
        soften: False trains on exact maps alone, for comparison.
        space: one of SPACES.
    """

    target: str
    schedule: Schedule
    scenes: int = 60_000
    soften: bool = True
    space: str = "unshuffled"

    @property
    def channels(self) -> int:
        """Of the map."""
        return 1 if self.target == "depth" else len(MAP_CLASSES)

    @property
    def rate(self) -> float:
        """How many times as large the map is in training: only weights that stand beside trained ones need that."""
        return MAP_RATE if self.space == "unshuffled" else 1.0

    @property
    def config(self) -> dict:
        """Of the network: image channels and those of the map in."""
        channels, _, fold = SPACES[self.space]
        if self.space == "control":  # two halvings: a picture of 32 px for latents of 8
            return dict(conditioning_channels=self.channels, conditioning_embedding_out_channels=(16, 32, 64))
        widths = LATENTS if self.space == "latents" else {}
        return UNET | widths | dict(in_channels=channels + fold**2 * self.channels, out_channels=channels)

    def network(self) -> nn.Module:
        """The bare network."""
        if self.space == "control":
            return Controlled(_text(), self.config)
        return UNet2DModel(**self.config)

    def build(self) -> nn.Module:
        """The network with the weights of START, and zeros where the map comes in; a fresh one in another space."""
        if self.space == "control":
            torch.manual_seed(0)
            return write_out_attention(self.network())
        if self.space != "unshuffled":
            return UnconditionalRecipe(self.schedule, self.config).build()
        weights = {name: w.float() for name, w in load_file(MODELS / START / "unet" / WEIGHTS).items()}
        weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, self.channels))
        network = self.network()
        network.load_state_dict(weights, strict=True)
        return write_out_attention(network)

    def describe(self) -> dict:
        """What the card says of it, beside its schedule."""
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in self.config.items()}
        softened = {"shift": SHIFT, "wrong": WRONG, "dropped": DROPPED} if self.soften else {"dropped": DROPPED}
        start = {"unshuffled": START, "control": TEXT}.get(self.space, "")
        about = {"target": self.target, "scenes": self.scenes, "start": start, "softened": softened}
        about |= {"loss": "eps, min-SNR-5", "map_rate": self.rate, "config": config}
        return about if self.space == "unshuffled" else about | {"space": self.space}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded."""
        with torch.device("cpu"):  # scenes are rendered there
            images, maps = dense_set(self.scenes, self.target)
        images, maps = at_default(images, maps)
        batch, (_, side, fold) = self.schedule.batch, SPACES[self.space]
        unshuffle = 2 if self.space == "unshuffled" else 1
        linear = alphas_cumprod_of(linear_betas()).float()
        alphas_cumprod = _text(device).alphas_cumprod if self.space == "control" else linear
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weights = (snr.clamp_max(5) / snr).to(device)

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, len(images), (batch,), generator=generator)
            flip = torch.rand(batch, generator=generator) < 0.5
            order = torch.randperm(batch, generator=generator)
            t = dit.timesteps(batch, len(alphas_cumprod), generator)[order]
            x, y = images[rows].float() / 127.5 - 1, maps[rows]
            x0 = self.denoised(torch.where(flip[:, None, None, None], x.flip(-1), x).to(device))
            y = torch.where(flip[:, None, None], y.flip(-1), y)
            seen = F.pixel_unshuffle(conditions(y, self.target, side, generator, self.soften), fold).to(device)
            eps = torch.randn(x0.shape, generator=generator)
            x0, eps = (F.pixel_unshuffle(v, unshuffle).to(device) for v in (x0, eps))
            t = t.to(device)
            x_t = add_noise(x0, t, eps, alphas_cumprod)
            eps_hat = model(torch.cat([x_t, self.rate * seen], 1), t, return_dict=False)[0]
            return (weights[t] * eps_error(eps_hat.float(), eps)).mean()

        return loss_of

    def denoised(self, images: Tensor) -> Tensor:
        """What is denoised of images (B, 3, 64, 64) in [-1, 1]: these, smaller ones or latents."""
        if self.space in ("latents", "control"):
            return _text(images.device.type).encode(images / 2 + 0.5)
        return images if self.space == "unshuffled" else resized(images, UNET["sample_size"])

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write float16 weights, configuration and schedule in the library's own format; of a ControlNet its weights
        alone, since TEXT is shipped."""
        whole = self.network()  # half of a copy: the run may go on
        whole.load_state_dict(network.state_dict())
        if self.space == "control":
            halved(whole.controlnet).save_pretrained(folder / "controlnet", safe_serialization=True)
            return
        with torch.no_grad():
            whole.conv_in.weight[:, SPACES[self.space][0] :] *= self.rate
        halved(whole).save_pretrained(folder / "unet", safe_serialization=True)
        dit.scheduler().save_pretrained(folder / "scheduler")
        if self.space == "latents":
            vae = copy.deepcopy(_text().vae)
            vae.register_to_config(_name_or_path=TEXT)  # else a path of this machine
            halved(vae).save_pretrained(folder / "vae", safe_serialization=True)

    def measure(self, model: MapUNet) -> dict:
        """See `of_map_model`."""
        return of_map_model(model)


@lru_cache(maxsize=2)
def _text(device: str = "cpu") -> TextUNet:
    """The text model whose latents are denoised, frozen."""
    with torch.device("cpu"):  # its prompts are read there
        return zoo.load(TEXT, device=device, precision="fp32")


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
SHORT = replace(SCHEDULE, steps=800)  # about 16 minutes of one core without bf16
FRESH = {  # as many minutes, from weights drawn at random
    space: replace(SCHEDULE, steps=steps, lr=1e-3, warmup=200)
    for space, steps in (("averaged", 880), ("latents", 2_200), ("control", 1_850))
}
LONG = replace(FRESH["averaged"], steps=12_000)
SEEN = 20_000  # scenes of these: 800 batches hold 25,600
RECIPES = {
    "maps/classes": MapRecipe("classes", SCHEDULE),
    "maps/depth": MapRecipe("depth", SCHEDULE),
    # to be compared at equal time: the first one's training cut short, the same without soft maps, and the published
    # setting, where the diffusion model knows no more maps than the segmentor
    "maps/classes-short": MapRecipe("classes", SHORT, SEEN),
    "maps/classes-exact": MapRecipe("classes", SHORT, SEEN, soften=False),
    "maps/classes-1500": MapRecipe("classes", SHORT, scenes=1500),
    # for longer, on all scenes
    "maps/classes-long": MapRecipe("classes", LONG, space="averaged"),
    "maps/classes-long-exact": MapRecipe("classes", LONG, soften=False, space="averaged"),
} | {f"maps/classes-{space}": MapRecipe("classes", schedule, SEEN, space=space) for space, schedule in FRESH.items()}
