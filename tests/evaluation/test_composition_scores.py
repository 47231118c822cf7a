"""Text, image and group score of pairs, on scores made by hand."""

from itertools import permutations

import numpy as np
import pytest

import gentta_utils  # noqa: F401
from gentta_utils.evaluation.composition import CHANCE, RIGHT, centred

BY_HAND = {  # S, and whether text, image, group are right
    "all right": ([[2, 1], [1, 2]], (True, True, True)),
    "a bright image": ([[9, 8], [1, 2]], (True, False, False)),  # both captions prefer it
    "a common caption": ([[9, 1], [8, 2]], (False, True, False)),  # both images prefer it
    "all wrong": ([[1, 2], [2, 1]], (False, False, False)),
    "one image right": ([[2, 1], [4, 3]], (False, False, False)),
    "a tie": ([[2, 2], [1, 2]], (False, False, False)),
    "no difference": ([[1, 1], [1, 1]], (False, False, False)),
}


@pytest.mark.parametrize("S, right", BY_HAND.values(), ids=BY_HAND)
def test_scores_by_hand(S, right):
    S = np.array([S], float)
    assert tuple(bool(of(S)[0]) for of in RIGHT.values()) == right


def test_chance_is_the_share_of_all_orders():
    S = np.array(list(permutations(range(4))), float).reshape(-1, 2, 2)
    for name, of in RIGHT.items():
        assert 100 * of(S).mean() == pytest.approx(CHANCE[name])


def test_chance_of_random_scores():
    S = np.random.default_rng(0).normal(size=(100_000, 2, 2))
    for name, of in RIGHT.items():
        assert 100 * of(S).mean() == pytest.approx(CHANCE[name], abs=0.5)


def test_exchanged_captions_make_right_wrong():
    S = np.random.default_rng(1).normal(size=(500, 2, 2))
    for of in RIGHT.values():
        assert of(S).any()
        assert not (of(S) & of(S[:, :, ::-1])).any()
        assert np.array_equal(of(S), of(S[:, ::-1, ::-1]))  # which pair comes first does not matter


def test_what_belongs_to_an_image_moves_image_scores_alone_and_to_a_caption_text_scores_alone():
    generator = np.random.default_rng(2)
    S = generator.normal(size=(500, 2, 2))
    per_image, per_caption = S + generator.normal(size=(500, 2, 1)), S + generator.normal(size=(500, 1, 2))
    assert np.array_equal(RIGHT["text"](S), RIGHT["text"](per_image))
    assert not np.array_equal(RIGHT["image"](S), RIGHT["image"](per_image))
    assert np.array_equal(RIGHT["image"](S), RIGHT["image"](per_caption))
    assert not np.array_equal(RIGHT["text"](S), RIGHT["text"](per_caption))


def test_the_mean_of_a_pair_moves_nothing():
    S = 100 + np.random.default_rng(3).normal(size=(50, 2, 2))
    assert np.allclose(centred(S).mean((1, 2)), 0)
    for of in RIGHT.values():
        assert np.array_equal(of(S), of(centred(S)))
