"""Models of the imagenet profile: which repository of the model hub stands for which name, and how it is loaded.

The libraries' own calls look into the hub's cache (HF_HOME) and, unless HF_HUB_OFFLINE is set, fetch what is not there.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

from ..common.devices import precision_on
from . import adm
from .denoiser import PRECISIONS

# The paper's ViT-B/32 and ConvNeXt-T are torchvision's; these are their nearest kin in timm, trained on
# ImageNet-1k alone (the names without a tag would give weights that saw ImageNet-21k).
REPOSITORIES = {
    "classifier/resnet": ("timm/resnet50.tv_in1k",),
    "classifier/resnet18": ("timm/resnet18.tv_in1k",),
    "classifier/resnet-gn": ("timm/resnet50_gn.a1h_in1k",),
    "classifier/vit": ("timm/vit_base_patch32_224.augreg_in1k",),
    "classifier/vit-b16": ("timm/vit_base_patch16_224.augreg_in1k",),
    "classifier/convnext": ("timm/convnext_tiny.fb_in1k",),
    "classifier/convnext-base": ("timm/convnext_base.fb_in1k",),
    "classifier/convnext-large": ("timm/convnext_large.fb_in1k",),
    "classifier/swin": ("timm/swin_tiny_patch4_window7_224.ms_in1k",),
    "classifier/swin-base": ("timm/swin_base_patch4_window7_224.ms_in1k",),
    # OpenAI's weights, which open_clip calls RN50-quickgelu, ViT-B-32-quickgelu and so on, "openai"
    "clip/rn50": ("timm/resnet50_clip.openai",),
    "clip/small": ("timm/vit_base_patch32_clip_224.openai",),
    "clip/base": ("timm/vit_base_patch16_clip_224.openai",),
    "clip/large": ("timm/vit_large_patch14_clip_224.openai",),
    "denoiser/dit": ("facebook/DiT-XL-2-256", "stabilityai/sd-vae-ft-ema"),
    "denoiser/text": ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
    "denoiser/variation": ("lambdalabs/sd-image-variations-diffusers",),
    "segmentor/segformer": ("nvidia/segformer-b0-finetuned-ade-512-512",),
    "segmentor/segformer-b5": ("nvidia/segformer-b5-finetuned-ade-640-640",),
    "depth/glpn": ("vinvino02/glpn-nyu",),
    "maps/classes-control": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "lllyasviel/control_v11p_sd15_seg"),
}
REVISIONS = {"lambdalabs/sd-image-variations-diffusers": "v2.0"}  # where it is not "main"
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
STABLE_DIFFUSION = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
STABLE_DIFFUSION += ["text_encoder/model.safetensors"]
# each as *.safetensors or, as they were first published, *.bin, of which torch reads tensors alone
DENSE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # one of them
DENSE_SIZES = {"segmentor": 512, "depth": 448}  # side of the images, as `streams.photo_maps` crops them
VARIATION_WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/*model")
ADM = "unconditional/unet"  # not on the hub: a file of OpenAI's, see `adm`
TRAINING_IMAGES = 1_281_167  # training images of ImageNet-1k, which all these classifiers saw
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def repositories(name: str) -> tuple[str, ...]:
    """The ids on the hub of a model's parts. Raises ValueError for an unknown name."""
    if name == ADM:
        return (f"ADM, {adm.CHECKPOINT}",)
    if name not in REPOSITORIES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join((*REPOSITORIES, ADM))}")
    return REPOSITORIES[name]


