"""Orders of a stream: which images come, in which order, and what they have in common with streams in the field."""

import pytest
import torch

from gentta_utils.streams.stream import Stream, continual, correlated, dirichlet, gradual, iid, long_tailed, mixed

K, EACH = 10, 20


def stream(start: int = 0, **about) -> Stream:
    """Twenty images of each of ten classes, shuffled."""
    labels = torch.arange(K * EACH)[torch.randperm(K * EACH, generator=torch.Generator().manual_seed(0))] % K
    return Stream(torch.rand(len(labels), 3, 2, 2), labels, torch.arange(start, start + len(labels)), about)


def repeats(s: Stream) -> float:
    """How often an image has the class of the one before it."""
    return float((s.labels[1:] == s.labels[:-1]).float().mean())


def test_bursts_are_a_permutation_between_random_order_and_sorted():
    s = stream()
    burst, wide = dirichlet(s, 0.1), dirichlet(s, 1000.0)
    for found in (burst, wide):
        assert sorted(found.ids.tolist()) == sorted(s.ids.tolist())
        assert torch.equal(found.labels, s.labels[found.ids])  # an image keeps its label
    assert repeats(iid(s)) < repeats(burst) < repeats(correlated(s))
    assert abs(repeats(wide) - repeats(iid(s))) < 0.1
    assert burst.order == "dirichlet"


@pytest.mark.parametrize("order", [dirichlet, long_tailed, iid])
def test_a_seed_is_an_order(order):
    s = stream()
    first, again, other = order(s, seed=1), order(s, seed=1), order(s, seed=2)
    assert first.ids.tolist() == again.ids.tolist() != other.ids.tolist()


def test_a_long_tail_falls_by_the_ratio():
    s = stream()
    tail = long_tailed(s, 0.1)
    counts = torch.bincount(tail.labels, minlength=K).sort(descending=True).values.tolist()
    assert counts == [round(EACH * 0.1 ** (k / (K - 1))) for k in range(K)]
    assert len(set(tail.ids.tolist())) == len(tail)
    assert torch.equal(tail.labels, s.labels[tail.ids])
    heads = {int(torch.bincount(long_tailed(s, 0.1, seed).labels, minlength=K).argmax()) for seed in range(8)}
    assert len(heads) > 2  # not always the same class is frequent
    assert len(long_tailed(s, 1.0)) == len(s)


def test_one_shift_after_the_other():
    parts = [stream(1000 * i, shift=name, severity=5) for i, name in enumerate(("fog", "snow"))]
    s = continual(parts)
    assert s.ids.tolist() == [i for part in parts for i in part.ids.tolist()]
    assert s.about["shift"] == ["fog", "snow"]
    assert torch.equal(s.rows(torch.tensor([0, 200])).images, torch.stack([p.images[0] for p in parts]))
    assert s.order == "continual"
    same = [stream(1000 * i, shift="fog", severity=5) for i in range(2)]
    assert continual(same).order == "iid"


def test_orders_of_several_can_be_nested():
    parts = [iid(stream(1000 * i, severity=i + 1), seed=3) for i in range(3)]
    assert {len(order(parts)) for order in (mixed, gradual, continual)} == {3 * K * EACH}
    assert mixed(parts).ids[:3].tolist() == [int(p.ids[0]) for p in parts]
    up = gradual(parts).ids // 1000
    assert up.tolist() == sorted(up.tolist())[: len(up)] or up.diff().min() == -1  # step by step, both ways
