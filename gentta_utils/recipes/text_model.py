"""The text-conditional diffusion model of the scenes: a `StableDiffusionPipeline` on the latents of our autoencoder.

U-Net and text encoder are trained together, on captions that leave much unsaid and never say what is to stay unseen
(`words.choose`); a tenth of them is empty. Loss as of the class-conditional DiT: eps with min-SNR-5 weights,
timesteps stratified. Latents of each scene and of its mirror image are computed once and kept in the cache.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils.logging import disable_progress_bar

from ..common.files import atomic_write, read_tensors, sha256
from ..common.paths import CACHE, MODELS
from ..common.progress import progress
from ..diffusion.error_table import error_table
from ..diffusion.process import add_noise, eps_error
from ..models.denoiser import write_out_attention
from ..models.text_unet import TextUNet
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.severities import VALIDATION
from ..world.words import LABEL_SETS, captions, choose, is_unseen, mirrored
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import encode
from .data import crowded_set, facts_of, training_set
from .dit import timesteps
from .quality import accuracy
from .tokenizer import BEGIN, CONTEXT, END, tokenizer
from .training import Schedule, halved

AUTOENCODER = "autoencoder/f4"
EMPTY_SHARE = 0.1
SHARES = {  # of the scenes on which a label set is measured: the more classes, the more a scene costs
    "category": 1.0, "colour": 1.0, "floor": 1.0, "wall": 0.25, "material": 0.25, "count": 0.25, "pose": 0.25,
    "size": 0.25, "colour_category": 0.25, "material_colour": 0.25,
}  # fmt: skip


class TextModel(nn.Module):
    """U-Net and text encoder as one module, so that one run trains both."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """eps_hat (B, C, H, W) of latents x_t (B, C, H, W), t (B,) and tokens (B, L)."""
        return self.unet(x_t, t, self.text_encoder(tokens)[0], return_dict=False)[0]


@dataclass(frozen=True)
class TextRecipe:
    """The pipeline: widths of the U-Net's levels, width and depth of the text encoder, how long it trains."""

    widths: tuple[int, ...]
    text_width: int
    text_layers: int
    schedule: Schedule
    layers: int = 1  # residual blocks per level
    scenes: int = 60_000
    crowded: int = 6_000
    crowded_share: float = 0.1  # of a batch
    all_said: float = 0.3  # share of captions that say all they may

    def build(self) -> TextModel:
        torch.manual_seed(0)
        autoencoder, n = AUTOENCODERS[AUTOENCODER], len(self.widths)
        side = autoencoder.pixels // 2 ** (len(autoencoder.widths) - 1)
        unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=autoencoder.latent,
            out_channels=autoencoder.latent,
            down_block_types=("CrossAttnDownBlock2D",) * n,
            up_block_types=("CrossAttnUpBlock2D",) * n,
            block_out_channels=self.widths,
            layers_per_block=self.layers,
            cross_attention_dim=self.text_width,
            attention_head_dim=4,  # the number of heads, whatever its name says
            norm_num_groups=16,
        )
        words = tokenizer()
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=words.convert_tokens_to_ids(BEGIN),
            eos_token_id=words.convert_tokens_to_ids(END),
            pad_token_id=words.convert_tokens_to_ids(END),
        )
        text_encoder = CLIPTextModel(config)
        text_encoder.set_attn_implementation("eager")
        return TextModel(write_out_attention(unet), text_encoder)

    def describe(self) -> dict:
        """What the card says, beside the schedule."""
        described = {name: value for name, value in asdict(self).items() if name != "schedule"}
        return described | {"loss": "eps, min-SNR-5", "empty_share": EMPTY_SHARE, "autoencoder": _autoencoder()[1]}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded: latents, from the cache or encoded now."""
        latents, facts = self.latents(device)
        words, alphas_cumprod = tokenizer(), scheduler().alphas_cumprod
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weights = (snr.clamp_max(5) / snr).to(device)
        batch, single = self.schedule.batch, self.scenes
        crowd = round(self.crowded_share * batch)

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, single, (batch - crowd,), generator=generator)
            others = single + torch.randint(0, len(facts) - single, (crowd,), generator=generator)
            rows, flip = torch.cat([rows, others]), torch.rand(batch, generator=generator) < 0.5
            x0 = latents[rows, flip.long()].float()
            texts = captions(choose(mirrored(facts[rows], flip), generator, self.all_said), generator)
            empty = torch.rand(batch, generator=generator) < EMPTY_SHARE
            texts = ["" if e else text for e, text in zip(empty.tolist(), texts, strict=True)]
            tokens = words(texts, padding="max_length", return_tensors="pt").input_ids
            order = torch.randperm(batch, generator=generator)  # else scenes of several objects had the high levels
            t = timesteps(batch, len(alphas_cumprod), generator)[order]
            eps = torch.randn(x0.shape, generator=generator)
            x0, t, eps, tokens = x0.to(device), t.to(device), eps.to(device), tokens.to(device)
            eps_hat = model(add_noise(x0, t, eps, alphas_cumprod), t, tokens)
            return (weights[t] * eps_error(eps_hat.float(), eps)).mean()

        return loss_of

    def latents(self, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Scaled latents (n, 2, C, h, w) float16 of all scenes, as they are and mirrored, and attributes (n, A)."""
        folder, checksum = _autoencoder()
        more, more_facts = crowded_set(self.crowded)
        facts = torch.cat([facts_of(self.scenes), more_facts])
        path = CACHE / "latents" / f"{checksum}-{self.scenes}-{self.crowded}.safetensors"
        kept = read_tensors(path)
        if kept is None:
            model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
            images = torch.cat([training_set(self.scenes)[0], more])
            parts = []
            for chunk in progress(images.split(200), desc="latents", unit="chunk"):
                x = chunk.to(device).float() / 255
                both = torch.stack([encode(model, x), encode(model, x.flip(-1))], 1)
                parts.append(both.half().cpu())
            kept = {"latents": torch.cat(parts)}
            atomic_write(path, lambda temporary: save_file(kept, temporary))
        return kept["latents"], facts

    def save(self, model: TextModel, folder: Path) -> None:
        """Write the pipeline in diffusers' own format, float16, with its autoencoder."""
        disable_progress_bar()
        vae = AutoencoderKL.from_pretrained(_autoencoder()[0], torch_dtype=torch.float32)
        vae.register_to_config(_name_or_path=AUTOENCODER)  # else a path of this machine
        for part in (vae, model.unet, model.text_encoder):
            halved(part)
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=model.text_encoder,
            tokenizer=tokenizer(),
            unet=model.unet,
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
        model.float()

    def measure(self, model: TextUNet) -> dict:
        """See `of_text_model`."""
        return of_text_model(model)


