"""Stable Diffusion beside a ControlNet (Zhang et al., ICCV 2023): a text model that is also shown a map as a picture.

Two ways to tell it the classes of every pixel (docs/methods/maps.md):

    the map is the condition: it is shown as a picture, sum_k P_k(u) colour_k, and the text is empty
    DUSA's (Li et al., NeurIPS 2024): a prompt per class, the picture is black, predictions are mixed at each pixel
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from ..common.resize import resized
from ..common.types import Images, Index
from ..common.validate import check_map
from ..diffusion.process import to_eps
from .denoiser import Denoiser, write_out_attention
from .latent_unet import load_parts
from .map_unet import scaled_depth
from .text_unet import TextUNet, mixed_states

PROMPT = "a photo of a {}"  # of DUSA's public code


class ControlUNet(TextUNet):
    """U-Net and ControlNet of a pipeline; the condition is a map, until it is asked `for_prompts`.

    Args:
        pipeline: its parts are used as they are.
        palette: (K, 3) in [0, 1], the colours in which the ControlNet knows the classes; None where it is shown the K
            channels themselves, or depth.
        image_size: side of the task model's images.

    Attributes:
        target: "classes" or "depth", or "class" where the classes are prompts.
        side: of the picture that the ControlNet is shown.
    """

    def __init__(
        self,
        pipeline: StableDiffusionControlNetPipeline,
        palette: Float[Tensor, "K 3"] | None = None,
        image_size: int = 64,
        precision: str = "fp32",
        prompts: Sequence[str] = (),
    ):
        super().__init__(pipeline, prompts or [""], image_size, precision)
        self.controlnet = pipeline.controlnet.eval()
        config = self.controlnet.config
        self.register_buffer("palette", palette, persistent=False)
        self.side = self.shape[-1] * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
        if prompts:
            self.target = "class"
        else:
            self.classes = self.all_classes = config.conditioning_channels if palette is None else len(palette)
            self.target = "depth" if self.classes == 1 else "classes"
        if precision == "bf16" and self.network.device.type == "cpu":
            write_out_attention(self.controlnet)

    def for_prompts(self, prompts: Sequence[str]) -> "ControlUNet":
        """The same networks, not a copy, whose classes are these prompts, beside a black picture; it counts its own
        evaluations.

        Raises ValueError without a prompt."""
        if not prompts:
            raise ValueError("a text model needs at least one prompt: give one per class")
        other = ControlUNet(self.pipeline, self.palette, self.image_size, self.precision, prompts)
        return other.to(self.alphas_cumprod.device)

    def restrict(self, classes: tuple[int, ...]) -> Denoiser:
        """Prompts as of any denoiser. A map is always over all of its classes: the same with its own count."""
        return super().restrict(classes) if self.target == "class" else self.sharing()

    def forward(self, x_t: Images, t: Index, cond: Tensor | None = None) -> Images:
        """eps_hat (B, C, H, W) float32 for x_t (B, C, H, W), t (B,) int64 and a map as `MapUNet` takes it, or p (B, K)
        over prompts; None is a black picture and no text.

        Raises ValueError as `check_map`, or unless the rows of p are probabilities."""
        if self.target == "class":
            return super().forward(x_t, t, cond)
        if cond is not None and not cond.is_meta:
            check_map(cond, len(x_t), self.classes)
        return self.evaluate(self.predict, x_t, t, cond)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        states, picture = self.null.expand(len(x_t), -1, -1), None
        if cond is not None:
            with torch.autocast("cpu" if cond.is_meta else cond.device.type, enabled=False):  # bf16 would round p
                if self.target == "class":
                    states = mixed_states(cond.float(), self.states)
                else:
                    picture = self.paint(cond.float())
        if picture is None:
            picture = x_t.new_zeros(len(x_t), self.controlnet.config.conditioning_channels, self.side, self.side)
        output = beside(self.network, self.controlnet, x_t, t, states, picture)
        return to_eps(output.float(), x_t, t, self.alphas_cumprod, self.prediction_type)

    def paint(self, maps: Float[Tensor, "B K h w"]) -> Float[Tensor, "B channels side side"]:
        """The picture of a map: mixed colours where it is not sure; without a palette its channels, or scaled depth."""
        if self.target == "depth":
            return scaled_depth(resized(maps, self.side))
        colours = maps if self.palette is None else torch.einsum("bkhw,kc->bchw", maps, self.palette)
        return resized(colours, self.side)


def beside(
    unet: UNet2DConditionModel, controlnet: ControlNetModel, x_t: Tensor, t: Tensor, states: Tensor, picture: Tensor
) -> Tensor:
    """The U-Net's output (B, C, H, W) with what the ControlNet adds, which sees the same x_t (B, C, H, W), t (B,) and
    states (B, L, D), and a picture (B, channels, side, side)."""
    added, middle = controlnet(x_t, t, states, picture, return_dict=False)
    residuals = dict(down_block_additional_residuals=added, mid_block_additional_residual=middle)
    return unet(x_t, t, states, return_dict=False, **residuals)[0]


def load_controlnet(where: str | Path, local_files_only: bool = True, **how) -> ControlNetModel:
    """The `ControlNetModel` in a folder or repository, float32."""
    return ControlNetModel.from_pretrained(where, torch_dtype=torch.float32, local_files_only=local_files_only, **how)


def load_control_pipeline(where: str | Path, controlnet: ControlNetModel, local_files_only: bool = True):
    """The parts of Stable Diffusion in a folder or repository beside this ControlNet, float32, silent and without its
    filter of images."""
    parts = dict(feature_extractor=None, controlnet=controlnet)
    return load_parts(StableDiffusionControlNetPipeline, where, torch.float32, local_files_only, **parts)
