"""Tiny networks for maps: a map-conditioned U-Net, and task networks of every kind that answer with maps."""

import copy

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from fake_hub import NOISE, TEXT, VAE
from fake_hub import UNET as SD_UNET
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, GLPNConfig, SegformerConfig

from gentta_utils.diffusion.process import alphas_cumprod_of, linear_betas
from gentta_utils.models.control_unet import ControlUNet
from gentta_utils.models.dense import KINDS, Answers, DenseModel, convolutional, dense_model
from gentta_utils.models.map_unet import MapUNet
from gentta_utils.recipes.tokenizer import tokenizer
from gentta_utils.recipes.unconditional import UNET

MIT = dict(
    depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], sr_ratios=[4, 2, 1, 1],
    mlp_ratios=[2, 2, 2, 2], drop_path_rate=0.0, decoder_hidden_size=8,
)  # fmt: skip
CONFIGS = {
    "segformer": SegformerConfig(
        **MIT, patch_sizes=[3] * 4, strides=[2] * 4, num_labels=5, classifier_dropout_prob=0.0
    ),
    "glpn": GLPNConfig(**MIT, patch_sizes=[3] * 4, strides=[4, 2, 2, 2]),
}
RESNET = dict(architecture="resnet18", model_args=dict(layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]))
DENSENET = dict(architecture="densenet121", model_args=dict(growth_rate=4, block_config=[1, 1, 1, 1]))
TASKS = {"segformer": "classes", "pyramid": "classes", "glpn": "depth", "densedepth": "depth"}
K = 5


def small(maps: int, size: int = 8, channels: int = 12) -> UNet2DModel:
    """A random U-Net of two levels with channels for a map."""
    torch.manual_seed(7)
    levels = dict(
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
    )
    return UNet2DModel(**UNET | levels | dict(sample_size=size, in_channels=channels + maps, out_channels=channels))


def map_unet(maps: int = K, image_size: int = 32) -> MapUNet:
    """A map-conditioned model of images of 16 px (8 inside), whatever the task model's size."""
    model = MapUNet(small(maps), alphas_cumprod_of(linear_betas()), image_size, unshuffle=True)
    return model.requires_grad_(False)


def task(kind: str, classes: int = K) -> DenseModel:
    """A random task network for images of 32 px."""
    torch.manual_seed(5)
    if kind in KINDS:
        network: nn.Module = Answers(
            KINDS[kind]._from_config(copy.deepcopy(CONFIGS[kind]), attn_implementation="eager")
        )
    else:
        config = DENSENET if kind == "densedepth" else RESNET
        network = convolutional(**config, head=kind, classes=1 if kind == "densedepth" else classes, width=8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # else the source would have the statistics of no image
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    if kind == "densedepth":
        nn.init.constant_(network.reciprocal_of.bias, 3.0)  # inside of the range: elsewhere there is no gradient
    return dense_model(network, TASKS[kind], kind, 32)


def control_unet(maps: int = K, palette: torch.Tensor | None = None, image_size: int = 32) -> ControlUNet:
    """Stable Diffusion beside a ControlNet on latents of 8 px; no layer is zero, as in an untrained one."""
    torch.manual_seed(8)
    unet, words = UNet2DConditionModel(**SD_UNET), tokenizer()
    controlnet = ControlNetModel.from_unet(unet, conditioning_channels=maps if palette is None else 3)
    for name, value in controlnet.named_parameters():
        if "controlnet_" in name or "cond_embedding.conv_out" in name:
            nn.init.normal_(value, std=0.3)
    ends = dict(bos_token_id=len(words) - 2, eos_token_id=len(words) - 1)
    pipeline = StableDiffusionControlNetPipeline(
        unet=unet, controlnet=controlnet, vae=AutoencoderKL(**VAE | dict(sample_size=64)), tokenizer=words,
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, vocab_size=len(words), **ends)),
        scheduler=PNDMScheduler(**NOISE), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return ControlUNet(pipeline, palette, image_size).requires_grad_(False)
