"""The image-variation model: its two stages, what it is trained on, the pipeline on disk, and how it is judged."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import weights
from resuming import assert_resumes_to_the_bit
from safetensors.torch import load_file

from gentta_utils.common import paths
from gentta_utils.common.files import sha256
from gentta_utils.evaluation.generated import Generated
from gentta_utils.models import zoo
from gentta_utils.models.variation_unet import VariationUNet
from gentta_utils.recipes import autoencoder, text_model, variation
from gentta_utils.recipes.text_model import TextRecipe

NAME, SECOND, FIRST = "denoiser/variation", "denoiser/variation-unet", "denoiser/variation-start"
STAGES = {FIRST: ("unet", "image_encoder"), SECOND: ("unet",), NAME: ("image_encoder",)}
FEATURES_OF = variation.VariationRecipe.features  # the fixture has others
IMAGES = torch.randint(0, 255, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tiny(name: str = FIRST, steps: int = 4) -> variation.VariationRecipe:
    schedule = replace(variation.RECIPES[name].schedule, steps=steps, batch=10, warmup=1)
    return replace(variation.RECIPES[name], schedule=schedule, width=32, layers=1, patch=16, scenes=20)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Models that were never trained: autoencoder, text pipeline, first stage, in one folder of candidates."""
    root = tmp_path_factory.mktemp("models")
    folder = root / "candidates"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "training_set", lambda n: (IMAGES, None))
        patch.setattr(variation, "training_set", lambda n: (IMAGES, None))
        patch.setattr(variation, "CACHE", root / "cache")
        patch.setattr(variation, "MODELS", root)
        for module in (text_model, variation):
            patch.setattr(module, "_autoencoder", lambda: (folder / "autoencoder", "0" * 12))
        schedule = tiny().schedule
        ae = autoencoder.AutoencoderRecipe((8, 8, 8), 8, schedule, pixels=32)
        torch.manual_seed(0)
        ae.save(ae.build(), folder / "autoencoder")
        text = TextRecipe((16, 32), 16, 1, schedule)
        draw = torch.Generator().manual_seed(2)
        latents, features = torch.randn(20, 2, 8, 8, 8, generator=draw), torch.randn(20, 2, 16, generator=draw)
        patch.setattr(TextRecipe, "latents", lambda self, device="cpu": (latents, None))
        patch.setattr(variation.VariationRecipe, "features", lambda self, images, device="cpu": features)
        for name, recipe in ((variation.TEXT, text), (FIRST, tiny()), (SECOND, tiny(SECOND))):
            recipe.save(recipe.build().eval(), folder / name)
            (folder / name / "card.json").write_text("{}", encoding="utf-8")
        yield folder


@pytest.mark.parametrize("name, learns", STAGES.items())
def test_each_stage_trains_its_part(small, name, learns):
    recipe = tiny(name)
    model, loss_of = recipe.build(), recipe.make_loss()
    loss_of(model, torch.Generator().manual_seed(1), 0).backward()
    for part in ("unet", "image_encoder"):
        parameters = list(getattr(model, part).parameters())
        assert all(p.requires_grad for p in parameters) is (part in learns)
        assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in parameters) is (part in learns)
    said = recipe.describe()
    assert ("embedding" in said["loss"], "eps" in said["loss"]) == ("image_encoder" in learns, "unet" in learns)
    assert said["start"].startswith(f"{recipe.start}-")
    if name != FIRST:  # it goes on from all of the stage before
        before = zoo.load(recipe.start, precision="fp32", folder=small)
        for part, there in (("unet", before.network), ("image_encoder", before.image_encoder)):
            fresh = weights(getattr(recipe.build(), part))
            assert all(torch.equal(x, y) for x, y in zip(fresh, weights(there), strict=True))


def test_a_tenth_of_the_embeddings_is_zero_and_the_unet_sends_no_gradient_to_the_tower(small, monkeypatch):
    recipe, shown = tiny(), []
    model, loss_of = recipe.build(), recipe.make_loss()
    forward = type(model).forward

    def watched(self, x_t, t, embeddings):
        assert not embeddings.requires_grad
        shown.append(embeddings)
        return forward(self, x_t, t, embeddings)

    monkeypatch.setattr(type(model), "forward", watched)
    with torch.no_grad():
        for step in range(100):
            loss_of(model, torch.Generator().manual_seed(step), step)
    empty = (torch.cat(shown) == 0).all(1).float().mean()
    assert float(empty) == pytest.approx(recipe.empty_share, abs=0.03)


@pytest.mark.parametrize("name", STAGES)
def test_training_resumes_to_the_bit(small, tmp_path, name):
    assert_resumes_to_the_bit(tiny(name), tmp_path)


