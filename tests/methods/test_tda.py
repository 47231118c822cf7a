"""TDA: two caches of the stream's own features."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused

from gentta_utils.diffusion.entropy import entropy
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, tda
from gentta_utils.methods.tda import Cache, Settings, configure
from gentta_utils.models.clip import image_features
from gentta_utils.streams.stream import Stream

IDS = torch.arange(5) + 40


def test_the_cache_keeps_the_most_confident_of_each_class():
    cache, x = Cache(2), torch.eye(4)
    for h, k in ((0.5, 0), (0.3, 0), (0.9, 1), (0.4, 0), (0.6, 0)):
        cache.offer(k, h, x[0], x[k])
    assert {k: [row[0] for row in rows] for k, rows in cache.rows.items()} == {0: [0.3, 0.4], 1: [0.9]}
    none = Cache(0)
    none.offer(0, 0.1, x[0], x[0])
    assert (none.logits(x[0], 2.0, 5.0) == 0).all()


def test_logits_of_a_cache_by_hand():
    cache, x = Cache(3), F.normalize(torch.randn(4, 6), dim=1)
    for i in range(3):
        cache.offer(i, 0.1 * i, x[i], F.one_hot(torch.tensor(i), 5).float())
    expected = torch.zeros(5)
    for i in range(3):
        expected[i] = 2 * math.exp(-5 * (1 - float(x[3] @ x[i])))
    torch.testing.assert_close(cache.logits(x[3], 2.0, 5.0), expected)


@pytest.mark.parametrize(
    "s", [Settings(alpha=0.0, negative_alpha=0.0), Settings(shots=0, negative_shots=0)], ids=["alpha 0", "no room"]
)
def test_without_its_caches_it_is_zero_shot(clip_models, images64, s):
    out = configure(clip_models, s).adapt(images64, IDS)
    torch.testing.assert_close(out.logits, out.before, rtol=1e-4, atol=1e-4)
    assert out.nfe == {"classifier fwd": 5}


def test_it_equals_a_plain_loop(clip_models, images64):
    """With wide limits, so that the negative cache is used too."""
    s = Settings(unsure_from=0.0, unsure_to=1.0, possible=0.05, negative_alpha=0.5, shots=1)
    out = configure(clip_models, s).adapt(images64, IDS)
    x = image_features(clip_models.classifier, images64).detach()
    z = clip_models.classifier(images64).detach()
    positive, negative = {}, {}
    for b in range(5):
        p, k, h = z[b].softmax(0), int(z[b].argmax()), float(entropy(z[b]))
        if k not in positive or h < positive[k][0]:
            positive[k] = (h, x[b])
        assert 0 < h / math.log2(10) < 1
        negative[k] = sorted([*negative.get(k, []), (h, x[b], p > 0.05)], key=lambda r: r[0])[:2]
        expected = z[b].clone()
        for c, (_, key) in positive.items():
            expected[c] += 2 * math.exp(-5 * (1 - float(key @ x[b])))
        for rows in negative.values():
            for _, key, value in rows:
                expected -= 0.5 * math.exp(-(1 - float(key @ x[b]))) * value
        torch.testing.assert_close(out.logits[b], expected, rtol=1e-4, atol=1e-3)


def test_order_matters_batches_do_not_and_reset_is_the_source(clip_models, images64):
    method, order = configure(clip_models), torch.tensor([3, 0, 4, 1, 2])
    whole = method.adapt(images64, IDS).logits
    again = method.adapt(images64, IDS).logits  # with what is in the caches now
    assert not torch.equal(whole, again)
    method.reset()
    parts = [method.adapt(images64[r], IDS[r]).logits for r in torch.arange(5).split(2)]
    assert torch.equal(whole, torch.cat(parts))
    method.reset()
    assert not torch.equal(whole[order], method.adapt(images64[order], IDS[order]).logits)


def test_the_protocol_has_to_fit(clip_models, images64):
    stream = Stream(images64, torch.zeros(5, dtype=torch.long), IDS, {"shift": "clean"})
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(clip_models), stream)
    assert len(evaluate.run(configure(clip_models), stream, reset="per_shift", batch=2).after) == 5
    with pytest.raises(ValueError, match="two classes"):
        configure(clip_models.restrict((3,)))


def test_views_give_a_mean_feature(clip_models, images64):
    s = Settings(alpha=0.0, negative_alpha=0.0, views=4, rho_h=0.5)
    method = configure(clip_models, s)
    _, z = method.counting(*method.encode(images64, IDS))
    torch.testing.assert_close(method.adapt(images64, IDS).logits, z.mean(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("change", [{"shots": -1}, {"alpha": -1.0}, {"unsure_to": 1.5}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(Settings(), change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["tda"] is tda
    assert replace(Settings(), **tda.PUBLISHED_IMAGENET) == Settings()
