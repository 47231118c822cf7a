"""The map-conditioned diffusion model: a `UNet2DModel` that sees a class map or a depth map beside the noisy image.

The map is concatenated to the noisy input at the network's own resolution, as Diffusion-TTA does it for segmentation
and depth (Prabhudesai et al., 2023, section 4). No map, `cond=None`, is a map of zeros, seen in training too.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DModel
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from ..common.resize import resized
from ..common.types import Images, Index, Levels
from ..common.validate import check_map
from ..diffusion.process import to_eps
from ..world.maps import FAR, NEAR
from .denoiser import Denoiser, write_out_attention
from .latent_unet import LatentUNet
from .unet import PixelUNet


class MapUNet(Denoiser):
    """`UNet2DModel` of C image channels and K map channels in, C out (docs/methods/diffusion_tta.md).

    Args:
        network: with C + K channels in; K is 1 for depth, and the number of classes otherwise.
        alphas_cumprod: (T,) of its schedule.
        image_size: side of the task model's images.
        prediction_type: "epsilon", "v_prediction" or "sample".
        unshuffle: as of `PixelUNet`; the map has the resolution inside, half of the image's.
        vae: where the network works on its latents. The map is then seen at the pixels that these stand for, every
            n x n of them as one with n * n times K channels.

    Attributes:
        classes: K.

    Raises ValueError for a network whose channels do not fit."""

    def __init__(
        self,
        network: UNet2DModel,
        alphas_cumprod: Levels,
        image_size: int = 64,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
        unshuffle: bool = False,
        vae: AutoencoderKL | None = None,
    ):
        config, factor = network.config, 2 if unshuffle else 1
        fold = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        maps, left = divmod(config.in_channels - config.out_channels, fold**2)
        if maps < 1 or left or config.out_channels % factor**2:
            raise ValueError(
                f"a U-Net of {config.in_channels} channels in and {config.out_channels} out has no room for a map: "
                "it has to have a channel more for depth, or one more for each class"
            )
        side = config.sample_size * factor
        super().__init__(alphas_cumprod, maps, image_size, (config.out_channels // factor**2, side, side), precision)
        self.network, self.prediction_type, self.factor = network.eval(), prediction_type, factor
        self.vae, self.fold = vae, fold
        self.target = "depth" if maps == 1 else "classes"
        if precision == "bf16" and network.device.type == "cpu":
            write_out_attention(network)

    def restrict(self, classes: tuple[int, ...]) -> "MapUNet":
        """The same network with its own count: a map is always over all of its classes."""
        return self.sharing()

    def forward(self, x_t: Images, t: Index, cond: Float[Tensor, "B K h w"] | None = None) -> Images:
        """eps_hat (B, C, H, W) float32 for x_t (B, C, H, W), t (B,) int64 and a map of any height and width: class
        probabilities (B, K, h, w), or depth (B, 1, h, w) in metres; None for no map.

        Raises ValueError as `check_map`."""
        if cond is not None and not cond.is_meta:
            check_map(cond, len(x_t), self.classes)
        return self.evaluate(self.predict, x_t, t, cond)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        hidden = F.pixel_unshuffle(x_t, self.factor)
        if cond is None:
            seen = hidden.new_zeros(len(x_t), self.classes * self.fold**2, *hidden.shape[2:])
        else:
            seen = self.resample(cond)
        output = self.network(torch.cat([hidden, seen], 1), t, return_dict=False)[0].float()
        return to_eps(F.pixel_shuffle(output, self.factor), x_t, t, self.alphas_cumprod, self.prediction_type)

    def resample(self, maps: Float[Tensor, "B K h w"]) -> Float[Tensor, "B channels H W"]:
        """A map as the network sees it: areas averaged, so that probabilities stay probabilities; depth scaled."""
        seen = resized(maps, self.network.config.sample_size * self.fold)
        return F.pixel_unshuffle(scaled_depth(seen) if self.target == "depth" else seen, self.fold)

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """x0 (B, C, H, W) of task images: pixels as `PixelUNet`, or latents as `LatentUNet`."""
        return (PixelUNet if self.vae is None else LatentUNet).encode(self, images)

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        """Task images (B, 3, S, S) in [0, 1] of x0 (B, C, H, W)."""
        return (PixelUNet if self.vae is None else LatentUNet).decode(self, x0)


def one_hot_map(classes: UInt8[Tensor, "B h w"], K: int) -> Float[Tensor, "B K h w"]:
    """Probabilities (B, K, h, w) of a map of labels (B, h, w); where a label is not below K (void), all are equal."""
    known = classes < K
    p = F.one_hot(torch.where(known, classes, 0).long(), K).movedim(-1, 1).float()
    return torch.where(known[:, None], p, 1 / K)


def scaled_depth(depth: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Metres of any shape, cut to [NEAR, FAR], as numbers in [-1, 1]. The bounds are the same for every image: bounds
    per image would hide an error of scale."""
    return (depth.clamp(NEAR, FAR) - NEAR) / (FAR - NEAR) * 2 - 1


def at_map(target: str, maps: Shaped[Tensor, "B h w"], K: int) -> Float[Tensor, "B K h w"]:
    """The truth as a condition: of a map of labels (B, h, w) its `one_hot_map`, of depth (B, h, w) a channel more."""
    return maps[:, None].float() if target == "depth" else one_hot_map(maps, K)
