"""The only place that knows models' names and paths: `load("classifier/resnet", profile)`.

Profile "scenes" is shipped: small models in the libraries' own formats under data/models, float16 safetensors, each
with a card and a checksum. Nothing but safetensors is ever read there. Profile "imagenet" is in `hub`: the same names
and classes, published weights.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..common.devices import check_device, precision_on
from ..common.files import FIX_MODEL, check_file, read_json, sha256, write_json
from ..common.paths import MODELS
from ..common.validate import checked
from . import hub
from .denoiser import PRECISIONS

PROFILES = ("scenes", "imagenet")
ON_DEMAND = (
    "denoiser/dit-10min",
    "denoiser/dit-soft-10min",
    *(f"denoiser/dit-{kind}" for kind in ("1500", "1500-10min", "1500-null", "1500-null-10min", "unmarked")),
    *(f"denoiser/dit-10min-seed{seed}" for seed in (2, 3)),
    *(f"classifier/resnet-{kind}" for kind in ("60000", "seed2", "seed3", "distilled")),
    *("segmentor/resnet-60000", "depth/densenet-60000", "depth/densenet-ceiling", "maps/classes-long"),
    *(f"maps/classes-{kind}" for kind in ("short", "1500", "exact", "averaged", "latents", "control", "long-exact")),
    *(f"unconditional/unet-unshuffle-{steps}" for steps in (1000, 2000, 4000)),
)  # of those that tables rest on, checksums and cards are here; weights must be trained
CHECKSUMS = MODELS / "checksums.json"
FIX_LIST = "run `git checkout -- data/models/checksums.json`"
IMAGE_SIZE = 64  # of the scenes profile's task models


def names() -> list[str]:
    """Every model of the scenes profile that is here."""
    return sorted({"/".join(Path(file).parts[:2]) for file in checksums()})


def shipped() -> list[str]:
    """Those whose weights are here too."""
    return [name for name in names() if name not in ON_DEMAND]


def checksums() -> dict[str, str]:
    """File of weights or configuration (relative to data/models) -> SHA-256. Raises ValueError for a damaged list."""
    return dict(_listed(_state()))


def _state() -> tuple:
    """Which list it is, and as what it was last written; the jobs of a table ask for it tens of thousands of times."""
    try:
        now = CHECKSUMS.stat()
    except FileNotFoundError:
        return (None,)
    return CHECKSUMS, now.st_ino, now.st_mtime_ns, now.st_size


@lru_cache(maxsize=4)
def _listed(state: tuple) -> dict[str, str]:
    found = read_json(state[0], FIX_LIST) if state[0] else {}
    if not isinstance(found, dict) or not all(isinstance(checksum, str) for checksum in found.values()):
        raise ValueError(f"{CHECKSUMS} is no list of files and checksums: {FIX_LIST}")
    return found


def files_of(name: str) -> list[str]:
    """The files of a model, relative to data/models, weights last. Raises ValueError for an unknown name."""
    files = [f for f in checksums() if f.startswith(f"{name}/")]
    if not files and name in ON_DEMAND:
        raise ValueError(f"{name} was not trained yet: run `python -m gentta_utils train {name} --promote`")
    if not files:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(names()) or 'none, none is shipped'}")
    return sorted(files, key=lambda file: file.endswith(".safetensors"))


def fingerprint(name: str, profile: str = "scenes") -> str:
    """For records: the first 12 digits of the checksum of a model's weights (of all checksums, where it has several
    parts), or of its revision on the hub."""
    if check_profile(profile) == "imagenet":
        return hub.fingerprint(name)
    return _fingerprint(name, _state()) if isinstance(name, str) else files_of(name)[0]  # which refuses what is no name


@lru_cache(maxsize=256)
def _fingerprint(name: str, state: tuple) -> str:
    listed = _listed(state)
    parts = [listed[file] for file in files_of(name) if file.endswith(".safetensors")]
    if not parts:
        raise ValueError(f"{CHECKSUMS} lists no weights of {name}: {FIX_LIST}")
    return (parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest())[:12]


def card(name: str, profile: str = "scenes") -> dict:
    """The model's card: data, recipe, time, quality; of a published model what the profile itself knows of it."""
    if check_profile(profile) == "imagenet":
        return {"recipe": {"architecture": " + ".join(hub.repositories(name)), "labels": hub.TRAINING_IMAGES}}
    files_of(name)
    return read_json(MODELS / name / "card.json", FIX_MODEL)


