"""Grad-CAM against CAM, its range, its guard, and the two measures of agreement."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, make_classifier, make_family
from torch import nn

from gentta_utils.course.gradcam import correlation, grad_cam, layer_at, layer_of, overlap, panels
from gentta_utils.models import zoo
from gentta_utils.models.classifier import Classifier

CLASSES = torch.tensor([0, 1, 2, 3, 0, 1])


class Pooled(nn.Module):
    """Convolution, global average pooling, linear head: where Grad-CAM is CAM."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def pooled() -> Classifier:
    return Classifier(Pooled(), (0.5,) * 3, (0.5,) * 3, 32, 4)


def test_with_average_pooling_and_a_linear_head_it_is_cam(images32):
    c = pooled()
    relu = nn.ReLU()
    c.network.forward = lambda x: c.network.fc(relu(c.network.conv(x)).mean((2, 3)))
    maps = grad_cam(c, images32, CLASSES, (relu, "BCHW"))
    features = torch.relu(c.network.conv(c.normalise(images32)))
    cam = torch.relu((c.network.fc.weight[CLASSES][:, :, None, None] * features).sum(1)).detach()
    assert (cam.amax((1, 2)) > 0).any()
    torch.testing.assert_close(maps, cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-12), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_all_families_lie_in_the_unit_interval_and_leave_nothing_behind(images32, family):
    classifier = make_family(family).classifier.requires_grad_(False)
    before = classifier(images32)
    modules = list(classifier.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules]
    maps = grad_cam(classifier, images32, CLASSES)
    assert maps.shape == (6, 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert ((maps.amax((1, 2)) == 0) | (maps.amax((1, 2)) > 0.9)).all()
    assert (maps.amax((1, 2)) > 0).any()
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules] == hooks
    assert list(classifier.modules()) == modules
    assert torch.equal(classifier(images32), before)
    assert all(p.grad is None for p in classifier.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_image_has_its_own_map(images32, family):
    classifier = make_family(family).classifier
    whole = grad_cam(classifier, images32, CLASSES)
    alone = torch.cat([grad_cam(classifier, images32[i : i + 1], CLASSES[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, alone, rtol=1e-3, atol=1e-4)


def test_the_layer_is_seen_in_its_own_layout(images32):
    """ViT and Swin written out: gradient of the score on the tokens, averaged over them."""
    for family, side in (("vit", 4), ("swin", 4)):
        classifier = make_family(family).classifier
        module, layout = layer_of(classifier)
        kept = []
        hook = module.register_forward_hook(lambda m, i, out: kept.append(out))
        z = classifier(images32)
        hook.remove()
        (grad,) = torch.autograd.grad(z.gather(1, CLASSES[:, None]).sum(), kept[0])
        tokens, grad = (v[:, -(side**2) :] if layout == "BNC" else v.flatten(1, 2) for v in (kept[0], grad))
        maps = torch.relu((grad.mean(1, keepdim=True) * tokens).sum(-1)).unflatten(1, (side, side)).detach()
        maps = F.interpolate(maps[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
        expected = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
        torch.testing.assert_close(grad_cam(classifier, images32, CLASSES), expected, rtol=1e-3, atol=1e-4)


def test_a_score_that_does_not_depend_on_the_features_has_a_zero_map(images32):
    c = pooled()
    nn.init.zeros_(c.network.fc.weight)
    maps = grad_cam(c, images32, CLASSES, (c.network.conv, "BCHW"))
    assert torch.equal(maps, torch.zeros(6, 32, 32))


def test_a_restricted_classifier_counts_its_own_classes(images32):
    classifier = make_family("resnet").classifier
    part = classifier.restrict((2, 0))
    one = grad_cam(part, images32, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(one, grad_cam(classifier, images32, torch.full((6,), 2)))


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="no layer is known for tiny: pass layer="):
        layer_of(make_classifier())


def test_agreement():
    a = torch.rand(3, 10, 10)
    assert correlation(a, a).tolist() == pytest.approx([1, 1, 1])
    assert correlation(a, 1 - a).tolist() == pytest.approx([-1, -1, -1])
    assert correlation(a, 0.3 * a + 0.1).tolist() == pytest.approx([1, 1, 1])
    assert correlation(a, torch.ones(3, 10, 10)).tolist() == [0, 0, 0]
    assert overlap(a, a).tolist() == [1, 1, 1]
    assert overlap(a, -a).tolist() == [0, 0, 0]
    ramp = torch.arange(100.0).view(1, 10, 10)
    assert overlap(ramp, ramp.roll(1, 1)).item() == pytest.approx(1 / 3)  # 10 of the best 20 pixels are shared


def test_panels_have_one_class_and_are_held_against_the_first(images32):
    source, tuned = (make_family(f).classifier for f in ("resnet", "convnext"))
    found = panels(source, tuned, images32, images32.flip(3), 1 - images32)
    assert [len(p.maps) for p in found] == [6] * 4
    asked = source(images32).argmax(1)
    for p, c, x in zip(found, (source, source, source, tuned), (images32, images32.flip(3), *[1 - images32] * 2)):
        assert torch.equal(p.predicted, c(x).argmax(1))
        torch.testing.assert_close(p.maps, grad_cam(c, x, asked))
        torch.testing.assert_close(p.correlation, correlation(found[0].maps, p.maps))
        torch.testing.assert_close(p.overlap, overlap(found[0].maps, p.maps))
    assert found[0].overlap.tolist() == [1] * 6


@pytest.mark.parametrize("name", ["resnet", "swin", "convnext", "vit"])
def test_an_earlier_stage_has_finer_maps(name):
    """Those of the shipped networks at 64 pixels, of which the last stage has 2 x 2 (Swin 4 x 4)."""
    classifier, images = zoo.load(f"classifier/{name}"), torch.rand(2, 3, 64, 64)
    module, layout = layer_at(classifier, 8, 64)
    assert not module._forward_hooks
    seen = []
    hook = module.register_forward_hook(lambda m, x, y: seen.append(y.shape))
    maps = grad_cam(classifier, images, CLASSES[:2], (module, layout))
    hook.remove()
    assert maps.shape == (2, 64, 64)
    assert seen[0][1:] == (65, 96) if layout == "BNC" else 8 in seen[0][1:]
    assert layer_at(classifier.restrict((2, 0)), 8, 64)[0] is module
    found = panels(classifier, classifier, images, images.flip(3), 1 - images, 8)
    read = classifier(images).argmax(1)
    torch.testing.assert_close(found[0].maps, grad_cam(classifier, images, read, (module, layout)))
    if layout != "BNC":
        with pytest.raises(ValueError, match="no stage is 7 pixels wide: choose one of"):
            layer_at(classifier, 7, 64)
