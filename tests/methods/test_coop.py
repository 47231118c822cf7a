"""CoOp and CoCoOp: a few labels teach a prompt, which TPT may start from."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused, same, weights

from gentta_utils.methods import METHODS, coop, tpt
from gentta_utils.methods.base import Models
from gentta_utils.methods.coop import Settings, configure, learn, make_meta, rate_at

IDS = torch.arange(5) + 40
LABELS = torch.tensor([3, 1, 4, 1, 5])
FEW = Settings(epochs=12, batch=2, lr=5e-3)
KINDS = [FEW, replace(FEW, kind="cocoop"), replace(FEW, start="random")]


def test_untrained_it_is_zero_shot(clip_models, images64):
    out = configure(clip_models).adapt(images64, IDS)
    torch.testing.assert_close(out.logits, out.before, rtol=1e-4, atol=1e-3)
    assert out.nfe == {"classifier fwd": 5, "text fwd": 10}


def test_the_network_of_cocoop_has_a_sixteenth_of_the_features():
    for features, hidden in ((96, 6), (8, 1)):
        meta = make_meta(features, 64, 0)
        assert meta[0].out_features == hidden
        assert meta(torch.zeros(2, features)).shape == (2, 64)


def test_a_last_layer_of_zeros_is_coop(clip_models, images64):
    meta = make_meta(96, 64, 0)
    for p in meta[2].parameters():
        torch.nn.init.zeros_(p)
    with_meta = replace(clip_models, prompt=clip_models.prompt.learned(clip_models.prompt.init, meta))
    one, two = (configure(m).adapt(images64, IDS).logits for m in (clip_models, with_meta))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("s", KINDS, ids=["coop", "cocoop", "random"])
def test_it_learns_its_few_images_and_changes_nothing_else(clip_models, images64, s):
    before = weights(clip_models.prompt.clip), clip_models.prompt.init.clone()
    learnt = learn(clip_models, images64, LABELS, s)
    assert same(before[0], weights(clip_models.prompt.clip))
    assert torch.equal(before[1], clip_models.prompt.init)
    logits = configure(learnt, s).adapt(images64, IDS).logits
    loss = torch.nn.functional.cross_entropy(logits, LABELS)
    start = torch.nn.functional.cross_entropy(clip_models.classifier(images64), LABELS)
    assert loss < start
    again = learn(clip_models, images64, LABELS, s)
    assert torch.equal(again.prompt.init, learnt.prompt.init)
    other = learn(clip_models, images64, LABELS, replace(s, seed=1))
    assert not torch.equal(other.prompt.init, learnt.prompt.init)
    assert not any(
        p.requires_grad for p in (learnt.prompt.init, *(learnt.prompt.meta or torch.nn.Identity()).parameters())
    )


def test_the_context_of_cocoop_depends_on_the_image_and_coops_does_not(clip_models, images64):
    x = torch.nn.functional.normalize(torch.randn(2, 96), dim=1)
    for s, differs in ((FEW, False), (replace(FEW, kind="cocoop"), True)):
        context = learn(clip_models, images64, LABELS, s).prompt.start(x)
        assert (not torch.equal(context[0], context[1])) == differs


@pytest.mark.parametrize("s", KINDS[:2], ids=["coop", "cocoop"])
def test_prompt_tuning_starts_from_it(clip_models, images64, s):
    learnt = learn(clip_models, images64, LABELS, s)
    how = tpt.Settings(views=4, lr=0.0, images_at_once=2)
    out = tpt.configure(learnt, how).adapt(images64, IDS)
    torch.testing.assert_close(out.logits, configure(learnt).adapt(images64, IDS).logits, rtol=1e-3, atol=1e-2)
    tuned = tpt.configure(learnt, replace(how, lr=0.5)).adapt(images64, IDS)
    assert not torch.allclose(tuned.logits, out.logits, atol=1e-2)


def test_the_rate_warms_up_and_falls():
    s = Settings(epochs=50)
    rates = [rate_at(s, step, 250) for step in range(250)]
    assert rates[:5] == [1e-5] * 5
    assert rates[5] == pytest.approx(2e-3, rel=1e-2)
    assert all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False))
    assert rates[-1] < 1e-5
    assert rate_at(Settings(epochs=1), 0, 4) == 2e-3


def test_what_does_not_fit_is_refused_in_one_sentence(clip_models, images64):
    for labels in (LABELS + 6, LABELS - 2, LABELS[:0]):
        with pytest.raises(ValueError, match="labels must be 0 to 9"):
            learn(clip_models, images64[: len(labels)], labels, FEW)
    with pytest.raises(ValueError, match="give `Models` one"):
        configure(Models(clip_models.classifier))


@pytest.mark.parametrize("change", [{"kind": "kgcoop"}, {"epochs": 0}, {"lr": 0.0}, {"start": "zeros"}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(Settings(), change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["coop"] is coop
    assert Settings(**coop.PUBLISHED) == Settings()
    assert Settings(**coop.PUBLISHED_COCOOP).batch == 1
