"""BN-adapt: statistics of the test batch in place of the source's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyNet, assert_refused, make_family, same, weights
from torch import nn

from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, bn_adapt, source
from gentta_utils.methods.base import Models
from gentta_utils.methods.bn_adapt import Settings, configure
from gentta_utils.models.batchnorm import MixedBatchNorm, with_test_statistics
from gentta_utils.models.classifier import Classifier
from gentta_utils.streams.stream import Stream

IDS = torch.arange(6) + 40


def batch_norm(channels: int = 4) -> nn.BatchNorm2d:
    """With statistics, scale and shift of its own."""
    norm = nn.BatchNorm2d(channels).eval()
    for tensor, (low, high) in zip(norm.state_dict().values(), [(0.5, 2), (-1, 1), (-1, 1), (0.5, 2)], strict=False):
        tensor.uniform_(low, high)
    return norm


# --- the layer -------------------------------------------------------------------------------------------------------


def test_alpha_one_has_mean_0_and_variance_1_before_scale_and_shift():
    x = torch.randn(8, 4, 5, 5) * 3 + 7
    norm = batch_norm()
    for differentiable in (False, True):
        y = MixedBatchNorm(norm, 1.0, differentiable=differentiable)(x)
        plain = (y - norm.bias.view(-1, 1, 1)) / norm.weight.view(-1, 1, 1)
        torch.testing.assert_close(plain.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(plain.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(y, copy.deepcopy(norm).train()(x), rtol=1e-4, atol=1e-5)  # "BN-1" is train mode


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_statistics_are_mixed_by_the_formula(alpha, unbiased):
    x, norm = torch.randn(8, 4, 5, 5) * 3 + 7, batch_norm()
    mean = (1 - alpha) * norm.running_mean + alpha * x.mean((0, 2, 3))
    var = (1 - alpha) * norm.running_var + alpha * x.var((0, 2, 3), correction=int(unbiased))
    expected = F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)
    torch.testing.assert_close(MixedBatchNorm(norm, alpha, unbiased=unbiased)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 8])
def test_pseudo_counts_weigh_the_source_as_so_many_images(n):
    x, norm = torch.randn(n, 4, 5, 5), batch_norm()
    by_count, by_weight = MixedBatchNorm(norm, None, prior=16.0), MixedBatchNorm(norm, n / (16 + n))
    assert torch.equal(by_count(x), by_weight(x))
    assert not torch.allclose(by_count(x), MixedBatchNorm(norm, (n + 1) / (17 + n))(x), atol=1e-5)


@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_pass_through_the_statistics_only_where_asked(differentiable):
    """Constants: as a batch norm in eval mode with the same statistics. Otherwise: as one in train mode."""
    x = torch.randn(8, 4, 5, 5, requires_grad=True)
    norm = batch_norm().requires_grad_(False)
    y = MixedBatchNorm(norm, 1.0, differentiable=differentiable)(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    frozen = copy.deepcopy(norm).train(differentiable)
    frozen.running_mean, frozen.running_var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), correction=0)
    (expected,) = torch.autograd.grad(frozen(x).square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"unbiased": True}, {"differentiable": True}])
def test_one_value_a_channel_keeps_the_sources_statistics(options):
    """One image with a 1 x 1 feature map has no variance: by the formula a = 1 would give zeros, or NaN."""
    x, norm = torch.randn(1, 4, 1, 1), batch_norm()
    assert torch.equal(MixedBatchNorm(norm, 1.0, **options)(x), norm(x))
    two = torch.randn(2, 4, 1, 1)
    assert not torch.allclose(MixedBatchNorm(norm, 1.0, **options)(two), norm(two))


def test_what_timm_has_a_batch_norm_do_afterwards_is_kept():
    from timm.layers import BatchNormAct2d

    norm, x = BatchNormAct2d(4).eval(), torch.randn(8, 4, 5, 5)
    norm.running_mean.fill_(0.5)
    assert torch.equal(MixedBatchNorm(norm, 0.0)(x), norm(x))
    assert MixedBatchNorm(norm, 1.0)(x).min() == 0  # the ReLU


def test_names_of_parameters_and_buffers_stay(tiny):
    adapted = with_test_statistics(tiny.classifier)
    assert list(adapted.state_dict()) == list(tiny.classifier.state_dict())
    assert isinstance(adapted.network.bn, MixedBatchNorm)


# --- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny", "resnet"])
def test_alpha_zero_is_the_source_bit_by_bit(tiny, images, images32, family):
    models, x = (tiny, images) if family == "tiny" else (make_family(family), images32)
    ids = IDS[: len(x)]
    expected = source.configure(models).adapt(x, ids).logits
    assert torch.equal(configure(models, Settings(alpha=0.0)).adapt(x, ids).logits, expected)
    assert not torch.allclose(configure(models).adapt(x, ids).logits, expected, atol=1e-3)


def test_the_default_is_the_whole_network_with_train_mode_batch_norm(images32):
    models = make_family("resnet")
    train = copy.deepcopy(models.classifier)
    for module in train.network.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        expected = train(images32)
    torch.testing.assert_close(configure(models).adapt(images32, IDS).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_scaling_a_batch_changes_nothing_behind_a_convolution_without_bias(factor):
    """BN-1 takes any positive factor out again, up to the eps of batch norm; the source does not."""
    network = TinyNet(4)
    network.bn.eps, network.norm = 1e-12, nn.Identity()  # a layer norm would take out the factor of the source too
    classifier = Classifier(network, (0.0,) * 3, (1.0,) * 3, 16, 4)  # a shift in the normalisation would spoil it
    images = torch.rand(8, 3, 16, 16) / 4
    for method, equal in ((configure(Models(classifier)), True), (source.configure(Models(classifier)), False)):
        z, scaled = (method.adapt(x, torch.arange(8)).logits for x in (images, images * factor))
        assert torch.allclose(z, scaled, rtol=1e-3, atol=1e-3) == equal


def test_single_images_with_1x1_feature_maps_stay_finite_and_different(images32):
    """The last block of this ResNet sees 1 x 1 maps."""
    for unbiased in (False, True):
        z = (
            configure(make_family("resnet"), Settings(statistics="image", unbiased=unbiased))
            .adapt(images32, IDS)
            .logits
        )
        assert torch.isfinite(z).all()
        assert (z - z[:1])[1:].abs().amax(1).min() > 1e-3


def test_image_statistics_do_not_depend_on_order_or_company_and_batch_statistics_do(images32):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for statistics, equal in (("image", True), ("batch", False)):
        method = configure(make_family("resnet"), Settings(statistics=statistics))
        whole = method.adapt(images32, IDS).logits
        parts = torch.cat([method.adapt(images32[r], IDS[r]).logits for r in order.split(2)])
        assert torch.equal(whole[order], parts) == equal
        assert method.online == (not equal)


def test_nothing_is_stored_and_the_source_survives(images32):
    models = make_family("resnet")
    kept, method = weights(models.classifier), configure(models)
    inside = weights(method.adapted)
    first = method.adapt(images32, IDS)
    method.adapt(images32.flip(0), IDS)
    assert torch.equal(method.adapt(images32, IDS).logits, first.logits)
    assert same(kept, weights(models.classifier))
    assert same(inside, weights(method.adapted))
    assert not any(isinstance(m, MixedBatchNorm) for m in models.classifier.modules())
    assert torch.equal(first.before, source.configure(models).adapt(images32, IDS).logits)


def test_it_costs_one_forward_pass(tiny, images):
    for statistics in ("batch", "image"):
        out = configure(tiny, Settings(statistics=statistics)).adapt(images, IDS[:5])
        assert out.nfe == {"classifier fwd": 5}
        assert out.loss.shape == (0, 5)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_networks_without_batch_norm_are_refused(family):
    with pytest.raises(ValueError, match=f"{family} has no batch norm") as error:
        configure(make_family(family))
    assert "\n" not in str(error.value)


def test_the_protocol_has_to_fit(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(tiny), stream, reset="per_image")
    records = evaluate.run(configure(tiny), stream, reset="per_shift", batch=4)
    assert records.about["protocol"]["predict"] == "after"
    evaluate.run(configure(tiny, Settings(statistics="image")), stream, reset="per_image")


@pytest.mark.parametrize("change", [{"alpha": 1.5}, {"alpha": -0.1}, {"prior": 0.0}, {"statistics": "class"}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(Settings(), change)


def test_presets_are_settings_and_the_method_has_its_name(images32):
    assert METHODS["bn_adapt"] is bn_adapt
    assert Settings(**bn_adapt.PUBLISHED) == Settings()
    memo = Settings(**bn_adapt.PUBLISHED_MEMO)
    models = make_family("resnet")
    seventeenth = Settings(alpha=1 / 17, statistics="image", unbiased=True)
    a, b = (configure(models, s).adapt(images32, IDS).logits for s in (memo, seventeenth))
    assert torch.equal(a, b)
