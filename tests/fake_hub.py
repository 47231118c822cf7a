"""A model hub and image folders that hold nothing: tiny random models and noise, in the layout of the real ones.

A repository lies in the hub's cache as the hub's own client leaves it there: blobs by checksum, a snapshot of links to
them, a ref that names the snapshot. So the libraries' own calls find it by the id of the real one, without a network.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gentta_utils.models import adm, hub
from gentta_utils.streams.folders import LAYOUTS, synsets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGES = 40  # different ones in each data set
SMALL = {  # repository -> what makes timm's own architecture tiny
    "resnet50": dict(layers=[1, 1, 1, 1], channels=[4, 4, 8, 8]),
    "resnet18": dict(layers=[1, 1, 1, 1], channels=[4, 4, 8, 8]),
    "resnet50_gn": dict(layers=[1, 1, 1, 1], channels=[32, 32, 32, 32]),
    "vit_base_patch32_224": dict(embed_dim=16, depth=2, num_heads=2),
    "vit_base_patch16_224": dict(embed_dim=16, depth=1, num_heads=2),
    "convnext": dict(depths=[1, 1, 1, 1], dims=[4, 4, 8, 8]),
    "swin": dict(embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
}
DIT = dict(  # the published configuration but for the first four
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    patch_size=8,
    in_channels=4,
    out_channels=8,
    sample_size=32,
    num_embeds_ada_norm=1000,
    activation_fn="gelu-approximate",
    norm_type="ada_norm_zero",
    norm_elementwise_affine=False,
    attention_bias=True,
)
VAE = dict(  # the published configuration but for the first three
    block_out_channels=(4, 4, 4, 4),
    layers_per_block=1,
    norm_num_groups=2,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=4,
    sample_size=256,
)
ADM = dict(  # the published configuration but for the first eight
    sample_size=64,
    block_out_channels=(8, 16),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    attention_head_dim=8,
    norm_num_groups=4,
    attn_norm_num_groups=4,
    layers_per_block=1,
    in_channels=3,
    out_channels=6,
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
)


def write_hub(home: Path) -> Path:
    """All repositories of `hub.REPOSITORIES` under the HF_HOME `home`; returns it."""
    torch.manual_seed(6)
    for name, repositories in hub.REPOSITORIES.items():
        if name.startswith("classifier/"):
            store(home, repositories[0], lambda folder, r=repositories[0]: _classifier(folder, r))
    dit, vae = hub.REPOSITORIES["denoiser/dit"]
    store(home, dit, _dit)
    store(home, vae, _vae)
    _adm(home / "hub" / "openai" / adm.CHECKPOINT.removesuffix(".pt"))
    return home


def store(home: Path, repository: str, save) -> None:
    """Put what `save(folder)` writes into the cache as a snapshot of this repository."""
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        for file in (f for f in Path(folder).rglob("*") if f.is_file()):
            blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))


def _classifier(folder: Path, repository: str) -> None:
    import timm

    tag = repository.removeprefix("timm/")
    small = SMALL.get(tag.split(".")[0]) or SMALL[tag.split("_")[0]]
    network = timm.create_model(tag, pretrained=False, **small)
    timm.models.save_for_hf(network, str(folder), model_args=small, safe_serialization=True)


def _dit(folder: Path) -> None:
    from diffusers import DDPMScheduler, DiTTransformer2DModel

    network = DiTTransformer2DModel(**DIT)
    for block in network.transformer_blocks[1:]:  # equal copies, as in the published weights
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    network.save_pretrained(folder / "transformer")
    DDPMScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")


def _vae(folder: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(**VAE).save_pretrained(folder)


def _adm(folder: Path) -> None:
    """As `adm.make` leaves OpenAI's model, but small and on 64 px."""
    from diffusers import DDPMScheduler, UNet2DModel

    UNet2DModel(**ADM).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")


def write_images(root: Path, datasets: tuple = tuple(name for name in LAYOUTS if name != "imagenet-c")) -> Path:
    """40 noise JPEGs a data set under `root`; every class folder has one of them, by a hard link. Returns `root`."""
    for number, name in enumerate(datasets):
        _fill(root / LAYOUTS[name].folder, name, (90, 70), number)
    _fill(root / "ImageNet-C" / "speckle_noise" / "5", "imagenet-c", (224, 224), len(datasets))
    return root


def _fill(folder: Path, name: str, size: tuple[int, int], seed: int) -> None:
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    originals = []
    for i, label in enumerate(map(str, range(1000)) if layout.numbers else synsets(layout.synsets)):
        (folder / label).mkdir(parents=True)
        path = folder / label / f"{name}_{i:04d}.JPEG"
        if len(originals) < IMAGES:
            noise = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)  # coarse: it survives the JPEG
            Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
            originals.append(path)
        else:
            os.link(originals[i % IMAGES], path)
