"""OpenAI's unconditional ADM for 256 px (Dhariwal and Nichol, 2021) as a diffusers `UNet2DModel`.

The checkpoint of the original code has names and shapes of its own; `convert` gives the same function in the library's
format. `UNet2DModel` can express every detail of it: cosines before sines in the timestep embedding without a shift of
frequencies, scale and shift from the embedding after the second norm of a block, residual blocks that average 2 x 2
pixels or repeat them before the first convolution and on the shortcut, attention in heads of one width with a norm of
its own also in the middle, norms of 32 groups with epsilon 1e-5. Levels without attention have to be `Resnet...` blocks
of the library: its `DownBlock2D` ignores `downsample_type` and goes down by a plain convolution.

What it cannot express, or this function does not need, is refused: classes, convolutions without a residual block
between levels, an embedding that shifts without scaling, a first level wider or narrower than the timestep embedding's
frequencies (as in the model for 512 px).

The one step in which the order of numbers changes is attention: the original makes queries, keys and values of head 0,
then those of head 1 and so on in one convolution; the library has three linear layers over all heads.
"""

import pickle
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import Tensor, nn

from ..common.files import DAMAGE, atomic_write, check_file, how_damaged, sha256

CHECKPOINT = "256x256_diffusion_uncond.pt"
WEIGHTS = "diffusion_pytorch_model.safetensors"
GROUPS = 32  # of each norm, whatever its width
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
SINGLE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def convert(
    state: dict[str, Tensor], image_size: int = 256, layers_per_block: int = 2, head_channels: int = 64
) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights for `UNet2DModel` of a `UNetModel` of OpenAI's guided-diffusion.

    Args:
        state: its weights by their original names; the result shares their memory where nothing changes.
        image_size, layers_per_block, head_channels: what shapes do not tell; the defaults are those of the 256 px model
            (its flags `image_size`, `num_res_blocks`, `num_head_channels`).

    Raises ValueError for a checkpoint of another layout, with the first name that does not fit."""
    places = _places(state, layers_per_block)
    out, left = {}, set(state)
    for old, new in places.items():
        if f"{old}.qkv.weight" in state:
            out |= _attention(state, old, new, head_channels)
            left -= {f"{old}.{part}" for part in _ATTENTION_PARTS}
            continue
        for old_part, new_part in RESIDUAL.items() if f"{old}.in_layers.0.weight" in state else [("", "")]:
            for kind in ("weight", "bias"):
                source = ".".join(filter(None, (old, old_part, kind)))
                if source in state:
                    out[".".join(filter(None, (new, new_part, kind)))] = state[source]
                    left.discard(source)
    if left:
        raise ValueError(
            f"{min(left)!r} has no place in a UNet2DModel: only an unconditional ADM with resblock_updown, scale-shift "
            f"norms and {layers_per_block} residual blocks per level can be converted"
        )
    _check_widths(state)
    return _config(state, image_size, layers_per_block, head_channels), out


def _places(state: dict[str, Tensor], n: int) -> dict[str, str]:
    """Original module -> module of the library, for all. Raises ValueError if there are no n blocks per level."""
    inputs = {int(name.split(".")[1]) for name in state if name.startswith("input_blocks.")}
    levels, rest = divmod(len(inputs), n + 1)
    missing = [f"{name}.weight" for name in SINGLE if f"{name}.weight" not in state]
    if rest or not levels or missing:
        lacks = f", without {', '.join(missing)}" if missing else ""
        raise ValueError(f"no ADM with {n} residual blocks per level: {len(inputs)} input blocks{lacks}")
    places = dict(SINGLE)
    for level in range(levels):
        for i in range(n):
            block = f"input_blocks.{1 + level * (n + 1) + i}"
            places |= {f"{block}.0": f"down_blocks.{level}.resnets.{i}"}
            places |= {f"{block}.1": f"down_blocks.{level}.attentions.{i}"} if f"{block}.1.qkv.weight" in state else {}
        if level < levels - 1:
            places[f"input_blocks.{(level + 1) * (n + 1)}.0"] = f"down_blocks.{level}.downsamplers.0"
        for i in range(n + 1):
            block, attends = f"output_blocks.{level * (n + 1) + i}", 0
            places[f"{block}.0"] = f"up_blocks.{level}.resnets.{i}"
            if f"{block}.1.qkv.weight" in state:
                places[f"{block}.1"], attends = f"up_blocks.{level}.attentions.{i}", 1
            if i == n and level < levels - 1:
                places[f"{block}.{1 + attends}"] = f"up_blocks.{level}.upsamplers.0"
    middle = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
    return places | {f"middle_block.{old}": f"mid_block.{new}" for old, new in middle.items()}


_ATTENTION_PARTS = ("norm.weight", "norm.bias", "qkv.weight", "qkv.bias", "proj_out.weight", "proj_out.bias")


def _attention(state: dict[str, Tensor], old: str, new: str, head_channels: int) -> dict[str, Tensor]:
    """Its norm, its three projections out of one convolution (heads, 3, head_channels), and the way out."""
    out = {f"{new}.group_norm.{kind}": state[f"{old}.norm.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        joint = state[f"{old}.qkv.{kind}"].flatten(1 if kind == "weight" else 0)  # without the kernel's size of 1
        if joint.shape[0] % (3 * head_channels):
            raise ValueError(f"{joint.shape[0] // 3} channels of {old!r} are not heads of {head_channels}")
        parts = joint.unflatten(0, (-1, 3, head_channels)).unbind(1)
        out |= {f"{new}.to_{q}.{kind}": v.flatten(0, 1).contiguous() for q, v in zip("qkv", parts, strict=True)}
        out[f"{new}.to_out.0.{kind}"] = state[f"{old}.proj_out.{kind}"].flatten(1 if kind == "weight" else 0)
    return out


def _config(state: dict[str, Tensor], image_size: int, n: int, head_channels: int) -> dict:
    levels = len({name.split(".")[1] for name in state if name.startswith("input_blocks.")}) // (n + 1)
    first = [f"input_blocks.{1 + level * (n + 1)}" for level in range(levels)]
    attends = [f"{block}.1.qkv.weight" in state for block in first]
    return dict(
        sample_size=image_size,
        in_channels=state["input_blocks.0.0.weight"].shape[1],
        out_channels=state["out.2.weight"].shape[0],
        block_out_channels=tuple(state[f"{block}.0.out_layers.3.weight"].shape[0] for block in first),
        layers_per_block=n,
        down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=head_channels,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,  # else the middle's attention would have no norm
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        act_fn="silu",
    )


def _check_widths(state: dict[str, Tensor]) -> None:
    frequencies = state["time_embed.0.weight"].shape[1]
    widths = {state[name].shape[0] for name in ("input_blocks.0.0.weight", "input_blocks.1.0.out_layers.3.weight")}
    if widths != {frequencies}:
        raise ValueError(f"the first level has {max(widths)} channels, not as many as the embedding {frequencies}")
    for name in state:
        if name.endswith(".emb_layers.1.weight"):
            channels = state[name.replace("emb_layers.1", "out_layers.3")].shape[0]
            if state[name].shape[0] != 2 * channels:
                raise ValueError(f"{name!r} gives a shift and no scale: only scale-shift norms can be converted")


def home() -> Path:
    """Where OpenAI's file is to be put: beside the weights that come from the hub, in its cache."""
    return Path(constants.HF_HUB_CACHE) / "openai"