def load(name: str, device: str = "cpu", precision: str = "auto", low_memory: bool = True) -> nn.Module:
    """A `Classifier`, `DenseModel`, `Clip`, `LatentDiT`, `TextUNet`, `ControlUNet`, `VariationUNet` or `PixelUNet` with
    published weights; the arguments are those of `zoo.load`. The one class of a `TextUNet` is the empty prompt, until
    it is asked `for_prompts`.

    Raises ValueError for an unknown name or damaged weights, FileNotFoundError where the weights are missing and cannot
    be fetched."""
    repositories(name)
    if name.startswith("classifier/"):
        return _load_classifier(name)
    if name.startswith("clip/"):
        return _load_clip(name)
    if name.startswith(tuple(DENSE_SIZES)):
        return _load_dense(name)
    precision = precision_on(device, precision, published=True)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of auto, {', '.join(PRECISIONS)}")
    if name == ADM:
        return adm.load(device, precision, low_memory)
    how = {"denoiser/text": _load_text, "denoiser/variation": _load_variation, "maps/classes-control": _load_control}
    return how.get(name, _load_dit)(name, device, precision, low_memory)


def fingerprint(name: str) -> str:
    """For records: the revisions in the cache (12 digits each) of a model's repositories, or "missing"."""
    if name == ADM:
        return adm.fingerprint()
    found = []
    for repository in repositories(name):
        ref = _folder(repository) / "refs" / _revision(repository)
        found.append(ref.read_text(encoding="utf-8")[:12] if ref.is_file() else "missing")
    return "+".join(found)


def require(names: Iterable[str]) -> None:
    """Nothing, where the weights of all these models are in the cache or can be fetched.

    Raises FileNotFoundError with a line for each repository that is neither, ValueError for an unknown name."""
    wanted = dict.fromkeys((repository, name) for name in names for repository in repositories(name))
    lines = [f"{where} (for {name!r}): {get}" for where, name in wanted if (get := _how_to_get(where, name))]
    if lines:
        raise FileNotFoundError(
            f"weights are missing in {constants.HF_HUB_CACHE}. On a machine with a network do what stands behind each, "
            "and set HF_HOME to the folder that holds what came, here or copied:\n" + "\n".join(lines)
        )


def _how_to_get(repository: str, name: str) -> str | None:
    """None for weights that are here or on their way; else what to do."""
    if name == ADM:
        here = (adm.converted_folder() / "unet" / adm.WEIGHTS).is_file() or (adm.home() / adm.CHECKPOINT).is_file()
        return None if here else f"put {adm.CHECKPOINT} into {adm.home()}"
    config, wanted = "config.json", ["*.safetensors"]
    if name.startswith("clip/"):
        config, wanted = CLIP_FILES[0], [CLIP_FILES[1]]
    elif name.startswith(tuple(DENSE_SIZES)):
        wanted = ["preprocessor_config.json", "*model.[sb]*"]  # the weights in either form, and not TensorFlow's
    elif repository in REPOSITORIES["denoiser/text"]:
        config, wanted = "model_index.json", STABLE_DIFFUSION
    elif name == "denoiser/variation":
        config, wanted = "model_index.json", [f"{part}.*" for part in VARIATION_WEIGHTS]
    elif "DiT" in repository:
        config = "transformer/config.json"
    if all(any(_folder(repository).glob(f"snapshots/**/{file}")) for file in wanted):
        return None
    try:  # a small file tells whether the hub answers
        _file(repository, config)
    except (OSError, RuntimeError):
        return how_to_download(repository)
    return how_to_download(repository) if constants.HF_HUB_OFFLINE else None


def how_to_download(repository: str) -> str:
    """The command that gets a repository; of those that hold the same weights several times, what is needed."""
    command = f"hf download {repository}"
    if "clip" in repository:
        command = " ".join((command, *CLIP_FILES))
    elif repository in REPOSITORIES["denoiser/text"]:
        patterns = ("*.json", "tokenizer/*", "*/*model.safetensors")
        command += "".join(f' --include "{pattern}"' for pattern in patterns) + ' --exclude "safety_checker/*"'
    elif repository in REVISIONS:
        command += f' --revision {_revision(repository)} --exclude "safety_checker/*"'
    elif "control_v11p" in repository:
        command += " config.json diffusion_pytorch_model.safetensors"
    elif "segformer" in repository:
        command += ' --exclude "tf_model.h5"'
    return f"`{command}`"


