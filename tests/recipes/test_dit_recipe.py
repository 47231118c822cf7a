"""The recipe of the diffusion model: the schedule of its variant, and the mixed conditions that it sees."""

import gentta_utils  # noqa: F401, I001
import pytest
import torch

from gentta_utils import recipes
from gentta_utils.recipes import data, dit
from gentta_utils.world.labels import CLASSES, VOCABULARY
from gentta_utils.world.watermark import watermark


def test_mixtures_are_sparse_and_the_class_is_drawn_from_them():
    p, drawn = dit.mixtures(6000, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(p.sum(1), torch.ones(6000))
    assert torch.bincount((p > 0).sum(1)).nonzero()[:, 0].tolist() == [2, 3, 4]
    chosen = p.gather(1, drawn[:, None])[:, 0]
    assert (chosen > 0).all()
    assert chosen.mean().item() == pytest.approx((p**2).sum(1).mean().item(), abs=0.01)  # E[p_drawn] = sum of p^2
    sure = p.max(1).values > 0.9
    assert (p.argmax(1) == drawn)[sure].float().mean() > 0.9


def test_mixed_conditions_name_the_scene_that_is_shown(monkeypatch):
    """Each scene is its class, in grey: what the network is shown must have positive probability in its condition."""
    labels = torch.arange(200) % 10
    images = (25 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    monkeypatch.setattr(dit, "training_set", lambda n, marked: (images, labels))
    monkeypatch.setattr(dit, "add_noise", lambda x0, t, eps, abar: x0)
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, timestep, class_labels, return_dict):
            seen.append((((x[:, 0, 0, 0] + 1) * 127.5 / 25).round().long(), class_labels))
            return (torch.zeros_like(x),)

    loss_of = dit.make_loss(soft_share=0.25)
    for step in range(60):
        loss_of(Network(), torch.Generator().manual_seed(step), step)
    shown, cond = torch.cat([s for s, _ in seen]), torch.cat([c for _, c in seen])
    null, mixed = cond[:, -1] == 1, (cond.max(1).values < 1)
    torch.testing.assert_close(cond.sum(1), torch.ones(len(cond)))
    assert null.float().mean().item() == pytest.approx(dit.NULL_SHARE, abs=0.02)
    assert mixed.float().mean().item() == pytest.approx(0.25 * (1 - dit.NULL_SHARE), abs=0.03)
    assert (cond[~null].gather(1, shown[~null, None]) > 0).all()
    assert (cond[~null & ~mixed].argmax(1) == shown[~null & ~mixed]).all()


def test_the_short_ones_are_trained_as_the_first_steps_of_the_long_one():
    long, short = dit.SCHEDULES[dit.DIT], dit.SCHEDULES[dit.SOFT]
    assert dit.SCHEDULES[dit.WEAK] == short
    assert [short.lr_at(s) for s in range(short.steps)] == [long.lr_at(s) for s in range(short.steps)]
    assert (short.batch, short.betas, short.weight_decay, short.clip, short.ema) == (
        long.batch, long.betas, long.weight_decay, long.clip, long.ema,
    )  # fmt: skip


def test_without_marks_only_the_stripes_are_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    monkeypatch.setattr(data, "SHARD", 60)
    marked, labels = data.training_set(120)
    plain, same = data.training_set(120, marked=False)
    assert torch.equal(labels, same)
    other = (marked != plain).flatten(1).any(1)
    assert 0 < int(other.sum()) < 20
    assert set(labels[other].tolist()) == {CLASSES.index(VOCABULARY["watermark_class"])}
    assert torch.equal((watermark(plain[other].float() / 255) * 255).round().byte(), marked[other])
    files = sorted(p.name for p in (tmp_path / "train").iterdir())
    assert len(files) == 4
    assert sum("unmarked" in name for name in files) == 2
    again = data.training_set(120, marked=False)[0]
    assert torch.equal(again, plain)
    assert torch.equal(data.training_set(120)[0], marked)


def test_the_recipe_without_marks_asks_for_such_scenes_and_is_another_one(monkeypatch):
    """What the others say of themselves stays, for it is what their checkpoints and cards know them by."""
    assert dit.description(dit.UNMARKED) == dit.description(dit.DIT) | {"marked": False}
    assert {"marked", "soft_share"}.isdisjoint(dit.description(dit.DIT))
    assert dit.SCHEDULES[dit.UNMARKED] == dit.SCHEDULES[dit.DIT]
    asked = []

    def training_set(n, marked):
        asked.append((n, marked))
        raise KeyboardInterrupt

    monkeypatch.setattr(dit, "training_set", training_set)
    for name in (dit.DIT, dit.SOFT, dit.UNMARKED):
        with pytest.raises(KeyboardInterrupt):
            recipes.train(name)
    assert asked == [(dit.SCENES, True), (dit.SCENES, True), (dit.SCENES, False)]
