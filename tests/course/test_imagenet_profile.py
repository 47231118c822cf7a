"""The imagenet profile on a fake hub: the very calls of the real one, on tiny random models and noise images.

Notebooks run on it in `test_commands`.
"""

import inspect
import shutil
from dataclasses import asdict, replace

import fake_hub
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiTTransformer2DModel,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from fake_hub import COMMIT
from huggingface_hub import constants
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GLPNConfig,
    GLPNForDepthEstimation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from gentta_utils import evaluation
from gentta_utils.course import map_profiles, profile, profiles
from gentta_utils.diffusion.error_table import error_table, plausible
from gentta_utils.diffusion.process import alphas_cumprod_of, diffusion_loss, linear_betas
from gentta_utils.evaluation import evaluate, generated
from gentta_utils.evaluation.statistics import ON_VALIDATION
from gentta_utils.methods import METHODS, dda, diffpure, diffusion_classifier, diffusion_tta, memo, tent, variations
from gentta_utils.methods import source as methods_source
from gentta_utils.methods.base import Models
from gentta_utils.methods.purifier import what_changes
from gentta_utils.models import hub, zoo
from gentta_utils.models.classifier import Classifier
from gentta_utils.models.clip import Clip
from gentta_utils.models.control_unet import PROMPT, ControlUNet
from gentta_utils.models.copies import Copies
from gentta_utils.models.dense import Answers, DenseModel, as_published, dense_model
from gentta_utils.models.dit import LatentDiT, prepare_dit
from gentta_utils.models.prompts import make_prompt
from gentta_utils.models.text_unet import TextUNet
from gentta_utils.models.variation_unet import VariationUNet
from gentta_utils.models.zoo import load
from gentta_utils.recipes.tokenizer import tokenizer
from gentta_utils.streams import folders
from gentta_utils.streams.folders import FolderSpec
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import ade20k, words

CLASSIFIERS = [name for name in hub.REPOSITORIES if name.startswith("classifier/")]
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5,) * 3, (0.5,) * 3)
IMAGE_VARIATIONS = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
CONTROL = hub.REPOSITORIES["maps/classes-control"][1]
IMAGE_VARIATIONS += ["image_encoder/model.safetensors"]


@pytest.fixture
def home(hub_home):
    return hub_home


@pytest.fixture
def root(image_root):
    return image_root


@pytest.fixture
def at_hub(home, monkeypatch):
    """The libraries look into the fake hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    return home


@pytest.fixture
def photos():
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(7))


def one_sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    for part in parts:
        assert part in text


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(at_hub, photos, name):
    model = load(name, "imagenet")
    assert isinstance(model, Classifier)
    assert (model.classes, model.image_size, model.name) == (1000, 224, name)
    statistics = HALVES if "vit" in name else IMAGENET_STATISTICS
    for found, wanted in zip((model.mean, model.std), statistics, strict=True):
        torch.testing.assert_close(found.flatten(), torch.tensor(wanted))
    with torch.no_grad():
        assert model(photos).shape == (2, 1000)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    resize = {"classifier/resnet-gn": 238}.get(name, 248 if "vit" in name or "swin" in name else 256)
    assert model.resize == model.restrict((3, 5)).resize == resize


def test_images_are_cropped_as_the_weights_want_them(at_hub, root):
    """The share of the side that the crop keeps is the weights' own; without a network it is that of ImageNet-C."""
    vit, photo = load("classifier/vit", "imagenet"), folders.listing("imagenet", root)
    s = profile("imagenet", str(root)).stream(1, resize=vit.resize)
    path = photo.paths[photo.ids.tolist().index(int(s.ids[0]))]
    assert torch.equal(s.images[0], folders.read_image(path, 224, 248))
    assert s.about["resize"] == 248
    assert profile("imagenet", str(root)).stream(1).about["resize"] == 256
    assert profile("imagenet", str(root)).stream(1, "a", resize=248).about["resize"] == 248


@pytest.mark.parametrize("name", ["classifier/resnet", "classifier/convnext"])
def test_a_classifier_is_that_of_the_library(at_hub, photos, name):
    model, plain = load(name, "imagenet"), timm.create_model(f"hf-hub:{hub.REPOSITORIES[name][0]}", pretrained=True)
    kept, loaded = plain.state_dict(), model.network.state_dict()
    assert kept.keys() == loaded.keys()
    assert all(torch.equal(kept[key], loaded[key]) for key in kept)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET_STATISTICS)
    with torch.no_grad():
        torch.testing.assert_close(model(photos), plain.eval()((photos - mean) / std), atol=1e-5, rtol=1e-5)


def test_dit_encodes_as_published(at_hub, photos):
    """Both views of Diffusion-TTA: the same crop at 256 px in [-1, 1], the posterior's mean, times .18215."""
    denoiser = load("denoiser/dit", "imagenet")
    assert isinstance(denoiser, LatentDiT)
    assert (denoiser.classes, denoiser.shape, denoiser.image_size, denoiser.pixels) == (1000, (4, 32, 32), 224, 256)
    pixels = F.interpolate(photos, size=(256, 256), mode="bilinear", align_corners=False) * 2 - 1
    vae = denoiser.vae
    moments = vae.quant_conv(vae.encoder(pixels[:1]))
    x0 = denoiser.encode(photos.requires_grad_())
    torch.testing.assert_close(x0[:1], 0.18215 * moments[:, :4], atol=1e-6, rtol=1e-5)
    assert not x0.requires_grad
    assert torch.equal(x0, denoiser.encode(photos))  # the mean, no draw
    shown = denoiser.decode(x0)
    assert shown.shape == photos.shape
    assert 0 <= shown.min() <= shown.max() <= 1
    torch.testing.assert_close(denoiser.alphas_cumprod, alphas_cumprod_of(linear_betas()).float())


def test_dit_is_that_of_the_library(at_hub, photos):
    """One-hot p equals the library's forward pass with the label; the learned variance is dropped."""
    denoiser = load("denoiser/dit", "imagenet", low_memory=False)
    folder = fake_hub_path(at_hub, "facebook/DiT-XL-2-256")
    plain = hub.as_published(DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer"))
    x, t, labels = denoiser.encode(photos), torch.tensor([30, 800]), torch.tensor([3, 999])
    with torch.no_grad():
        expected = plain.eval()(x, t, labels).sample
        found = denoiser(x, t, F.one_hot(labels, 1000).float())
        null = plain(x, t, torch.full((2,), 1000)).sample
        torch.testing.assert_close(denoiser(x, t), null[:, :4])
    assert expected.shape == (2, 8, 32, 32)
    torch.testing.assert_close(found, expected[:, :4])


def fake_hub_path(home, repository):
    return home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / fake_hub.COMMIT


def gradient(denoiser, photos):
    """Loss (2,) and dL/dp (2, 1000) as small as those of real images."""
    x0, t = denoiser.encode(photos), torch.tensor([100, 700])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(8))
    p = torch.rand(2, 1000, generator=torch.Generator().manual_seed(9)).softmax(1).requires_grad_()
    loss = diffusion_loss(denoiser, x0, t, eps, p, denoiser.alphas_cumprod)
    return loss.detach(), torch.autograd.grad(1e-4 * loss.sum(), p)[0]


def test_low_memory_changes_no_number(at_hub, photos):
    plain, low = (load("denoiser/dit", "imagenet", low_memory=low) for low in (False, True))
    assert low.network.gradient_checkpointing
    assert low.vae.use_slicing
    for a, b in zip(gradient(plain, photos), gradient(low, photos), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.05), ("fp16", 0.01)])
