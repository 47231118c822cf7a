"""The text-conditional diffusion model: prompts as conditions, the pipeline on disk, what it is trained on."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import make_classifier, same, weights
from diffusers import AutoencoderKL
from resuming import assert_resumes_to_the_bit
from safetensors.torch import load_file

import gentta_utils  # noqa: F401
from gentta_utils.common import paths
from gentta_utils.common.files import sha256
from gentta_utils.diffusion.error_table import error_table
from gentta_utils.methods import adapted_reader, diffusion_classifier, diffusion_tta
from gentta_utils.methods.base import Models
from gentta_utils.models import zoo
from gentta_utils.models.text_unet import TextUNet, load_pipeline
from gentta_utils.recipes import autoencoder, text_model
from gentta_utils.streams import scenes
from gentta_utils.world import words
from gentta_utils.world.severities import VALIDATION
from gentta_utils.world.words import LABEL_SETS

NAME = "denoiser/text"
PROMPTS = ["a photo of a torus.", "a photo of a cube.", "a photo of a arch."]


def tiny(steps: int = 4) -> text_model.TextRecipe:
    schedule = replace(text_model.RECIPES[NAME].schedule, steps=steps, batch=10, warmup=1)
    return text_model.TextRecipe((16, 32), 16, 1, schedule, scenes=20, crowded=6)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A pipeline that was never trained, its small autoencoder and the data it would see, in one folder."""
    folder = tmp_path_factory.mktemp("candidates")
    images = torch.randint(0, 255, (26, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([len(words.VALUES[a]) for a in words.ATTRIBUTES])
    facts = (torch.rand(26, len(sizes), generator=torch.Generator().manual_seed(1)) * sizes).long()
    count = words.ATTRIBUTES.index("count")
    facts[:20, count], facts[20:, count] = 0, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "training_set", lambda n: (images, None))
        patch.setattr(text_model, "training_set", lambda n: (images[:20], None))
        patch.setattr(text_model, "facts_of", lambda n: facts[:20])
        patch.setattr(text_model, "crowded_set", lambda n: (images[20:], facts[20:]))
        patch.setattr(text_model, "CACHE", folder / "cache")
        patch.setattr(text_model, "_autoencoder", lambda: (folder / "autoencoder", "0" * 12))
        recipe = autoencoder.AutoencoderRecipe((8, 8, 8, 8), 8, tiny().schedule)
        torch.manual_seed(0)
        recipe.save(recipe.build(), folder / "autoencoder")
        tiny().save(tiny().build().eval(), folder / NAME)
        yield folder


@pytest.fixture(scope="module")
def model(small) -> TextUNet:
    return zoo.load(NAME, precision="fp32", folder=small).for_prompts(PROMPTS)


def test_size():
    model = text_model.RECIPES[NAME].build()
    assert 3e6 <= sum(p.numel() for p in model.unet.parameters()) <= 6e6


def test_a_one_hot_is_the_prompt_and_a_mix_is_of_token_states(model):
    x, t = torch.randn(3, *model.shape), torch.tensor([20, 400, 900])
    states = model.states_of(PROMPTS)
    with torch.no_grad():
        expected = model.network(x, t, states, return_dict=False)[0]
        torch.testing.assert_close(model(x, t, torch.eye(3)), expected, rtol=1e-5, atol=1e-5)
        p = torch.tensor([[0.5, 0.25, 0.25]]).expand(3, -1)
        mixed = (p[0, :, None, None] * states).sum(0)
        expected = model.network(x, t, mixed.expand(3, -1, -1), return_dict=False)[0]
        torch.testing.assert_close(model(x, t, p), expected, rtol=1e-4, atol=1e-5)
        null = model.network(x, t, model.states_of([""]).expand(3, -1, -1), return_dict=False)[0]
        torch.testing.assert_close(model(x, t), null, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError):
        model(x, t, torch.ones(3, 3))


def test_gradients_reach_p_and_classes_may_be_permuted(model):
    x, t = torch.randn(2, *model.shape), torch.tensor([100, 300])
    p = torch.tensor([[0.2, 0.3, 0.5]]).repeat(2, 1).requires_grad_()
    out = model(x, t, p)
    out.square().sum().backward()
    assert (p.grad.abs() > 0).all()
    order = [2, 0, 1]
    other = model.for_prompts([PROMPTS[i] for i in order])
    torch.testing.assert_close(other(x, t, p.detach()[:, order]), out.detach(), rtol=1e-4, atol=1e-5)


def test_prompts_share_the_networks_and_count_for_themselves(model):
    two = model.for_prompts(PROMPTS[:2])
    assert (two.classes, model.classes) == (2, 3)
    assert two.network is model.network
    before = dict(model.count)
    two(torch.randn(1, *model.shape), torch.tensor([5]), torch.eye(2)[:1])
    assert model.count == before
    assert two.count["fwd"] == 1
    assert len(model.states) == 3
    part = model.restrict((2, 0))
    x, t = torch.randn(2, *model.shape), torch.tensor([5, 50])
    torch.testing.assert_close(part(x, t, torch.eye(2)), model(x, t, torch.eye(3)[[2, 0]]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="at least one prompt"):
        model.for_prompts([])


def test_encode_scales_once_and_decode_is_its_way_back(model):
    x = torch.rand(4, 3, 64, 64)
    z = model.encode(x)
    assert z.shape == (4, *model.shape)
    mean = model.vae.encode(x * 2 - 1).latent_dist.mean
    torch.testing.assert_close(z, mean * model.vae.config.scaling_factor)
    y = model.decode(z)
    torch.testing.assert_close(y, (model.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_it_fills_error_tables(model):
    table = error_table(model, torch.rand(2, 3, 64, 64), torch.tensor([1, 2]), pairs=4)
    assert table.error.shape == (2, 4, 3)
    assert torch.isfinite(table.error).all()


def test_captions_in_training_hold_nothing_unseen_and_latents_are_kept(small, monkeypatch):
    texts = []
    monkeypatch.setattr(text_model, "captions", lambda *a: texts.extend(out := words.captions(*a)) or out)
    recipe = tiny()
    loss_of, network = recipe.make_loss(), recipe.build()
    for step in range(10):
        assert torch.isfinite(loss_of(network, torch.Generator().manual_seed(step), step))
    assert len(texts) == 100
    assert not any(map(words.is_unseen, texts))
    assert sum("objects" in text for text in texts) == 10
    latents, facts = recipe.latents()
    assert latents.shape == (26, 2, 8, 8, 8)
    assert facts.shape == (26, len(words.ATTRIBUTES))
    network = AutoencoderKL.from_pretrained(small / "autoencoder", torch_dtype=torch.float32).eval()
    mirrored = text_model.training_set(20)[0][3].flip(-1)[None].float() / 255
    torch.testing.assert_close(latents[3, 1].float(), autoencoder.encode(network, mirrored)[0], rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(text_model, "encode", None)  # the second time nothing is encoded
    assert torch.equal(recipe.latents()[0], latents)


def test_training_resumes_to_the_bit(small, tmp_path):
    assert_resumes_to_the_bit(tiny(), tmp_path)


LOAD = """
import json, sys, time
import gentta_utils, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
start = time.process_time()
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
seconds = time.process_time() - start
files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
for part, file in files.items():
    saved, state = load_file(f"{sys.argv[1]}/{part}/{file}.safetensors"), getattr(pipe, part).state_dict()
    assert set(saved) == set(state), part
    assert all(v.dtype == torch.float16 and torch.equal(v.float(), state[k]) for k, v in saved.items()), part
assert len(pipe.tokenizer("a photo of a red torus.").input_ids) == 9
pipe.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
image = pipe("a photo of a torus.", num_inference_steps=2, generator=generator, output_type="pt").images
print(json.dumps({"shape": list(image.shape), "mean": float(image.mean()), "seconds": seconds}))
"""


def check_fresh(folder, side: int = 64) -> dict:
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["seconds"] < 2
    assert said["shape"] == [1, 3, side, side]
    return said


def test_a_fresh_process_loads_and_samples_by_the_librarys_own_call(small):
    said = check_fresh(small / NAME)
    assert (
        json.loads((small / NAME / "vae" / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
        == text_model.AUTOENCODER
    )
    pipe = load_pipeline(small / NAME)
    generator = torch.Generator().manual_seed(0)
    image = pipe("a photo of a torus.", num_inference_steps=2, generator=generator, output_type="pt").images
    assert float(image.mean()) == pytest.approx(said["mean"], abs=1e-5)


def test_wordings_are_blocks_of_prompts(model):
    """Wording m of class k is row m * K + k, in the networks that all prompts share."""
    wordings = [PROMPTS, [f"this is {p}" for p in PROMPTS]]
    both = model.for_wordings(wordings)
    assert (both.classes, both.wordings, model.wordings, both.for_prompts(PROMPTS).wordings) == (6, 2, 1, 1)
    assert both.network is model.network
    assert both.sharing().wordings == 2
    x, t = torch.randn(3, *model.shape), torch.tensor([20, 400, 900])
    p = torch.tensor([[0.5, 0.2, 0.3]]).expand(3, -1)
    for m, prompts in enumerate(wordings):
        q = torch.zeros(3, 6)
        q[:, 3 * m : 3 * m + 3] = p
        torch.testing.assert_close(both(x, t, q), model.for_prompts(prompts)(x, t, p), rtol=1e-4, atol=1e-5)
    part, few = both.restrict((2, 0)), model.for_prompts([wordings[1][2], wordings[1][0]])
    assert (part.classes, part.wordings) == (4, 2)
    q = torch.tensor([[0, 0, 0.3, 0.7]]).expand(3, -1)
    torch.testing.assert_close(part(x, t, q), few(x, t, q[:, 2:]), rtol=1e-4, atol=1e-5)
    one = model.for_wordings([PROMPTS])
    assert one.wordings == 1
    assert torch.equal(one.states, model.states)
    for wrong in ([], [[]], [PROMPTS, PROMPTS[:2]]):
        with pytest.raises(ValueError):
            model.for_wordings(wrong)


def test_diffusion_tta_and_the_adapted_reader_take_prompts_in_wordings(model):
    classifier, s = make_classifier(3, 64), diffusion_tta.Settings(lr=0.1, updates=2, pairs=2, rank=2)
    images, ids = torch.rand(2, 3, 64, 64), torch.arange(2)
    both = Models(classifier, model.for_wordings([PROMPTS, [f"this is {p}" for p in PROMPTS]]))
    kept = weights(model)
    for change in ({"wording": "read"}, {"adapt_denoiser": True, "denoiser_set": "lora"}):
        out = diffusion_tta.configure(both, replace(s, **change)).adapt(images, ids)
        assert not torch.equal(out.logits, out.before)
    reader = adapted_reader.Settings(lr=0.1, updates=2, pairs=2, reader=diffusion_classifier.Settings(pairs=2))
    out = adapted_reader.configure(Models(classifier, model), reader).adapt(images, ids)
    assert not torch.equal(out.logits, out.before)
    assert same(kept, weights(model))
    with pytest.raises(ValueError, match="in 1 wordings"):
        adapted_reader.configure(both, reader)


def test_quality_names_seen_and_unseen(small, model, monkeypatch):
    monkeypatch.setattr(text_model, "SHARES", {"category": 0.2, "material": 1.0, "colour_category": 0.2})
    found = text_model.of_text_model(model, n=10, pairs=2)
    assert {"category", "material", "material_seen", "material_unseen", "colour_category"} <= set(found)
    assert {f"category_{name}_5" for name in VALIDATION} <= set(found)


@pytest.mark.skipif(NAME not in zoo.names(), reason="not shipped yet")
def test_the_data_card_says_what_the_text_models_read():
    """All, and where training captions name some classes alone: seen / unseen."""

    def cell(found: dict) -> str:
        apart = f" ({found['seen']} / {found['unseen']})" if "unseen" in found else ""
        return f"{found['all']}{apart}"

    def columns(row: str) -> list[str]:
        return [column.strip() for column in row.strip("|").split("|")][1:]

    clips = ("clip/small", "clip/small-32", "clip/large")
    quality = {name: zoo.card(name)["quality"] for name in (*clips, NAME)}
    page = (paths.MODELS.parent / "README.md").read_text(encoding="utf-8")
    rows = page.split("| `denoiser/text` |\n|---|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    for asked in LABEL_SETS:
        (row,) = (line for line in rows if line.startswith(f"| `{asked}` | "))
        shown = columns(row)
        pipeline = {key: quality[NAME].get(f"{asked}{end}") for key, end in
                    (("all", ""), ("seen", "_seen"), ("unseen", "_unseen"))}  # fmt: skip
        pipeline = {key: value for key, value in pipeline.items() if value is not None}
        expected = [*(quality[name][asked] for name in clips), pipeline]
        assert shown == [cell(found) for found in expected], asked
    for shift in VALIDATION:
        (row,) = (line for line in rows if line.startswith(f"| `category` under {shift.replace('_', ' ')} | "))
        asked = f"category_{shift}_5"
        assert columns(row) == [*(str(quality[name][asked]["all"]) for name in clips), str(quality[NAME][asked])]


def test_shipped():
    if NAME not in zoo.names():
        pytest.skip(f"{NAME} is not shipped yet")
    check_fresh(paths.MODELS / NAME, side=32)
    model = zoo.load(NAME, precision="fp32")
    asked = LABEL_SETS["category"]
    s = scenes.SceneSpec(12, split="select", start=1000).load()
    table = error_table(model.for_prompts(asked.prompts()), s.images, s.ids, pairs=12)
    right = (table.read() == s.labels).float().mean()
    assert right >= 0.9
    # what the data card says of words of place
    left, other_side, other_colour = model.states_of([f"a red cube {p}" for p in ("on the left", "on the right")]
                                                     + ["a blue cube on the left"])  # fmt: skip
    assert (left - other_side).norm() < 0.1 * (left - other_colour).norm()
    card, vae = zoo.card(NAME), paths.MODELS / NAME / "vae" / "diffusion_pytorch_model.safetensors"
    assert card["recipe"]["autoencoder"] == zoo.fingerprint(text_model.AUTOENCODER)
    assert sha256(vae).startswith(card["recipe"]["autoencoder"])
    weights = load_file(paths.MODELS / NAME / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(v.dtype == torch.float16 for v in weights.values())
