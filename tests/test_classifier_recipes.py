"""The small backbones: sizes, copies side by side, and the two recipes that see other views of their images."""

import gentta_utils  # noqa: F401, I001
import pytest
import torch
from torch.func import functional_call, vmap

from gentta_utils import scenes
from gentta_utils.recipes import classifiers

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
    assert sorted(r.labels for r in recipes.values() if r.split == "train" and not r.seen_as) == [300, 1500, 3000]
    assert {r.split for n, r in recipes.items() if n != "classifier/filter"} == {"train"}


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


def test_unknown_views():
    with pytest.raises(ValueError, match="choose augmix or corruptions"):
        classifiers.other_views(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "mixup")
