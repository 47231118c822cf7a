"""What the pipelines of Stable Diffusion share: a `UNet2DConditionModel` on the latents of an `AutoencoderKL`, which is
told a sequence of vectors by cross-attention."""

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..common.types import Images
from ..diffusion.process import to_eps
from .denoiser import Denoiser, write_out_attention


class LatentUNet(Denoiser):
    """U-Net, autoencoder and schedule of a pipeline, which are used as they are.

    Args:
        pipeline: `unet`, `vae` and `scheduler`.
        classes: the width of the condition, 0 where it is not over classes.
        image_size: side of the task model's images.

    Attributes:
        pipeline: of the same parts, for its samples.
    """

    def __init__(self, pipeline: DiffusionPipeline, classes: int, image_size: int, precision: str):
        network = pipeline.unet
        side = network.config.sample_size
        alphas_cumprod = pipeline.scheduler.alphas_cumprod
        super().__init__(alphas_cumprod, classes, image_size, (network.config.in_channels, side, side), precision)
        self.pipeline = pipeline
        self.network, self.vae = network.eval(), pipeline.vae.eval()
        self.prediction_type = pipeline.scheduler.config.prediction_type
        if precision == "bf16" and network.device.type == "cpu":
            write_out_attention(network)

    def predict_from(self, x_t: Tensor, t: Tensor, states: Float[Tensor, "B L D"]) -> Tensor:
        """The noise in latents x_t (B, C, H, W) at t (B,), told these states."""
        output = self.network(x_t, t, states, return_dict=False)[0]
        return to_eps(output.float(), x_t, t, self.alphas_cumprod, self.prediction_type)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """Latents (B, C, H, W) of task images: the mean of the posterior, no draw, times the scaling factor.

        The whole image as pixels in [-1, 1] of the side that the latents stand for: areas averaged where that is
        smaller, bilinear where it is larger (224 to 512 for the published weights)."""
        side = self.shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
        how = dict(mode="area") if side <= images.shape[-1] else dict(mode="bilinear", align_corners=False)
        pixels = F.interpolate(images.to(self.alphas_cumprod.device), (side,) * 2, **how) * 2 - 1
        return self.vae.encode(pixels).latent_dist.mean.float() * self.vae.config.scaling_factor

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        """Task images (B, 3, S, S) in [0, 1] of latents (B, C, H, W)."""
        pixels = self.vae.decode(x0 / self.vae.config.scaling_factor).sample.float() / 2 + 0.5
        smaller = self.image_size < pixels.shape[-1]
        size = (self.image_size,) * 2
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=smaller).clamp(0, 1)


def load_parts(kind: type[DiffusionPipeline], where, dtype: torch.dtype, local_files_only: bool, **left_out):
    """The pipeline of this class in a folder or repository, silent; `left_out` are arguments of `from_pretrained`."""
    from diffusers.utils import logging
    from transformers.utils import logging as more_logging

    logging.disable_progress_bar()
    more_logging.disable_progress_bar()
    how = dict(dtype=dtype, local_files_only=local_files_only, requires_safety_checker=False)
    pipeline = kind.from_pretrained(where, safety_checker=None, **how, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