@pytest.mark.parametrize("low_memory", [False, True])
def test_half_precision_keeps_small_gradients(at_hub, photos, precision, tolerance, low_memory):
    """In fp16 a gradient of a mean over 4096 numbers is zero unless it is scaled."""
    full = gradient(load("denoiser/dit", "imagenet"), photos)
    denoiser = load("denoiser/dit", "imagenet", precision=precision, low_memory=low_memory)
    dtypes = {v.dtype for v in denoiser.network.parameters()}
    assert dtypes == {hub.DTYPES[precision], torch.float32}
    assert denoiser.network.transformer_blocks[0].attn1.to_q.weight.dtype == hub.DTYPES[precision]
    assert denoiser.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.dtype == torch.float32
    half = gradient(denoiser, photos)
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < tolerance * a.norm()


def test_precision_on_a_cpu(at_hub):
    assert load("denoiser/dit", "imagenet").precision == "fp32"
    with pytest.raises(ValueError, match="precision='int8': choose one of auto, fp32, bf16, fp16"):
        load("denoiser/dit", "imagenet", precision="int8")


def test_a_vae_of_other_width_is_refused(at_hub):
    denoiser = load("denoiser/dit", "imagenet")
    vae = AutoencoderKL(**fake_hub.VAE | dict(latent_channels=3))
    with pytest.raises(ValueError, match="3 latent channels, the network 4"):
        LatentDiT(denoiser.network, vae, denoiser.alphas_cumprod)


# --- CLIP and Stable Diffusion ---------------------------------------------------------------------------------------

CLIPS = {
    "clip/rn50": "RN50-quickgelu",
    "clip/small": "ViT-B-32-quickgelu",
    "clip/base": "ViT-B-16-quickgelu",
    "clip/large": "ViT-L-14-quickgelu",
}
PROMPTS = ["a photo of a red cube.", "a photo of a torus.", "a photo of an arch."]


@pytest.mark.parametrize("name", CLIPS)
def test_clips(at_hub, photos, name):
    model = load(name, "imagenet")
    assert isinstance(model, Clip)
    assert (model.image_size, model.name) == (224, name)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(open_clip.OPENAI_DATASET_MEAN))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(open_clip.OPENAI_DATASET_STD))
    assert torch.equal(model.tokenizer(PROMPTS), open_clip.get_tokenizer(CLIPS[name])(PROMPTS))
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert model.zero_shot(["cube", "torus", "arch"])(photos).shape == (2, 3)


@pytest.mark.parametrize("name", ["clip/rn50", "clip/base"])
def test_methods_of_prompts_and_views(at_hub, photos, name):
    """Of 77 places a prompt uses a dozen, and untrained it is the zero-shot classifier."""
    clip, names = load(name, "imagenet"), ["cube", "red torus", "arch"]
    models = Models(clip.zero_shot(names, ["a photo of a {}."]), prompt=make_prompt(clip, names))
    assert models.prompt.embedded.shape[:2] == (3, 10)
    ids, few = torch.arange(2), dict(views=3, rho_h=0.7)
    more = lambda x, i: x[:, None] * torch.tensor([0.5, 0.8]).view(1, 2, 1, 1, 1)  # noqa: E731
    none = METHODS["tpt"].configure(models, METHODS["tpt"].Settings(**few, updates=0)).adapt(photos, ids)
    torch.testing.assert_close(none.logits, none.before, rtol=1e-4, atol=1e-4)
    for method in ("tpt", "difftpt", "zero", "mta", "tda", "dota", "coop"):
        module = METHODS[method]
        s = module.Settings(**{} if method == "coop" else few | ({"generated": 2} if method == "difftpt" else {}))
        out = module.configure(models, s, *([more] if method == "difftpt" else [])).adapt(photos, ids)
        assert out.logits.shape == (2, 3), method
        assert torch.isfinite(out.logits).all(), method


def test_many_texts_are_read_in_parts(at_hub, monkeypatch):
    model = load("clip/small", "imagenet")
    whole = model.encode_texts(PROMPTS)
    monkeypatch.setattr("gentta_utils.models.clip.TEXTS_AT_ONCE", 2)
    torch.testing.assert_close(model.encode_texts(PROMPTS), whole)


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("grad", [True, False])
def test_copies_of_a_transformer_tower(at_hub, photos, grad):
    """Side by side they give what the tower gives, and a gradient reaches every parameter of each copy. Torch's fast
    path of `nn.MultiheadAttention`, which it takes where it sees no gradient, has no derivative under `vmap`."""
    classifier = load("clip/small", "imagenet").zero_shot(["cube", "torus"])
    copies = Copies(classifier, "all", 2)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(copies(photos), classifier(photos), rtol=1e-4, atol=1e-4)
    assert torch.backends.mha.get_fastpath_enabled()  # as it was
    copies(photos).square().sum().backward()
    still = [name for name, v in copies.values.items() for copy in v.grad if not copy.abs().max() > 0]
    assert not still
    names = {name.rpartition(".")[2] for name in copies.values}
    assert {"class_embedding", "positional_embedding", "in_proj_weight", "in_proj_bias", "proj"} <= names


def test_stable_diffusion_encodes_as_published(at_hub, photos):
    """The crop at the side that the latents stand for, in [-1, 1], the posterior's mean, times the VAE's own factor."""
    denoiser = load("denoiser/text", "imagenet")
    assert isinstance(denoiser, TextUNet)
    assert (denoiser.classes, denoiser.shape, denoiser.image_size) == (1, (4, 8, 8), 224)
    assert denoiser.vae.config.scaling_factor == 0.18215
    pixels = F.interpolate(photos, size=(64, 64), mode="area") * 2 - 1
    moments = denoiser.vae.quant_conv(denoiser.vae.encoder(pixels[:1]))
    x0 = denoiser.encode(photos)
    torch.testing.assert_close(x0[:1], 0.18215 * moments[:, :4], atol=1e-6, rtol=1e-5)
    shown = denoiser.decode(x0)
    assert shown.shape == photos.shape
    assert 0 <= shown.min() <= shown.max() <= 1
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()  # scaled linear
    torch.testing.assert_close(denoiser.alphas_cumprod, (1 - betas).cumprod(0).float(), rtol=1e-4, atol=1e-6)


def test_stable_diffusion_sees_more_pixels_than_there_are(at_hub, photos):
    """Where its images are larger than the crop, as the published 512 px, they are bilinear: areas would be blocks."""
    denoiser = load("denoiser/text", "imagenet")
    small = photos[:, :, :40, :40]
    pixels = F.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False) * 2 - 1
    expected = 0.18215 * denoiser.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(denoiser.encode(small), expected)


def test_the_vaes_own_factor_is_used(at_hub, photos):
    denoiser = load("denoiser/text", "imagenet")
    x0 = denoiser.encode(photos)
    denoiser.vae.register_to_config(scaling_factor=0.5)
    torch.testing.assert_close(denoiser.encode(photos), x0 / 0.18215 * 0.5)


def noise_loss(denoiser, photos):
    """Loss (2,) and its small gradient in p (2, 3)."""
    x0, t = denoiser.encode(photos), torch.tensor([100, 700])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(8))
    p = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]).requires_grad_()
    loss = diffusion_loss(denoiser, x0, t, eps, p, denoiser.alphas_cumprod)
    return loss.detach(), torch.autograd.grad(1e-4 * loss.sum(), p)[0]