def check_profile(profile: str) -> str:
    """The profile. Raises ValueError for an unknown one."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return profile


@checked
def load(
    name: str,
    profile: str = "scenes",
    device: str = "cpu",
    precision: str = "auto",
    folder: Path = MODELS,
    low_memory: bool = True,
) -> nn.Module:
    """A model ready to use, frozen and in eval mode: a `Classifier`, a `Denoiser`, a `Clip` or an
    `AutoencoderKL`. A text model's classes are the category prompts, until it is asked `for_prompts`.

    Args:
        name: e.g. "classifier/resnet", "denoiser/dit", "unconditional/unet"; more in `hub.REPOSITORIES`.
        precision: of a denoiser: "fp32", "bf16" or "fp16" (autocast; in the imagenet profile the weights too), or
            "auto": half where the processor is fast at it; on a CPU the imagenet profile stays at fp32.
        folder: of the scenes profile's models; elsewhere than data/models (candidates) no checksum is asked for.
        low_memory: of the imagenet profile's denoisers: recompute instead of keeping, see `LatentDiT`.

    Raises:
        ValueError: unknown name or profile, damaged weights. FileNotFoundError: missing weights.
    """
    check_device(device)
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision={precision!r}: choose one of auto, {', '.join(PRECISIONS)}")
    if check_profile(profile) == "imagenet":
        return hub.load(name, device, precision, low_memory).to(device).eval().requires_grad_(False)
    if folder == MODELS:
        _check_listed(name)
        for file in files_of(name):
            if name in ON_DEMAND and not (MODELS / file).is_file():
                raise FileNotFoundError(
                    f"{name} is not shipped, only the tables that rest on it: run `python -m gentta_utils train {name} "
                    "--promote` (ten minutes to four hours)"
                )
            check_file(MODELS / file, checksums()[file])
    path = folder / name
    if name.startswith("classifier/"):
        model = _load_classifier(name, path)
    elif name.startswith("clip/"):
        model = _load_clip(name, path)
    elif name.startswith("autoencoder/"):
        model = _load_autoencoder(path)
    elif name.startswith("maps/"):
        model = (_load_control if (path / "controlnet").is_dir() else _load_unet)(path, device, precision)
    elif name.startswith(("segmentor/", "depth/")):
        model = _load_dense(name, path)
    elif (path / "image_encoder").is_dir():
        model = _load_variation(path, device, precision)
    elif (path / "model_index.json").is_file():
        model = _load_text(path, device, precision)
    else:
        model = (_load_unet if (path / "unet").is_dir() else _load_dit)(path, device, precision)
    return model.to(device).eval().requires_grad_(False)


def _check_listed(name: str) -> None:
    """Raise ValueError for a file beside a model's that checksums.json does not list: a library might load it."""
    listed = {MODELS / file for file in files_of(name)} | {MODELS / name / "card.json"}
    found = {p for p in (MODELS / name).rglob("*") if p.is_file() and not p.name.startswith(".")}
    if strange := sorted(found - listed):
        raise ValueError(
            f"{strange[0]} is not among the files of {name} that {CHECKSUMS} lists: delete it, or {FIX_LIST}"
        )


@lru_cache(maxsize=16)
def cached(name: str, precision: str = "auto") -> nn.Module:
    """`load` on the CPU, once per process for each precision; treat it as read-only."""
    return load(name, precision=precision)


def _load_classifier(name: str, path: Path) -> nn.Module:
    import timm

    from . import mae  # noqa: F401  (an architecture that timm then knows)
    from .classifier import Classifier

    timm.layers.set_fused_attn(False)  # the fused kernel has no per-sample rule for `vmap`
    network = timm.create_model(f"local-dir:{path}", pretrained=True)
    config = network.pretrained_cfg
    classifier = Classifier(
        network.float(),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["input_size"][-1],
        network.num_classes,
        name,
    )
    if (path / "alignment.json").is_file():  # fine-tuned for SDA
        classifier.alignment = json.loads((path / "alignment.json").read_text(encoding="utf-8"))
    return classifier


