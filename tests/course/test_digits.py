"""The digits: a fixed split, a denoiser under the contract of all, and a training that teaches it to read."""

import pytest
import torch

from gentta_utils.course import digits
from gentta_utils.diffusion.error_table import error_table
from gentta_utils.diffusion.process import diffusion_loss


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = digits.DigitDenoiser(width=96, blocks=2)
    return model, digits.train(model, digits.load().images, digits.load().labels, steps=300)


def test_splits_are_fixed_disjoint_and_all_there_is():
    train, test = digits.load("train"), digits.load("test")
    assert (len(train), len(test)) == (1400, 397)
    assert sorted([*train.ids.tolist(), *test.ids.tolist()]) == list(range(1797))
    assert torch.equal(test.ids, digits.load("test").ids)
    assert train.images.shape == (1400, 1, 8, 8)
    assert (train.images.min(), train.images.max()) == (-1, 1)
    assert set(test.labels.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="choose train or test"):
        digits.load("val")


def test_training_lowers_the_loss_and_freezes_the_model(trained):
    model, losses = trained
    assert losses.shape == (300,)
    assert losses[-20:].mean() < 0.35 * losses[:20].mean()
    assert not any(p.requires_grad for p in model.parameters())


def test_it_reads_digits_it_has_not_seen(trained):
    test = digits.load("test")
    table = error_table(trained[0], test.images[:60], test.ids[:60], 16)
    assert (table.scores().argmin(1) == test.labels[:60]).float().mean() > 0.6


def test_the_condition_may_be_soft_or_absent_and_gradients_reach_it(trained):
    model, test = trained[0], digits.load("test")
    x0, t, eps = test.images[:4], torch.tensor([10, 200, 500, 900]), torch.randn(4, 1, 8, 8)
    p = torch.full((4, 10), 0.1, requires_grad=True)
    diffusion_loss(model, x0, t, eps, p, model.alphas_cumprod).sum().backward()
    assert p.grad.abs().max() > 0
    with torch.no_grad():
        hard = model(x0, t, torch.eye(10)[test.labels[:4]])
        torch.testing.assert_close(hard, model.predict(x0, t, test.labels[:4]))
        torch.testing.assert_close(model(x0, t), model.predict(x0, t, torch.full((4,), 10)))
    with pytest.raises(ValueError, match="softmax"):
        model(x0, t, p.detach() * 2)


def test_training_is_the_same_for_the_same_seed():
    runs, data = [], digits.load()
    for _ in range(2):
        torch.manual_seed(1)
        runs.append(digits.train(digits.DigitDenoiser(32, 1), data.images, data.labels, steps=5, seed=3))
    assert torch.equal(*runs)


def test_shifts_belong_to_their_image_and_keep_its_shape():
    test = digits.load("test")
    for name in digits.SHIFTS:
        whole = digits.shifted(test.images[:6], name, test.ids[:6])
        assert whole.shape == (6, 1, 8, 8)
        assert torch.equal(whole[2:3], digits.shifted(test.images[2:3], name, test.ids[2:3]))
        assert torch.equal(whole, test.images[:6]) == (name == "clean")
    with pytest.raises(ValueError, match="choose one of clean"):
        digits.shifted(test.images[:6], "fog", test.ids[:6])