@pytest.mark.parametrize(
    "precision, low_memory, tolerance",
    [("fp32", True, 1e-4), ("bf16", False, 0.05), ("bf16", True, 0.05), ("fp16", False, 0.01), ("fp16", True, 0.01)],
)
def test_stable_diffusion_in_half_precision_and_low_memory(at_hub, photos, precision, low_memory, tolerance):
    full = noise_loss(load("denoiser/text", "imagenet", low_memory=False).for_prompts(PROMPTS), photos)
    assert full[1].abs().min() > 0
    whole = load("denoiser/text", "imagenet", precision=precision, low_memory=low_memory)
    denoiser = whole.for_prompts(PROMPTS)
    assert (denoiser.network, denoiser.precision) == (whole.network, precision)
    assert denoiser.network.is_gradient_checkpointing is denoiser.vae.use_slicing is low_memory
    block = denoiser.network.down_blocks[0].attentions[0].transformer_blocks[0]
    assert block.attn2.to_k.weight.dtype == hub.DTYPES[precision]
    for kept in (block.norm1, denoiser.network.time_embedding, denoiser.vae, denoiser.text_encoder):
        assert {v.dtype for v in kept.parameters()} == {torch.float32}
    for a, b in zip(full, noise_loss(denoiser, photos), strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < tolerance * a.norm()


def test_v_prediction_becomes_noise(at_hub, tmp_path, monkeypatch, photos):
    """The same weights under the other prediction type: eps = sqrt(abar) v + sqrt(1 - abar) x_t."""
    plain, t = load("denoiser/text", "imagenet").for_prompts(PROMPTS), torch.tensor([100, 700])
    x_t, p = torch.randn(2, 4, 8, 8), F.one_hot(torch.tensor([0, 2]), 3).float()
    source = fake_hub_path(at_hub, hub.REPOSITORIES["denoiser/text"][0])

    def save(folder):
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / "scheduler" / "scheduler_config.json").unlink()
        PNDMScheduler(**fake_hub.NOISE, prediction_type="v_prediction").save_pretrained(folder / "scheduler")

    fake_hub.store(tmp_path, hub.REPOSITORIES["denoiser/text"][0], save)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    other = load("denoiser/text", "imagenet").for_prompts(PROMPTS)
    assert (plain.prediction_type, other.prediction_type) == ("epsilon", "v_prediction")
    abar = plain.alphas_cumprod[t].view(2, 1, 1, 1)
    with torch.no_grad():
        v = plain(x_t, t, p)
        torch.testing.assert_close(other(x_t, t, p), abar.sqrt() * v + (1 - abar).sqrt() * x_t)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 0.1), ("fp16", 0.02)])
def test_image_variations(at_hub, photos, precision, tolerance):
    """Of the revision v2.0; the tower sees 224 px under CLIP's normalisation, as the library's own pipeline does."""
    (repository,) = hub.repositories("denoiser/variation")
    assert (zoo.fingerprint("denoiser/variation", "imagenet"), hub.REVISIONS[repository]) == (COMMIT[:12], "v2.0")
    assert "--revision v2.0" in hub.how_to_download(repository)
    denoiser = load("denoiser/variation", "imagenet", precision=precision)
    assert (denoiser.shape, denoiser.image_size, denoiser.classes) == ((4, 8, 8), 224, 0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    told = denoiser.pipeline._encode_image((photos - mean) / std, "cpu", 1, True)
    torch.testing.assert_close(denoiser.embed(photos), told[2:, 0])
    settings = variations.Settings(steps=2, rows_at_once=4)
    made = variations.variations(photos, 2, "variation", denoiser, torch.tensor([3, 8]), settings)
    whole = load("denoiser/variation", "imagenet", precision="fp32")
    same = variations.variations(photos, 2, "variation", whole, torch.tensor([3, 8]), settings)
    assert made.shape == (2, 2, 3, 224, 224)
    assert (made - same).norm() < tolerance * same.norm()


def test_image_variations_may_be_pickled(at_hub, tmp_path, monkeypatch, photos):
    """The same weights as *.bin, as they were first published: the loader and `require` take them."""
    (repository,) = hub.repositories("denoiser/variation")
    safe = load("denoiser/variation", "imagenet")

    def save(folder):
        fake_hub._image_variations(folder)
        for file in IMAGE_VARIATIONS:
            part = folder / file
            part.unlink()
            kind = "pytorch_model.bin" if "encoder" in file else "diffusion_pytorch_model.bin"
            torch.save(getattr(safe.pipeline, part.parent.name).state_dict(), part.with_name(kind))

    fake_hub.store(tmp_path, repository, save)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    profile("imagenet").require("denoiser/variation")
    pickled = load("denoiser/variation", "imagenet")
    torch.testing.assert_close(pickled.embed(photos), safe.embed(photos))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])
    with torch.no_grad():
        torch.testing.assert_close(pickled(x, t), safe(x, t))


@pytest.mark.parametrize("name", ["prompted", "image_to_image"])
def test_the_other_generators_of_photographs(at_hub, photos, name):
    denoiser = load(generated.model_of(name, "imagenet"), "imagenet", precision="fp32")
    photos = photos[:, :, : denoiser.image_size, : denoiser.image_size]
    captions = ["a cube", "a torus"] if name == "prompted" else None
    settings = variations.Settings(start=300, steps=2, rows_at_once=2)
    made = variations.variations(photos, 1, name, denoiser, torch.tensor([3, 8]), settings, captions)
    assert made.shape == (2, 1, *photos.shape[1:])
    assert torch.isfinite(made).all()


def test_diffusion_tta_of_clip(at_hub, photos):
    clip, text = load("clip/small", "imagenet"), load("denoiser/text", "imagenet").for_prompts(PROMPTS)
    models = Models(clip.zero_shot(["cube", "torus", "arch"]), text)
    out = diffusion_tta.configure(models, SETTINGS).adapt(photos, torch.tensor([4, 5]))
    assert out.logits.shape == (2, 3)
    assert not torch.equal(out.logits, out.before)
    assert out.nfe["denoiser fwd+bwd"] == 8


# --- maps ------------------------------------------------------------------------------------------------------------

MAP_TASKS = {
    "segmentor/segformer": (150, 128, 128),
    "segmentor/segformer-b5": (150, 128, 128),
    "depth/glpn": (1, 448, 448),
}


@pytest.mark.parametrize("name", MAP_TASKS)
def test_task_networks_of_maps_are_those_of_the_library(at_hub, name):
    """SegFormer normalises its images, GLPN does not; a depth of the network is in metres."""
    model = load(name, "imagenet")
    assert isinstance(model, DenseModel)
    assert (model.answer, model.name, model.image_size) == (
        MAP_TASKS[name],
        name,
        MAP_TASKS[name][-1] if "glpn" in name else 512,
    )
    assert not any(p.requires_grad for p in model.parameters())
    kind = GLPNForDepthEstimation if "glpn" in name else SegformerForSemanticSegmentation
    plain = as_published(kind.from_pretrained(fake_hub_path(at_hub, hub.REPOSITORIES[name][0])).eval())
    photos = torch.rand(1, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(7))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET_STATISTICS)
    with torch.no_grad():
        if "glpn" in name:
            expected = plain(photos).predicted_depth[:, None].clamp(0.1, 10)
            assert model.target == "depth"
        else:
            expected = plain((photos - mean) / std).logits
            assert model.target == "classes"
        torch.testing.assert_close(model(photos), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["segmentor/segformer", "depth/glpn"])
