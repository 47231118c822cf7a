"""Learnable prompts: untrained they are the words, the cut changes nothing, every image has its own context."""

import open_clip
import pytest
import torch
from conftest import same, weights

from gentta_utils.models import zoo
from gentta_utils.models.clip import Clip, image_features, text_head
from gentta_utils.models.prompts import make_prompt
from gentta_utils.world.words import LABEL_SETS, label_set

OPENAI = dict(  # as the published CLIPs, but small: 77 places, the end is the highest token
    embed_dim=8,
    quick_gelu=True,
    vision_cfg=dict(image_size=32, patch_size=16, layers=1, width=16, head_width=8),
    text_cfg=dict(context_length=77, vocab_size=49408, width=8, heads=2, layers=2),
)


@pytest.fixture(scope="module")
def openai():
    torch.manual_seed(1)
    words = open_clip.SimpleTokenizer(context_length=77)
    return Clip(open_clip.CLIP(**OPENAI), words, (0.5,) * 3, (0.5,) * 3, 32).requires_grad_(False)


@pytest.mark.parametrize("name", ["clip/small", "clip/small-32", "clip/large"])
@pytest.mark.parametrize("labels", LABEL_SETS)
def test_untrained_it_is_the_zero_shot_classifier(name, labels):
    clip, asked = zoo.cached(name), label_set(labels)
    prompt = make_prompt(clip, asked.classes, asked.templates[0])
    with torch.no_grad():
        text = prompt(prompt.init.expand(2, -1, -1))
    expected = clip.class_features(asked.classes, asked.templates[:1])
    torch.testing.assert_close(text, expected.expand(2, -1, -1), rtol=0, atol=1e-5)


def test_untrained_it_is_the_zero_shot_classifier_of_an_openai_clip(openai):
    names = ["cube", "red torus", "an octahedron that stands on a very long name"]
    prompt = make_prompt(openai, names)
    assert prompt.init.shape == (4, 8)  # "a photo of a"
    assert prompt.embedded.shape[1] < 20  # of 77
    text = prompt(prompt.init[None])[0]
    torch.testing.assert_close(text, openai.class_features(names, ["a photo of a {}."]), rtol=0, atol=1e-5)
    x = torch.rand(2, 3, 32, 32)
    classifier = openai.zero_shot(names, ["a photo of a {}."])
    torch.testing.assert_close(image_features(classifier, x) @ text_head(classifier).T, classifier(x))
    assert sum(classifier.count.values()) == 4


def test_every_image_has_its_own_context(clip_models):
    prompt, g = clip_models.prompt, torch.Generator().manual_seed(0)
    context = prompt.init + 0.1 * torch.randn(3, *prompt.init.shape, generator=g)
    context.requires_grad_()
    together = prompt(context)
    alone = torch.cat([prompt(c[None]) for c in context])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (3, 10, 96)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3, 10))
    kept = weights(prompt.clip)
    (grad,) = torch.autograd.grad(together[1].square().sum() + together[1, 0, 0], context)
    assert (grad[[0, 2]] == 0).all()
    assert (grad[1].abs().amax(1) > 0).all()  # each of the four vectors
    assert same(kept, weights(prompt.clip))


def test_the_context_stands_where_the_words_stood(clip_models):
    """Context vectors that are the embeddings of other words give the prompt of these words."""
    clip, names = clip_models.prompt.clip, label_set("category").classes
    other = make_prompt(clip, names, "a picture of one {}.")
    assert other.init.shape == clip_models.prompt.init.shape
    swapped = clip_models.prompt.learned(other.init)
    start = swapped.start(torch.zeros(1, 96))
    torch.testing.assert_close(swapped(start), other(other.init[None]), rtol=0, atol=1e-6)


def test_classes_keep_their_features_in_any_order_and_number(clip_models):
    prompt = clip_models.prompt
    context = (prompt.init + 0.05)[None]
    some = prompt.restrict((3, 7, 0))
    torch.testing.assert_close(some(context), prompt(context)[:, [3, 7, 0]], rtol=0, atol=1e-5)
    restricted = clip_models.restrict((3, 7, 0))
    assert restricted.prompt.classes == restricted.classifier.classes == 3
    torch.testing.assert_close(text_head(restricted.classifier), text_head(clip_models.classifier)[[3, 7, 0]])
    with pytest.raises(ValueError, match="restricted to 3 classes already"):
        some.restrict((0,))


def test_prompts_are_counted_one_for_each_class_of_an_image(clip_models):
    prompt = clip_models.prompt.restrict((0, 1, 2))
    with torch.no_grad():
        prompt(prompt.init.expand(2, -1, -1))
    prompt(prompt.init[None].clone().requires_grad_())
    assert prompt.count == {"fwd": 6, "fwd+bwd": 3}


def test_wrong_prompts_are_refused_in_one_sentence(openai, clip_models):
    for names, template, words in (
        ([], "a {}", "give names"),
        (["cube"], "a cube", "words before"),
        (["cube"], "{} texture", "words before"),
        (["cube"], "pre{}", "end with a space"),
        (["cube"], "a " * 80 + "{}", "shorten the template"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make_prompt(openai, names, template)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="same template"):
        clip_models.prompt.learned(torch.zeros(3, 64))
