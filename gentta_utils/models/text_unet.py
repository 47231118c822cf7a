"""The text-conditional diffusion model: a `StableDiffusionPipeline` behind `eps_hat = denoiser(x_t, t, p)`.

The classes are prompts. Their token states are computed once; p mixes them token by token in one matrix product, since
a broadcast product would hold K sequences for each image (docs/methods/clip_and_text.md).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from .latent_unet import LatentUNet, load_parts

PROMPTS_AT_ONCE = 128  # the text encoder holds 16 MB a prompt for its longest layers in the published size


class TextUNet(LatentUNet):
    """`UNet2DConditionModel` on the latents of an `AutoencoderKL`, conditioned on the states of prompts.

    Args:
        pipeline: its parts are used as they are: tokenizer, text encoder, U-Net, autoencoder, schedule.
        prompts: one per class; more by `for_prompts`.
        image_size: side of the task model's images.

    Attributes:
        pipeline: of the same parts, for its samples.
        states: (K, L, D) float32, the last hidden states of the prompts.
        wordings: M, of `for_wordings`; 1 elsewhere.
        null: (1, L, D), of the empty prompt: the unconditional prediction.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline | StableDiffusionControlNetPipeline,
        prompts: Sequence[str],
        image_size: int = 64,
        precision: str = "fp32",
    ):
        super().__init__(pipeline, len(prompts), image_size, precision)
        self.text_encoder, self.tokenizer = pipeline.text_encoder.eval(), pipeline.tokenizer
        self.register_buffer("null", self.states_of([""]), persistent=False)
        self.register_buffer("states", self.states_of(prompts), persistent=False)

    @torch.no_grad()
    def states_of(self, prompts: Sequence[str]) -> Float[Tensor, "K L D"]:
        """Last hidden states (K, L, D) of prompts, padded to the tokenizer's length as the pipeline pads them."""
        device = self.text_encoder.device
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return torch.cat([self.text_encoder(some.to(device))[0].float() for some in tokens.split(PROMPTS_AT_ONCE)])

    def for_prompts(self, prompts: Sequence[str]) -> "TextUNet":
        """The same networks, not a copy, whose classes are these prompts; it counts its own evaluations.

        Raises ValueError without a prompt."""
        if not prompts:
            raise ValueError("a text model needs at least one prompt: give one per class")
        other = TextUNet(self.pipeline, prompts, self.image_size, self.precision)  # the pipeline's parts are shared
        return other.to(self.alphas_cumprod.device)

    def for_wordings(self, wordings: Sequence[Sequence[str]]) -> "TextUNet":
        """The same for M wordings of K prompts each: M * K classes in blocks of K, wording m in rows m * K to
        m * K + K - 1.

        Raises ValueError unless there is a wording, and each has as many prompts, at least one."""
        if not wordings or len({len(prompts) for prompts in wordings}) > 1:
            raise ValueError("wordings are lists of as many prompts each, one per class")
        other = self.for_prompts([prompt for prompts in wordings for prompt in prompts])
        other.wordings = len(wordings)
        return other

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if cond is None:
            states = self.null.expand(len(x_t), -1, -1)
        else:
            with torch.autocast("cpu" if cond.is_meta else cond.device.type, enabled=False):  # bf16 would round p
                states = mixed_states(cond.float(), self.states)
        return self.predict_from(x_t, t, states)


def load_pipeline(where: str | Path, dtype: torch.dtype = torch.float32, local_files_only: bool = True):
    """The `StableDiffusionPipeline` in a folder or repository, silent and without its filter of images: what `zoo.load`
    wraps, for those who want its samples."""
    return load_parts(StableDiffusionPipeline, where, dtype, local_files_only, feature_extractor=None)


def halve_layers(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights of a U-Net's linear layers and convolutions in half precision, in place, for autocast: half the memory.

    The timestep embedding and all norms stay float32; they hold a hundredth of the weights."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    network.time_embedding.float()
    return network


def mixed_states(p: Float[Tensor, "B K"], states: Float[Tensor, "K L D"]) -> Float[Tensor, "B L D"]:
    """c = sum_k p_k E_k token by token, (B, L, D), of p (B, K) and the states of K prompts (K, L, D)."""
    return (p @ states.flatten(1)).unflatten(1, states.shape[1:])
