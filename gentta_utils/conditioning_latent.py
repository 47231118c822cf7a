"""The class-conditional diffusion model of the imagenet profile: DiT-XL/2 behind the VAE of Stable Diffusion."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from .arrays import Images, Levels
from .conditioning import PixelDiT


class LatentDiT(PixelDiT):
    """`DiTTransformer2DModel` on the latents of an `AutoencoderKL` (Peebles and Xie, 2023).

    Soft labels, schedule and the learned variance that is dropped are those of `PixelDiT`; what differs is the way from
    the task model's pixels to the network's input. The VAE computes in its own weights' precision, float32 from `zoo`:
    it runs once an image, the network hundreds of times.

    Args:
        network: class-conditional, C latent channels, on its device; its weights may be half precision, see `halve`.
        vae: C latent channels, a latent's side is that of the pixels / 2^(blocks - 1).
        image_size: side of the task model's images, 224.
        low_memory: compute each block again on the way back instead of keeping what is inside it, a third more time,
            and let the VAE take one image at a time.

    Raises ValueError if the VAE's latents are not what the network takes."""

    def __init__(
        self,
        network: DiTTransformer2DModel,
        vae: AutoencoderKL,
        alphas_cumprod: Levels,
        image_size: int = 224,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
        low_memory: bool = False,
    ):
        super().__init__(network, alphas_cumprod, image_size, prediction_type, precision)
        if vae.config.latent_channels != self.shape[0]:
            raise ValueError(f"the VAE has {vae.config.latent_channels} latent channels, the network {self.shape[0]}")
        self.vae = vae.eval()
        self.pixels = self.shape[-1] * 2 ** (len(vae.config.block_out_channels) - 1)  # 256
        if low_memory:
            network.enable_gradient_checkpointing()
            network.transformer_blocks[0].norm1.emb.keeps = False
            vae.enable_slicing()

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """Latents (B, C, H, W) of task images (B, 3, S, S): the same crop at 256 px in [-1, 1], the mean of the VAE's
        posterior (no draw), times its scaling factor (.18215)."""
        pixels = F.interpolate(images.to(self.vae.device), (self.pixels,) * 2, mode="bilinear", align_corners=False)
        mean = self.vae.encode((pixels * 2 - 1).to(self.vae.dtype)).latent_dist.mean
        return mean.float() * self.vae.config.scaling_factor

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        """Task images (B, 3, S, S) in [0, 1] of latents (B, C, H, W)."""
        pixels = self.vae.decode((x0 / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
        size = (self.image_size,) * 2
        shown = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        return (shown / 2 + 0.5).clamp(0, 1)


def halve(network: DiTTransformer2DModel, dtype: torch.dtype) -> DiTTransformer2DModel:
    """Weights in half precision, in place, for autocast: half the memory.

    Timestep MLP, label table and position embedding stay float32, because what the method reads are small differences
    between classes; they hold less than a hundredth of the weights."""
    nn.Module.to(network, dtype)  # diffusers' own `to` would warn of what follows
    network.pos_embed.float()
    for block in network.transformer_blocks:
        block.norm1.emb.float()
    return network
