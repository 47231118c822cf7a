"""The text-conditional diffusion model: a `StableDiffusionPipeline` behind `eps_hat = denoiser(x_t, t, p)`.

The classes are prompts. Their token states are computed once; p mixes them token by token in one matrix product, since
a broadcast product would hold K sequences for each image (docs/methods/clip_and_text.md).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..common.types import Images
from ..diffusion.process import to_eps
from .denoiser import Denoiser, write_out_attention


class TextUNet(Denoiser):
    """`UNet2DConditionModel` on the latents of an `AutoencoderKL`, conditioned on the states of prompts.

    Args:
        pipeline: its parts are used as they are: tokenizer, text encoder, U-Net, autoencoder, schedule.
        prompts: one per class; more by `for_prompts`.
        image_size: side of the task model's images.

    Attributes:
        pipeline: of the same parts, for its samples.
        states: (K, L, D) float32, the last hidden states of the prompts.
        null: (1, L, D), of the empty prompt: the unconditional prediction.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, prompts: Sequence[str], image_size: int = 64, precision: str = "fp32"
    ):
        network = pipeline.unet
        side = network.config.sample_size
        alphas_cumprod = pipeline.scheduler.alphas_cumprod
        super().__init__(alphas_cumprod, len(prompts), image_size, (network.config.in_channels, side, side), precision)
        self.pipeline = pipeline
        self.network, self.vae, self.text_encoder = network.eval(), pipeline.vae.eval(), pipeline.text_encoder.eval()
        self.tokenizer, self.prediction_type = pipeline.tokenizer, pipeline.scheduler.config.prediction_type
        if precision == "bf16" and network.device.type == "cpu":
            write_out_attention(network)
        self.register_buffer("null", self.states_of([""]), persistent=False)
        self.register_buffer("states", self.states_of(prompts), persistent=False)

    @torch.no_grad()
    def states_of(self, prompts: Sequence[str]) -> Float[Tensor, "K L D"]:
        """Last hidden states (K, L, D) of prompts, padded to the tokenizer's length as the pipeline pads them."""
        device = self.text_encoder.device
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(tokens.to(device))[0].float()

    def for_prompts(self, prompts: Sequence[str]) -> "TextUNet":
        """The same networks, not a copy, whose classes are these prompts; it counts its own evaluations.

        Raises ValueError without a prompt."""
        if not prompts:
            raise ValueError("a text model needs at least one prompt: give one per class")
        other = TextUNet(self.pipeline, prompts, self.image_size, self.precision)  # the pipeline's parts are shared
        return other.to(self.alphas_cumprod.device)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if cond is None:
            states = self.null.expand(len(x_t), -1, -1)
        else:
            with torch.autocast("cpu" if cond.is_meta else cond.device.type, enabled=False):  # bf16 would round p
                states = (cond.float() @ self.states.flatten(1)).unflatten(1, self.states.shape[1:])
        output = self.network(x_t, t, states, return_dict=False)[0]
        return to_eps(output.float(), x_t, t, self.alphas_cumprod, self.prediction_type)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """Latents (B, C, H, W) of task images: the mean of the posterior, no draw, times the scaling factor."""
        size = (self.vae.config.sample_size,) * 2
        pixels = F.interpolate(images.to(self.alphas_cumprod.device), size, mode="area") * 2 - 1
        return self.vae.encode(pixels).latent_dist.mean.float() * self.vae.config.scaling_factor

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        pixels = self.vae.decode(x0 / self.vae.config.scaling_factor).sample.float() / 2 + 0.5
        return F.interpolate(pixels, (self.image_size,) * 2, mode="bilinear", align_corners=False).clamp(0, 1)
