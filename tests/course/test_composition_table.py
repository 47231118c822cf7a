"""The compositional probe of notebook 03: what each model says of a pair's captions, on shared draws; its table."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gentta_utils  # noqa: F401
from gentta_utils.course import recheck
from gentta_utils.course.nb03 import composition
from gentta_utils.course.nb03.composition import PairSpec, by_adapted, by_clip, by_reader
from gentta_utils.evaluation.composition import RIGHT
from gentta_utils.evaluation.records import load, save
from gentta_utils.methods import diffusion_tta
from gentta_utils.models import zoo
from gentta_utils.streams.stream import stream
from gentta_utils.world.corruptions import corrupt
from gentta_utils.world.severities import TEST, VALIDATION

SPEC = PairSpec("floor", n=3)
SETTINGS = diffusion_tta.Settings(lr=0.1, updates=2, pairs=2, window=(150, 850))


@pytest.fixture(scope="module")
def clip():
    return zoo.load("clip/small")


@pytest.fixture(scope="module")
def denoiser():
    return zoo.load("denoiser/text", precision="fp32")


@pytest.fixture(scope="module")
def given():
    s = stream(SPEC)
    return s.images, s.ids, SPEC.pairs().captions


def read(denoiser, given, rows=slice(None)):
    images, ids, captions = given
    return by_reader(denoiser, images[rows], ids[rows], captions[rows], 2, (150, 850))


def test_both_images_of_a_pair_stand_under_the_pairs_own_corruption():
    clean = stream(PairSpec("wall", n=5))
    hard = stream(PairSpec("wall", "validation corruptions", n=5))
    assert torch.equal(clean.ids, hard.ids)
    for i in range(10):
        name = VALIDATION[i // 2 % 4]
        assert torch.equal(hard.images[i : i + 1], corrupt(clean.images[i : i + 1], name, 5, clean.ids[i : i + 1]))
    assert hard.about["severity"] == 5
    assert clean.about["severity"] == 0


def test_every_test_corruption_has_its_turn():
    about = PairSpec("wall", "test corruptions").describe()
    assert all(f"{name} " in about["corruptions"] for name in TEST)
    assert set(composition.SHIFTS["test corruptions"]) == set(TEST)


def test_no_two_images_of_the_table_share_an_id():
    ids = [PairSpec(kind).pairs().ids for kind in composition.KINDS]
    assert len(torch.cat(ids).unique()) == 800


def test_unknown_kinds_and_shifts_are_refused():
    with pytest.raises(ValueError, match="unknown kind"):
        PairSpec("size")
    with pytest.raises(ValueError, match="unknown shift"):
        PairSpec("floor", "fog")


def test_clip_says_the_cosine_of_each_image_with_its_own_captions(clip, given):
    images, _, captions = given
    found = by_clip(clip, images, captions)
    with torch.no_grad():
        cosines = clip.encode_images(images) @ clip.encode_texts(captions).T * clip.network.logit_scale.exp()
    for i in range(6):
        assert torch.allclose(found[i], cosines[i, i // 2 * 2 : i // 2 * 2 + 2], atol=1e-3)


def test_the_reader_shares_its_draws_between_the_images_and_captions_of_a_pair(denoiser, given):
    images, ids, captions = given
    same = torch.stack([images[0], images[0]])
    error, unconditional = by_reader(denoiser, same, ids[:2], [captions[0], captions[0]], 2, (150, 850))
    assert torch.allclose(error, error[:1, :1].expand(2, 2), rtol=1e-5)
    assert torch.allclose(unconditional[0], unconditional[1], rtol=1e-5)
    other, _ = by_reader(denoiser, same, ids[2:4], [captions[0], captions[0]], 2, (150, 850))
    assert not torch.allclose(other, error, rtol=1e-3)  # another pair has draws of its own


def test_the_readers_unconditional_error_is_that_of_no_condition(denoiser, given):
    images, ids, _ = given
    error, unconditional = by_reader(denoiser, images[:2], ids[:2], ["", ""], 2, (150, 850))
    assert torch.allclose(error, unconditional.expand(2, 2), rtol=1e-5)


def test_the_reader_does_not_depend_on_the_batch(denoiser, given):
    error, unconditional = read(denoiser, given)
    for i in (0, 2):
        part = read(denoiser, given, slice(i, i + 2))
        assert torch.allclose(part[0], error[i : i + 2], rtol=1e-4)
        assert torch.allclose(part[1], unconditional[i : i + 2], rtol=1e-4)


def test_exchanged_captions_exchange_the_readers_errors(denoiser, given):
    images, ids, captions = given
    error, _ = read(denoiser, given)
    swapped = [captions[i ^ 1] for i in range(6)]
    assert torch.allclose(by_reader(denoiser, images, ids, swapped, 2, (150, 850))[0], error.flip(1), rtol=1e-4)


def test_each_image_is_adapted_between_its_own_captions_and_alone(clip, denoiser, given):
    images, ids, captions = given
    before, after, loss, nfe = by_adapted(clip, denoiser, SETTINGS, images, ids, captions)
    assert torch.allclose(before, by_clip(clip, images, captions), atol=1e-3)
    assert not torch.allclose(before, after, atol=1e-3)
    assert loss.shape == (2, 6)
    assert nfe["denoiser fwd+bwd"] == 6 * SETTINGS.updates * SETTINGS.pairs
    part = by_adapted(clip, denoiser, SETTINGS, images[2:4], ids[2:4], captions[2:4])
    assert torch.equal(part[1], after[2:4])


def test_the_table_and_what_is_shown_of_it(clip, denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(composition, "table", lambda name, jobs: [work() for _, work in jobs])
    monkeypatch.setattr(composition, "KINDS", {"floor": (), "wall": ()})
    monkeypatch.setattr(composition.zoo, "cached", lambda name: denoiser if name == composition.TEXT else clip)
    runs = composition.winoground({"clip/small": SETTINGS}, draws=2, n=2)
    save(tmp_path / "t.npz", runs)
    stored = load(tmp_path / "t.npz")
    assert len(runs) == 2 * (5 + 6)  # to clean images nothing is adapted
    for r, kept in zip(runs, stored, strict=True):
        assert r.about["label"].startswith(("source/", "diffusion_tta/full", "reader/2 pairs/150..850"))
        assert np.allclose(r.after.reshape(-1, 4).mean(1), 0, atol=1e-4)
        scores = composition.scores_of(kept)
        assert set(scores) == ({"text"} if r.about["method"] == "diffusion_tta" else set(RIGHT))
        both = (r.right_after[::2] & r.right_after[1::2]).tolist()
        assert scores["text"].tolist() == composition.scores_of(r)["text"].tolist() == both
        assert recheck.obstacle(kept)[0] == "pairs of scenes"
    text = composition.show(stored)
    for expected in (
        "chance 25.0",
        "chance 16.7",
        "floor",
        "unseen",
        "less unconditional",
        "small diffusion_tta/full",
    ):
        assert expected in text
    images = text[text.index("image score, clean") :]
    assert "diffusion_tta" not in images[: images.index("text score")]


def test_a_shift_of_an_images_error_changes_its_image_score_and_not_its_text_score():
    spec = PairSpec("floor", n=2)
    about = {"method": "diffusion_classifier", "stream": spec.describe()}
    S = np.array([[3, 2], [0, 1], [3, 2], [2, 3]], np.float32)
    labels, none = np.arange(4) % 2, np.zeros((4, 0), np.float32)
    r = composition.Records(np.arange(4), labels, S, S, none, np.zeros(4, np.float32), {}, about)
    r = replace(r, after=S + np.array([0, 2, 0, 0], np.float32)[:, None])
    assert (
        composition.scores_of(r, "before")["text"].tolist() == composition.scores_of(r)["text"].tolist() == [True] * 2
    )
    assert composition.scores_of(r, "before")["image"].tolist() == [False, True]
    assert composition.scores_of(r)["image"].tolist() == [True, True]


def test_the_reader_is_compared_with_each_clip_on_the_same_pairs(monkeypatch):
    monkeypatch.setattr(composition, "KINDS", {"floor": (), "wall": ()})
    fine, wrong = np.array([[3, 0], [0, 3]] * 2, np.float32), np.array([[0, 3], [3, 0]] * 2, np.float32)
    none, runs = np.zeros((4, 0), np.float32), []
    for k, kind in enumerate(("floor", "wall")):
        for method, clip, before, after in (
            ("source", "clip/small", wrong, wrong),
            ("diffusion_tta", "clip/small", wrong, np.r_[fine[:2], wrong[2:]]),
            ("diffusion_classifier", "", fine, fine if k else np.r_[fine[:2], wrong[2:]]),
        ):
            about = {"method": method, "label": method, "classifier": clip, "stream": PairSpec(kind, n=2).describe()}
            ids, labels = np.arange(4) + 10 * k, np.arange(4) % 2
            runs.append(composition.Records(ids, labels, before, after, none, np.zeros(4, np.float32), {}, about))
    rows = {(r["score"], r["difference"]): r for r in composition.compared(runs)}
    assert set(rows) == {
        ("text", "reader minus small source"),
        ("image", "reader minus small source"),
        ("text", "small diffusion_tta minus itself before"),
    }
    row = rows["image", "reader minus small source"]
    assert [row[kind].split(" ")[0] for kind in ("floor", "wall", "all")] == ["+50.0", "+100.0", "+75.0"]
    assert rows["text", "small diffusion_tta minus itself before"]["all"].startswith("+50.0 [")
    runs[0] = replace(runs[0], id=runs[0].id + 2)
    with pytest.raises(ValueError, match="did not meet the same pairs"):
        composition.compared(runs)


def test_the_rate_is_chosen_on_validation_pairs_alone(clip, denoiser, monkeypatch):
    seen = []
    monkeypatch.setattr(composition.zoo, "cached", lambda name: denoiser if name == composition.TEXT else clip)
    monkeypatch.setattr(composition, "stream", lambda spec: seen.append(spec) or stream(spec))
    monkeypatch.setattr(composition, "KINDS", {"floor": (), "two objects": ()})
    settings = composition.by_rule("clip/small", n=1, pairs=2)
    assert {(s.split, s.shift) for s in seen} == {("select", "validation corruptions")}
    twice = composition.by_rule("clip/small", 2 * composition.DELTA, n=1, pairs=2)
    assert twice.lr == pytest.approx(2 * settings.lr, rel=0.01)
