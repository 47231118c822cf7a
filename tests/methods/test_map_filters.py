"""Filters of maps: each acts as it says, none does anything as it stands, misfits are refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_classifier, same, weights
from tiny_maps import K, task

from gentta_utils.methods import map_filters
from gentta_utils.methods.base import Models
from gentta_utils.methods.map_filters import Settings, configure, guided_filter, median_of
from gentta_utils.models.dense import enlarged
from gentta_utils.world import maps

IDS = torch.arange(3) + 40
MEAN = torch.rand(K, 4, 4, generator=torch.Generator().manual_seed(2)).softmax(0)


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def adapted(kind, images, mean=None, classes=K, **settings):
    network = task(kind, classes)
    kept = weights(network)
    out = configure(Models(network), Settings(**settings), mean).adapt(images, IDS)
    assert same(kept, weights(network))
    assert out.loss.shape == (0, 3)
    return out


@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_as_they_stand_nothing_is_changed(kind, images):
    out = adapted(kind, images)
    assert torch.equal(out.logits, out.before)


@pytest.mark.parametrize("change", [dict(median=1), dict(guided=3), dict(blend=0.5), dict(view="low")], ids=str)
@pytest.mark.parametrize("kind", ["pyramid", "densedepth"])
def test_each_filter_acts_on_every_image_and_keeps_what_an_answer_is(kind, change, images):
    depth = kind == "densedepth"
    mean = torch.full((1, 4, 4), 5.0) if depth else MEAN
    out = adapted(kind, images, mean if "blend" in change else None, **change)
    assert torch.equal(out.before, enlarged(adapted(kind, images).before, out.logits.shape[-1]))
    apart = out.logits - out.before
    assert apart.flatten(1).abs().amax(1).min() > 0
    if depth:
        assert (out.logits > 0).all()
    elif "view" not in change:
        assert out.logits.exp().sum(1).mean() == pytest.approx(1, abs=0.1)


def test_a_bias_is_added_to_its_class(images):
    out = adapted("pyramid", images, bias=(0.0, 0.0, 2.5, 0.0, 0.0))
    torch.testing.assert_close((out.logits - out.before)[:, 2], torch.full((3, *out.logits.shape[2:]), 2.5))
    assert torch.equal(out.logits[:, [0, 1, 3, 4]], out.before[:, [0, 1, 3, 4]])


def test_the_median_takes_a_speck_away_and_leaves_an_edge():
    y = torch.zeros(1, 1, 8, 8)
    y[..., 4:] = 1
    speck = y.clone()
    speck[0, 0, 2, 2] = 9
    torch.testing.assert_close(median_of(speck, 1), y)
    assert torch.equal(median_of(speck, 0), speck)


def test_the_guided_filter_keeps_edges_that_the_image_has_and_no_others():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    step = image[:, :1].clone()
    torch.testing.assert_close(guided_filter(step, image, 3, 1e-6), step, atol=1e-3, rtol=0)
    across = step.mT.contiguous()  # an edge where the image has none
    steepest = guided_filter(across, image, 3, 1e-6).diff(dim=2).abs().max()
    assert steepest < 0.3
    flat = guided_filter(step, torch.zeros_like(image), 3, 1e-3)  # the mean over windows, and over them again
    mean = lambda v: F.avg_pool2d(v, 7, 1, 3, count_include_pad=False)  # noqa: E731
    torch.testing.assert_close(flat, mean(mean(step)))


def test_the_mean_map_is_mixed_in_by_its_weight(images):
    plain, out = adapted("pyramid", images), adapted("pyramid", images, MEAN, blend=0.3)
    side = out.logits.shape[-1]
    expected = 0.7 * plain.before.softmax(1) + 0.3 * enlarged(MEAN[None], side)
    torch.testing.assert_close(out.logits.exp(), expected, rtol=1e-4, atol=2e-6)
    whole = adapted("densedepth", images, torch.full((1, 4, 4), 5.0), blend=1.0)
    torch.testing.assert_close(whole.logits, torch.full_like(whole.logits, 5.0))


def test_objects_grow_over_floor_and_wall_and_never_shrink(images):
    classes = len(maps.MAP_CLASSES)
    level = adapted("pyramid", images, classes=classes).before.mean((0, 2, 3))
    alike = dict(bias=tuple((-level).tolist()))  # so that a network of random weights says every class somewhere
    plain = enlarged(adapted("pyramid", images, classes=classes, **alike).logits, 32).argmax(1)
    out = adapted("pyramid", images, classes=classes, dilate=2, **alike).logits.argmax(1)
    assert torch.equal(out, maps.dilated(plain.byte(), 2).long())
    first = len(maps.STUFF)
    assert torch.equal(out[plain >= first], plain[plain >= first])
    assert ((plain < first) & (out >= first)).any()


def test_the_mean_map_is_that_of_the_training_scenes():
    shares = maps.mean_map("classes", 6, 16)
    assert shares.shape == (len(maps.MAP_CLASSES), 16, 16)
    torch.testing.assert_close(shares.sum(0), torch.ones(16, 16))
    assert shares[0, -1].mean() > 0.5  # floor below
    assert shares[1, 0].mean() > 0.5  # wall above
    depth = maps.mean_map("depth", 6, 16)
    assert depth.shape == (1, 16, 16)
    assert depth[0, 0].mean() > depth[0, -1].mean()


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("densedepth", dict(bias=(1.0,)), "depth has no classes"),
        ("densedepth", dict(dilate=1), "depth has no classes"),
        ("pyramid", dict(bias=(1.0, 2.0)), "bias has 2 numbers: choose 5"),
        ("pyramid", dict(dilate=1), "choose 0 for 5 classes"),
        ("pyramid", dict(blend=0.5), "the mean map has 12 channels"),
    ],
)
def test_misfits_are_refused(kind, change, message, monkeypatch):
    monkeypatch.setattr(map_filters, "mean_map", lambda target: torch.zeros(12, 2, 2))
    with pytest.raises(ValueError, match=message):
        configure(Models(task(kind)), replace(Settings(), **change))


def test_a_classifier_is_refused():
    with pytest.raises(ValueError, match="answer with maps"):
        configure(Models(make_classifier(K, 32)))
