"""SDA: one alignment for both sides, synthesis, fine-tuning, and the cache that all of it goes through."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
from conftest import make_classifier, make_dit, same, weights

from gentta_utils import recipes
from gentta_utils.common.cache import make_images
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.diffusion.process import alphas_cumprod_of, linear_betas
from gentta_utils.diffusion.synthesis import Synthesis, classifier_free, synthesize
from gentta_utils.evaluation import chosen
from gentta_utils.methods import METHODS, dda, sda
from gentta_utils.methods.base import Models
from gentta_utils.methods.purifier import what_changes
from gentta_utils.methods.sda import FineTune, Settings, configure, fine_tune, published
from gentta_utils.models import zoo
from gentta_utils.models.classifier import Classifier
from gentta_utils.recipes import aligned, quality
from gentta_utils.recipes.aligned import Data
from gentta_utils.world.labels import CLASSES

S = Settings(start=300, steps=4)
IDS = torch.arange(5) + 40
FAST = FineTune("sgd", 0.05, 0.0, epochs=3, batch=4)
MANY = replace(FAST, updates=11)


def other_classifier():
    c = make_classifier()
    with torch.no_grad():
        for p in c.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))
    return c


# --- the method ------------------------------------------------------------------------------------------------------


def test_with_the_source_as_second_classifier_it_is_dda(tiny, images):
    ours = configure(Models(tiny.classifier, tiny.denoiser, tiny.classifier), S).adapt(images, IDS)
    theirs = dda.configure(tiny, dda.Settings(**asdict(S))).adapt(images, IDS)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.images, theirs.images)


def test_the_source_reads_the_image_and_the_other_the_aligned_one(tiny, images):
    second = other_classifier()
    out = configure(Models(tiny.classifier, tiny.denoiser, second), S).adapt(images, IDS)
    with torch.no_grad():
        p, q = tiny.classifier(images).softmax(1), second(out.images).softmax(1)
    torch.testing.assert_close(out.logits.exp(), (p + q) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.before.softmax(1), p, rtol=1e-4, atol=1e-5)
    assert out.nfe == {"denoiser fwd+bwd": 20, "classifier fwd": 5, "aligned fwd": 5}


def test_both_stages_have_one_alignment(tiny, images):
    """What the classifier was fine-tuned on went through the settings of test time, as far as they change an image."""
    second = other_classifier()
    second.alignment = what_changes(S)
    models = Models(tiny.classifier, tiny.denoiser, second)
    configure(models, S)
    configure(models, replace(S, ensemble="calibrated", temperature=3.0, images_at_once=2, fixed_chunk=True))
    for change in ({"scale": 1.0}, {"steps": 5}, {"factor": 2}, {"eta": 0.0}, {"seed": 1}, {"norm": "batch"}):
        with pytest.raises(ValueError, match=f"another alignment .*{next(iter(change))}"):
            configure(models, replace(S, **change))
    fixed = replace(S, variance="fixed")
    for one, other in ((S, fixed), (fixed, S)):
        second.alignment = what_changes(one)
        with pytest.raises(ValueError, match="another variance"):
            configure(models, other)
    reading = {f.name for f in fields(S)} - set(what_changes(replace(fixed, longest=2.0)))
    assert reading == {"ensemble", "temperature", "images_at_once", "fixed_chunk"}
    assert "images_at_once" in what_changes(replace(S, norm="batch"))
    assert dda.align is dda.align
    assert sda.align is dda.align


def test_it_needs_a_second_classifier(tiny):
    with pytest.raises(ValueError, match="needs a fine-tuned classifier"):
        configure(tiny, S)


def test_some_classes_of_both_classifiers(tiny, images):
    second = other_classifier()
    second.alignment = what_changes(S)
    models = Models(tiny.classifier, tiny.denoiser, second).restrict((2, 0))
    assert configure(models, S).adapt(images, IDS).logits.shape == (5, 2)
    assert models.aligned.alignment == what_changes(S)


def test_the_method_has_its_name_and_the_published_settings():
    assert METHODS["sda"] is sda
    assert Settings(**sda.PUBLISHED).images_at_once == 10


# --- synthesis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def world():
    """Four classes of 3 x 4 x 4 images in [-1, 1] whose decoder keeps the range of tasks."""
    means = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 0.8
    mixture = GaussianMixture(means, 0.1, alphas_cumprod_of(linear_betas()).float())
    mixture.decode = lambda x0: (x0 / 2 + 0.5).clamp(0, 1)
    return mixture


@pytest.mark.parametrize("s", [Synthesis(steps=50), Synthesis(steps=20, eta=0.0), Synthesis(steps=50, cfg=1.5)])
def test_synthetic_images_are_of_their_class(world, s):
    labels = torch.arange(40) % 4
    images = synthesize(world, labels, torch.arange(40), s)
    assert images.shape == (40, 3, 4, 4)
    assert (world.posterior(images * 2 - 1).argmax(1) == labels).float().mean() > 0.95


def test_synthetic_images_do_not_know_of_each_other(world):
    labels, ids, s = torch.arange(12) % 4, torch.arange(12), Synthesis(steps=10)
    whole = synthesize(world, labels, ids, s)
    torch.testing.assert_close(whole[5:7], synthesize(world, labels[5:7], ids[5:7], s))
    torch.testing.assert_close(whole, synthesize(world, labels, ids, replace(s, images_at_once=5)))
    assert not torch.allclose(whole, synthesize(world, labels, ids, replace(s, seed=1)))


def test_classifier_free_guidance_moves_away_from_the_null_prediction():
    dit = make_dit()
    x, t, p = torch.randn(3, 3, 8, 8), torch.full((3,), 300), torch.eye(4)[:3]
    with torch.no_grad():
        null, cond = dit(x, t, None), dit(x, t, p)
        torch.testing.assert_close(classifier_free(dit, 4.0)(x, t, p), null + 4 * (cond - null))
    assert classifier_free(dit, 1.0) is dit
    dit.count["fwd"] = 0
    synthesize(dit, torch.arange(2), torch.arange(2), Synthesis(steps=5, cfg=1.5))
    assert dit.count["fwd"] == 2 * 5 * 2


def test_wrong_syntheses_are_refused(world):
    for change in ({"cfg": -1.0}, {"eta": 2.0}, {"steps": 0}, {"images_at_once": 0}):
        with pytest.raises(ValueError, match="choose"):
            Synthesis(**change)
    with pytest.raises(ValueError, match="labels from 0 to 7: this denoiser has 4 classes"):
        synthesize(world, torch.tensor([0, 7]), torch.arange(2))


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_fine_tuning_learns_and_leaves_the_source_alone():
    source = make_classifier().requires_grad_(False)
    kept = weights(source)
    labels = torch.arange(40) % 4
    images = torch.rand(40, 3, 16, 16) * 0.2 + 0.2 * labels[:, None, None, None]
    for how in (replace(FAST, epochs=30), FineTune("adamw", 0.02, 1e-8, epochs=30, batch=8, warmup=5, clip=5.0)):
        tuned = fine_tune(source, images, labels, how)
        with torch.no_grad():
            assert (tuned(images).argmax(1) == labels).float().mean() > 0.9
        assert same(kept, weights(source))
        assert not any(p.requires_grad for p in tuned.parameters())
        assert not tuned.network.training
        again = fine_tune(source, images, labels, how)
        assert same(weights(tuned), weights(again))


def test_published_fine_tuning():
    resnet, swin = published("classifier/resnet"), published("classifier/swin-wide")
    assert (resnet.optimizer, resnet.lr, resnet.momentum, resnet.weight_decay) == ("sgd", 5e-4, 0.9, 1e-4)
    assert [resnet.lr_at(e) for e in (0, 9, 10, 14)] == pytest.approx([5e-4, 5e-4, 5e-5, 5e-5])
    for how in (swin, published("classifier/convnext"), published("classifier/vit")):
        assert (how.optimizer, how.lr, how.weight_decay, how.clip, how.epochs) == ("adamw", 2e-5, 1e-8, 5.0, 15)
    assert [swin.lr_at(e) for e in (0, 2.5, 5, 10, 15)] == pytest.approx([0, 1e-5, 2e-5, 1e-5, 0])
    assert [published(f"classifier/{name}", large=True).batch for name in ("resnet", "swin")] == [512, 1024]
    with pytest.raises(ValueError, match="no settings for the family of classifier/mae"):
        published("classifier/mae")
    for change in ({"optimizer": "adam"}, {"schedule": "flat"}, {"lr": 0.0}, {"epochs": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}=.*: choose"):
            replace(FAST, **change)


def test_fine_tuning_that_diverges_is_named():
    with pytest.raises(FloatingPointError, match=r"fine-tuning diverged in epoch \d+: lower the learning rate"):
        fine_tune(make_classifier(), torch.rand(8, 3, 16, 16), torch.arange(8) % 4, replace(FAST, lr=1e38))


def test_every_set_gets_as_many_updates_when_asked(monkeypatch):
    """105 updates of 500 images in batches of 64 are 15 epochs; of 100, or of 10, they are 105 too."""
    seen = []
    augment = sda.views.augment
    monkeypatch.setattr(sda.views, "augment", lambda x, g: seen.append(len(x)) or augment(x, g))
    for n, expected in ((4, {4}), (7, {4, 3}), (30, {4, 2})):
        seen.clear()
        fine_tune(make_classifier(), torch.rand(n, 3, 16, 16), torch.arange(n) % 4, replace(MANY, frozen_norm=True))
        assert (len(seen), set(seen)) == (11, expected)  # with frozen statistics the rest of few images is used
    seen.clear()
    fine_tune(make_classifier(), torch.rand(7, 3, 16, 16), torch.arange(7) % 4, MANY)
    assert set(seen) == {4}
    rates = [at for at, _ in sda._batches(30, replace(MANY, warmup=1), torch.Generator().manual_seed(0))]
    assert list(map(int, rates)) == sorted(map(int, rates))
    assert (rates[0], rates[-1]) == (pytest.approx(3 / 11), 2)  # once through the schedule of three epochs


def test_batch_norm_keeps_the_statistics_of_the_source_when_asked():
    norm = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)
    )
    source = Classifier(norm, (0.5,) * 3, (0.5,) * 3, 8, 4)
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    moved, kept = (fine_tune(source, images, labels, replace(FAST, frozen_norm=f)).network[1] for f in (False, True))
    assert torch.equal(kept.running_mean, norm[1].running_mean)
    assert not torch.equal(moved.running_mean, norm[1].running_mean)
    assert not torch.equal(kept.weight, norm[1].weight)
    assert not kept.training


def test_in_half_precision_the_weights_stay_whole(monkeypatch):
    """Nearly the same weights, in float32; without fast bf16 the very same."""
    source, images, labels = make_classifier(), torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    whole = weights(fine_tune(source, images, labels, FAST))
    for fast in (True, False):
        monkeypatch.setattr(sda, "autocast", lambda device, fast=fast: torch.autocast(device, torch.bfloat16, fast))
        half = weights(fine_tune(source, images, labels, replace(FAST, half=True)))
        assert same(half, whole) != fast
        assert [v.dtype for v in half] == [v.dtype for v in whole]
        torch.testing.assert_close(half, whole, rtol=0.1, atol=0.05)


def test_there_has_to_be_an_image():
    with pytest.raises(ValueError, match="no image to fine-tune on"):
        fine_tune(make_classifier(), torch.rand(0, 3, 16, 16), torch.arange(0), FAST)


# --- sets and their cache --------------------------------------------------------------------------------------------


@pytest.fixture
def models(monkeypatch, tmp_path):
    """A tiny world with the names of the shipped one: ten classes, a DiT, a classifier; an empty cache."""
    torch.manual_seed(0)
    named = {"denoiser/dit": make_dit(len(CLASSES)), "classifier/resnet": make_classifier(len(CLASSES))}
    named[aligned.ALIGNER] = named["denoiser/dit"]
    monkeypatch.setattr(zoo, "cached", lambda name, precision="auto": named[name])
    monkeypatch.setattr(zoo, "fingerprint", lambda name: f"of {name}")
    monkeypatch.setattr(aligned, "CACHE", tmp_path)
    return named


DATA = Data(per_class=2, synthesis=Synthesis(steps=3), alignment=S)


def test_labels_are_those_of_the_generation_and_sets_are_nested(models):
    images, labels = aligned.images_of(DATA)
    assert torch.equal(labels, torch.arange(20) % 10)
    raw = aligned.raw_images(DATA)
    # in its own chunks: more images at once may be rounded otherwise, which dividing by sqrt(alpha) = .006 magnifies
    parts = torch.arange(20).split(10)
    made = [synthesize(models["denoiser/dit"], labels[i], raw.ids[i], DATA.synthesis) for i in parts]
    assert torch.equal(raw.images, torch.cat(made))
    count = dict(models["denoiser/dit"].count)
    smaller, _ = aligned.images_of(replace(DATA, per_class=1))
    assert torch.equal(smaller, images[:10])
    rest, of = aligned.images_of(replace(DATA, per_class=1, first=1))
    assert torch.equal(rest, images[10:])
    assert torch.equal(of, labels[10:])
    unaligned, _ = aligned.images_of(replace(DATA, aligned=False))
    assert torch.equal(unaligned, raw.images)
    assert models["denoiser/dit"].count == count  # all of it was in the cache
    assert raw.nfe == {"denoiser fwd": 3.0}
    assert aligned.align_images(DATA, raw.images).nfe == {"denoiser fwd+bwd": 4.0}


def test_images_on_disk_are_made_once_and_read_in_parts(models):
    made = []

    def make(rows: torch.Tensor) -> torch.Tensor:
        made.extend(rows.tolist())
        if 6 in rows and len(made) < 10:
            raise KeyboardInterrupt
        return rows.float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255

    with pytest.raises(KeyboardInterrupt):
        aligned.on_disk({"what": "test"}, make, 10, 3)
    images = aligned.on_disk({"what": "test"}, make, 10, 3)
    assert made == [*range(9), 6, 7, 8, 9]  # what was done before the interruption is not done again
    assert len(aligned.on_disk({"what": "test"}, make, 10, 3)) == 10
    assert len(made) == 13
    assert not torch.is_tensor(images)
    assert [round(255 * float(v[0, 0, 0])) for v in images[torch.tensor([9, 0, 4])]] == [9, 0, 4]
    assert len(aligned.on_disk({"what": "test"}, make, 4, 3)) == 4  # another number is another file
    labels = torch.arange(10) % 10
    whole = fine_tune(models["classifier/resnet"], images[torch.arange(10)], labels, FAST)
    assert same(weights(whole), weights(fine_tune(models["classifier/resnet"], images, labels, FAST)))


def test_labels_may_be_what_the_source_reads(models):
    """The images are those of the set itself, and no other set of images is kept for them."""
    source = models["classifier/resnet"]
    images, asked = aligned.images_of(DATA)
    count = dict(models["denoiser/dit"].count)
    same_images, read = aligned.images_of(replace(DATA, labels="source"), source)
    assert torch.equal(images, same_images)
    with torch.no_grad():
        assert torch.equal(read, source(aligned.raw_images(DATA).images).argmax(1))
    assert not torch.equal(read, asked)
    agreed, labels = aligned.images_of(replace(DATA, labels="agreed"), source)
    assert torch.equal(agreed, images[read == asked])
    assert torch.equal(labels, asked[read == asked])
    rest = replace(DATA, per_class=1, first=1)
    assert torch.equal(aligned.images_of(replace(rest, labels="source"), source)[1], read[10:])
    assert models["denoiser/dit"].count == count
    about = json.loads(json.dumps(aligned.describe("classifier/resnet", rest, MANY)))
    assert about["data"]["first"] == 1
    found = aligned.aligned_classifier("classifier/resnet", rest, MANY)
    assert same(weights(found), weights(aligned.from_description("classifier/resnet", about)))
    abouts = [
        aligned.describe("classifier/resnet", replace(DATA, labels=v), FAST) for v in ("asked", "source", "agreed")
    ]
    assert "labels" not in abouts[0]["data"]
    assert abouts[1] != abouts[2]
    found = aligned.aligned_classifier("classifier/resnet", replace(DATA, labels="source"), MANY)
    about = json.loads(json.dumps(aligned.describe("classifier/resnet", replace(DATA, labels="source"), MANY)))
    assert same(weights(found), weights(aligned.from_description("classifier/resnet", about)))


def test_aligned_images_are_those_of_the_method(models):
    """Stage 2 and stage 4, image by image."""
    images, _ = aligned.images_of(DATA)
    raw = aligned.raw_images(DATA)
    both = Models(models["classifier/resnet"], models["denoiser/dit"], models["classifier/resnet"])
    method = configure(both, S)
    torch.testing.assert_close(method.adapt(raw.images, -1 - raw.ids).images, images)


def test_without_images_it_is_dda(models, images):
    none = aligned.aligned_classifier("classifier/resnet", replace(DATA, per_class=0), FAST)
    both = Models(models["classifier/resnet"], models["denoiser/dit"], none)
    theirs = dda.configure(
        Models(models["classifier/resnet"], models["denoiser/dit"]), dda.Settings(**asdict(S))
    ).adapt(images, IDS)
    assert torch.equal(configure(both, S).adapt(images, IDS).logits, theirs.logits)


def test_a_fine_tuned_classifier_is_kept_and_says_what_it_was_aligned_by(models, monkeypatch):
    kept = weights(models["classifier/resnet"])
    one = aligned.aligned_classifier("classifier/resnet", DATA, FAST)
    monkeypatch.setattr(sda, "fine_tune", None)
    again = aligned.aligned_classifier("classifier/resnet", DATA, FAST)
    assert same(weights(one), weights(again))
    assert same(kept, weights(models["classifier/resnet"]))
    assert not same(kept, weights(one))
    assert one.alignment == what_changes(S)
    for change in ({"aligned": False}, {"per_class": 3}, {"synthesis": Synthesis(steps=4)}, {"kind": "real"}):
        about = aligned.describe("classifier/resnet", replace(DATA, **change), FAST)
        assert about != aligned.describe("classifier/resnet", DATA, FAST)


def test_real_scenes_are_balanced_new_and_nested(monkeypatch):
    from gentta_utils.recipes import data
    from gentta_utils.world import scenes

    seen = []
    render = scenes.render
    monkeypatch.setattr(scenes, "render", lambda s, *a, **k: seen.append(s) or render(s, *a, **k))
    images = data.labelled_set(2, size=32)
    assert images.shape == (20, 3, 32, 32)
    assert seen[0].label.tolist() == list(range(10)) * 2
    assert seen[0].id.min() >= 50_000
    torch.testing.assert_close(data.labelled_set(1, size=32), images[:10], rtol=0, atol=1.01 / 255)


def test_parts_go_on_where_they_stopped(tmp_path):
    dit, calls = make_dit(), []

    def work(rows):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(rows)
        dit.count["fwd"] += 3 * len(rows)
        return torch.full((len(rows), 3, 4, 4), float(len(calls)))

    ids = torch.arange(7)
    with pytest.raises(KeyboardInterrupt):
        make_images(work, ids, dit, tmp_path, 3)
    calls = calls[:1]
    made = make_images(work, ids, dit, tmp_path, 3)
    assert made.images[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert made.nfe == {"denoiser fwd": 3.0}
    assert torch.equal(made.by_id()[4], made.images[4])
    other = make_images(lambda rows: torch.zeros(len(rows), 3, 4, 4), ids + 1, dit, tmp_path, 3)
    assert other.images.max() == 0  # other images: made again


def test_wrong_sets_are_refused():
    for change in ({"kind": "drawn"}, {"per_class": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}=.*: choose"):
            replace(DATA, **change)


def test_the_command_writes_a_model_that_loads_with_its_alignment(tmp_path, monkeypatch):
    """The shipped networks, on ten images of two steps."""
    name = "classifier/resnet-sda"
    data = Data(per_class=1, synthesis=Synthesis(steps=2), alignment=replace(S, steps=2))
    how = replace(published(name), epochs=1)
    monkeypatch.setattr(aligned, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(quality, "of_classifier", lambda classifier: {"clean": 0.0})
    monkeypatch.setattr(recipes, "CANDIDATES_FOLDER", tmp_path)
    monkeypatch.setattr(chosen, "SDA", tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="measure select_sda"):
        recipes.train(name)
    monkeypatch.setattr(aligned, "chosen", lambda name: (data, how))
    folder = recipes.train(name)
    loaded = zoo.load(name, folder=tmp_path)
    assert loaded.alignment == what_changes(data.alignment)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["recipe"]["data"]["alignment"] == loaded.alignment
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(  # written in half precision
        loaded(images), aligned.aligned_classifier("classifier/resnet", data, how)(images), rtol=1e-2, atol=2e-2
    )
    assert zoo.load("classifier/resnet").alignment is None


def test_settings_of_another_model_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "sda.json"
    monkeypatch.setattr(chosen, "SDA", path)
    fine = {c: asdict(published(c)) for c in aligned.BACKBONES}
    content = {"alignment": asdict(S), "synthesis": asdict(Synthesis(steps=9)), "fine_tune": fine}
    path.write_text(
        json.dumps(content | {"models": {"denoiser/dit": zoo.fingerprint("denoiser/dit")}}), encoding="utf-8"
    )
    data, how = aligned.chosen("classifier/swin-wide-sda")
    assert (data.alignment, data.synthesis.steps, how) == (S, 9, published("classifier/swin"))
    path.write_text(json.dumps(content | {"models": {"denoiser/dit": "older"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="chosen for another denoiser/dit: run"):
        aligned.chosen("classifier/resnet")
