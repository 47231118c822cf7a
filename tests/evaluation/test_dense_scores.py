"""Scores of maps: held against torchmetrics and against cases whose answer is known."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index
from torchmetrics.functional.regression import mean_absolute_percentage_error

from gentta_utils.diffusion.feedback import map_errors
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.evaluation.dense import (
    aligned,
    confusion,
    depth_scores,
    mean_class_accuracy,
    mean_iou,
    reading,
)
from gentta_utils.models.map_unet import one_hot_map
from gentta_utils.world.maps import FAR, VOID

K = 4


def maps(n: int = 3, side: int = 16, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, K, (n, side, side), generator=g).byte()
    return torch.randn(n, K, side, side, generator=g) + one_hot_map(truth, K), truth


def test_scores_over_a_set_are_those_of_torchmetrics():
    answer, truth = maps()
    counts = confusion(answer, truth).sum(0)
    how = dict(num_classes=K, average="macro", ignore_index=VOID)
    expected = 100 * multiclass_accuracy(answer, truth.long(), **how)
    torch.testing.assert_close(mean_class_accuracy(counts), expected)
    torch.testing.assert_close(mean_iou(counts), 100 * multiclass_jaccard_index(answer, truth.long(), **how))


def test_mean_class_accuracy_is_over_the_classes_that_are_there():
    truth = torch.tensor([[[0, 0], [1, VOID]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 1], [1, 2]]], dtype=torch.uint8)
    counts = confusion(one_hot_map(predicted, K), truth)
    assert counts.sum() == 3  # void is not counted
    assert mean_class_accuracy(counts).tolist() == [75.0]  # (1/2 + 1) / 2: what is not there has no part
    torch.testing.assert_close(mean_iou(counts), torch.tensor([50.0]))  # 1/2 and 1/2


def test_it_is_pixel_accuracy_where_classes_are_equally_frequent():
    truth = torch.arange(K).repeat(4).view(1, 4, 4).byte()
    answer = torch.randn(1, K, 4, 4, generator=torch.Generator().manual_seed(1))
    right = (answer.argmax(1) == truth).float().mean()
    torch.testing.assert_close(mean_class_accuracy(confusion(answer, truth))[0], 100 * right)


def test_a_smaller_answer_is_enlarged():
    answer, truth = maps(side=8)
    large = truth.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert confusion(20 * one_hot_map(truth, K), large).shape == (3, K, K)
    assert confusion(answer, large).sum() == 3 * 16 * 16


# --- depth -----------------------------------------------------------------------------------------------------------


def depths(n: int = 2, side: int = 32):
    x = torch.linspace(2, 8, side)
    return (x.view(1, -1, 1) + 0.5 * x.view(1, 1, -1).sin()).expand(n, side, side).clamp(0.5, 9.5).contiguous()


def test_ssim_is_one_of_a_map_and_itself_symmetric_and_falls_with_noise():
    y = depths()
    assert (depth_scores(y[:, None], y)["ssim"] - 100).abs().max() < 1e-3
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    little, much = ((y + a * noise).clamp(0.2, 9.9) for a in (0.1, 0.5))
    scores = [depth_scores(v[:, None], y)["ssim"] for v in (little, much)]
    assert (scores[0] < 100).all()
    assert (scores[1] < scores[0]).all()
    torch.testing.assert_close(depth_scores(y[:, None], little)["ssim"], scores[0], rtol=1e-4, atol=1e-3)


def test_depth_scores_of_a_known_error():
    y = depths()
    scores = depth_scores(1.3 * y.clamp_max(7)[:, None], y.clamp_max(7))
    torch.testing.assert_close(scores["absrel"], torch.full((2,), 0.3))
    assert (scores["delta"] == 0).all()
    torch.testing.assert_close(scores["dee"], torch.full((2,), 0.65))
    near = depth_scores(1.2 * y.clamp_max(7)[:, None], y.clamp_max(7))
    assert (near["delta"] == 1).all()
    expected = mean_absolute_percentage_error(1.2 * y.clamp_max(7), y.clamp_max(7))
    torch.testing.assert_close(near["absrel"].mean(), expected)
    torch.testing.assert_close(near["rmse"], (0.2 * y.clamp_max(7)).square().mean((1, 2)).sqrt())


def test_a_constant_scene_gives_finite_values():
    flat = torch.full((1, 32, 32), 5.0)
    assert all(v.isfinite().all() for v in depth_scores(flat[:, None], flat).values())
    assert all(v.isfinite().all() for v in depth_scores(flat[:, None] + 1, flat).values())
    assert all(v.isfinite().all() for v in depth_scores(torch.full((1, 1, 32, 32), 1e4), flat).values())
    assert depth_scores(torch.full((1, 1, 32, 32), 1e4), flat)["rmse"].item() == pytest.approx(FAR - 5)  # cut first


@pytest.mark.parametrize("a, b", [(2.0, 1.0), (-0.5, 3.0), (1.0, 0.0)])
def test_alignment_is_exact_for_an_affine_copy(a, b):
    y = depths()
    torch.testing.assert_close(aligned(a * y[:, None] + b, y)[:, 0], y, rtol=1e-4, atol=1e-4)


def test_a_flat_answer_is_aligned_to_the_mean():
    y = depths()
    torch.testing.assert_close(aligned(torch.ones(2, 1, 32, 32), y).mean((1, 2, 3)), y.mean((1, 2)))


# --- reading ---------------------------------------------------------------------------------------------------------


class MixtureOfMaps(GaussianMixture):
    """A mixture that takes a map (B, K, h, w) and reads its mean over pixels, so that the best condition is known."""

    def __call__(self, x_t, t, cond=None):
        return super().__call__(x_t, t, cond.mean((2, 3)))


def test_the_true_map_is_read_and_all_maps_see_the_same_pairs():
    means = torch.randn(K, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model, labels, ids = MixtureOfMaps(means, std=0.1), torch.tensor([0, 1, 2]), torch.arange(3) + 9
    x0 = model.sample(labels, torch.Generator().manual_seed(1))
    true, wrong = (one_hot_map(v.byte().view(3, 1, 1).expand(3, 2, 2), K) for v in (labels, (labels + 1) % K))
    gaps = reading(model, x0, ids, true, {"wrong": wrong, "true": true}, 4, ((100, 300), (300, 600)))
    assert gaps["wrong"].shape == (2, 3)
    assert (gaps["wrong"] > 0).all()
    assert (gaps["true"] == 0).all()


def test_errors_do_not_depend_on_the_micro_batch():
    means = torch.randn(K, 3, 4, 4)
    model, x0 = MixtureOfMaps(means), torch.randn(3, 3, 4, 4)
    p, t, eps = torch.rand(3, K, 2, 2).softmax(1), torch.randint(1000, (3, 5)), torch.randn(3, 5, 3, 4, 4)
    whole = map_errors(model, x0, p, t, eps)
    assert whole.shape == (3, 5)
    torch.testing.assert_close(map_errors(model, x0, p, t, eps, 2), whole)
