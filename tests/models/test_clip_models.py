"""The CLIPs: what they are trained on, how they are written and read, and the zero-shot classifiers they become."""

import subprocess
import sys
from dataclasses import replace

import open_clip
import pytest
import torch
from resuming import assert_resumes_to_the_bit
from safetensors.torch import load_file

import gentta_utils  # noqa: F401
from gentta_utils.common import paths
from gentta_utils.models import zoo
from gentta_utils.models.copies import Copies
from gentta_utils.recipes import autoencoder, clip
from gentta_utils.recipes.tokenizer import tokenizer
from gentta_utils.streams import scenes
from gentta_utils.world import views, words
from gentta_utils.world.severities import VALIDATION

NAMES = list(clip.RECIPES)
LOW = clip.RECIPES["clip/small-32"]


@pytest.fixture
def small_data(monkeypatch):
    """Forty grey scenes and eight of several objects; every attribute is drawn."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([len(words.VALUES[a]) for a in words.ATTRIBUTES])
    facts = (torch.rand(48, len(sizes), generator=generator) * sizes).long()
    count = words.ATTRIBUTES.index("count")
    facts[:40, count], facts[40:, count] = 0, 1 + torch.arange(8) % 2
    images = torch.randint(0, 255, (48, 3, 64, 64), dtype=torch.uint8, generator=generator)
    monkeypatch.setattr(clip, "training_set", lambda n: (images[:40], None))
    monkeypatch.setattr(clip, "facts_of", lambda n: facts[:40])
    monkeypatch.setattr(clip, "crowded_set", lambda n: (images[40:], facts[40:]))


def tiny(steps: int = 4, name: str = "clip/small") -> clip.ClipRecipe:
    schedule = replace(clip.RECIPES[name].schedule, steps=steps, batch=20, warmup=1)
    return replace(clip.RECIPES[name], schedule=schedule)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A network that was never trained, with its folder."""
    folder = tmp_path_factory.mktemp("models") / "clip" / "small"
    network = tiny().build().eval()
    tiny().save(network, folder)
    return network, folder


def test_sizes():
    sizes = {name: sum(p.numel() for p in clip.RECIPES[name].build().parameters()) for name in NAMES}
    assert 5e5 <= sizes["clip/small"] <= 1e6 <= sizes["clip/large"] <= 3e6


def test_the_control_differs_in_what_it_sees_alone():
    """Its view and its jitter are the autoencoder's; it goes on from the small CLIP's weights."""
    small, seen = clip.RECIPES["clip/small"], autoencoder.RECIPES["autoencoder/f4"]
    assert (LOW.pixels, LOW.jittered) == (seen.pixels, seen.jittered)
    same = dict(pixels=small.pixels, jittered=0.0, start="", schedule=small.schedule)
    assert replace(LOW, **same) == small
    a, b = zoo.load("clip/small").network.state_dict(), LOW.build().state_dict()
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_what_the_control_is_trained_on(small_data):
    """Changed images lose their colours' names, textures all of them; every image is a low view of one, as in use."""
    x, generator = torch.rand(400, 3, 64, 64) * 2 - 1, torch.Generator().manual_seed(0)
    facts = torch.ones(400, len(words.ATTRIBUTES), dtype=torch.long)
    seen, true = LOW.degraded(x, facts, generator)
    colour, place = words.ATTRIBUTES.index("colour"), words.ATTRIBUTES.index("pose")
    kept, gone = true[:, colour] != words.UNSAID, true[:, place] == words.UNSAID
    assert torch.equal(true[kept], facts[kept])
    assert (true[gone] == words.UNSAID).all()
    torch.testing.assert_close(seen[kept], views.low_pass(x[kept]))
    assert ((seen - views.low_pass(x)).abs().amax((1, 2, 3)) > 0.01).sum() == (~kept).sum()
    assert 0.4 < kept.float().mean() < 0.6
    assert 0.05 < gone.float().mean() < 0.15  # a fifth of the other half
    plain = clip.RECIPES["clip/small"].degraded(x, facts, generator)
    assert plain[0] is x
    assert plain[1] is facts