def _file(repository: str, file: str) -> str:
    """The path of a file in the cache, fetched if need be. Raises OSError or RuntimeError where that fails."""
    how = dict(cache_dir=constants.HF_HUB_CACHE, local_files_only=constants.HF_HUB_OFFLINE)
    return hf_hub_download(repository, file, revision=_revision(repository), **how)


def _revision(repository: str) -> str:
    """The branch or tag of a repository that holds what this course means by its name."""
    return REVISIONS.get(repository, "main")


def _folder(repository: str) -> Path:
    """Where the hub's cache keeps a repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _read(name: str, repository: str, call):
    """`call()`, which reads a repository, with one sentence for a file that is missing or damaged."""
    get = how_to_download(repository)
    try:
        with warnings.catch_warnings():  # diffusers passes an argument on that the hub's client no longer knows
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            return call()
    except (OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        if path := _damaged(repository):
            kind = path.suffix.removeprefix(".")
            raise ValueError(
                f"{path} (for {name!r}) is not a whole {kind} file: delete {_folder(repository)} and run {get}"
            ) from error
        if not isinstance(error, OSError):
            raise
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub did not give them"
        raise FileNotFoundError(
            f"no weights of {repository} (for {name!r}) in {constants.HF_HUB_CACHE}, and {why}: run {get} on a machine "
            "with a network, and set HF_HOME to the folder that holds what came, here or copied"
        ) from error


def _damaged(repository: str) -> Path | None:
    """The first file of weights in the cache that is not whole."""
    for path in sorted(_folder(repository).glob("snapshots/**/*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return path
    return next((p for p in sorted(_folder(repository).glob("snapshots/**/*.bin")) if not is_zipfile(p)), None)


def _load_classifier(name: str) -> nn.Module:
    import timm

    from .classifier import Classifier, use_mean_pooling

    timm.layers.set_fused_attn(False)  # the fused kernel has no per-sample rule for `vmap`
    (repository,) = repositories(name)
    network = _read(name, repository, lambda: timm.create_model(f"hf-hub:{repository}", pretrained=True))
    network, config = use_mean_pooling(network.float()), network.pretrained_cfg
    mean, std, size = tuple(config["mean"]), tuple(config["std"]), config["input_size"][-1]
    classifier = Classifier(network, mean, std, size, network.num_classes, name)
    classifier.resize = int(size / config["crop_pct"])  # rounded down, as in timm's own evaluation
    return classifier


def _load_clip(name: str) -> nn.Module:
    import open_clip

    from .clip import Clip

    (repository,) = repositories(name)

    def read() -> nn.Module:
        config, _ = (_file(repository, file) for file in CLIP_FILES)  # else open_clip would go on with random weights
        # these weights are no CLIP with another activation than x sigmoid(1.702 x), whatever the configuration says
        return open_clip.create_model(f"local-dir:{Path(config).parent}", precision="fp32", force_quick_gelu=True)

    network = _read(name, repository, read)
    shown, words = network.visual.preprocess_cfg, open_clip.SimpleTokenizer(context_length=network.context_length)
    size = network.visual.image_size  # a residual tower has a number, a transformer two
    size = size if isinstance(size, int) else size[0]
    return Clip(network, words, tuple(shown["mean"]), tuple(shown["std"]), size, name)


def _load_dense(name: str) -> nn.Module:
    from .dense import PUBLISHED_FILES, published

    (repository,) = repositories(name)

    def read() -> nn.Module:
        try:
            _file(repository, DENSE_WEIGHTS[0])
        except EntryNotFoundError:
            _file(repository, DENSE_WEIGHTS[1])
        config, _ = (_file(repository, file) for file in PUBLISHED_FILES)
        return published(Path(config).parent, name, DENSE_SIZES[name.partition("/")[0]])

    return _read(name, repository, read)


def as_published(network: nn.Module) -> nn.Module:
    """Make a diffusers DiT the function that published DiT weights were trained in (Peebles and Xie, 2023), in place.

    The library's class spaces the frequencies of the timestep embedding by 1 / 127 of their range, the original by
    1 / 128, and the norm before the MLP has epsilon 1e-5 in the one, 1e-6 in the other; no argument sets either.
    Models that were trained in the library's class, as those of the scenes profile, must not come here."""
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return network