def converted_folder() -> Path:
    """Where `make` leaves the converted model."""
    return home() / Path(CHECKPOINT).stem


def make() -> Path:
    """The folder of the converted model, made from OpenAI's file if it is not there yet.

    Raises FileNotFoundError where there is neither, ValueError for a file that torch's weights-only loader refuses."""
    from diffusers import DDPMScheduler, UNet2DModel
    from safetensors.torch import save_file

    converted, checkpoint = converted_folder(), home() / CHECKPOINT
    if (converted / "unet" / WEIGHTS).is_file():
        check_file(converted / "unet" / WEIGHTS, fix=f"delete {converted}, and it is made again from {CHECKPOINT}")
        return converted
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"no weights of ADM (for 'unconditional/unet'): put {CHECKPOINT}, listed in the README of "
            f"openai/guided-diffusion on GitHub, into {home()}, or set HF_HOME to the folder that holds a copy of it"
        )
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
    except (pickle.UnpicklingError, RuntimeError, *DAMAGE) as error:
        why = how_damaged(checkpoint, error)
        raise ValueError(f"{checkpoint} is not a whole file of weights ({why}): fetch it again") from error
    config, state = convert(state)
    with torch.device("meta"):
        network = UNet2DModel(**config)
    network.load_state_dict(state, assign=True)  # names and shapes are those of the library
    network.save_config(converted / "unet")
    DDPMScheduler(beta_schedule="linear").save_pretrained(converted / "scheduler")
    atomic_write(converted / "unet" / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    return converted


def load(
    device: str = "cpu", precision: str = "fp32", low_memory: bool = True, folder: Path | None = None
) -> nn.Module:
    """A `PixelUNet` that purifies images of 224 px at 256 px; the errors are those of `make`.

    `low_memory` computes blocks again on the way back."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.utils import logging

    from .unet import PixelUNet

    path = make()
    logging.disable_progress_bar()
    network = UNet2DModel.from_pretrained(path, subfolder="unet", torch_dtype=torch.float32).to(device)
    if low_memory:
        network.enable_gradient_checkpointing()
    return PixelUNet(
        network, DDPMScheduler.from_pretrained(path, subfolder="scheduler").alphas_cumprod, 224, precision=precision
    )


def fingerprint() -> str:
    """For records: the first 12 digits of the checksum of the converted weights, or "missing"."""
    path = converted_folder() / "unet" / WEIGHTS
    return _digest(path, path.stat().st_mtime) if path.is_file() else "missing"


@lru_cache(maxsize=4)
def _digest(path: Path, modified: float) -> str:
    return sha256(path)[:12]  # of 2 GB: once per process
