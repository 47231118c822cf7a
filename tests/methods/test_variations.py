"""Three generators behind one call: where each starts, what it is told, draws that belong to the image, the cache."""

import itertools

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImageVariationPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from gentta_utils.__main__ import main
from gentta_utils.common.randomness import generator
from gentta_utils.diffusion.process import add_noise, alphas_cumprod_of, linear_betas
from gentta_utils.diffusion.sampling import sample
from gentta_utils.diffusion.synthesis import classifier_free
from gentta_utils.evaluation import generated as cache
from gentta_utils.evaluation.generated import Generated, generated
from gentta_utils.evaluation.spread import diversity, fidelity
from gentta_utils.methods.variations import CHOSEN, Settings, evaluations, usual, variations
from gentta_utils.models import zoo
from gentta_utils.models.unet import PixelUNet
from gentta_utils.models.variation_unet import VariationUNet
from gentta_utils.recipes.text_model import scheduler

SIZE = 16
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([5, 70, 9])
SHORT = Settings(steps=3, rows_at_once=4)
FROM = Settings(start=499, steps=3, guidance=1.0, rows_at_once=4)


def tiny_pipeline() -> StableDiffusionImageVariationPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=0.7,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE,
        patch_size=4, projection_dim=12,
    )  # fmt: skip
    encoder = CLIPVisionModelWithProjection(config)
    nn.init.normal_(encoder.visual_projection.weight)
    side = dict(height=SIZE, width=SIZE)
    shown = CLIPImageProcessor(
        size=dict(shortest_edge=SIZE), crop_size=side, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    return StableDiffusionImageVariationPipeline(
        vae=vae, image_encoder=encoder, unet=unet, scheduler=scheduler(), safety_checker=None,
        feature_extractor=shown, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VariationUNet:
    return VariationUNet(tiny_pipeline(), SIZE).requires_grad_(False)


@pytest.fixture(scope="module")
def pixels() -> PixelUNet:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIZE, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    return PixelUNet(network, alphas_cumprod_of(linear_betas()), SIZE).requires_grad_(False)


def test_an_embedding_is_the_librarys_and_nothing_is_zeros(model):
    pipeline = model.pipeline
    normal = (IMAGES - model.mean) / model.std
    both = pipeline._encode_image(normal, "cpu", 1, True)
    torch.testing.assert_close(model.embed(IMAGES), both[3:, 0])
    x, t = torch.randn(3, *model.shape), torch.tensor([20, 400, 900])
    unconditional = model.network(x, t, both[:3], return_dict=False)[0]
    torch.testing.assert_close(model(x, t), unconditional, rtol=1e-5, atol=1e-5)
    told = model.network(x, t, both[3:], return_dict=False)[0]
    torch.testing.assert_close(model(x, t, model.embed(IMAGES)), told, rtol=1e-5, atol=1e-5)
    assert (told - unconditional).abs().max() > 1e-3
    with pytest.raises(ValueError, match="embeddings"):
        model(x, t, torch.ones(3, 5))


def test_images_of_another_side_are_resized_without_antialiasing(model):
    large = torch.rand(2, 3, 40, 40)
    small = nn.functional.interpolate(large, (SIZE, SIZE), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.embed(large), model.embed(small))


def noise_of(ids, shape, number=0) -> torch.Tensor:
    """What a variation starts from."""
    return torch.stack([torch.randn(shape, generator=generator(0, i, f"variation/{number}")) for i in ids.tolist()])


def test_variation_is_the_librarys_own_call(model):
    """The same loop on the levels of the library's scheduler, and ours on levels that reach from 0 to the last."""
    pipeline, start, told = model.pipeline, noise_of(IDS, model.shape), model.embed(IMAGES)
    spaced = DDIMScheduler.from_config(pipeline.scheduler.config, steps_offset=0, set_alpha_to_one=True)
    library = StableDiffusionImageVariationPipeline(**pipeline.components | {"scheduler": spaced},
                                                    requires_safety_checker=False)  # fmt: skip
    library.set_progress_bar_config(disable=True)
    how = dict(num_inference_steps=4, guidance_scale=3, latents=start, output_type="pt")
    theirs = library((IMAGES - model.mean) / model.std, **how).images
    assert spaced.timesteps.tolist() == [750, 500, 250, 0]
    guided, abar = classifier_free(model, 3.0), model.alphas_cumprod
    ours = sample(guided, start, torch.tensor([0, 250, 500, 750]), told, abar, clip=False)
    torch.testing.assert_close(model.decode(ours), theirs, rtol=1e-4, atol=1e-4)
    whole = sample(guided, start, torch.tensor([0, 333, 666, 999]), told, abar, clip=False)
    out = variations(IMAGES, 1, "variation", model, IDS, Settings(steps=4, guidance=3.0))
    torch.testing.assert_close(out[:, 0], model.decode(whole), rtol=1e-4, atol=1e-4)
    assert (whole - ours).abs().max() > 1e-3


def test_image_to_image_starts_from_the_noised_image(pixels, monkeypatch):
    seen = []
    monkeypatch.setattr(pixels, "predict", lambda x, t, cond: seen.append((x, int(t[0]), cond)) or torch.zeros_like(x))
    variations(IMAGES[:1], 1, "image_to_image", pixels, IDS[:1], FROM)
    eps = noise_of(IDS[:1], pixels.shape)
    start = add_noise(pixels.encode(IMAGES[:1]), torch.tensor([499]), eps, pixels.alphas_cumprod)
    torch.testing.assert_close(seen[0][0][:1], start)
    assert [t for _, t, _ in seen] == [499, 250, 0]
    assert all(cond is None for *_, cond in seen)
    one = variations(IMAGES[:1], 1, "image_to_image", pixels, IDS[:1], Settings(start=499, steps=1, guidance=1.0))
    assert seen[-1][1] == 499
    assert one.shape == (1, 1, 3, SIZE, SIZE)


@pytest.mark.parametrize("name", ["variation", "image_to_image"])
def test_a_variation_belongs_to_its_image_and_number(name, model, pixels):
    """Bit-equal whatever the neighbours, their number, the order, and where the variations begin."""
    denoiser, s = (model, SHORT) if name == "variation" else (pixels, FROM)
    whole = variations(IMAGES, 3, name, denoiser, IDS, s)
    assert whole.shape == (3, 3, 3, SIZE, SIZE)
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1
    alone = torch.cat([variations(IMAGES[i, None], 3, name, denoiser, IDS[i, None], s) for i in range(3)])
    assert torch.equal(whole, alone)
    order = [2, 0, 1]
    assert torch.equal(variations(IMAGES[order], 3, name, denoiser, IDS[order], s), whole[order])
    assert torch.equal(variations(IMAGES, 1, name, denoiser, IDS, s, first=2), whole[:, 2:])
    for a, b in itertools.combinations(whole.flatten(0, 1), 2):
        assert not torch.equal(a, b)
    other = variations(IMAGES, 3, name, denoiser, IDS, Settings(**vars(s) | {"seed": 1}))
    assert not torch.equal(other, whole)


def test_prompted_tells_each_image_its_own_caption_and_starts_from_it():
    """By hand for one image at a time; what it costs is counted by the denoiser that was given."""
    text = zoo.load("denoiser/text", precision="fp32")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    captions = ["a red cube", "a blue torus", "a red cube"]
    s = Settings(start=499, steps=2, guidance=2.0, rows_at_once=3)
    made = variations(images, 1, "prompted", text, IDS, s, captions)
    assert text.count["fwd"] == 3 * evaluations("prompted", s, captions=True) == 12
    for i in range(3):
        told, abar = text.for_prompts(captions[i : i + 1]), text.alphas_cumprod
        start = add_noise(text.encode(images[i, None]), torch.tensor([499]), noise_of(IDS[i, None], text.shape), abar)
        x0 = sample(classifier_free(told, 2.0), start, torch.tensor([0, 499]), torch.ones(1, 1), abar, clip=False)
        torch.testing.assert_close(made[i], text.decode(x0), rtol=1e-3, atol=1e-3)
    swapped = variations(images, 1, "prompted", text, IDS, s, ["a blue torus", "a red cube", "a red cube"])
    assert torch.equal(swapped[2], made[2])
    assert (swapped[:2] - made[:2]).abs().amax((1, 2, 3, 4)).min() > 1e-2
    empty, blank = (variations(images, 1, "prompted", text, IDS, s, c) for c in (None, [""] * 3))
    torch.testing.assert_close(empty, blank, rtol=1e-3, atol=1e-3)  # nothing to guide towards


def test_noise_on_the_embedding_is_of_its_size_and_belongs_to_the_variation(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model, "predict", lambda x, t, cond: seen.append(cond) or torch.zeros_like(x))
    s = Settings(steps=1, guidance=1.0, noise=0.5, rows_at_once=400)
    variations(IMAGES[:2], 200, "variation", model, IDS[:2], s)
    told = model.embed(IMAGES[:2])[:, None]
    moved = (seen[0].unflatten(0, (2, 200)) - told) / told.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(moved.std((1, 2)), torch.full((2,), 0.5), rtol=0.05, atol=0)
    variations(IMAGES[1:2], 2, "variation", model, IDS[1:2], Settings(**vars(s) | {"rows_at_once": 2}), first=5)
    torch.testing.assert_close(seen[1], seen[0][205:207])


def test_evaluations_are_those_that_the_model_counts(model, pixels):
    for name, denoiser, s in (
        ("variation", model, SHORT),
        ("variation", model, Settings(steps=3, guidance=1.0, rows_at_once=4)),
        ("image_to_image", pixels, FROM),
    ):
        before = denoiser.count["fwd"]
        variations(IMAGES[:2], 2, name, denoiser, IDS[:2], s)  # one full batch
        assert denoiser.count["fwd"] - before == 4 * evaluations(name, s)
    assert evaluations("variation", SHORT) == 6
    assert evaluations("prompted", Settings(start=9, steps=3), captions=True) == 6
    assert evaluations("prompted", Settings(start=9, steps=3)) == 3


def test_a_caption_is_drawn_from_another_level_than_the_empty_prompt(monkeypatch):
    told, empty = usual("prompted", captions=True), usual("prompted")
    assert told.start > empty.start
    assert told.guidance > empty.guidance == 1
    few = Settings(start=99, steps=2, guidance=2.0, rows_at_once=2)
    monkeypatch.setattr("gentta_utils.methods.variations.CHOSEN_TOLD", few)
    monkeypatch.setitem(CHOSEN, "prompted", Settings(start=99, steps=1, guidance=1.0, rows_at_once=2))
    text, images = zoo.load("denoiser/text", precision="fp32"), torch.rand(1, 3, 64, 64)
    variations(images, 2, "prompted", text, IDS[:1], captions=["a cube"])
    assert text.count["fwd"] == 2 * evaluations("prompted", captions=True) == 8
    variations(images, 2, "prompted", text, IDS[:1])
    assert text.count["fwd"] == 8 + 2


def test_what_does_not_fit_is_said(model, pixels):
    for wrong, words in (
        (dict(generator="other", denoiser=model), "choose one of"),
        (dict(generator="variation", denoiser=pixels), "image-variation model"),
        (dict(generator="prompted", denoiser=pixels, settings=FROM), "text-conditional"),
        (dict(generator="image_to_image", denoiser=pixels, settings=SHORT), "begins with the image"),
        (dict(generator="image_to_image", denoiser=pixels, settings=Settings(start=2000)), "1000 timesteps"),
        (dict(generator="variation", denoiser=model, captions=["a"] * 3), "captions are of"),
    ):
        with pytest.raises(ValueError, match=words):
            variations(IMAGES, 2, ids=IDS, **wrong)
    with pytest.raises(ValueError, match="at most 10"):
        Settings(start=9, steps=11)
    assert variations(IMAGES[:0], 2, "variation", model, IDS[:0]).shape == (0, 2, 3, SIZE, SIZE)


def test_the_cache_keeps_goes_on_and_is_shared(model, tmp_path, monkeypatch):
    how = dict(generator="variation", settings=SHORT, denoiser=model, folder=tmp_path)
    monkeypatch.setattr(cache.zoo, "fingerprint", lambda name, profile: "f" * 12)
    assert generated(IMAGES, IDS, 2, **how, share=(1, 2)) is None
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    two = generated(IMAGES, IDS, 2, **how)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    fresh = variations(IMAGES, 3, "variation", model, IDS, SHORT)
    assert torch.equal(two.images, (fresh[:, :2] * 255).round().byte())
    three = generated(IMAGES[[1, 0]], IDS[[1, 0]], 3, **how)
    assert torch.equal(three.images, (fresh[[1, 0]] * 255).round().byte())
    assert (three.nfe, three.about["generator"]) == (6, "variation")
    assert three.seconds > 0
    monkeypatch.setattr(cache, "variations", None)  # now nothing is made
    assert torch.equal(generated(IMAGES, IDS, 2, **how).images, two.images)
    three.save(tmp_path / "set.npz")
    again = Generated.load(tmp_path / "set.npz")
    assert torch.equal(again.images, three.images)
    assert (again.about, again.nfe, again.seconds) == (three.about, three.nfe, three.seconds)
    with pytest.raises(ValueError, match="share 3/2"):
        generated(IMAGES, IDS, 2, **how, share=(3, 2))


def test_fidelity_and_diversity():
    views = nn.functional.normalize(torch.randn(4, 5, 7), dim=-1)
    image = nn.functional.normalize(torch.randn(4, 7), dim=-1)
    expected = torch.stack([(v @ i) for v, i in zip(views, image, strict=True)])
    torch.testing.assert_close(fidelity(views, image), expected)
    pairs = list(itertools.combinations(range(5), 2))
    apart = torch.stack([(views[:, i] - views[:, j]).norm(dim=1) for i, j in pairs]).mean(0)
    torch.testing.assert_close(diversity(views), apart)
    kept = torch.tensor([True, False, True, False, False]).expand(4, -1)
    torch.testing.assert_close(diversity(views, kept), (views[:, 0] - views[:, 2]).norm(dim=1))
    assert diversity(image[:, None].expand(-1, 5, -1)).abs().max() < 1e-3
    assert diversity(views[:, :1]).isnan().all()


def test_the_command(tmp_path, monkeypatch, capsys):
    """Of scenes and of a folder: shares, then one file; the second call makes nothing."""
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    monkeypatch.setitem(CHOSEN, "image_to_image", Settings(start=99, steps=2, guidance=1.0, rows_at_once=4))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.fromarray((torch.rand(70, 80, 3) * 255).byte().numpy()).save(pictures / f"{i}.png")
    for source in (["--images", "3", "--split", "select"], ["--folder", str(pictures)]):
        command = ["variations", "2", "--generator", "image_to_image", *source]
        for share in ("1/2", "2/2"):
            assert main([*command, "--share", share]) == 0
        assert "share 2/2 is done" in capsys.readouterr().out
        with monkeypatch.context() as patch:
            patch.setattr(cache, "variations", None)
            assert main([*command, "--out", str(tmp_path / "set.npz")]) == 0
        assert "2 variations of 3 images, 2 evaluations" in capsys.readouterr().out
        made = Generated.load(tmp_path / "set.npz")
        assert made.images.shape == (3, 2, 3, 64, 64)
    for wrong, words in (
        (["2", "--generator", "other"], "choose one of variation"),
        (["2", "--share", "a"], "write it as 1/4"),
        (["2", "--out", "x.npz"], "give one --generator"),
        (["2", "--folder", str(tmp_path / "none")], "no images"),
    ):
        assert main(["variations", *wrong]) == 2
        assert words in capsys.readouterr().err
