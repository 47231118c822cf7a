"""The small backbones: sizes, copies side by side, and the two recipes that see other views of their images."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, vmap

import gentta_utils  # noqa: F401
from gentta_utils.recipes import classifiers
from gentta_utils.world import scenes

FAMILIES = ["resnet", "vit", "swin", "swin-wide", "convnext", "convnext-wide"]


@pytest.mark.parametrize("family", FAMILIES)
def test_backbones_are_small_and_run_as_copies(family):
    """Each image through its own copy of the parameters gives what the network itself gives."""
    network = classifiers.RECIPES[f"classifier/{family}"].build().eval()
    assert 3e5 <= sum(p.numel() for p in network.parameters()) <= 1e6
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    copies = {n: p.detach().expand(3, *p.shape) for n, p in network.named_parameters()}
    with torch.no_grad():
        z = vmap(lambda values, x: functional_call(network, values, (x[None],))[0])(copies, x)
        torch.testing.assert_close(z, network(x), rtol=1e-4, atol=1e-4)


def test_the_resnets_differ_in_what_they_see_alone():
    recipes = {n: r for n, r in classifiers.RECIPES.items() if r.architecture == "resnet18"}
    assert len({repr(r.model_args) for r in recipes.values()}) == 1
    plain = [r for r in recipes.values() if r.split == "train" and not r.seen_as]
    assert sorted((r.labels, r.seed) for r in plain) == [(300, 1), (1500, 1), (1500, 2), (1500, 3), (3000, 1)]
    assert {n: r.split for n, r in recipes.items() if r.split != "train"} == {
        "classifier/filter": "filter",
        "classifier/resnet-distilled": "unlabelled",
    }
    taught, plain = (recipes[f"classifier/resnet{kind}"] for kind in ("-distilled", ""))
    assert replace(taught, split="train", labelled_by="") == plain


@pytest.mark.parametrize("seen_as", ["augmix", "corruptions"])
def test_other_views(seen_as):
    images = (scenes.make(4).image * 255).round().byte()
    views = classifiers.other_views(images, seen_as, n=3)
    assert views.shape == (3, *images.shape)
    assert views.dtype == torch.uint8
    assert torch.equal(views, classifiers.other_views(images, seen_as, n=3))
    differ = (views != images).flatten(2).any(-1)
    assert differ.float().mean() > 0.9
    assert not torch.equal(views[0], views[1])


def correlation(a, b):
    """Of the pixels of each image (..., 3, S, S) with those of the other, (...)."""
    a, b = ((v - v.mean((-3, -2, -1), keepdim=True)).flatten(-3) for v in (a.float(), b.float()))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.parametrize("seen_as, least", [("augmix", 0.6), ("corruptions", 0.3)])
def test_a_view_is_of_its_own_image(seen_as, least):
    """It stays nearer to its image than to the others: rows and views are not mixed up, and nothing is destroyed."""
    images = (scenes.make(12).image * 255).round().byte()
    views = classifiers.other_views(images, seen_as, n=4)  # (4, 12, 3, 64, 64)
    each = correlation(views[:, :, None], images[None, None])  # (4, 12, 12)
    own = each.diagonal(dim1=1, dim2=2)
    assert own.min() > least
    assert own.median() > 0.85
    assert (each.argmax(2) == torch.arange(12)).float().mean() > 0.9


@pytest.mark.parametrize("seen_as", ["", "augmix"])
def test_half_of_what_is_trained_on_stays_as_it_is(monkeypatch, seen_as):
    """Image i is the number i, its view v the number 100 + 40 v + i: each pixel says what the network was shown."""
    rows = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    views = torch.stack([100 + 40 * v + rows for v in range(3)])
    monkeypatch.setattr(classifiers, "training_set", lambda n, split: (rows, torch.arange(40) % 10))
    monkeypatch.setattr(classifiers, "other_views", lambda images, seen_as: views)
    recipe = replace(classifiers.RECIPES["classifier/resnet"], labels=40, seen_as=seen_as)
    recipe = replace(recipe, schedule=replace(recipe.schedule, batch=40))
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x):
            seen.append(((x[:, 0, 0, 0] + 1) * 127.5).round().long())
            return torch.zeros(len(x), 10)

    loss_of, g = classifiers.make_loss(recipe), torch.Generator().manual_seed(0)
    for step in range(50):
        loss_of(Network(), g, step)
        assert sorted(torch.where(seen[-1] < 100, seen[-1], (seen[-1] - 100) % 40).tolist()) == list(range(40))
    plain = torch.stack(seen) < 100
    if not seen_as:
        assert plain.all()
        return
    assert plain.float().mean().item() == pytest.approx(0.5, abs=0.05)
    shares = torch.bincount((torch.stack(seen)[~plain] - 100) // 40) / plain.numel()
    assert shares.tolist() == pytest.approx([1 / 6] * 3, abs=0.03)


def test_scenes_without_labels_are_learned_as_they_were_read(monkeypatch, tmp_path):
    """Each is read once, an interrupted reading goes on, and the true labels (0 here) are not looked at."""
    images, asked = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8), []

    def read(network, seen, ids, *how):
        asked.extend(ids.tolist())
        if len(asked) == 4:
            raise KeyboardInterrupt
        assert torch.equal((255 * seen[:, 0, 0, 0]).round().long(), ids % 100)
        return 9 - ids % 100

    monkeypatch.setattr(classifiers, "read_staged", read)
    monkeypatch.setattr(classifiers, "CACHE", tmp_path)
    monkeypatch.setattr(classifiers, "training_set", lambda n, split: (images, torch.zeros(6).long()))
    monkeypatch.setattr(classifiers, "augment", lambda x, generator: x)
    with pytest.raises(KeyboardInterrupt):
        classifiers.read_labels(images, "denoiser/dit", "unlabelled", chunk=2)
    labels = classifiers.read_labels(images, "denoiser/dit", "unlabelled", chunk=2)
    assert labels.tolist() == [9, 8, 7, 6, 5, 4]
    assert [i % 100 for i in asked] == [0, 1, 2, 3, 2, 3, 4, 5]
    monkeypatch.setattr(classifiers, "read_labels", lambda images, denoiser, split: labels)
    recipe = replace(classifiers.RECIPES["classifier/resnet-distilled"], labels=6)
    recipe = replace(recipe, schedule=replace(recipe.schedule, batch=6))
    knows = lambda x: 50 * torch.eye(10)[9 - ((x[:, 0, 0, 0] + 1) * 127.5).round().long()]  # noqa: E731
    network = torch.nn.Module()
    network.forward = knows
    assert classifiers.make_loss(recipe)(network, torch.Generator(), 0).item() < 1e-6


def test_unknown_views():
    with pytest.raises(ValueError, match="choose augmix or corruptions"):
        classifiers.other_views(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "mixup")
