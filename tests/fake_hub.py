"""A model hub and image folders that hold nothing: tiny random models and noise, in the layout of the real ones.

A repository lies in the hub's cache as the hub's own client leaves it there: blobs by checksum, a snapshot of links to
them, a ref that names the snapshot. So the libraries' own calls find it by the id of the real one, without a network.
"""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gentta_utils.models import adm, hub
from gentta_utils.streams.coop_splits import SPLIT_SETS
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

CLIP = dict(  # the published configuration but for widths, heads and layers
    embed_dim=8,
    quick_gelu=True,
    vision_cfg=dict(image_size=224, patch_size=32, layers=2, width=16, head_width=8),
    text_cfg=dict(context_length=77, vocab_size=49408, width=8, heads=2, layers=1),
)
RN50 = dict(image_size=224, layers=[1, 1, 1, 1], width=8, head_width=32)  # a residual tower with attention pooling
TEXT = dict(  # the text encoder of Stable Diffusion but for the first four
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=16,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)
UNET = dict(  # its U-Net but for the first six
    sample_size=8,
    block_out_channels=(8, 8, 16, 16),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=16,
    attention_head_dim=2,
    in_channels=4,
    out_channels=4,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    act_fn="silu",
)
VISION = dict(  # the image encoder of Stable Diffusion image variations but for the first four
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=16,
    image_size=224,
    patch_size=14,
    hidden_act="quick_gelu",
)
MIT = dict(  # the encoder of SegFormer and GLPN but for the first five
    depths=[1, 1, 1, 1],
    hidden_sizes=[8, 12, 16, 16],
    num_attention_heads=[1, 2, 2, 2],
    mlp_ratios=[1, 1, 1, 1],
    decoder_hidden_size=8,
    sr_ratios=[8, 4, 2, 1],
    patch_sizes=[7, 3, 3, 3],
    strides=[4, 2, 2, 2],
)
NOISE = dict(  # its schedule
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    skip_prk_steps=True,
    set_alpha_to_one=False,
    steps_offset=1,
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
    for name in ("clip/small", "clip/base", "clip/large"):
        store(home, hub.REPOSITORIES[name][0], _clip)
    store(home, hub.REPOSITORIES["clip/rn50"][0], lambda folder: _clip(folder, CLIP | dict(vision_cfg=RN50)))
    store(home, hub.REPOSITORIES["denoiser/text"][0], _stable_diffusion)
    store(home, hub.REPOSITORIES["denoiser/variation"][0], _image_variations)
    for name in ("segmentor/segformer", "segmentor/segformer-b5", "depth/glpn"):
        store(home, hub.REPOSITORIES[name][0], lambda folder, name=name: _dense(folder, name))
    store(home, hub.REPOSITORIES["maps/classes-control"][1], _controlnet)
    _adm(home / "hub" / "openai" / adm.CHECKPOINT.removesuffix(".pt"))
    return home


def store(home: Path, repository: str, save) -> None:
    """Put what `save(folder)` writes into the cache as a snapshot of this repository."""
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / hub.REVISIONS.get(repository, "main")).write_text(COMMIT, encoding="utf-8")
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


def _clip(folder: Path, shape: dict = CLIP) -> None:
    """Beside open_clip's files those of the image tower alone, as timm reads it: they must not be taken for a CLIP."""
    import open_clip
    from safetensors.torch import save_file

    network = open_clip.CLIP(**shape)
    state = {name: v.contiguous() for name, v in network.state_dict().items() if name != "attn_mask"}
    save_file(state, folder / "open_clip_model.safetensors")
    save_file({"head": state["text_projection"]}, folder / "model.safetensors")
    shown = dict(mean=list(open_clip.OPENAI_DATASET_MEAN), std=list(open_clip.OPENAI_DATASET_STD))
    config = dict(model_cfg=shape, preprocess_cfg=shown | dict(interpolation="bicubic", resize_mode="shortest"))
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")


