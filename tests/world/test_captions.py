"""Captions and label sets: what is said is true, and what is to stay unseen is never said."""

import gentta_utils  # noqa: F401, I001
import pytest
import torch

from gentta_utils.recipes import tokenizer as recipes_tokenizer
from dataclasses import replace
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import labels, scenes, words as world_words
from gentta_utils.world.words import ATTRIBUTES, LABEL_SETS, UNSAID, is_unseen


@pytest.fixture(scope="module")
def facts():
    one = world_words.attributes(scenes.sample(scenes.scene_ids(2000, "train")))
    two = world_words.attributes(scenes.sample(scenes.scene_ids(300, "train", 2000), 2))
    return torch.cat([one, two])


@pytest.fixture(scope="module")
def said(facts):
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([world_words.choose(facts, generator, all_said) for all_said in (0.0, 0.5, 1.0)])
    return rows, world_words.captions(rows, generator)


def test_a_third_of_the_pairs_is_unseen():
    assert len(world_words.UNSEEN_PAIRS) == 27
    pairs = LABEL_SETS["colour_category"]
    assert sum(not s for s in pairs.seen) == 27
    for k in range(10):  # every category and every colour is seen in some pair
        assert 0 < sum(f"{c} {labels.CLASSES[k]}" in world_words.UNSEEN_PAIRS for c in labels.COLOURS) < 8


def test_training_captions_never_say_what_is_unseen(said):
    assert not [text for text in said[1] if is_unseen(text)]
    words = set(" ".join(said[1]).replace(",", "").replace(".", "").split())
    assert not words & {"shiny", "picture", "front"}
    assert words <= set(recipes_tokenizer.WORDS)
    assert {"matte", "red", "torus", "objects", "left", "large"} <= words


@pytest.mark.parametrize(
    "text, unseen",
    [
        ("a photo of a red sphere.", True), ("a photo of a green sphere.", False), ("A Red, sphere", True),
        ("a shiny green sphere", True), ("a matte green sphere", False), ("a picture of a object", True),
        ("a object in front of a red wall", True), ("a sphere before a red wall", False),
        ("a photo of a sphere on a red floor", False), ("a object in the middle", False),
    ],
)  # fmt: skip
def test_what_is_unseen(text, unseen):
    assert is_unseen(text) == unseen


def test_captions_are_true_of_their_scenes(facts, said):
    rows = said[0]
    assert world_words.true_of(rows[: len(facts)], facts).diagonal().all()
    for text, row in zip(said[1], rows.tolist(), strict=True):
        value = dict(zip(ATTRIBUTES, row, strict=True))
        for name in ("category", "colour"):
            if value[name] != UNSAID:
                assert world_words.VALUES[name][value[name]] in text
        assert ("objects" in text) == (value["count"] > 0)
        if value["floor"] == UNSAID:
            assert "floor" not in text


def test_a_silent_caption_is_true_of_many():
    facts = torch.tensor([[0, 1, 0, 2, 3, 0, 1, 0], [0, 4, 0, 2, 3, 0, 1, 0]])
    silent, talkative = torch.full_like(facts[0], UNSAID), facts[0]
    assert world_words.true_of(torch.stack([silent, talkative]), facts).tolist() == [[True, True], [True, False]]


def test_attributes_are_those_that_are_rendered():
    world = scenes.make(60, "train", 500)
    facts = dict(zip(ATTRIBUTES, world_words.attributes(world).unbind(1), strict=True))
    assert torch.equal(facts["category"], world.label)
    assert torch.equal(facts["colour"], world.colour[:, 0])
    inside = (world.mask > 0).float()  # (B, 64, 64)
    middle = (inside * (torch.arange(64) / 31.5 - 1)).sum((1, 2)) / inside.sum((1, 2))
    left, right = middle[facts["pose"] == 0], middle[facts["pose"] == 2]
    assert left.mean() < -0.1 < 0.1 < right.mean()
    area = inside.mean((1, 2))
    assert area[facts["size"] == 1].mean() > area[facts["size"] == 0].mean() + 0.03
    flip = torch.arange(60) % 2 == 0
    mirrored = world_words.mirrored(world_words.attributes(world), flip)[:, ATTRIBUTES.index("pose")]
    assert torch.equal(mirrored[flip], 2 - facts["pose"][flip])
    assert torch.equal(mirrored[~flip], facts["pose"][~flip])


def test_ten_label_sets_with_names_and_templates():
    assert len(LABEL_SETS) == 10
    partly = [
        s for s in LABEL_SETS.values() if not all(s.seen) or any(is_unseen(t.format("x")) for t in s.templates[:1])
    ]
    assert len(partly) >= 5
    for asked in LABEL_SETS.values():
        assert len(set(asked.prompts())) == len(asked.classes) == len(asked.seen)
        some = [
            [t for t in range(len(asked.templates)) if not is_unseen(asked.templates[t].format(name))]
            for name, seen in zip(asked.classes, asked.seen, strict=True)
            if seen
        ]
        assert all(some)  # each class that is seen has a seen wording


@pytest.mark.parametrize("name", LABEL_SETS)
def test_streams_of_label_sets(name):
    spec = SceneSpec(12, "fog", 3, "select", 40)
    s = replace(spec, labels=name).load()
    asked = LABEL_SETS[name]
    assert s.images.shape == (12, 3, 64, 64)
    assert 0 <= int(s.labels.min()) <= int(s.labels.max()) < len(asked.classes)
    if name == "count":
        single = s.labels == 0
        torch.testing.assert_close(s.images[single], stream(spec).images[single])
    else:
        assert torch.equal(s.images, stream(spec).images)
        world = scenes.sample(s.ids)
        first = asked.asks[0]
        values = s.labels // (len(asked.classes) // len(world_words.VALUES[first]))
        assert torch.equal(values, world_words.attributes(world)[:, ATTRIBUTES.index(first)])


def test_wrong_label_sets_are_named():
    with pytest.raises(ValueError, match="unknown labels 'shape'"):
        SceneSpec(2, labels="shape")
    with pytest.raises(ValueError, match="does not keep 'colour'"):
        SceneSpec(2, "sketch", labels="colour")
    with pytest.raises(ValueError, match="one object per scene"):
        SceneSpec(2, "v2", labels="count")


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_every_word_is_one_token(said, tmp_path):
    tokenizer = recipes_tokenizer.tokenizer()
    for word in recipes_tokenizer.WORDS:
        ids = tokenizer(word).input_ids
        assert len(ids) == 3, word
        assert ids[-1] == len(tokenizer) - 1
    assert tokenizer.decode(tokenizer("a photo of a red torus").input_ids[1:-1]) == "a photo of a red torus"
    longest = max(len(ids) for ids in tokenizer(said[1]).input_ids)
    assert longest <= recipes_tokenizer.CONTEXT
    spelt = tokenizer("zebra é").input_ids  # any text can be asked
    assert tokenizer.decode(spelt[1:-1]).replace(" ", "") == "zebraé"
    assert tokenizer("RED  torus").input_ids == tokenizer("red torus").input_ids
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(said[1][:50]).input_ids == tokenizer(said[1][:50]).input_ids
