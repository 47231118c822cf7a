"""The mean prediction over MEMO's views."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused, same, weights

from gentta_utils.diffusion.entropy import entropy
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, memo, source, tta_averaging
from gentta_utils.methods.tta_averaging import Settings, configure
from gentta_utils.streams.stream import Stream
from gentta_utils.world.views import augmix_views

S = Settings(views=4)
IDS = torch.arange(5) + 40


def test_it_is_the_mean_probability_of_the_views(tiny, images):
    kept = weights(tiny.classifier)
    out = configure(tiny, S).adapt(images, IDS)
    for b in range(5):
        p = tiny.classifier(augmix_views(images[b], 40 + b, 4)).softmax(1).mean(0)
        torch.testing.assert_close(out.logits[b].exp(), p.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(out.before, source.configure(tiny).adapt(images, IDS).logits)
    assert not torch.allclose(out.logits, out.before.log_softmax(1), atol=1e-4)
    assert same(kept, weights(tiny.classifier))
    assert out.nfe == {"classifier fwd": 20}
    assert out.loss.shape == (0, 5)


def test_the_views_are_those_of_memos_first_update(tiny, images):
    """So the entropy of its prediction is MEMO's loss."""
    out = configure(tiny, S).adapt(images, IDS)
    loss = memo.configure(tiny, memo.Settings(views=4, alpha=0.0)).adapt(images, IDS).loss
    torch.testing.assert_close(entropy(out.logits), loss[0], rtol=1e-4, atol=1e-5)
    other = configure(tiny, replace(S, seed=1)).adapt(images, IDS)
    assert not torch.allclose(entropy(other.logits), loss[0], rtol=1e-4, atol=1e-5)


def test_results_are_bit_equal_whatever_order_and_company(tiny, images):
    method, order = configure(tiny, S), torch.tensor([3, 0, 4, 1, 2])
    whole = method.adapt(images, IDS).logits
    assert torch.equal(whole[order], torch.cat([method.adapt(images[r], IDS[r]).logits for r in order.split(2)]))


def test_it_fits_every_protocol(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS, {"shift": "clean"})
    runs = [evaluate.run(configure(tiny, S), stream, reset=r, batch=2) for r in evaluate.RESETS]
    assert all((r.after == runs[0].after).all() for r in runs)


@pytest.mark.parametrize("change", [{"views": 0}, {"crop": "centre"}, {"severity": 20.0}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["tta_averaging"] is tta_averaging
    assert Settings(**tta_averaging.PUBLISHED_CIFAR) == Settings()
    assert Settings(**tta_averaging.PUBLISHED_IMAGENET).views == 64
