"""A check that several recipes share: an interrupted training, resumed, ends where an uninterrupted one does."""

import pytest
import torch

from gentta_utils.recipes import training


def assert_resumes_to_the_bit(recipe, folder, make_loss=None, at: int = 2) -> None:
    """Train `recipe` whole, and again with an interruption at step `at`: weights, moments and averages are equal, and
    the second half began where the first one ended (training again would end at the same weights)."""
    make_loss = make_loss or recipe.make_loss
    whole = training.train(recipe.build(), make_loss(), recipe.schedule, folder / "whole")
    loss_of, steps = make_loss(), []

    def watched(model, generator, step):
        if step == at and at not in steps:
            steps.append(step)
            raise KeyboardInterrupt
        steps.append(step)
        return loss_of(model, generator, step)

    with pytest.raises(KeyboardInterrupt):
        training.train(recipe.build(), watched, recipe.schedule, folder / "parts")
    resumed = training.train(recipe.build(), watched, recipe.schedule, folder / "parts")
    assert steps == [*range(at + 1), *range(at, recipe.schedule.steps)]
    ended, expected = resumed.tensors(), whole.tensors()
    assert set(ended) == set(expected)
    assert all(torch.equal(v, expected[name]) for name, v in ended.items())
