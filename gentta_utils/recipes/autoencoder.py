"""The autoencoder of the text half: a diffusers `AutoencoderKL`, trained so that it does not go wild on shifted input.

It is trained to return what it is given: scenes as they are, scenes whose channels are rescaled, swapped or inverted,
random textures, and mild uniform noise on some of each. None of these is one of the 19 corruptions.

Loss: L1 on pixels and on differences of neighbours (edges are what a classifier reads), and a small KL term that keeps
the latents near a normal distribution (Rombach et al., 2022).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..models import zoo
from ..models.denoiser import write_out_attention
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.severities import VALIDATION
from .data import training_set
from .quality import accuracy
from .training import Schedule, halved

KL_WEIGHT = 1e-4  # of the KL divergence a latent dimension, in nats
EDGE_WEIGHT = 0.5
JUDGES = ("resnet", "vit", "swin", "swin-wide", "convnext", "convnext-wide")  # classifiers whose accuracy may fall


@dataclass(frozen=True)
class AutoencoderRecipe:
    """One autoencoder: widths of its levels (the factor is 2 for each but the first), channels of its latents.

    Attributes:
        pixels: side of its images; less than 64: it sees area averages, as the class-conditional DiT does.
        jittered: share of the training images that are not a scene as it is.
    """

    widths: tuple[int, ...]
    latent: int
    schedule: Schedule
    pixels: int = 64
    layers: int = 1
    scenes: int = 60_000
    jittered: float = 0.5

    def build(self) -> AutoencoderKL:
        torch.manual_seed(0)
        n = len(self.widths)
        network = AutoencoderKL(
            block_out_channels=self.widths,
            down_block_types=("DownEncoderBlock2D",) * n,
            up_block_types=("UpDecoderBlock2D",) * n,
            latent_channels=self.latent,
            layers_per_block=self.layers,
            norm_num_groups=8,
            sample_size=self.pixels,
            force_upcast=False,
        )
        return write_out_attention(network)

    def describe(self) -> dict:
        """What the card says, beside the schedule."""
        described = {name: value for name, value in asdict(self).items() if name != "schedule"}
        return described | {"loss": f"L1 + {EDGE_WEIGHT} L1 of differences + {KL_WEIGHT} KL"}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded."""
        images = training_set(self.scenes)[0]

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, len(images), (self.schedule.batch,), generator=generator)
            x = images[rows].float() / 255
            x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(-1), x)
            x = jitter(x, generator, self.jittered)
            x = (F.interpolate(x, (self.pixels,) * 2, mode="area") * 2 - 1).to(device)
            posterior = model.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            z = mean + std * torch.randn(mean.shape, generator=generator).to(device)
            kl = 0.5 * (mean**2 + std**2 - 1) - std.log()
            return reconstruction_error(model.decode(z).sample.float(), x) + KL_WEIGHT * kl.mean()

        return loss_of

    def save(self, model: AutoencoderKL, folder: Path) -> None:
        """Write the autoencoder in diffusers' own format, float16, with its scaling factor: 1/std of clean latents."""
        model.register_to_config(scaling_factor=1 / latent_std(model))
        halved(model).save_pretrained(folder, safe_serialization=True)
        model.float()

    def measure(self, model: AutoencoderKL) -> dict:
        """See `of_autoencoder`."""
        return of_autoencoder(model)


def reconstruction_error(y: Tensor, x: Tensor) -> Tensor:
    """Mean L1 of images (B, C, H, W), and of their differences to the next pixel right and below."""
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    return (y - x).abs().mean() + EDGE_WEIGHT * edges


