"""The unconditional diffusion model: a `UNet2DModel` in pixel space, as ADM is one (Dhariwal and Nichol, 2021)."""

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from jaxtyping import Float
from torch import Tensor

from ..common.resize import resized
from ..common.types import Images, Index, Levels
from ..diffusion.process import to_eps
from .denoiser import Denoiser, write_out_attention


class PixelUNet(Denoiser):
    """`UNet2DModel` without a condition: `cond` has to be None (docs/methods/diffpure.md).

    Args:
        network: C channels in; C out, or 2C where it has learned its variance.
        alphas_cumprod: (T,) of its schedule.
        image_size: side of the task model's images.
        prediction_type: "epsilon", "v_prediction" or "sample".
        unshuffle: the network sees every 2 x 2 pixels as one with four times the channels. That is a permutation of the
            numbers, so white noise stays white, and x_t, eps and x0 outside are images of twice the side: a network of
            12 channels at 32 px denoises 64 px at a quarter of the cost.

    Raises ValueError for a network whose channels do not fit, or which has classes."""

    def __init__(
        self,
        network: UNet2DModel,
        alphas_cumprod: Levels,
        image_size: int = 64,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
        unshuffle: bool = False,
    ):
        config, factor = network.config, 2 if unshuffle else 1
        inside, outside = config.in_channels, config.out_channels
        if inside % factor**2 or outside not in (inside, 2 * inside):
            raise ValueError(f"a U-Net of {inside} channels in and {outside} out: it has to give as many, or twice")
        if network.class_embedding is not None:
            raise ValueError("this U-Net is conditioned on classes: PixelUNet takes an unconditional one")
        shape = (inside // factor**2, config.sample_size * factor, config.sample_size * factor)
        super().__init__(alphas_cumprod, 0, image_size, shape, precision)
        self.network, self.prediction_type, self.factor = network.eval(), prediction_type, factor
        self.learned_variance = outside == 2 * inside
        if precision == "bf16" and network.device.type == "cpu":
            write_out_attention(network)

    def restrict(self, classes: tuple[int, ...]) -> "PixelUNet":
        """The same network, which knows no classes, with its own count."""
        return self.sharing()

    def forward(self, x_t: Images, t: Index, cond: Tensor | None = None) -> Images:
        """eps_hat (B, C, H, W) float32 for x_t (B, C, H, W), t (B,) int64. Raises ValueError for a condition."""
        if cond is not None:
            raise ValueError("this diffusion model is unconditional: call it with cond=None")
        return super().forward(x_t, t)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return self._predict_both(x_t, t, cond)[:, : x_t.shape[1]]

    def _predict_both(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """Noise and, behind it, the channels of the learned variance, if any."""
        hidden = F.pixel_unshuffle(x_t, self.factor)
        outputs = self.network(hidden, t, return_dict=False)[0].float().split(hidden.shape[1], dim=1)
        mean, *variance = (F.pixel_shuffle(v, self.factor) for v in outputs)
        return torch.cat([to_eps(mean, x_t, t, self.alphas_cumprod, self.prediction_type), *variance], dim=1)

    def with_variance(self, x_t: Images, t: Index) -> tuple[Images, Images | None]:
        """eps_hat and v, both (B, C, H, W) float32, from one evaluation; v is None where no variance was learned.

        v says where between the two fixed variances of a step the learned one lies: `sampling.learned_variance`."""
        both = self.evaluate(self._predict_both, x_t, t, None)
        eps_hat, *v = both.split(x_t.shape[1], dim=1)
        return eps_hat, v[0] if v else None

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """x0 (B, 3, H, W) in [-1, 1]: area averages where the network is smaller than the image, else bilinear."""
        return resized(images.to(self.alphas_cumprod.device), self.shape[-1]) * 2 - 1

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        size = (self.image_size,) * 2
        shown = F.interpolate(x0, size, mode="bilinear", align_corners=False, antialias=x0.shape[-1] > size[0])
        return (shown / 2 + 0.5).clamp(0, 1)