def test_task_networks_of_maps_may_be_pickled(at_hub, tmp_path, monkeypatch, name):
    """As they were first published; a file of TensorFlow beside them is not taken for theirs."""
    (repository,), safe = hub.repositories(name), load(name, "imagenet")

    def save(folder):
        fake_hub._dense(folder, name)
        (folder / "model.safetensors").unlink()
        (folder / "tf_model.h5").write_bytes(b"another library's")
        torch.save(safe.network.model.state_dict(), folder / "pytorch_model.bin")

    fake_hub.store(tmp_path, repository, save)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    profile("imagenet").require(name)
    pickled, photos = load(name, "imagenet"), torch.rand(1, 3, safe.image_size, safe.image_size)
    with torch.no_grad():
        assert torch.equal(pickled(photos), safe(photos))
    path = fake_hub_path(tmp_path, repository) / "pytorch_model.bin"
    path.resolve().write_bytes(path.resolve().read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a whole bin file") as error:
        load(name, "imagenet")
    one_sentence(error, hub.how_to_download(repository))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=repository):
        profile("imagenet").require(name)


@pytest.mark.parametrize(
    "precision, low_memory, tolerance", [("fp32", True, 1e-4), ("bf16", False, 0.2), ("fp16", True, 0.05)]
)
def test_a_control_net_of_maps(at_hub, precision, low_memory, tolerance):
    """150 classes in the benchmark's colours; halves and recomputation change the loss and its gradient little."""

    def feedback_of(denoiser):
        g = torch.Generator().manual_seed(8)
        P = torch.randn(1, 150, 16, 16, generator=g).mul(3).softmax(1).requires_grad_()
        x0, eps = (torch.randn(1, *denoiser.shape, generator=g) for _ in range(2))
        loss = diffusion_loss(denoiser, x0, torch.tensor([300]), eps, P, denoiser.alphas_cumprod)
        return loss.detach(), torch.autograd.grad(1e-4 * loss.sum(), P)[0]

    full = load("maps/classes-control", "imagenet", low_memory=False)
    assert isinstance(full, ControlUNet)
    assert (full.classes, full.target, full.image_size, full.side) == (150, "classes", 512, 64)
    assert torch.equal(full.palette, ade20k.palette())
    other = load("maps/classes-control", "imagenet", precision=precision, low_memory=low_memory)
    assert other.controlnet.is_gradient_checkpointing is other.network.is_gradient_checkpointing is low_memory
    kept = {v.dtype for part in (other.vae, other.text_encoder) for v in part.parameters()}
    assert kept == {torch.float32}
    for a, b in zip(feedback_of(full), feedback_of(other), strict=True):
        assert a.abs().max() > 0
        assert (a - b).norm() < tolerance * a.norm()


def test_maps_of_both_profiles(root, at_hub):
    """One interface: the streams' labels are maps that the profile's task networks answer with."""
    scenes, photos = profile("scenes", seed=1), profile("imagenet", str(root), seed=1)
    assert len(scenes.map_classes()) == 12
    assert len(photos.map_classes()) == 150
    for kit, sides in ((scenes, {"classes": 64, "depth": 64}), (photos, {"classes": 512, "depth": 448})):
        for target, side in sides.items():
            s = kit.map_stream(2, target, "contrast", 3, start=4)
            assert s.images.shape == (2, 3, side, side)
            assert s.labels.shape == (2, side, side)
            assert (s.labels.dtype == torch.uint8) == (target == "classes")
            assert (s.about["target"], s.about["shift"], s.about["severity"]) == (target, "contrast", 3)
            with pytest.raises(ValueError, match="'flow'"):
                kit.map_stream(2, "flow")
    assert photos.map_stream(3).ids.tolist() != photos.map_stream(3, start=1).ids.tolist()
    photos.require(*(name for names in photos.task_models.values() for name in names), *photos.map_models.values())


def test_published_settings_of_maps():
    ours, dusa = map_profiles.published_settings(seed=3, lr=None), map_profiles.published_settings("output")
    assert (ours.optimizer, ours.lr, ours.mixing, ours.seed, ours.adapt_denoiser) == (
        "adamw",
        8e-5,
        "embedding",
        3,
        False,
    )
    assert (dusa.lr, dusa.window, dusa.mixing, dusa.map_classes) == (7.5e-6, (100, 101), "output", 20)


@pytest.mark.parametrize("way", ["embedding", "output"])
def test_a_segmentor_of_photographs_is_adapted(at_hub, root, way):
    """The map as a picture, and DUSA's mix of the predictions of prompts beside a black one."""
    s = profile("imagenet", str(root)).map_stream(1, shift="gaussian_noise", severity=3)
    segmentor, denoiser = load("segmentor/segformer", "imagenet"), load("maps/classes-control", "imagenet")
    how = map_profiles.published_settings(way, updates=1, pairs=1, map_classes=None if way == "embedding" else 4)
    if way == "output":
        denoiser = denoiser.for_prompts([PROMPT.format(name) for name in ade20k.CLASSES])
    out = diffusion_tta.configure(Models(segmentor, denoiser), how).adapt(s.images, s.ids)
    assert out.logits.shape == (1, 150, 128, 128)
    assert (out.logits - out.before).abs().max() > 0
    assert out.nfe["denoiser fwd" if way == "output" else "denoiser fwd+bwd"] == (4 if way == "output" else 1)


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["classifier/vit", "denoiser/dit", "clip/small", "denoiser/text", "denoiser/variation", "segmentor/segformer"]
    + ["depth/glpn"],
)
def test_missing_weights_are_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError) as error:
        load(name, "imagenet")
    repository = hub.REPOSITORIES[name][0]
    get = hub.how_to_download(repository)
    assert get.startswith(f"`hf download {repository}")
    one_sentence(error, repository, str(tmp_path / "hub"), get, "HF_HOME", "HF_HUB_OFFLINE")
    assert zoo.fingerprint(name, "imagenet").startswith("missing")


def test_all_that_is_missing_is_listed_before_anything_runs(home, tmp_path, monkeypatch, at_hub):
    profile("imagenet").require(*hub.REPOSITORIES, hub.ADM)
    profile("scenes").require("classifier/none")  # what is shipped needs no look
    with pytest.raises(ValueError, match="unknown model 'classifier/none'"):
        profile("imagenet").require("classifier/none")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    names = ("classifier/resnet", "classifier/vit", "denoiser/dit", "classifier/vit", "clip/large", hub.ADM)
    with pytest.raises(FileNotFoundError) as error:
        profile("imagenet").require(*names)
    first, *lines = str(error.value).split("\n")
    assert str(tmp_path / "hub") in first
    assert "HF_HOME" in first
    wanted = [r for name in dict.fromkeys(names) for r in hub.repositories(name)]
    assert len(lines) == len(wanted) == 6
    for line, repository in zip(lines, wanted, strict=True):
        assert line.startswith(f"{repository} (for ")
        assert "put" in line or hub.how_to_download(repository) in line
    fake_hub.store(tmp_path, "timm/resnet50.tv_in1k", lambda f: fake_hub._classifier(f, "timm/resnet50.tv_in1k"))
    with pytest.raises(FileNotFoundError) as error:
        profile("imagenet").require(*names)
    assert str(error.value).count("\n") == 5
    assert "resnet50" not in str(error.value)