def jitter(x: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], of which a share is rescaled, swapped or inverted in its channels, or replaced by
    or mixed with a random texture; a third of those has mild uniform noise."""
    return jittered(x, generator, share)[0]


def jittered(x: Tensor, generator: torch.Generator, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """The images of `jitter`, which of them (B,) were changed, and of which (B,) nothing is left but a texture."""
    B = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(B, *shape, generator=generator)

    colour = x * (0.5 + uniform(3, 1, 1)) + 0.4 * (uniform(3, 1, 1) - 0.5)
    order = uniform(3).argsort(1)[:, :, None, None].expand_as(x)
    colour = torch.where(uniform(1, 1, 1) < 0.3, colour.gather(1, order), colour)
    colour = torch.where(uniform(1, 1, 1) < 0.15, 1 - colour, colour)
    mix = (uniform(1, 1, 1) * 2 - 1).clamp_min(0)  # half of them no texture at all
    mix = torch.where(uniform(1, 1, 1) < 0.2, torch.ones(()), mix * 0.5)
    other = (1 - mix) * colour + mix * textures(B, x.shape[-1], generator)
    amplitude = torch.where(uniform(1, 1, 1) < 1 / 3, 0.12 * uniform(1, 1, 1), 0.0)
    other = other + amplitude * (2 * torch.rand(x.shape, generator=generator) - 1)
    changed = uniform(1, 1, 1) < share
    return torch.where(changed, other.clamp(0, 1), x), changed.flatten(), (changed & (mix == 1)).flatten()


def textures(n: int, size: int, generator: torch.Generator) -> Tensor:
    """n random textures (n, 3, size, size) in [0, 1]: blocks of random colours, from 1 to size / 2 a side, smooth or
    hard, so that there is something at every spatial frequency."""
    out = torch.empty(n, 3, size, size)
    for i in range(n):
        cells = 2 ** int(torch.randint(0, int(math.log2(size)), (), generator=generator))
        blocks = torch.rand(1, 3, cells, cells, generator=generator)
        smooth = bool(torch.rand((), generator=generator) < 0.5)
        how = dict(mode="bilinear", align_corners=False) if smooth else dict(mode="nearest")
        out[i] = F.interpolate(blocks, (size, size), **how)[0]
    return out


_SCHEDULE = Schedule(6000, batch=32, lr=1e-3, warmup=200, flat=0.5, final=0.02, weight_decay=0.0, ema=0.999)
RECIPES = {"autoencoder/f4": AutoencoderRecipe((32, 64, 64), 8, _SCHEDULE, pixels=32)}


@torch.no_grad()
def latent_std(model: AutoencoderKL, n: int = 512) -> float:
    """Standard deviation of the latents' means over clean training scenes."""
    return float(encode(model, training_set(n)[0][:n].float() / 255, scaled=False).std())


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor, scaled: bool = True, chunk: int = 100) -> Tensor:
    """Means of the posteriors (B, C, h, w) of images (B, 3, 64, 64) in [0, 1], times the scaling factor."""
    size = (model.config.sample_size,) * 2
    parts = [model.encode(F.interpolate(x, size, mode="area") * 2 - 1).latent_dist.mean for x in images.split(chunk)]
    return torch.cat(parts).float() * (model.config.scaling_factor if scaled else 1.0)


@torch.no_grad()
def through(model: AutoencoderKL, images: Tensor, chunk: int = 100) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] after encoding to the mean and decoding."""
    z = encode(model, images, scaled=False, chunk=chunk)
    shown = torch.cat([model.decode(part).sample.float() for part in z.split(chunk)]) / 2 + 0.5
    return F.interpolate(shown, images.shape[-2:], mode="bilinear", align_corners=False).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: the mean over images."""
    return round(float((-10 * (a - b).square().flatten(1).mean(1).log10()).mean()), 2)


@lru_cache(maxsize=1)
def _judges() -> dict[str, nn.Module]:
    return {name: zoo.load(f"classifier/{name}") for name in JUDGES if f"classifier/{name}" in zoo.names()}


@torch.no_grad()
def of_autoencoder(model: AutoencoderKL, n: int = 500) -> dict:
    """PSNR (dB), clean and under the validation corruptions at severity 5; accuracy (percent) of each classifier on
    clean scenes as they are and after reconstruction, and the median of what it loses; the scaling factor."""
    clean = stream(SceneSpec(n, split="select", start=1000))
    rebuilt = through(model, clean.images)
    out = {"psnr_clean": psnr(rebuilt, clean.images), "scaling_factor": round(model.config.scaling_factor, 4)}
    for name in VALIDATION:
        shifted = stream(SceneSpec(n // 2, name, 5, "select", 1000)).images
        out[f"psnr_{name}_5"] = psnr(through(model, shifted), shifted)
    lost = []
    for name, judge in _judges().items():
        before, after = (accuracy(judge(x), clean.labels) for x in (clean.images, rebuilt))
        out[f"accuracy_{name}"] = [before, after]
        lost.append(before - after)
    out["median_points_lost"] = round(float(torch.tensor(lost).median()), 1) if lost else math.nan
    return out
