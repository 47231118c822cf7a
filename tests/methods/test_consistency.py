"""Consistency over flips and scales: the loss, turned views, the plain loop, averages without an update."""

from dataclasses import replace

import pytest
import torch
from conftest import make_classifier, same, weights
from tiny_maps import TASKS, K, task

from gentta_utils.diffusion.entropy import entropy_of
from gentta_utils.methods.base import Models
from gentta_utils.methods.consistency import Settings, configure, mean_answer, view_disagreement, views_of
from gentta_utils.models.copies import Copies
from gentta_utils.models.dense import enlarged

S = Settings(lr=0.05, updates=2, images_at_once=2)
IDS = torch.arange(3) + 40


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Left(torch.nn.Module):
    """Answers with how much brighter than the rest a place is, which every view sees alike, or with where it is."""

    shape = (1, 8, 8)

    def __init__(self, place: bool):
        super().__init__()
        self.place = place

    def forward(self, x):
        y = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4)
        return torch.linspace(1, 2, y.shape[-1]).expand_as(y) if self.place else 1 + y


def test_answers_are_turned_back_onto_the_image(images):
    views = views_of(Left(False), images, (1.0,))
    assert views.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(views[0], views[1])
    assert view_disagreement(views, "depth").max() < 1e-10
    placed = views_of(Left(True), images, (1.0, 1.5))
    assert placed.shape == (4, 3, 1, 8, 8)
    torch.testing.assert_close(placed[1], placed[0].flip(-1))
    assert view_disagreement(placed, "depth").min() > 1e-3


def test_the_loss_is_the_entropy_of_the_mean_or_the_variance_of_the_logarithm():
    views = torch.randn(4, 3, K, 6, 6)
    p = views.softmax(2).mean(0)
    torch.testing.assert_close(view_disagreement(views, "classes"), -(p * p.log()).sum(1).flatten(1).mean(1))
    assert (view_disagreement(views, "classes") > torch.stack([entropy_of(v) for v in views]).mean(0)).all()
    depth = torch.rand(4, 3, 1, 6, 6) + 1
    expected = (depth.log() - depth.log().mean(0)).square().mean(0).flatten(1).mean(1)
    torch.testing.assert_close(view_disagreement(depth, "depth"), expected)
    torch.testing.assert_close(view_disagreement(3 * depth, "depth"), expected)  # a scale of its own is no disagreement


@pytest.mark.parametrize("kind", TASKS)
def test_it_equals_the_plain_loop_whatever_the_company(kind, images):
    network, s = task(kind), replace(S, momentum=0.0)
    kept = weights(network)
    out = configure(Models(network), s).adapt(images, IDS)
    assert out.loss.shape == (2, 3)
    for i in range(3):
        copies = Copies(network, "all", None)
        for step in range(2):
            loss = view_disagreement(views_of(copies, images[i : i + 1], s.sizes), TASKS[kind]).sum()
            torch.testing.assert_close(loss.detach(), out.loss[step, i], rtol=1e-3, atol=1e-6)
            grads = torch.autograd.grad(loss, copies.tensors(), allow_unused=True)
            with torch.no_grad():
                for v, g in zip(copies.tensors(), grads, strict=True):
                    v -= s.lr * (0 if g is None else g)
        torch.testing.assert_close(copies(images[i : i + 1])[0].detach(), out.logits[i], rtol=1e-3, atol=1e-4)
    assert (out.logits - out.before).abs().max() > 0
    assert same(kept, weights(network))


def test_without_an_update_it_is_the_source_or_the_mean_over_views(images):
    network = task("pyramid")
    still = configure(Models(network), Settings(updates=0)).adapt(images, IDS)
    torch.testing.assert_close(still.logits, still.before, rtol=1e-4, atol=1e-5)
    assert still.loss.shape == (0, 3)
    sizes = (0.75, 1.0)
    mean = configure(Models(network), Settings(updates=0, predict="views", sizes=sizes)).adapt(images, IDS)
    answers = []
    for x in (enlarged(images, 24), images):
        answers += [network(x), network(x.flip(-1)).flip(-1)]
    p = torch.stack([enlarged(a, network.shape[-1]).softmax(1) for a in answers]).mean(0).detach()
    torch.testing.assert_close(mean.logits.softmax(1), p, rtol=1e-3, atol=1e-5)
    depth = task("densedepth")
    out = configure(Models(depth), Settings(updates=0, predict="views")).adapt(images, IDS)
    both = torch.stack([depth(images), depth(images.flip(-1)).flip(-1)]).detach()
    torch.testing.assert_close(out.logits, both.prod(0).sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean_answer(both, "depth"), both.prod(0).sqrt(), rtol=1e-4, atol=1e-4)


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="choose memo"):
        configure(Models(make_classifier(K, 32)))
    with pytest.raises(ValueError, match="the same for every view"):
        configure(Models(task("pyramid")), Settings(param_set="logits"))
    with pytest.raises(ValueError, match="sizes="):
        Settings(sizes=(0.0,))
