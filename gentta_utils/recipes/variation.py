"""The image-variation model of the scenes: a `StableDiffusionImageVariationPipeline` on the latents of our autoencoder.

As the published one (Pinkney, 2022) it is a text-conditional U-Net that goes on learning with one token in place of
the prompt's: the embedding of the image itself. What that embedding leaves out, a variation draws from scratch. It is
made in three stages. In the first a small `CLIPVisionModelWithProjection` learns to repeat the image features of a
shipped CLIP, and the U-Net, which begins as that of `denoiser/text`, reads what the tower says so far; in the second
only the U-Net learns, in the third only the tower, whose features are then near enough to the CLIP's to tell shapes
apart. A tenth of the embeddings is zero, which is what the library's pipeline guides away from; the others get a little
noise, so that the U-Net does not lean on their last digit.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionImageVariationPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..common.devices import autocast
from ..common.files import atomic_write, read_tensors, sha256
from ..common.paths import CACHE, MODELS
from ..common.progress import progress
from ..common.randomness import generator
from ..diffusion.process import add_noise, eps_error
from ..evaluation.spread import diversity, fidelity
from ..methods.variations import CHOSEN, evaluations, variations
from ..models import zoo
from ..models.denoiser import write_out_attention
from ..models.variation_unet import VariationUNet
from ..models.zoo import IMAGE_SIZE
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.views import low_pass
from ..world.words import LABEL_SETS
from .classifiers import MEAN, STD
from .data import training_set
from .dit import timesteps
from .quality import accuracy
from .text_model import AUTOENCODER, _autoencoder, scheduler
from .text_model import RECIPES as TEXT_MODELS
from .training import Schedule, halved

TEXT = "denoiser/text"  # whose U-Net goes on learning
JUDGES = ("classifier/resnet-3000", "classifier/mae")  # no CLIP, and nothing that the model was made from
FEATURES = "clip/large"  # of which spread is measured
ASKED = ("category", "colour", "floor", "wall", "size", "pose")  # what that CLIP reads in a variation too
AREAS = (1.0, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12, 0.08)  # of crops, as shares of the image


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
    """The pipeline: width, depth and patch of the image tower, whose features it repeats, how long it trains.

    `start` is what it begins as: of a text model the U-Net, of an earlier stage all; `trains` says what learns."""

    schedule: Schedule
    start: str = TEXT
    trains: Literal["both", "unet", "tower"] = "both"
    width: int = 96
    layers: int = 4
    patch: int = 8
    teacher: str = "clip/small"
    scenes: int = 60_000
    empty_share: float = 0.1
    noise: float = 0.2  # std of the noise on embeddings, whose own is 1 in each dimension

    def build(self) -> VariationModel:
        torch.manual_seed(0)
        begun = zoo.load(self.start, folder=_folder(self.start))
        unet = write_out_attention(begun.network).requires_grad_(self.trains != "tower")
        if isinstance(begun, VariationUNet):
            return VariationModel(unet, begun.image_encoder.requires_grad_(self.trains != "unet"))
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
        return VariationModel(unet, image_encoder)

    def describe(self) -> dict:
        """What the card says, beside the schedule."""
        described = {name: value for name, value in asdict(self).items() if name not in ("schedule", "trains")}
        folder = _folder(self.start)
        weights = folder / self.start / "unet" / "diffusion_pytorch_model.safetensors"
        mark = zoo.fingerprint(self.start) if folder == MODELS else sha256(weights)[:12]
        described |= {"start": f"{self.start}-{mark}", "autoencoder": _autoencoder()[1]}
        losses = {"unet": "eps, min-SNR-5", "tower": "the squared error of the embedding"}
        return described | {"loss": losses.get(self.trains, ", and ".join(losses.values()))}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded: images, their latents and the teacher's
        features, from the cache or computed now."""
        images = training_set(self.scenes)[0]
        latents = TEXT_MODELS[TEXT].latents(device)[0][: self.scenes]
        wanted = self.features(images, device)
        alphas_cumprod = scheduler().alphas_cumprod
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weights = (snr.clamp_max(5) / snr).to(device)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        batch = self.schedule.batch

        def loss_of(model: nn.Module, rng: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, len(images), (batch,), generator=rng)
            flip = torch.rand(batch, generator=rng) < 0.5
            x = images[rows].float() / 255
            x = (torch.where(flip[:, None, None, None], x.flip(-1), x) - mean) / std
            x0, target = latents[rows, flip.long()].float(), wanted[rows, flip.long()].float()
            t = timesteps(batch, len(alphas_cumprod), rng)
            eps, jolt = torch.randn(x0.shape, generator=rng), torch.randn(target.shape, generator=rng)
            empty = torch.rand(batch, 1, generator=rng) < self.empty_share
            x, x0, target, t, eps, jolt, empty = (v.to(device) for v in (x, x0, target, t, eps, jolt, empty))
            embeddings = model.image_encoder(x).image_embeds.float()
            if self.trains == "tower":
                return F.mse_loss(embeddings, target)
            shown = (embeddings.detach() + self.noise * jolt).masked_fill(empty, 0.0)
            eps_hat = model(add_noise(x0, t, eps, alphas_cumprod), t, shown)
            loss = (weights[t] * eps_error(eps_hat.float(), eps)).mean()
            return loss + F.mse_loss(embeddings, target) if self.trains == "both" else loss

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
        model.unet.register_to_config(_name_or_path=self.start)
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

    def measure(self, model: VariationUNet) -> dict:
        """How near its embeddings are to the teacher's features; of the last stage `of_variations` too."""
        return of_tower(model, self.teacher) | (of_variations(model) if self.trains == "tower" else {})