def scheduler() -> DDIMScheduler:
    """The schedule of Stable Diffusion 1.x, in the library's own format."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def _autoencoder() -> tuple[Path, str]:
    """The folder of the autoencoder, a finished candidate before the shipped one, and 12 digits of its checksum.

    Raises FileNotFoundError where there is none."""
    for folder in (MODELS / "candidates" / AUTOENCODER, MODELS / AUTOENCODER):
        if (folder / "card.json").is_file():
            return folder, sha256(folder / "diffusion_pytorch_model.safetensors")[:12]
    raise FileNotFoundError(
        f"the text model needs the autoencoder first: run `python -m gentta_utils train {AUTOENCODER}`"
    )


RECIPES = {
    "denoiser/text": TextRecipe(
        widths=(96, 96),
        text_width=96,
        text_layers=3,
        schedule=Schedule(20_000, batch=64, lr=1e-3, warmup=300, flat=0.5, final=0.02, ema=0.9995),
    )
}


@torch.no_grad()
def of_text_model(
    model: TextUNet, n: int = 200, pairs: int = 48, window: tuple[int, int] = (150, 850), start: int = 1000
) -> dict:
    """Accuracy (percent) as a Diffusion Classifier over each label set's prompts, on clean selection scenes, and over
    those of "category" under the validation corruptions at severity 5, n / 4 scenes each.

    Prompts are worded as training captions are. SHARES says on how many of the n scenes each label set is measured.
    "_seen" and "_unseen" are the scenes whose class training captions name or not."""
    out = {"pairs": pairs, "window": list(window)}
    for name, share in SHARES.items():
        asked = LABEL_SETS[name]
        template = next(t for t in asked.templates if not is_unseen(t.format("x")))
        over = model.for_prompts([template.format(c) for c in asked.classes])
        s = stream(SceneSpec(max(1, round(share * n)), split="select", start=start, labels=name))
        scores = -error_table(over, s.images, s.ids, pairs, window).scores()
        out[name] = accuracy(scores, s.labels)
        known = torch.tensor(asked.seen)[s.labels]
        if 0 < known.sum() < len(known):
            out[f"{name}_seen"] = accuracy(scores[known], s.labels[known])
            out[f"{name}_unseen"] = accuracy(scores[~known], s.labels[~known])
    over = model.for_prompts(LABEL_SETS["category"].prompts())
    for name in VALIDATION:
        s = stream(SceneSpec(n // 4, name, 5, "select", start))
        out[f"category_{name}_5"] = accuracy(-error_table(over, s.images, s.ids, pairs, window).scores(), s.labels)
    return out