def _load_dit(name: str, device: str, precision: str, low_memory: bool) -> nn.Module:
    from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel
    from diffusers.utils import logging

    from .dit import LatentDiT, halve, prepare_dit

    logging.disable_progress_bar()  # it would stand in every committed notebook
    dit, autoencoder = repositories(name)
    how = dict(torch_dtype=torch.float32, local_files_only=constants.HF_HUB_OFFLINE)
    network = _read(name, dit, lambda: DiTTransformer2DModel.from_pretrained(dit, subfolder="transformer", **how))
    how_scheduler = dict(local_files_only=constants.HF_HUB_OFFLINE)
    scheduler = _read(name, dit, lambda: DDPMScheduler.from_pretrained(dit, subfolder="scheduler", **how_scheduler))
    vae = _read(name, autoencoder, lambda: AutoencoderKL.from_pretrained(autoencoder, **how))
    network = prepare_dit(as_published(network))  # in float32: 27 of 28 label tables go before anything is halved
    if precision != "fp32":
        network = halve(network, DTYPES[precision])
    return LatentDiT(
        network.to(device),
        vae.to(device),
        scheduler.alphas_cumprod,
        prediction_type=scheduler.config.prediction_type,
        precision=precision,
        low_memory=low_memory,
    )


def _load_text(name: str, device: str, precision: str, low_memory: bool) -> nn.Module:
    from .text_unet import TextUNet, load_pipeline

    (repository,) = repositories(name)
    pipeline = _read(name, repository, lambda: load_pipeline(repository, local_files_only=constants.HF_HUB_OFFLINE))
    _settle(pipeline, device, precision, low_memory, pipeline.unet)
    return TextUNet(pipeline, [""], 224, precision)


def _load_variation(name: str, device: str, precision: str, low_memory: bool) -> nn.Module:
    from .variation_unet import VariationUNet, load_variation_pipeline

    (repository,) = repositories(name)
    how = dict(local_files_only=constants.HF_HUB_OFFLINE, revision=_revision(repository))
    pipeline = _read(name, repository, lambda: load_variation_pipeline(repository, **how))
    _settle(pipeline, device, precision, low_memory, pipeline.unet, gradients=False)
    return VariationUNet(pipeline, 224, precision)


def _load_control(name: str, device: str, precision: str, low_memory: bool) -> nn.Module:
    from ..world.ade20k import palette
    from .control_unet import ControlUNet, load_control_pipeline, load_controlnet

    repository, control = repositories(name)
    how = dict(local_files_only=constants.HF_HUB_OFFLINE)
    controlnet = _read(name, control, lambda: load_controlnet(control, **how))
    pipeline = _read(name, repository, lambda: load_control_pipeline(repository, controlnet, **how))
    _settle(pipeline, device, precision, low_memory, pipeline.unet, controlnet)
    return ControlUNet(pipeline, palette(), DENSE_SIZES["segmentor"], precision)


def _settle(pipeline, device: str, precision: str, low_memory: bool, *networks: nn.Module, gradients: bool = True):
    """Put a pipeline on the device, these networks of it in this precision."""
    from .text_unet import halve_layers

    for network in networks:
        if precision != "fp32":
            halve_layers(network, DTYPES[precision])
        if low_memory and gradients:
            network.enable_gradient_checkpointing()
    if low_memory:
        pipeline.vae.enable_slicing()
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to(device)