def _folder(name: str) -> Path:
    """Where the folder of a model lies: a finished candidate before the shipped one.

    Raises FileNotFoundError where there is none."""
    for folder in (MODELS / "candidates", MODELS):
        if (folder / name / "card.json").is_file():
            return folder
    raise FileNotFoundError(f"the image-variation model needs another first: run `python -m gentta_utils train {name}`")


RECIPES = {
    "denoiser/variation-start": VariationRecipe(
        Schedule(1800, batch=64, lr=8e-4, warmup=100, flat=0.4, final=0.02, ema=0.998)
    ),
    "denoiser/variation-unet": VariationRecipe(
        Schedule(4000, batch=32, lr=5e-4, warmup=100, flat=0.5, final=0.02, ema=0.9995),
        start="denoiser/variation-start",
        trains="unet",
    ),
    "denoiser/variation": VariationRecipe(
        Schedule(3000, batch=128, lr=1e-3, warmup=100, flat=0.3, final=0.02, ema=0.998),
        start="denoiser/variation-unet",
        trains="tower",
    ),
}


@torch.no_grad()
def of_tower(model: VariationUNet, teacher: str, n: int = 200) -> dict:
    """On clean selection scenes the mean cosine of its embeddings to the teacher's features, and the accuracy (percent)
    of both with the teacher's text features for each label set of `ASKED`: [tower, teacher]."""
    clip, images = zoo.load(teacher), stream(SceneSpec(n, split="select", start=1000)).images
    both = F.normalize(model.embed(images), dim=-1), clip.encode_images(images)
    out = {"cosine": round(float(F.cosine_similarity(*both).mean()), 3)}
    for name in ASKED:
        labels, asked = stream(SceneSpec(n, split="select", start=1000, labels=name)).labels, LABEL_SETS[name]
        texts = clip.class_features(asked.classes, asked.templates[:1])
        out[name] = [accuracy(features @ texts.T, labels) for features in both]
    return {"tower": out}


@torch.no_grad()
def of_variations(model: VariationUNet, n: int = 200, few: int = 25, each: int = 8) -> dict:
    """What variations of clean selection scenes keep, and how far they lie apart.

    "keeps": accuracy (percent) of each judge on n scenes, on their low view, and on one variation of each. "reads":
    that of a CLIP, zero-shot, for several label sets, on scenes and variations. "spread": of `each` views of `few`
    scenes, the mean cosine of their features to the image's and their mean distance from each other; and of crops,
    flipped in half of the cases, the distance at the same cosine (between the two areas on either side of it)."""
    s = stream(SceneSpec(n, split="select", start=1000))
    one = variations(s.images, 1, "variation", model, s.ids)[:, 0]
    shown = {"scenes": s.images, "low view": low_pass(s.images), "variations": one}
    out = {"settings": asdict(CHOSEN["variation"]), "evaluations": evaluations("variation"), "keeps": {}, "reads": {}}
    for name in JUDGES:
        judge = zoo.load(name)
        out["keeps"][name] = {kind: accuracy(judge(images), s.labels) for kind, images in shown.items()}
    clip = zoo.load(FEATURES)
    for name in ASKED:
        asked = LABEL_SETS[name]
        labels = stream(SceneSpec(n, split="select", start=1000, labels=name)).labels
        reads = clip.zero_shot(asked.classes, asked.templates[:1])
        out["reads"][name] = [accuracy(reads(images), labels) for images in (s.images, one)]
    images, ids = s.images[:few], s.ids[:few]
    found = {f"{area:g}": spread_of(clip, images, crops(images, ids, each, area)) for area in AREAS}
    near, apart = spread_of(clip, images, variations(images, each, "variation", model, ids))
    alike = {"variations": [near, apart], "crops at this cosine": at_cosine(near, found), "crops": found}
    return out | {"spread": alike}


def crops(images: Tensor, ids: Tensor, n: int, area: float) -> Tensor:
    """n square crops (B, n, 3, S, S) of a share `area` of each image (B, 3, S, S), half of them flipped, enlarged."""
    side, out = images.shape[-1], []
    length = max(1, round(side * area**0.5))
    for image, i in zip(images, ids.tolist(), strict=True):
        for j in range(n):
            draw = generator(0, i, f"crop/{j}")
            y, x = torch.randint(0, side - length + 1, (2,), generator=draw).tolist()
            part = image[None, :, y : y + length, x : x + length]
            part = part.flip(-1) if torch.rand((), generator=draw) < 0.5 else part
            out.append(F.interpolate(part, (side, side), mode="bilinear", align_corners=False))
    return torch.cat(out).unflatten(0, (len(images), n))


def spread_of(clip: nn.Module, images: Tensor, views: Tensor) -> list[float]:
    """Mean cosine of the views (B, n, 3, S, S) to their images, and their mean distance from each other."""
    features = clip.encode_images(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    near, apart = fidelity(features, clip.encode_images(images)), diversity(features)
    return [round(float(near.mean()), 3), round(float(apart.mean()), 3)]


def at_cosine(cosine: float, found: dict[str, list[float]]) -> float | None:
    """The distance at a cosine, linear between the two of `found` around it; None outside of them."""
    points = sorted(found.values())
    for (c0, d0), (c1, d1) in zip(points, points[1:], strict=False):
        if c0 <= cosine <= c1:
            return round(d0 + (d1 - d0) * (cosine - c0) / max(c1 - c0, 1e-9), 3)
    return None