@pytest.mark.parametrize(
    "repository, name, file",
    [
        ("timm/resnet18.tv_in1k", "classifier/resnet18", "model.safetensors"),
        ("facebook/DiT-XL-2-256", "denoiser/dit", "transformer/diffusion_pytorch_model.safetensors"),
        ("facebook/DiT-XL-2-256", "denoiser/dit", "scheduler/scheduler_config.json"),
        ("stabilityai/sd-vae-ft-ema", "denoiser/dit", "diffusion_pytorch_model.safetensors"),
        ("timm/vit_base_patch32_clip_224.openai", "clip/small", "open_clip_model.safetensors"),
        ("timm/vit_base_patch32_clip_224.openai", "clip/small", "open_clip_config.json"),
        *[(hub.REPOSITORIES["denoiser/text"][0], "denoiser/text", file) for file in hub.STABLE_DIFFUSION],
        *[(hub.REPOSITORIES["denoiser/variation"][0], "denoiser/variation", file) for file in IMAGE_VARIATIONS],
        (hub.REPOSITORIES["segmentor/segformer"][0], "segmentor/segformer", "model.safetensors"),
        (hub.REPOSITORIES["depth/glpn"][0], "depth/glpn", "preprocessor_config.json"),
        (CONTROL, "maps/classes-control", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_half_a_download_is_one_sentence(home, tmp_path, monkeypatch, repository, name, file):
    """A file that is missing from its repository, and a file that was cut off."""
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    path = fake_hub_path(tmp_path / "home", repository) / file
    blob = path.resolve()
    if file.endswith(".safetensors"):
        blob.write_bytes(blob.read_bytes()[:1000])
        with pytest.raises(ValueError, match="is not a whole safetensors file") as error:
            load(name, "imagenet")
        one_sentence(error, file, hub.how_to_download(repository))
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        load(name, "imagenet")
    one_sentence(error, f"no weights of {repository}", hub.how_to_download(repository))
    if name in ("clip/small", "denoiser/text", "denoiser/variation") and file.endswith(
        ".safetensors"
    ):  # the repository holds other weights too
        with pytest.raises(FileNotFoundError) as error:
            profile("imagenet").require(name)
        assert repository in str(error.value)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown model 'classifier/none': choose one of classifier/resnet"):
        load("classifier/none", "imagenet")
    for call in (zoo.card, zoo.fingerprint):
        with pytest.raises(ValueError, match="unknown profile 'cifar'"):
            call("classifier/resnet", "cifar")
    with pytest.raises(ValueError, match="unknown profile 'cifar': choose one of scenes, imagenet"):
        profile("cifar")


def test_missing_images_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        profile("imagenet", str(tmp_path)).stream(4)
    one_sentence(error, str(tmp_path / "ImageNet" / "val"), f"`python -m gentta_utils data imagenet --root {tmp_path}`")


# --- images, classes, settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [name for name in folders.LAYOUTS if name != "imagenet-c"])
def test_every_data_set_of_the_fake_tree(root, dataset):
    files = folders.listing(dataset, root)
    assert len({path.stat().st_ino for path in files.paths}) == fake_hub.IMAGES
    s = stream(FolderSpec(dataset, str(root), n=3))
    images = s.rows(torch.arange(3)).images
    assert images.shape == (3, 3, 224, 224)
    assert s.classes == folders.class_indices(dataset)


def test_corruptions_come_from_files_where_there_are_some(root):
    stored = profile("imagenet", str(root)).stream(2, "speckle_noise", 5)
    made = profile("imagenet", str(root)).stream(2, "contrast", 5)
    assert (stored.about["split"], stored.about["corruptions"]) == ("imagenet-c", "files")
    assert made.about["split"] == "imagenet"
    assert made.about["corruptions"].startswith("in-memory")
    assert torch.is_tensor(stored.images)
    other = profile("imagenet", str(root)).stream(2, "contrast", 5, start=1)
    assert not torch.equal(made.ids, other.ids)


def test_the_two_profiles_have_one_interface(root):
    both = scenes, photos = profile("scenes", "nowhere", seed=2), profile("imagenet", str(root), seed=2)
    public = [{n for n in dir(type(p)) if not n.startswith("_")} for p in both]
    assert public[0] == public[1]
    for name in public[0]:
        one, two = (getattr(type(p), name) for p in both)
        assert type(one) is type(two) or name == "window", name
        if callable(one):
            assert inspect.signature(one) == inspect.signature(two), name
    for p, n, classes, side in ((scenes, 120, 10, 64), (photos, 5, 1000, 224)):
        world = p.world(n)
        assert world.image.shape == (n, 3, side, side)
        assert len(world.label) == len(world.id) == len(world.caption) == n
        assert int(world.label.max()) < classes == len(p.classes())
        assert p.classes((3, 1)) == (p.classes()[3], p.classes()[1])
    photo = photos.world(1)
    assert photo.caption == [f"a photo of a {photos.classes()[photo.label[0]]}"]


def test_what_was_chosen_and_what_was_published():
    scenes, photos = profile("scenes", seed=3), profile("imagenet", seed=3)
    chosen = scenes.settings("classifier/vit")
    assert chosen == replace(evaluation.tuned("classifier/vit"), seed=3)
    assert scenes.settings("classifier/vit", seed=4, lr=None) == replace(chosen, seed=4)
    assert scenes.window == evaluation.chosen_window()
    assert scenes.rival("tent", "classifier/vit") == evaluation.rival("tent", "classifier/vit")
    assert scenes.purifier("dda", eta=None, steps=7) == evaluation.purifier("dda", steps=7, seed=3)
    assert scenes.purifier("diffpure") == evaluation.purifier("diffpure", seed=3)
    assert (scenes.chosen_on, photos.chosen_on) == (ON_VALIDATION, "published")
    published = photos.settings("classifier/vit", noise=None)
    assert (published.updates, published.pairs, published.window, published.temperature) == (5, 180, (0, 1000), 1.0)
    assert (published.optimizer, published.lr, published.momentum) == ("sgd", 5e-3, 0.9)
    assert (published.seed, published.adapt_denoiser) == (3, False)
    assert photos.window == (0, 1000)
    assert photos.rival("tent", "classifier/vit") == tent.Settings(**tent.PUBLISHED_IMAGENET)
    of_memo = {"resnet": memo.PUBLISHED_RESNET50, "swin": memo.PUBLISHED_RVT}
    for name, values in of_memo.items():
        assert photos.rival("memo", f"classifier/{name}") == memo.Settings(**values)
    assert asdict(photos.purifier("diffpure")).items() >= diffpure.PUBLISHED_IMAGENET.items()
    online = photos.rival("diffusion_tta online", "classifier/vit")
    assert online == replace(published, online=True)
    nobody_chose = scenes.rival("diffusion_tta online", "classifier/swin")
    assert nobody_chose == replace(evaluation.tuned("classifier/swin"), online=True, seed=3)
    assert photos.purifier("dda", eta=0.0) == dda.Settings(scale=3.0, images_at_once=4, eta=0.0, seed=3)


def test_other_weights_take_another_step(shipped, monkeypatch):
    """The rule's rate at the chosen step where `param_set` is given alone; a rate that is given stays."""
    asked = []
    monkeypatch.setattr(diffusion_tta, "learning_rate", lambda *a: asked.append(a) or 0.25)
    scenes, chosen = profile("scenes"), evaluation.tuned("classifier/resnet")
    norm = scenes.settings("classifier/resnet", shipped, param_set="norm", lr=None)
    assert norm == replace(chosen, param_set="norm", lr=0.25)
    ((models, images, ids, settings, delta),) = asked
    assert (models, len(images), len(ids), delta) == (shipped, 32, 32, 2.8)
    assert settings == replace(chosen, param_set="norm")
    assert scenes.settings("classifier/resnet", shipped, param_set="norm", lr=0.1).lr == 0.1
    assert scenes.settings("classifier/resnet", shipped, pairs=2).lr == chosen.lr
    adam = scenes.settings("classifier/resnet", shipped, param_set="norm", optimizer="adamw")
    assert (adam.lr, len(asked)) == (chosen.lr, 1)
    assert profile("imagenet").settings("classifier/resnet", shipped, param_set="norm").lr == 5e-3


def test_the_seed_reaches_the_stream(root):
    """Of scenes the corruption alone, of photographs the draw too; 0 is what it was before there was a seed."""
    at = (2, "gaussian_noise", 5, "select", 7)
    zero, one = (profile("scenes", seed=seed).stream(*at) for seed in (0, 1))
    assert torch.equal(zero.images, stream(SceneSpec(*at)).images)
    assert (one.about["shift"], one.about["split"], one.about["start"], one.about["seed"]) == (*at[1:2], *at[3:], 1)
    assert torch.equal(zero.ids, one.ids)
    assert not torch.equal(zero.images, one.images)
    zero, one = (profile("imagenet", str(root), seed=seed).stream(20, "contrast", 5, start=9) for seed in (0, 1))
    same = stream(FolderSpec("imagenet", str(root), 20, shift="contrast", severity=5, seed=9))
    assert zero.ids.tolist() == same.ids.tolist() != one.ids.tolist()


def test_a_method_takes_the_seed_of_the_profile(shipped):
    ours = diffusion_tta.Settings(lr=0.1, seed=8)
    for row, seed in (("diffusion_tta", 8), ("diffusion_tta online", 5), ("memo", 5), ("diffusion_classifier", 5)):
        assert profile("scenes", seed=5).method(row, shipped, "classifier/resnet", ours).settings.seed == seed, row
    assert profile("scenes").method("source, low view", shipped, "classifier/resnet", ours).settings.view == "low"
    assert profile("scenes").method("memo", shipped, "classifier/resnet", ours, small=True).settings.views == 4


def test_the_shipped_copy_belongs_to_its_alignment():
    scenes = profile("scenes")
    settings = scenes.purifier("dda")
    assert scenes.aligned_copy("classifier/resnet", settings).alignment == what_changes(settings)
    assert scenes.aligned_copy("classifier/resnet", replace(settings, steps=7)) is None
    assert scenes.aligned_copy("classifier/filter", settings) is None
    assert profile("imagenet").aligned_copy("classifier/resnet", settings) is None


def test_what_clip_is_asked(root):
    """None is the profile's own set; both profiles answer in one form."""
    scenes, photos = profile("scenes"), profile("imagenet", str(root))
    for kit, name, usual in ((scenes, "colour", "category"), (photos, "food101", "pets")):
        assert kit.label_set() == kit.label_set(usual)
        assert kit.default_label_set == usual
        asked = kit.label_set(name)
        assert asked.prompts(1) == [asked.templates[1].format(c) for c in asked.classes]
        with pytest.raises(ValueError, match="'vans': choose one of"):
            kit.label_set("vans")
    assert scenes.label_set("colour") is words.LABEL_SETS["colour"]
    assert len(photos.label_set("imagenet").classes) == 1000
    with pytest.raises(FileNotFoundError, match="python -m gentta_utils data pets"):
        profile("imagenet", str(root / "nowhere")).label_set()


def test_streams_of_label_sets(root):
    scenes, photos = profile("scenes", seed=1), profile("imagenet", str(root), seed=1)
    s = scenes.labelled_stream(3, "colour", "contrast", 5, "select", 7)
    expected = SceneSpec(3, "contrast", 5, "select", 7, 1, "colour").load()
    assert s.about == expected.about
    assert torch.equal(s.labels, expected.labels)
    assert torch.equal(scenes.labelled_stream(2).labels, scenes.stream(2).labels)
    for name in (None, "food101", "imagenet"):
        s = photos.labelled_stream(3, name, "contrast", 5)
        assert torch.is_tensor(s.images)
        assert (s.images.shape, s.classes) == ((3, 3, 224, 224), None)
        assert (s.about["labels"], s.about["severity"]) == (name or "pets", 5)
        assert int(s.labels.max()) < len(photos.label_set(name).classes)
        other = photos.labelled_stream(3, name, start=5)
        assert other.ids.tolist() != s.ids.tolist()
    s = photos.labelled_stream(2, "imagenet", "a")
    assert s.classes == folders.class_indices("imagenet-a")
    assert (s.about["shift"], s.about["dataset"]) == ("a", "imagenet-a")
    with pytest.raises(ValueError, match="choose the label set 'imagenet'"):
        photos.labelled_stream(2, "pets", "sketch")
    with pytest.raises(ValueError, match="severity=5: imagenet-a has none"):
        photos.labelled_stream(2, "imagenet", "a", 5)


def test_settings_of_clip(monkeypatch):
    asked = []
    tuned = lambda *a, **k: asked.append((a, k)) or SETTINGS  # noqa: E731
    monkeypatch.setattr(evaluation.chosen, "tuned_text", tuned, raising=False)
    assert profile("scenes", seed=3).text_settings("clip/small", "low", pairs=2, lr=None) == SETTINGS
    assert asked == [(("clip/small", "low", None), dict(seed=3, pairs=2))]
    s = profile("imagenet", seed=3).text_settings("clip/large", updates=None, param_set="all", top_k=32)
    assert (s.optimizer, s.lr, s.momentum, s.updates, s.pairs, s.temperature) == ("sgd", 5e-3, 0.9, 5, 192, 1.0)
    assert (s.timesteps, s.window, s.adapt_denoiser, s.seed) == ("iid", (0, 1000), False, 3)
    assert (s.param_set, s.top_k, s.view) == ("all", 32, "full")
    assert profiles.PUBLISHED_TEXT["param_set"] == "tower"


def test_class_names_are_all_different():
    names = profile("imagenet").classes()
    assert len(set(names)) == 1000
    assert names[0] == "tench"
    assert names[134] != names[517]  # crane, the bird and the machine
    assert names[134].startswith("crane")
    assert names[517].startswith("crane")
    assert names[478] == "carton"
    assert len(profile("scenes").classes()) == 10


def test_plausible_classes():
    logits = torch.tensor([[0.1, 3.0, 2.0, -1.0]])
    assert plausible(logits, 2).tolist() == [[1, 2]]
    assert plausible(logits, 10).tolist() == [[0, 1, 2, 3]]


# --- methods ---------------------------------------------------------------------------------------------------------


def test_reading_among_some_classes(at_hub, root):
    s = profile("imagenet", str(root)).stream(2)
    denoiser, asked = load("denoiser/dit", "imagenet"), torch.tensor([[5, 80, 999], [0, 1, 2]])
    table = error_table(denoiser, s.images, s.ids, pairs=2, classes=asked)
    best = table.scores().argmin(1)
    assert table.read().tolist() == [asked[0, best[0]], asked[1, best[1]]]


SETTINGS = diffusion_tta.Settings(lr=1e-2, updates=2, pairs=2, window=(0, 1000), temperature=1.0)


@pytest.mark.parametrize("name", ["classifier/resnet", "classifier/vit", "classifier/convnext", "classifier/swin"])
def test_diffusion_tta(at_hub, root, name):
    s = profile("imagenet", str(root)).stream(2)
    models = Models(load(name, "imagenet"), load("denoiser/dit", "imagenet"))
    out = diffusion_tta.configure(models, SETTINGS).adapt(s.images, s.ids)
    assert out.logits.shape == (2, 1000)
    assert not torch.equal(out.logits, out.before)
    assert out.nfe["denoiser fwd+bwd"] == 8


def test_the_diffusion_model_is_adapted_in_float32_alone(at_hub, root):
    s = profile("imagenet", str(root)).stream(1)
    both = replace(SETTINGS, adapt_denoiser=True)
    classifier = load("classifier/resnet18", "imagenet")
    for precision, low_memory in (("bf16", False), ("fp16", False), ("fp32", True)):
        other = load("denoiser/dit", "imagenet", precision=precision, low_memory=low_memory)
        with pytest.raises(ValueError, match="load the denoiser with precision='fp32' and low_memory=False"):
            diffusion_tta.configure(Models(classifier, other), both)
    denoiser = load("denoiser/dit", "imagenet", low_memory=False)
    method = diffusion_tta.configure(Models(classifier, denoiser), both)
    adapted = method._fresh(1)[1]
    assert adapted
    assert all(name.startswith("network.") for name in adapted)  # not the VAE
    frozen = diffusion_tta.configure(method.models, SETTINGS).adapt(s.images, s.ids)
    assert not torch.equal(method.adapt(s.images, s.ids).loss[1], frozen.loss[1])


# --- ImageNet-A and -R: 200 of the 1000 classes -----------------------------------------------------------------------


@pytest.mark.parametrize("shift", ["a", "r"])
def test_every_method_works_within_the_classes_of_the_set(at_hub, root, shift):
    s = profile("imagenet", str(root)).stream(3, shift)
    whole = Models(load("classifier/resnet", "imagenet"), load("denoiser/dit", "imagenet"))
    models = whole.restrict(s.classes)
    subset = list(folders.class_indices(f"imagenet-{shift}"))
    assert list(s.classes) == subset
    with torch.no_grad():
        expected = whole.classifier(s.images)[:, subset]
    names = profile("imagenet").classes(s.classes)
    assert names[s.labels[0]] == profile("imagenet").classes()[subset[s.labels[0]]]
    for method in (
        methods_source.configure(models),
        diffusion_classifier.configure(models, diffusion_classifier.Settings(2, (0, 1000), prune=3)),
        diffusion_tta.configure(models, SETTINGS),
        tent.configure(models, tent.Settings(online=False)),
    ):
        records = evaluate.run(method, s)
        assert records.before.shape == records.after.shape == (3, 200)
        torch.testing.assert_close(torch.from_numpy(records.before), expected, atol=1e-4, rtol=1e-3)
        assert records.about["stream"]["shift"] == shift
        assert records.about["stream"]["dataset"] == f"imagenet-{shift}"
    with pytest.raises(ValueError, match=r"configure the method with `models.restrict\(stream.classes\)`"):
        evaluate.run(methods_source.configure(whole), s)
    with pytest.raises(ValueError, match=r"restrict\(stream.classes\)"):
        evaluate.run(methods_source.configure(models), profile("imagenet", str(root)).stream(3))


def test_an_image_of_the_set_is_right_where_all_classes_say_its_own(at_hub, root):
    """A folder's name decides: logits that are highest at each image's own class of the 1000 give 100% within 200."""
    s = profile("imagenet", str(root)).stream(5, "a")
    own = [next(i for i, w in enumerate(folders.synsets()) if w == folders.synsets("imagenet_a")[k]) for k in s.labels]
    network = torch.nn.Module()
    network.forward = lambda x: F.one_hot(torch.tensor(own), 1000).float()
    models = Models(Classifier(network, (0.5,) * 3, (0.5,) * 3, 224, 1000)).restrict(s.classes)
    assert evaluate.run(methods_source.configure(models), s).right_after.all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_condition_of_a_subset_reaches_its_own_label_rows(at_hub, photos, precision):
    """p over 200 classes is p over 1000 with zeros elsewhere, and so is its gradient."""
    subset = folders.class_indices("imagenet-r")
    whole = load("denoiser/dit", "imagenet", precision=precision)
    part = whole.restrict(subset)
    assert (part.classes, whole.classes, part.subset) == (200, 1000, subset)
    x0, t = whole.encode(photos), torch.tensor([100, 700])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(8))
    few = torch.rand(2, 200, generator=torch.Generator().manual_seed(9)).softmax(1).requires_grad_()
    many = torch.zeros(2, 1000)
    many[:, list(subset)] = few.detach()
    many.requires_grad_()
    losses = [diffusion_loss(net, x0, t, eps, p, net.alphas_cumprod).sum() for net, p in ((part, few), (whole, many))]
    assert losses[0] == losses[1]
    grad_few, grad_many = (torch.autograd.grad(v, p)[0] for v, p in zip(losses, (few, many), strict=True))
    assert grad_few.abs().min() > 0
    assert torch.equal(grad_few, grad_many[:, list(subset)])
    with torch.no_grad():
        assert torch.equal(part(x0, t), whole(x0, t))  # the null class is the same
    assert part.count == {"fwd": 2, "fwd+bwd": 2}
    table = whole.network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
    table.weight.requires_grad_()
    diffusion_loss(part, x0, t, eps, few, part.alphas_cumprod).sum().backward()
    touched = table.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == list(subset)


def test_natural_shifts_are_data_sets(root):
    assert profile("imagenet", str(root)).stream(2, "sketch").classes is None
    assert profile("imagenet", str(root)).stream(2, "v2").about["dataset"] == "imagenet-v2"
    with pytest.raises(ValueError, match="severity=5: imagenet-a has none, leave it at 0"):
        profile("imagenet", str(root)).stream(2, "a", 5)


# --- the real configurations, without weights ------------------------------------------------------------------------


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def meta():
    with torch.device("meta"):
        yield


PUBLISHED_DIT = fake_hub.DIT | dict(num_attention_heads=16, attention_head_dim=72, num_layers=28, patch_size=2)
PUBLISHED_VAE = fake_hub.VAE | dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)


@pytest.mark.parametrize("low_memory", [False, True])
def test_dit_xl(meta, low_memory):
    """675 M: 674,834,720 weights and a position embedding of 256 x 1152, which the original counts as parameters."""
    network, vae = DiTTransformer2DModel(**PUBLISHED_DIT), AutoencoderKL(**PUBLISHED_VAE)
    each = parameters(network.transformer_blocks[0].norm1.emb)
    assert parameters(network) - 27 * each == 674_834_720
    assert network.pos_embed.pos_embed.numel() + 674_834_720 == 675_129_632
    assert parameters(vae) == 83_653_863
    denoiser = LatentDiT(network, vae, torch.ones(1000), low_memory=low_memory).requires_grad_(False)
    assert parameters(denoiser.network) == 674_834_720  # the embedders are one
    x0 = denoiser.encode(torch.rand(2, 3, 224, 224))
    assert x0.shape == (2, 4, 32, 32)
    p = torch.rand(2, 1000).requires_grad_()
    eps_hat = denoiser(x0, torch.zeros(2, dtype=torch.long), p)
    assert eps_hat.shape == (2, 4, 32, 32)
    assert torch.autograd.grad(eps_hat.sum(), p)[0].shape == (2, 1000)
    assert denoiser.decode(x0).shape == (2, 3, 224, 224)
    assert prepare_dit(network) is network


def test_stable_diffusion(meta):
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    assert parameters(unet) == 859_520_964
    vae = AutoencoderKL(**PUBLISHED_VAE | dict(sample_size=512))
    assert parameters(vae) == 83_653_863
    latent = vae.encode(torch.rand(1, 3, 512, 512)).latent_dist.mean
    assert latent.shape == (1, 4, 64, 64)
    assert unet(latent, torch.zeros(1, dtype=torch.long), torch.rand(1, 77, 768)).sample.shape == (1, 4, 64, 64)
    assert vae.decode(latent).sample.shape == (1, 3, 512, 512)


@pytest.mark.parametrize("low_memory", [False, True])
def test_stable_diffusion_as_a_denoiser(low_memory):
    """Prompts of ViT-L's text tower, 512 px, gradients to p through the whole U-Net; memory is not asked for."""
    parts = dict(scheduler=PNDMScheduler(**fake_hub.NOISE), tokenizer=tokenizer())
    parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(**PUBLISHED_VAE | dict(sample_size=512))
        size = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        text = CLIPTextModel(CLIPTextConfig(**fake_hub.TEXT | size | dict(projection_dim=768)))
        assert parameters(text) == 123_060_480
        if low_memory:
            unet.enable_gradient_checkpointing()
        pipeline = StableDiffusionPipeline(unet=unet, vae=vae, text_encoder=text, **parts)
        denoiser = TextUNet(pipeline, ["one", "two", "three"], 224).to("meta").requires_grad_(False)
        assert denoiser.states.shape == (3, denoiser.tokenizer.model_max_length, 768)
        x0 = denoiser.encode(torch.rand(2, 3, 224, 224))
        assert x0.shape == (2, 4, 64, 64)
        p = torch.rand(2, 3).requires_grad_()
        eps_hat = denoiser(x0, torch.zeros(2, dtype=torch.long), p)
        assert eps_hat.shape == (2, 4, 64, 64)
        assert torch.autograd.grad(eps_hat.sum(), p)[0].shape == (2, 3)
        assert denoiser.decode(x0).shape == (2, 3, 224, 224)


def test_image_variations_of_published_size():
    """ViT-L/14 up to its projection, one token of 768 in place of a prompt, the U-Net and VAE of Stable Diffusion 1."""
    parts = dict(scheduler=PNDMScheduler(**fake_hub.NOISE), feature_extractor=CLIPImageProcessor())
    parts |= dict(safety_checker=None, requires_safety_checker=False)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(**PUBLISHED_VAE | dict(sample_size=512))
        size = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**fake_hub.VISION | size | dict(projection_dim=768)))
        assert parameters(tower) == 303_966_208
        pipeline = StableDiffusionImageVariationPipeline(unet=unet, vae=vae, image_encoder=tower, **parts)
        denoiser = VariationUNet(pipeline, 224).to("meta").requires_grad_(False)
        told = denoiser.embed(torch.rand(2, 3, 224, 224))
        assert told.shape == (2, 768)
        x0 = torch.rand(2, *denoiser.shape)
        assert denoiser.shape == (4, 64, 64)
        assert denoiser(x0, torch.zeros(2, dtype=torch.long), told).shape == (2, 4, 64, 64)
        assert denoiser.decode(x0).shape == (2, 3, 224, 224)