def _stable_diffusion(folder: Path) -> None:
    """With the filter of images named in its index, as the real one, but not there."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from gentta_utils.recipes.tokenizer import tokenizer

    words = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    merges = [tuple(m) for m in words["merges"]]
    CLIPTokenizer(vocab=words["vocab"], merges=merges, model_max_length=77).save_pretrained(folder / "tokenizer")
    ends = dict(bos_token_id=len(words["vocab"]) - 2, eos_token_id=len(words["vocab"]) - 1)
    config = CLIPTextConfig(**TEXT, vocab_size=len(words["vocab"]), **ends)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE | dict(sample_size=64)).save_pretrained(folder / "vae")
    PNDMScheduler(**NOISE).save_pretrained(folder / "scheduler")
    parts = dict(
        feature_extractor=["transformers", "CLIPImageProcessor"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        scheduler=["diffusers", "PNDMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    )
    index = dict(_class_name="StableDiffusionPipeline", _diffusers_version="0.6.0", **parts)
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _image_variations(folder: Path) -> None:
    """With the filter of images named in its index, as the real one, but not there."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(folder / "image_encoder")
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE | dict(sample_size=64)).save_pretrained(folder / "vae")
    PNDMScheduler(**NOISE).save_pretrained(folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    parts = dict(
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        scheduler=["diffusers", "PNDMScheduler"],
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    )
    index = dict(_class_name="StableDiffusionImageVariationPipeline", _diffusers_version="0.8.0.dev0", **parts)
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _dense(folder: Path, name: str) -> None:
    """SegFormer with the published normalisation, GLPN with none; they say no more of images than the real ones."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, SegformerConfig, SegformerForSemanticSegmentation

    if "glpn" in name:
        GLPNForDepthEstimation(GLPNConfig(**MIT)).save_pretrained(folder)
        shown = dict(do_rescale=True, do_resize=True, size_divisor=32)
    else:
        SegformerForSemanticSegmentation(SegformerConfig(**MIT, num_labels=150)).save_pretrained(folder)
        shown = dict(do_normalize=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], size=512)
    (folder / "preprocessor_config.json").write_text(json.dumps(shown), encoding="utf-8")


def _controlnet(folder: Path) -> None:
    """For the small U-Net; its last layers, which are zero before training, are not, so that the picture matters."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    network = ControlNetModel.from_unet(UNet2DConditionModel(**UNET))
    for name, value in network.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(value, std=0.3)
    network.save_pretrained(folder)


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
    return write_maps(write_photos(root))


def write_maps(root: Path, n: int = 6) -> Path:
    """n photographs with maps for each of `photo_maps.SETS`, in their own sizes; returns `root`."""
    rng = np.random.default_rng(4)

    def noise(size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)

    for i in range(n):
        size = (683, 512) if i % 2 else (300, 400)
        ade, nyu = root / "ADEChallengeData2016", root / "nyu_depth_v2" / "official_splits" / "test" / f"room_{i % 3}"
        for part in ("images", "annotations"):
            (ade / part / "validation").mkdir(parents=True, exist_ok=True)
        nyu.mkdir(parents=True, exist_ok=True)
        noise(size).save(ade / "images" / "validation" / f"ADE_val_{i:08d}.jpg")
        labels = rng.integers(0, 151, (8, 8)).astype(np.uint8)
        labels = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
        labels.save(ade / "annotations" / "validation" / f"ADE_val_{i:08d}.png")
        noise((640, 480)).save(nyu / f"rgb_{i:05d}.jpg")
        depth = rng.integers(700, 9_900, (480, 640)).astype(np.uint16)
        depth[:, :20] = depth[200:210, 300:310] = 0  # a frame, and a hole in the middle
        Image.fromarray(depth).save(nyu / f"sync_depth_{i:05d}.png")
    return root


KINDS = 12  # classes of each of the data sets that are not ImageNet's


def write_photos(root: Path) -> Path:
    """40 noise pictures of twelve classes for each of `open_vocabulary.SETS` and `SPLIT_SETS`; returns `root`.

    torchvision holds CIFAR and Flowers against checksums: `checksums_of` gives those of these fakes."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    label = np.arange(IMAGES) % KINDS

    def picture(path: Path, i: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (100, 80) if i % 2 else (80, 100)
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    dishes = {f"odd_dish_{k:02d}": [f"odd_dish_{k:02d}/{i}" for i in np.flatnonzero(label == k)] for k in range(KINDS)}
    write(root / "food-101" / "meta" / "test.json", json.dumps(dishes))
    names = [f"Odd {k:02d}-100" for k in range(KINDS)]
    planes = root / "fgvc-aircraft-2013b" / "data"
    write(planes / "variants.txt", "\n".join(names) + "\n")
    write(planes / "images_variant_test.txt", "".join(f"{i:07d} {names[k]}\n" for i, k in enumerate(label)))
    pets = root / "oxford-iiit-pet"
    lines = [f"odd_breed_{chr(97 + k)}_{i} {k + 1} 1 1\n" for i, k in enumerate(label)]
    write(pets / "annotations" / "test.txt", "".join(lines))
    flowers, cifar = root / "flowers-102", root / "cifar-100-python"
    for i, k in enumerate(label):
        picture(root / "food-101" / "images" / f"odd_dish_{k:02d}" / f"{i}.jpg", i)
        picture(planes / "images" / f"{i:07d}.jpg", i)
        picture(pets / "images" / f"odd_breed_{chr(97 + k)}_{i}.jpg", i)
        picture(flowers / "jpg" / f"image_{i + 1:05d}.jpg", i)
    savemat(flowers / "imagelabels.mat", {"labels": label[None] + 1})
    savemat(flowers / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": np.arange(5, IMAGES + 1)[None]})
    cifar.mkdir()
    pixels = rng.integers(0, 256, (IMAGES, 3072), np.uint8)
    for split in ("train", "test"):
        content = {"data": pixels, "fine_labels": label.tolist()}
        (cifar / split).write_bytes(pickle.dumps(content))
    (cifar / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"odd_thing_{k:02d}" for k in range(KINDS)]}))
    for how in SPLIT_SETS.values():
        rows = [[f"Odd_Kind_{k:02d}/{i}.jpg", int(k), f"Odd_Kind_{k:02d}"] for i, k in enumerate(label)]
        for i, (path, _, _) in enumerate(rows):
            picture(root / how.folder / how.pictures / path, i)
        write(root / how.folder / how.list, json.dumps({"train": rows[:24], "val": rows[24:28], "test": rows}))
    return root


def checksums_of(root: Path, monkeypatch) -> None:
    """Let torchvision take the fakes of CIFAR and Flowers under `root` for what it would fetch."""
    from torchvision import datasets

    md5 = lambda *path: hashlib.md5(root.joinpath(*path).read_bytes()).hexdigest()  # noqa: E731
    for split in ("train", "test"):
        monkeypatch.setattr(datasets.CIFAR100, f"{split}_list", [[split, md5("cifar-100-python", split)]])
    meta = datasets.CIFAR100.meta | {"md5": md5("cifar-100-python", "meta")}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)
    lists = {key: name for key, (name, _) in datasets.Flowers102._file_dict.items() if key != "image"}
    found = {key: (name, md5("flowers-102", name)) for key, name in lists.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | found)


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