def test_features_are_the_teachers_of_scenes_and_mirror_images(tmp_path, monkeypatch):
    monkeypatch.setattr(variation, "CACHE", tmp_path)
    monkeypatch.setenv("GENTTA_PRECISION", "fp32")
    recipe = variation.RECIPES[FIRST]
    found = FEATURES_OF(recipe, IMAGES[:6]).float()
    x = IMAGES[:6].float() / 255
    teacher = zoo.load(recipe.teacher)
    for side, images in enumerate((x, x.flip(-1))):
        expected = teacher.encode_images(images)
        torch.testing.assert_close(found[:, side], expected * expected.shape[1] ** 0.5, rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(found.square().mean(-1), torch.ones(6, 2), rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(variation.zoo, "load", None)  # the second time nothing is computed
    assert torch.equal(FEATURES_OF(recipe, IMAGES[:6]).float(), found)


LOAD = """
import json, sys
import gentta_utils, torch
from diffusers import StableDiffusionImageVariationPipeline
from safetensors.torch import load_file
pipe = StableDiffusionImageVariationPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
for part, file in files.items():
    saved, state = load_file(f"{sys.argv[1]}/{part}/{file}.safetensors"), getattr(pipe, part).state_dict()
    assert all(v.dtype == torch.float16 and torch.equal(v.float(), state[k]) for k, v in saved.items()), part
pipe.set_progress_bar_config(disable=True)
from PIL import Image
how = dict(num_inference_steps=2, guidance_scale=3, output_type="pt")
image = pipe(Image.new("RGB", (90, 70), "red"), generator=torch.Generator().manual_seed(0), **how).images
print(json.dumps(list(image.shape)))
"""


def check_fresh(folder) -> None:
    """A new process loads it and makes a variation of a picture by the library's own calls."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 3, 32, 32]


def test_a_fresh_process_makes_a_variation_by_the_librarys_own_call(small):
    check_fresh(small / FIRST)


def test_quality_counts_what_is_kept_and_spread(small, monkeypatch):
    monkeypatch.setitem(variation.CHOSEN, "variation", replace(variation.CHOSEN["variation"], steps=2, rows_at_once=4))
    model = zoo.load(FIRST, precision="fp32", folder=small)
    assert isinstance(model, VariationUNet)
    found = variation.of_variations(model, n=4, few=2, each=2)
    assert set(found["keeps"]) == set(variation.JUDGES)
    assert all(set(kinds) == {"scenes", "low view", "variations"} for kinds in found["keeps"].values())
    assert set(found["spread"]["crops"]) == {f"{area:g}" for area in variation.AREAS}
    whole = variation.crops(torch.rand(2, 3, 64, 64), torch.tensor([1, 2]), 3, 1.0)
    assert whole.shape == (2, 3, 3, 64, 64)


def test_a_tower_is_judged_beside_its_teacher_on_the_same_scenes(small, monkeypatch):
    """The teacher in the tower's place is as good as itself; a tower that sees nothing reads one class everywhere."""
    clip, model = zoo.load("clip/small"), zoo.load(FIRST, precision="fp32", folder=small)
    monkeypatch.setattr(model, "embed", lambda x: 3 * clip.encode_images(x))
    found = variation.of_tower(model, "clip/small", n=40)["tower"]
    assert found.pop("cosine") == 1
    assert set(found) == set(variation.ASKED)
    assert all(tower == teacher for tower, teacher in found.values())
    assert found["category"][1] > 50
    monkeypatch.setattr(model, "embed", lambda x: clip.encode_images(0 * x))
    blind = variation.of_tower(model, "clip/small", n=40)["tower"]
    assert blind["cosine"] < 1
    assert blind["category"][0] < found["category"][1] == blind["category"][1]


def test_crops_are_parts_of_the_image_and_compared_at_equal_cosine():
    ramp = torch.arange(64.0).expand(1, 3, 64, 64) / 64
    part = variation.crops(ramp, torch.tensor([4]), 6, 0.25)[0]
    length = (part.amax((1, 2, 3)) - part.amin((1, 2, 3))) * 64
    torch.testing.assert_close(length, torch.full((6,), 31.0))
    found = {"a": [0.9, 0.2], "b": [0.7, 0.6]}
    assert variation.at_cosine(0.8, found) == pytest.approx(0.4)
    assert variation.at_cosine(0.95, found) is None


@pytest.mark.skipif(NAME not in zoo.names(), reason="not shipped yet")
def test_shipped():
    """Of 200 variations of clean scenes at least 85% keep the category, by a judge that saw neither CLIP nor model."""
    check_fresh(paths.MODELS / NAME)
    card = zoo.card(NAME)
    kept = card["quality"]["keeps"]["classifier/resnet-3000"]
    assert kept["variations"] >= 85
    vae = paths.MODELS / NAME / "vae" / "diffusion_pytorch_model.safetensors"
    assert sha256(vae).startswith(card["recipe"]["autoencoder"])
    stored = load_file(paths.MODELS / NAME / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, v.bfloat16().half()) for v in stored.values())


@pytest.mark.skipif(not (paths.DATA / "scenes" / "variations.npz").is_file(), reason="not shipped yet")
def test_the_shipped_set_is_of_the_shipped_model():
    kept = Generated.load(paths.DATA / "scenes" / "variations.npz")
    assert kept.about["model"] == zoo.fingerprint(NAME)