def test_stable_diffusion_beside_a_control_net_of_published_size():
    """512 px and 64 x 64 latents, a picture of 512 px, gradients to a map through both networks."""
    parts = dict(scheduler=PNDMScheduler(**fake_hub.NOISE), tokenizer=tokenizer())
    parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        controlnet = ControlNetModel.from_unet(unet)
        assert parameters(controlnet) == 361_279_120
        vae = AutoencoderKL(**PUBLISHED_VAE | dict(sample_size=512))
        size = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        text = CLIPTextModel(CLIPTextConfig(**fake_hub.TEXT | size | dict(projection_dim=768)))
        pipeline = StableDiffusionControlNetPipeline(
            unet=unet, controlnet=controlnet, vae=vae, text_encoder=text, **parts
        )
        denoiser = ControlUNet(pipeline, ade20k.palette(), 512).to("meta").requires_grad_(False)
        assert (denoiser.shape, denoiser.side, denoiser.classes) == ((4, 64, 64), 512, 150)
        x0 = denoiser.encode(torch.rand(1, 3, 512, 512))
        P = torch.rand(1, 150, 128, 128).requires_grad_()
        eps_hat = denoiser(x0, torch.zeros(1, dtype=torch.long), P)
        assert eps_hat.shape == (1, 4, 64, 64)
        assert torch.autograd.grad(eps_hat.sum(), P)[0].shape == (1, 150, 128, 128)
        prompts = denoiser.for_prompts(["one", "two", "three"])
        assert prompts(x0, torch.zeros(1, dtype=torch.long), torch.rand(1, 3)).shape == (1, 4, 64, 64)


