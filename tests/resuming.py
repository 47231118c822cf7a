"""A check that several recipes share: an interrupted training, resumed, ends where an uninterrupted one does."""

import pytest
import torch

from gentta_utils.recipes import training


def assert_resumes_to_the_bit(recipe, folder) -> None:
    """Train `recipe` whole, and again with an interruption at step 2: weights, moments and averages are equal."""
    whole = training.train(recipe.build(), recipe.make_loss(), recipe.schedule, folder / "whole")
    loss_of = recipe.make_loss()

    def interrupted(model, generator, step):
        if step == 2:
            raise KeyboardInterrupt
        return loss_of(model, generator, step)

    with pytest.raises(KeyboardInterrupt):
        training.train(recipe.build(), interrupted, recipe.schedule, folder / "parts")
    resumed = training.train(recipe.build(), recipe.make_loss(), recipe.schedule, folder / "parts")
    expected = whole.tensors()
    assert all(torch.equal(v, expected[name]) for name, v in resumed.tensors().items())
