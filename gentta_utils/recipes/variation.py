"""The image-variation model of the scenes: a `StableDiffusionImageVariationPipeline` on the latents of our autoencoder.

As the published one (Pinkney, 2022) it is a text-conditional U-Net that goes on learning with one token in place of
the prompt's: the embedding of the image itself. What that embedding leaves out, a variation draws from scratch. Two
parts learn side by side: a small `CLIPVisionModelWithProjection` repeats the image features of a shipped CLIP, and the
U-Net, which begins as that of `denoiser/text`, reads what the tower says so far. A tenth of the embeddings is zero,
which is what the library's pipeline guides away from; the others get a little noise, so that the U-Net does not lean on
their last digit.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionImageVariationPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..common.devices import autocast
from ..common.files import atomic_write, read_tensors
from ..common.paths import CACHE
from ..common.progress import progress
from ..diffusion.process import add_noise, eps_error
from ..models import zoo
from ..models.denoiser import write_out_attention
from ..models.zoo import IMAGE_SIZE
from .classifiers import MEAN, STD
from .data import training_set
from .dit import timesteps
from .text_model import AUTOENCODER, _autoencoder, scheduler
from .text_model import RECIPES as TEXT_MODELS
from .training import Schedule, halved

START = "denoiser/text"  # whose U-Net goes on learning


class VariationModel(nn.Module):
    """U-Net and image tower as one module, so that one run trains both."""

    def __init__(self, unet: UNet2DConditionModel, image_encoder: CLIPVisionModelWithProjection):
        super().__init__()
        self.unet, self.image_encoder = unet, image_encoder

    def forward(self, x_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """eps_hat (B, C, H, W) of latents x_t (B, C, H, W), t (B,) and embeddings (B, D)."""
        return self.unet(x_t, t, embeddings[:, None], return_dict=False)[0]


@dataclass(frozen=True)
class VariationRecipe:
    """The pipeline: width, depth and patch of the image tower, whose features it repeats, how long it trains."""

    schedule: Schedule
    width: int = 96
    layers: int = 4
    patch: int = 8
    teacher: str = "clip/small"
    scenes: int = 60_000
    empty_share: float = 0.1
    noise: float = 0.2  # std of the noise on embeddings, whose own is 1 in each dimension

    def build(self) -> VariationModel:
        torch.manual_seed(0)
        unet = zoo.load(START).network.requires_grad_(True)
        config = CLIPVisionConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 32,
            image_size=IMAGE_SIZE,
            patch_size=self.patch,
            projection_dim=unet.config.cross_attention_dim,
        )
        image_encoder = CLIPVisionModelWithProjection(config)
        image_encoder.set_attn_implementation("eager")
        return VariationModel(write_out_attention(unet), image_encoder)

    def describe(self) -> dict:
        """What the card says, beside the schedule."""
        described = {name: value for name, value in asdict(self).items() if name != "schedule"}
        described |= {"start": f"{START}-{zoo.fingerprint(START)}", "autoencoder": _autoencoder()[1]}
        return described | {"loss": "eps, min-SNR-5, and the squared error of the embedding"}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded: images, their latents and the teacher's
        features, from the cache or computed now."""
        images = training_set(self.scenes)[0]
        latents = TEXT_MODELS[START].latents(device)[0][: self.scenes]
        wanted = self.features(images, device)
        alphas_cumprod = scheduler().alphas_cumprod
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weights = (snr.clamp_max(5) / snr).to(device)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        batch = self.schedule.batch

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, len(images), (batch,), generator=generator)
            flip = torch.rand(batch, generator=generator) < 0.5
            x = images[rows].float() / 255
            x = (torch.where(flip[:, None, None, None], x.flip(-1), x) - mean) / std
            x0, target = latents[rows, flip.long()].float(), wanted[rows, flip.long()].float()
            t = timesteps(batch, len(alphas_cumprod), generator)
            eps, jolt = torch.randn(x0.shape, generator=generator), torch.randn(target.shape, generator=generator)
            empty = torch.rand(batch, 1, generator=generator) < self.empty_share
            x, x0, target, t, eps, jolt, empty = (v.to(device) for v in (x, x0, target, t, eps, jolt, empty))
            embeddings = model.image_encoder(x).image_embeds.float()
            shown = (embeddings.detach() + self.noise * jolt).masked_fill(empty, 0.0)
            eps_hat = model(add_noise(x0, t, eps, alphas_cumprod), t, shown)
            return (weights[t] * eps_error(eps_hat.float(), eps)).mean() + F.mse_loss(embeddings, target)

        return loss_of

    def features(self, images: Tensor, device: str = "cpu") -> Tensor:
        """The teacher's image features (n, 2, D) float16 of images (n, 3, S, S) uint8, as they are and mirrored, scaled
        so that a dimension has a mean square of 1. Kept in the cache."""
        path = CACHE / "features" / f"{self.teacher.replace('/', '-')}-{zoo.fingerprint(self.teacher)}-{len(images)}"
        path = path.with_suffix(".safetensors")
        kept = read_tensors(path)
        if kept is None:
            teacher, parts = zoo.load(self.teacher, device=device), []
            with torch.no_grad(), autocast(device):
                for chunk in progress(images.split(200), desc="image features", unit="chunk"):
                    x = chunk.to(device).float() / 255
                    both = torch.stack([teacher.encode_images(x), teacher.encode_images(x.flip(-1))], 1)
                    parts.append((both.float() * both.shape[-1] ** 0.5).half().cpu())
            kept = {"features": torch.cat(parts)}
            atomic_write(path, lambda temporary: save_file(kept, temporary))
        return kept["features"]

    def save(self, model: VariationModel, folder: Path) -> None:
        """Write the pipeline in diffusers' own format, float16, with its autoencoder."""
        vae = AutoencoderKL.from_pretrained(_autoencoder()[0], torch_dtype=torch.float32)
        vae.register_to_config(_name_or_path=AUTOENCODER)  # else a path of this machine
        model.unet.register_to_config(_name_or_path=START)
        for part in (vae, model.unet, model.image_encoder):
            halved(part)
        side = dict(height=IMAGE_SIZE, width=IMAGE_SIZE)
        pipeline = StableDiffusionImageVariationPipeline(
            vae=vae,
            image_encoder=model.image_encoder,
            unet=model.unet,
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=CLIPImageProcessor(
                size=dict(shortest_edge=IMAGE_SIZE), crop_size=side, image_mean=list(MEAN), image_std=list(STD)
            ),
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
        model.float()

    def measure(self, model) -> dict:
        """See `of_variations`."""
        raise NotImplementedError


RECIPES = {
    "denoiser/variation": VariationRecipe(
        schedule=Schedule(1800, batch=64, lr=8e-4, warmup=100, flat=0.4, final=0.02, ema=0.998)
    )
}