@pytest.mark.parametrize(
    "kind, config, size, side",
    [
        ("segformer", SegformerConfig(num_labels=150), 3_752_694, 512),
        (
            "segformer",
            SegformerConfig(
                num_labels=150, depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768
            ),
            84_708_694,
            512,
        ),
        ("glpn", GLPNConfig(depths=[3, 8, 27, 3], hidden_sizes=[64, 128, 320, 512]), 61_220_903, 448),
    ],
)
def test_task_networks_of_maps_of_published_size(meta, kind, config, size, side):
    network = (GLPNForDepthEstimation if kind == "glpn" else SegformerForSemanticSegmentation)(config)
    assert parameters(network) == size
    model = dense_model(Answers(network), "depth" if kind == "glpn" else "classes", "", side)
    assert model.answer == ((1, side, side) if kind == "glpn" else (150, side // 4, side // 4))


@pytest.mark.parametrize(
    "name, size, width",
    [
        ("clip/rn50", 102_007_137, 1024),
        ("clip/small", 151_277_313, 512),
        ("clip/base", 149_620_737, 512),
        ("clip/large", 427_616_513, 768),
    ],
)
def test_clips_of_published_size(meta, name, size, width):
    """What is fetched is what open_clip itself means by the name with "-quickgelu" and the tag "openai"."""
    config, published = open_clip.get_model_config(CLIPS[name]), open_clip.get_pretrained_cfg(CLIPS[name], "openai")
    assert published["hf_hub"].rstrip("/") == hub.REPOSITORIES[name][0]
    assert config["quick_gelu"] is published["quick_gelu"] is True
    network = open_clip.CLIP(**config)
    assert parameters(network) == size
    assert network.encode_image(torch.rand(2, 3, 224, 224)).shape == (2, width)
    assert network.encode_text(torch.zeros(2, 77, dtype=torch.long)).shape == (2, width)


@pytest.mark.parametrize(
    "name, millions",
    [
        ("classifier/vit", 88_224_232),
        ("classifier/resnet", 25_557_032),
        ("classifier/convnext", 28_589_128),
        ("classifier/swin", 28_288_354),
    ],
)
def test_classifiers_of_published_size(meta, name, millions):
    (repository,) = hub.REPOSITORIES[name]
    network = timm.create_model(repository.removeprefix("timm/"), pretrained=False)
    assert network.pretrained_cfg["hf_hub_id"] == repository
    assert parameters(network) == millions
    config = network.pretrained_cfg
    classifier = Classifier(network, config["mean"], config["std"], config["input_size"][-1], 1000, name)
    assert classifier(torch.rand(2, 3, 224, 224)).shape == (2, 1000)