def test_the_control_trains_on_what_it_sees_in_use(small_data, monkeypatch):
    """Without its jitter, its tower is given the low view of what the small CLIP's is given by the same draws."""
    given = []
    for recipe in (tiny(), replace(tiny(name="clip/small-32"), jittered=0.0)):
        network = recipe.build()
        monkeypatch.setattr(network, "encode_image", lambda x: given.append(x) or torch.ones(len(x), 96))
        recipe.make_loss()(network, torch.Generator().manual_seed(0), 0)
    torch.testing.assert_close(given[1], views.low_pass(given[0]))


def test_one_positive_each_is_the_ordinary_loss():
    a, b = (torch.nn.functional.normalize(torch.randn(6, 5), dim=1) for _ in range(2))
    ours = clip.contrastive(10 * a @ b.T, torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(ours, open_clip.ClipLoss()(b, a, torch.tensor(10.0)))


def test_every_true_caption_is_a_positive():
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    right = torch.where(positive, 20.0, 0.0)
    least = (2 * 2 * torch.tensor(2.0).log() / 2) / 3  # two rows of three share their mass between two positives
    assert clip.contrastive(right, positive).item() == pytest.approx(least.item(), abs=1e-4)
    assert clip.contrastive(torch.eye(3) * 20, positive) > 3  # a true caption was pushed away


def test_training_captions_are_true_and_hold_nothing_unseen(small_data, monkeypatch):
    texts, rows = [], []
    monkeypatch.setattr(clip, "captions", lambda *a: texts.extend(out := words.captions(*a)) or out)
    monkeypatch.setattr(clip, "true_of", lambda *a: rows.append(out := words.true_of(*a)) or out)
    recipe = tiny()
    loss_of, network = recipe.make_loss(), recipe.build()
    for step in range(12):
        loss_of(network, torch.Generator().manual_seed(step), step)
    assert len(texts) == 12 * 20
    assert not any(map(words.is_unseen, texts))
    assert sum("objects" in text for text in texts) == 12 * 2
    assert all(r.diagonal().all() for r in rows)


@pytest.mark.parametrize("name", ["clip/small", "clip/small-32"])
def test_training_resumes_to_the_bit(small_data, tmp_path, name):
    assert_resumes_to_the_bit(tiny(name=name), tmp_path)


LOAD = """
import sys, time
import gentta_utils, open_clip, torch
from transformers import AutoTokenizer
from safetensors.torch import load_file
start = time.process_time()
network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}", precision="fp32")
words = open_clip.get_tokenizer(f"local-dir:{sys.argv[1]}")
seconds = time.process_time() - start
saved = load_file(f"{sys.argv[1]}/open_clip_model.safetensors")
state = network.state_dict()
assert set(saved) == set(state)
assert all(torch.equal(v.to(state[k].dtype), state[k]) for k, v in saved.items())
assert {p.dtype for p in network.parameters()} == {torch.float32}
assert words(["a photo of a red torus."]).shape == (1, 24)
print(seconds)
"""


def check_fresh(folder):
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 2


def test_a_fresh_process_loads_it_by_the_librarys_own_call(written):
    check_fresh(written[1])


def test_what_is_loaded_is_what_was_saved(written):
    network, folder = written
    model = zoo.load("clip/small", folder=folder.parent.parent)
    x, texts = torch.rand(3, 3, 64, 64), ["a photo of a red torus.", "a shiny object"]
    tokens = tokenizer()(texts, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(model.tokenizer(texts), tokens)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network.encode_image(x * 2 - 1), dim=1)
        torch.testing.assert_close(model.encode_images(x), expected, rtol=1e-2, atol=2e-3)
        expected = torch.nn.functional.normalize(network.encode_text(tokens), dim=1)
        torch.testing.assert_close(model.encode_texts(texts), expected, rtol=1e-2, atol=2e-3)
    assert not any(p.requires_grad for p in model.parameters())


def test_zero_shot(written):
    model = zoo.load("clip/small", folder=written[1].parent.parent)
    names, templates = ["torus", "cube", "arch"], ["a photo of a {}.", "a {}"]
    classifier = model.zero_shot(names, templates)
    x = torch.rand(2, 3, 64, 64)
    z = classifier(x)
    theirs = open_clip.build_zero_shot_classifier(model.network, model.tokenizer, names, templates)
    scale = model.network.logit_scale.exp()
    torch.testing.assert_close(z, scale * model.encode_images(x) @ theirs, rtol=1e-4, atol=1e-4)
    assert z.abs().max() <= scale
    permuted = model.zero_shot([names[i] for i in (2, 0, 1)], templates)(x)
    torch.testing.assert_close(permuted, z[:, [2, 0, 1]], rtol=1e-5, atol=1e-5)
    louder = torch.nn.functional.normalize(7.0 * model.network.encode_image(x * 2 - 1), dim=1) @ theirs * scale
    torch.testing.assert_close(louder, z, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="at least one class name"):
        model.zero_shot([], templates)


def test_one_template_is_the_plain_path_and_logits_lie_within_the_scale(written):
    model = zoo.load("clip/small", folder=written[1].parent.parent)
    names, x = ["torus", "cube", "arch"], torch.rand(4, 3, 64, 64)
    z = model.zero_shot(names, ["a photo of a {}."])(x)
    scale = model.network.logit_scale.exp()
    plain = scale * model.encode_images(x) @ model.encode_texts([f"a photo of a {name}." for name in names]).T
    torch.testing.assert_close(z, plain, rtol=1e-4, atol=1e-4)
    assert z.abs().max() <= scale * (1 + 1e-5)
    assert torch.equal(model.zero_shot(names, ["a photo of a {}."] * 3)(x).argmax(1), z.argmax(1))


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """The control and the small CLIP with the same weights."""
    folder = tmp_path_factory.mktemp("low")
    for name in ("clip/small", "clip/small-32"):
        clip.RECIPES[name].save(replace(LOW, start="").build().eval(), folder / name)
    check_fresh(folder / "clip/small-32")
    return [zoo.load(name, folder=folder) for name in ("clip/small", "clip/small-32")]


@torch.no_grad()
def test_the_control_sees_the_low_view(low):
    """It gives what the same network gives on the low view, as features, as classifier, and through copies."""
    small, control = low
    x = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(control.encode_images(x), small.encode_images(views.low_pass(x)))
    plain, seen = (model.zero_shot(["torus", "cube"], ["a {}"]) for model in low)
    torch.testing.assert_close(seen(x), plain(views.low_pass(x)))
    assert (seen(x) - plain(x)).abs().max() > 1e-3
    scene = scenes.SceneSpec(8, split="select", start=1000).load().images
    change = lambda model: (model(scene) - model(views.low_pass(scene))).abs().mean()  # noqa: E731
    assert change(seen) < 0.5 * change(plain)  # but for interpolating twice, its low view is the image


@pytest.mark.parametrize("param_set", ["all", "norm", "head"])
def test_the_control_is_adapted_as_any_other(low, param_set):
    classifier, x = low[1].zero_shot(["torus", "cube"], ["a {}"]), torch.rand(3, 3, 64, 64)
    copies = Copies(classifier, param_set, 3)
    z = copies(x)
    torch.testing.assert_close(z, classifier(x), rtol=1e-3, atol=1e-3)
    z.square().sum().backward()
    assert all(v.grad is not None for v in copies.tensors())


@pytest.mark.parametrize("param_set", ["all", "norm", "head", "tower", "lora"])
def test_a_zero_shot_classifier_is_adapted_as_any_other(written, param_set):
    """Copies side by side give what the classifier gives, and gradients reach them."""
    classifier = zoo.load("clip/small", folder=written[1].parent.parent).zero_shot(["torus", "cube"], ["a {}"])
    x = torch.rand(3, 3, 64, 64)
    copies = Copies(classifier, param_set, 3)
    z = copies(x)
    torch.testing.assert_close(z, classifier(x), rtol=1e-3, atol=1e-3)
    z.square().sum().backward()
    assert all(v.grad is not None for v in copies.tensors())


@pytest.mark.parametrize("name", NAMES)
def test_shipped(name):
    if name not in zoo.names():
        pytest.skip(f"{name} is not shipped yet")
    check_fresh(paths.MODELS / name)
    quality = zoo.card(name)["quality"]
    assert set(quality) == {*words.LABEL_SETS, *(f"category_{shift}_5" for shift in VALIDATION)}
    weights = load_file(paths.MODELS / name / "open_clip_model.safetensors")
    assert all(v.dtype == torch.float16 for v in weights.values() if v.is_floating_point())
    s = scenes.SceneSpec(60, split="select", start=1000).load()
    asked = words.LABEL_SETS["category"]
    z = zoo.load(name).zero_shot(asked.classes, asked.templates[:1])(s.images)
    assert 100 * (z.argmax(1) == s.labels).float().mean().item() > quality["category"]["all"] - 12