def _load_clip(name: str, path: Path) -> nn.Module:
    import open_clip

    from .clip import Clip, Low

    network, _, _ = open_clip.create_model_and_transforms(f"local-dir:{path}", precision="fp32")
    shown = json.loads((path / "open_clip_config.json").read_text(encoding="utf-8"))["preprocess_cfg"]
    if "pixels" in shown:  # it was trained on smaller images, enlarged
        network.visual = Low(network.visual, IMAGE_SIZE // shown["pixels"])
    tokenizer = open_clip.get_tokenizer(f"local-dir:{path}")
    return Clip(network, tokenizer, tuple(shown["mean"]), tuple(shown["std"]), IMAGE_SIZE, name)


def _load_dense(name: str, path: Path) -> nn.Module:
    from .dense import load as load_dense

    return load_dense(path, name)


def _load_autoencoder(path: Path) -> nn.Module:
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return AutoencoderKL.from_pretrained(path, torch_dtype=torch.float32)


def _load_text(path: Path, device: str, precision: str) -> nn.Module:
    from ..world.words import LABEL_SETS
    from .text_unet import TextUNet, load_pipeline

    precision = precision_on(device, precision)
    return TextUNet(load_pipeline(path), LABEL_SETS["category"].prompts(), IMAGE_SIZE, precision)


def _load_variation(path: Path, device: str, precision: str) -> nn.Module:
    from .variation_unet import VariationUNet, load_variation_pipeline

    return VariationUNet(load_variation_pipeline(path), IMAGE_SIZE, precision_on(device, precision))


def _load_dit(path: Path, device: str, precision: str) -> nn.Module:
    from diffusers import DDPMScheduler, DiTTransformer2DModel
    from diffusers.utils import logging

    from .dit import PixelDiT

    precision = precision_on(device, precision)
    logging.disable_progress_bar()  # it would stand in every committed notebook
    network = DiTTransformer2DModel.from_pretrained(path, subfolder="transformer", torch_dtype=torch.float32)
    scheduler = DDPMScheduler.from_pretrained(path, subfolder="scheduler")
    return PixelDiT(network, scheduler.alphas_cumprod, IMAGE_SIZE, scheduler.config.prediction_type, precision)


def _load_unet(path: Path, device: str, precision: str) -> nn.Module:
    """A `PixelUNet`, or a `MapUNet` where the network has channels for a map."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.utils import logging

    from .map_unet import MapUNet
    from .unet import PixelUNet

    precision = precision_on(device, precision)
    logging.disable_progress_bar()
    network = UNet2DModel.from_pretrained(path, subfolder="unet", torch_dtype=torch.float32)
    scheduler = DDPMScheduler.from_pretrained(path, subfolder="scheduler")
    kind, unshuffle = scheduler.config.prediction_type, network.config.out_channels == 12
    how = (network, scheduler.alphas_cumprod, IMAGE_SIZE, kind, precision, unshuffle)
    if network.config.in_channels <= network.config.out_channels:
        return PixelUNet(*how)
    return MapUNet(*how, _load_autoencoder(path / "vae") if (path / "vae").is_dir() else None)


def _load_control(path: Path, device: str, precision: str) -> nn.Module:
    """A ControlNet beside the shipped text model."""
    from .control_unet import ControlUNet, load_control_pipeline, load_controlnet

    pipeline = load_control_pipeline(MODELS / "denoiser/text", load_controlnet(path / "controlnet"))
    return ControlUNet(pipeline, None, IMAGE_SIZE, precision_on(device, precision))


def register(name: str) -> None:
    """Write the checksums of a model's files, after it was promoted; the card may be edited later."""
    found = {f: c for f, c in checksums().items() if not f.startswith(f"{name}/")}
    for path in (p for p in (MODELS / name).rglob("*") if p.is_file() and p.name != "card.json"):
        found[str(path.relative_to(MODELS))] = sha256(path)
    write_json(CHECKSUMS, dict(sorted(found.items())))
