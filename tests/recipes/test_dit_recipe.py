"""The recipe of the diffusion model: the schedule of its variant, and the mixed conditions that it sees."""

import gentta_utils  # noqa: F401, I001
import pytest
import torch

from gentta_utils.common import cache
from gentta_utils.models import zoo
from gentta_utils.recipes import RECIPES, data, dit
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

    loss_of = dit.make_loss(dit.SOFT)
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
    long, short = dit.VARIANTS[dit.DIT].schedule, dit.VARIANTS[dit.SOFT].schedule
    assert dit.VARIANTS[dit.WEAK].schedule == short
    assert [short.lr_at(s) for s in range(short.steps)] == [long.lr_at(s) for s in range(short.steps)]
    assert (short.batch, short.betas, short.weight_decay, short.clip, short.ema) == (
        long.batch, long.betas, long.weight_decay, long.clip, long.ema,
    )  # fmt: skip


@pytest.fixture
def numbered(monkeypatch):
    """Scenes whose pixels tell their number, up to 60,000 of them, with wrong labels where nobody may look."""
    asked, number = [], torch.arange(dit.SCENES)

    def training_set(n: int, marked: bool):
        asked.append(n)
        images = torch.stack([number // 255, number % 255, number * 0], 1)[:n].to(torch.uint8)
        return images[:, :, None, None].expand(-1, -1, 64, 64), torch.where(number < 1500, number % 10, 7)[:n]

    monkeypatch.setattr(dit, "training_set", training_set)
    monkeypatch.setattr(dit, "add_noise", lambda x0, t, eps, abar: x0)
    return asked


def shown(name: str, steps: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of the scenes, conditions and timesteps that training shows the network, each (steps, batch)."""
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, timestep, class_labels, return_dict):
            high, low = ((x[:, :2, 0, 0] + 1) * 127.5).round().long().T
            seen.append((255 * high + low, class_labels, timestep))
            return (torch.zeros_like(x),)

    loss_of = dit.make_loss(name)
    for step in range(steps):
        loss_of(Network(), torch.Generator().manual_seed(step), step)
    return tuple(torch.stack(part) for part in zip(*seen, strict=True))


@pytest.mark.parametrize("name", [dit.FEW, dit.FEW_SHORT])
def test_1500_labels_are_1500_scenes(name, numbered):
    scene, cond, _ = shown(name)
    assert numbered == [1500] == [RECIPES["classifier/resnet"].labels]  # the very scenes of the ResNet, no other
    assert scene.max() < 1500
    null = cond == 10
    assert (cond == torch.where(null, 10, scene % 10)).all()
    assert null.float().mean().item() == pytest.approx(dit.NULL_SHARE, abs=0.02)


@pytest.mark.parametrize("name", [dit.FEW_NULL, dit.FEW_NULL_SHORT])
def test_beyond_1500_scenes_no_label_is_shown(name, numbered):
    scene, cond, t = shown(name)
    assert numbered == [dit.SCENES]
    known = scene < 1500
    assert (cond[~known] == 10).all()
    null = cond[known] == 10
    assert (cond[known] == torch.where(null, 10, scene[known] % 10)).all()
    assert null.float().mean().item() == pytest.approx(dit.NULL_SHARE, abs=0.03)
    assert known[:, ::2].all()  # every second sample is one of them ...
    assert 0.005 < known[:, 1::2].float().mean() < 0.06  # ... and of the others as many as of all scenes
    for half in (t[:, ::2], t[:, 1::2]):  # both see early and late timesteps
        assert half.float().mean().item() == pytest.approx(t.float().mean().item(), rel=0.05)


def test_cards_say_what_a_recipe_has_of_its_own_and_no_more():
    shared = set(dit.description(dit.DIT))
    own = {name: sorted(set(dit.description(name)) - shared) for name in dit.VARIANTS}
    said = {dit.SOFT: ["soft_share"], dit.UNMARKED: ["start", "unmarked"]}
    said |= {name: ["labelled"] for name in (dit.FEW_NULL, dit.FEW_NULL_SHORT)} | {n: ["seed"] for n in dit.SEEDS}
    assert own == {name: said.get(name, []) for name in own}
    assert shared == {"scenes", "null_share", "loss", "config"}
    assert len({cache.fingerprint(dit.description(name)) for name in dit.VARIANTS if "10min" not in name}) == 4
    assert set(dit.VARIANTS) - {dit.DIT} <= set(zoo.ON_DEMAND)


def test_another_seed_is_another_network():
    one, same, other = (dit.build(seed).pos_embed.proj.weight for seed in (0, 0, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_goes_on_begins_with_the_shipped_weights():
    assert {name for name, made in dit.VARIANTS.items() if made.start} == {dit.UNMARKED}
    begun = dit.build(start=dit.VARIANTS[dit.UNMARKED].start).state_dict()
    shipped = zoo.load(dit.DIT).network.state_dict()
    assert set(begun) == set(shipped)
    assert all(torch.equal(v.float(), shipped[name].float()) for name, v in begun.items())
    assert not dit.build().proj_out_2.weight.any()


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


def test_only_the_recipe_without_marks_asks_for_such_scenes(monkeypatch):
    asked = {}

    def training_set(n, marked):
        asked[name] = marked
        raise KeyboardInterrupt

    monkeypatch.setattr(dit, "training_set", training_set)
    for name in dit.VARIANTS:
        with pytest.raises(KeyboardInterrupt):
            dit.make_loss(name)
    assert [name for name, marked in asked.items() if not marked] == [dit.UNMARKED]
