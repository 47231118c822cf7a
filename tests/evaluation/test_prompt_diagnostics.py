"""What somebody who knows the labels can tell of a tuned prompt."""

import torch

from gentta_utils.evaluation.prompts import diagnose, precision
from gentta_utils.methods import tpt, zero
from gentta_utils.methods.tpt import Settings

IDS = torch.arange(5) + 40
S = Settings(views=8, rho_h=0.4, updates=8, lr=0.5, images_at_once=2)


def test_precision_counts_views_and_the_image(clip_models, images64):
    method = zero.configure(clip_models, zero.Settings(views=8, rho_h=0.4))
    _, z = method.encode(images64, IDS)
    labels = z[:, 0].argmax(1)
    share, own = precision(method, images64, IDS, labels)
    assert own.tolist() == [1] * 5
    _, chosen = method.counting(*method.encode(images64, IDS))
    expected = (chosen.argmax(2) == labels[:, None]).float().mean(1)
    assert torch.equal(share, expected)
    wrong, none = precision(method, images64, IDS, torch.full((5,), 99))
    assert (wrong == 0).all()
    assert (none == 0).all()


def test_the_ceiling_is_right_where_tuning_can_be(clip_models, images64):
    """Labels that the images do not show: random images can be talked into most of them, given steps enough."""
    labels = torch.tensor([3, 1, 4, 1, 5])
    method = tpt.configure(clip_models, S)
    found = diagnose(method, images64, IDS, labels)
    assert all(v.shape == (5,) for v in found.values())
    assert found["ceiling"].sum() >= found["tuned"].sum()
    assert found["ceiling"].sum() > found["image"].sum()
    out = method.adapt(images64, IDS)
    assert torch.equal(found["tuned"], (out.logits.argmax(1) == labels).float())
    assert torch.equal(found["image"], (out.before.argmax(1) == labels).float())
    share, _ = precision(method, images64, IDS, labels)
    assert torch.equal(found["precision"], share)
    assert torch.equal(found["sure"], (out.before.softmax(1).amax(1) > 0.99).float())
    best = out.before.topk(2)
    torch.testing.assert_close(found["margin"], best.values[:, 0] - best.values[:, 1], rtol=1e-3, atol=1e-3)
    after = out.logits.gather(1, best.indices)
    torch.testing.assert_close(
        found["moved"], (after[:, 0] - after[:, 1] - found["margin"]).abs(), rtol=1e-2, atol=1e-2
    )


def test_nothing_turns_without_a_step_and_more_with_a_larger_one(clip_models, images64):
    labels = torch.zeros(5, dtype=torch.long)
    still, small, large = (
        diagnose(tpt.configure(clip_models, Settings(views=4, lr=lr)), images64, IDS, labels) for lr in (0.0, 0.1, 1.0)
    )
    assert (still["degrees"] < 0.1).all()
    assert (still["moved"] < 1e-3).all()
    assert (small["degrees"] < large["degrees"]).all()
    assert (still["tuned"] == still["image"]).all()
