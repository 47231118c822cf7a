"""ZERO: the confident views vote."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused

from gentta_utils.diffusion.entropy import log_mean
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, zero
from gentta_utils.methods.many_views import most_confident
from gentta_utils.methods.zero import Settings, configure, votes_of
from gentta_utils.streams.stream import Stream

S, IDS = Settings(views=8), torch.arange(5) + 40


def views(*rows):
    """Logits (1, V, 3) of views that are for a class, each with its margin: (class, margin)."""
    z = torch.zeros(1, len(rows), 3)
    for v, (k, margin) in enumerate(rows):
        z[0, v, k] = margin
    return z


def test_one_view_is_zero_shot(clip_models, images64):
    out = configure(clip_models, replace(S, views=1)).adapt(images64, IDS)
    assert torch.equal(out.logits.argmax(1), out.before.argmax(1))
    assert out.nfe == {"classifier fwd": 5}


def test_views_that_agree_have_their_way():
    z = views((2, 1), (2, 5), (2, 3), (2, 0.5))
    votes = votes_of(z, torch.tensor([[0, 1, 2, 3]]))
    assert votes.tolist() == [[0, 0, 4.5]]


def test_the_majority_wins_however_sure_the_others_are():
    votes = votes_of(views((0, 9), (1, 3), (1, 2)), torch.tensor([[0, 1, 2]]))
    assert votes.argmax(1).tolist() == [1]


def test_a_tie_goes_to_the_class_of_the_next_confident_view():
    """Two for 0 and two for 1; the next by entropy is for 2, which is out of the race, the one after it for 1."""
    z = views((0, 9), (0, 8), (1, 7), (1, 6), (0, 1), (1, 3), (2, 5))
    chosen = most_confident(z, 4 / 7)
    assert sorted(chosen[0].tolist()) == [0, 1, 2, 3]
    assert votes_of(z, chosen).tolist() == [[2, 2.5, 0]]
    for order in (torch.arange(6, -1, -1), torch.tensor([3, 0, 6, 5, 2, 1, 4])):  # whatever the order of the views
        assert votes_of(z[:, order], most_confident(z[:, order], 4 / 7)).tolist() == [[2, 2.5, 0]]


def test_a_tie_among_all_views_goes_to_the_most_confident():
    z = views((0, 3), (1, 7))
    assert votes_of(z, torch.tensor([[0, 1]])).argmax(1).tolist() == [1]


def test_votes_do_not_depend_on_the_scale_of_the_logits():
    z = torch.randn(50, 9, 4)
    chosen = torch.arange(5).expand(50, -1)
    one, three = (votes_of(a * z, chosen).round() for a in (1.0, 3.0))  # half a vote for the winner aside
    counted = torch.stack([(z[:, :5].argmax(2) == k).sum(1) for k in range(4)], 1)
    assert torch.equal(one.floor().clamp_max(counted.float()), three.floor().clamp_max(counted.float()))
    clear = counted.topk(2).values.diff(dim=1)[:, 0] != 0
    assert clear.sum() > 20
    assert torch.equal(votes_of(z, chosen)[clear], votes_of(3 * z, chosen)[clear])


def test_at_temperature_1_it_is_the_mean_of_the_confident_views(clip_models, images64):
    method = configure(clip_models, replace(S, temperature=1.0))
    _, z = method.encode(images64, IDS)
    chosen = most_confident(z, 0.3)
    expected = log_mean(z.gather(1, chosen[..., None].expand(-1, -1, 10)))
    torch.testing.assert_close(method.adapt(images64, IDS).logits, expected, rtol=1e-4, atol=1e-4)
    cold = configure(clip_models, replace(S, temperature=1e-3)).adapt(images64, IDS).logits.exp()
    voted = configure(clip_models, S).adapt(images64, IDS).logits.exp()
    torch.testing.assert_close(2 * cold, voted.floor(), rtol=0, atol=1e-2)  # two views: shares against votes


def test_it_fits_every_protocol(clip_models, images64):
    stream = Stream(images64, torch.zeros(5, dtype=torch.long), IDS, {"shift": "clean"})
    runs = [evaluate.run(configure(clip_models, S), stream, reset=r, batch=2) for r in evaluate.RESETS]
    assert all((r.after == runs[0].after).all() for r in runs)


@pytest.mark.parametrize("change", [{"temperature": -1.0}, {"rho_h": 2.0}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["zero"] is zero
    assert Settings(**zero.PUBLISHED) == Settings()
    assert Settings(**zero.PUBLISHED_FIRST).rho_h == 0.1
