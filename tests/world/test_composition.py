"""Pairs of scenes and captions: they differ in who has which attribute, and in nothing else."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gentta_utils  # noqa: F401
from gentta_utils.world import composition, scenes
from gentta_utils.world.composition import KINDS
from gentta_utils.world.tracing import camera_rays, surfaces
from gentta_utils.world.words import ATTRIBUTES, LEFT, across, attributes, is_unseen, true_of

N = 60
CHANGES = {  # kind -> the fields in which the scenes of a pair differ
    "floor": {"colour", "object_rgb", "floor", "floor_rgb"},
    "wall": {"colour", "object_rgb", "wall", "wall_rgb"},
    "two objects": {"colour", "object_rgb"},
    "left or right": {"position"},
}


@pytest.fixture(scope="module", params=KINDS)
def these(request):
    return composition.pairs(request.param, N, start=7_000)


@pytest.fixture(scope="module", params=KINDS)
def seen(request):
    return composition.rendered(composition.pairs(request.param, 6, start=7_000), dense=True)


def halves(these) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the first and of the second scenes of the pairs."""
    found = {f.name: getattr(these.scenes, f.name) for f in fields(these.scenes)}
    return tuple({k: v[j::2] for k, v in found.items() if isinstance(v, Tensor)} for j in (0, 1))


def rows_of(s: scenes.Scenes) -> zip:
    """(classes, colours) of the objects of each scene."""
    return zip(s.classes.tolist(), s.colour.tolist(), strict=True)


def test_the_scenes_of_a_pair_differ_in_what_is_exchanged_alone(these):
    one, other = halves(these)
    different = {name for name in one if not torch.equal(one[name], other[name])}
    assert different == CHANGES[these.kind]


def test_what_is_exchanged_is_exchanged_in_every_pair(these):
    one, other = halves(these)
    if these.kind == "two objects":
        assert torch.equal(one["colour"], other["colour"].flip(1))
        assert (one["colour"][:, 0] != one["colour"][:, 1]).all()
    elif these.kind in ("floor", "wall"):
        assert torch.equal(one["colour"][:, 0], other[these.kind])
        assert torch.equal(one[these.kind], other["colour"][:, 0])
        assert (one["colour"][:, 0] != one[these.kind]).all()
    else:
        assert torch.allclose(one["position"][..., 1], other["position"][..., 1])


def test_no_third_thing_has_a_colour_that_is_exchanged(these):
    s = these.scenes
    shown = torch.cat([s.colour, s.floor[:, None], s.wall[:, None]], 1)
    assert all(len(set(row)) == len(row) for row in shown.tolist())


def test_captions_are_true_of_their_own_scene_and_false_of_the_other(these):
    if these.said is None:  # attributes speak of the first of two objects
        named = [[f"a {scenes.COLOURS[c]} {scenes.CLASSES[k]}" for k, c in zip(*row)] for row in rows_of(these.scenes)]
        assert these.captions == [f"a photo of {one} and {other}" for one, other in named]
        return  # and every caption is another one: see the next test
    true = true_of(these.said, attributes(these.scenes))
    rows = torch.arange(2 * N)
    assert true[rows, rows].all()
    assert not true[rows, rows ^ 1].any()


def test_captions_hold_the_same_words_in_another_order(these):
    for one, other in zip(these.captions[::2], these.captions[1::2], strict=True):
        assert one != other
        if these.kind == "left or right":
            assert one.replace("left", "right") == other
        else:
            assert sorted(one.split()) == sorted(other.split())


def test_half_of_the_pairs_hold_what_no_training_caption_names(these):
    unseen = torch.tensor([is_unseen(text) for text in these.captions]).view(N, 2).any(1)
    assert torch.equal(unseen, these.unseen)
    assert these.unseen.sum() == N // 2
    assert torch.equal(composition.holds_unseen(these.ids), these.unseen.repeat_interleave(2))


def test_a_pair_is_a_function_of_its_number(these):
    part = composition.pairs(these.kind, 5, start=7_010)
    one, _ = halves(part)
    all_of_them, _ = halves(these)
    assert part.captions == these.captions[20:30]
    assert torch.equal(part.ids, these.ids[20:30])
    assert all(torch.equal(v, all_of_them[name][10:15]) for name, v in one.items())


def test_images_have_ids_of_their_own_and_pairs_share_the_sensor(these):
    assert len(set(these.ids.tolist())) == 2 * N
    assert torch.equal(these.scenes.id, these.ids // 2 * 2)


def far_from(mask: Tensor, pixels: int = 1) -> Tensor:
    """Where no pixel in so many steps is in the mask (B, S, S)."""
    side = 2 * pixels + 1
    return F.max_pool2d(mask[:, None].float(), side, stride=1, padding=pixels)[:, 0] == 0


def test_pixels_of_what_is_not_exchanged_are_equal(seen):
    """Light does not travel from one thing to another in this world, so all else is equal to the bit, but for pixels
    on an edge, which mix two things, and, where the object moves, its shadow."""
    one, other = halves(seen)
    same = (one["image"] == other["image"]).all(1)  # (N, S, S)
    thing = one["instance"] > 0
    if seen.kind == "left or right":
        met = [surfaces(w, *camera_rays(w, 64)[:2]) for w in (seen.scenes.map(lambda v, j=j: v[j::2]) for j in (0, 1))]
        moved = (met[0].instance != met[1].instance) | (met[0].diffuse != met[1].diffuse)
        still = far_from(moved.view_as(thing) | thing, 2)
        assert still.float().mean() > 0.3
        assert same[still].all()
        assert (~same[thing & (other["instance"] == 0)]).float().mean() > 0.98
        return
    assert torch.equal(one["mask"], other["mask"])
    assert torch.equal(one["depth"], other["depth"])
    rays = camera_rays(seen.scenes.map(lambda v: v[::2]), 64)
    floor = surfaces(seen.scenes.map(lambda v: v[::2]), *rays[:2]).on_floor.view_as(thing)
    wall = ~floor & ~thing
    inside = {"wall": far_from(~wall), "floor": far_from(~floor), "thing": far_from(~thing)}
    changed = {"floor": ("floor", "thing"), "wall": ("wall", "thing"), "two objects": ("thing",)}[seen.kind]
    for name, where in inside.items():
        assert where.any()
        share = same[where].float().mean()
        assert share < 0.02 if name in changed else share == 1, name


def test_left_and_right_are_plainly_so_and_the_object_is_in_the_picture():
    these = composition.rendered(composition.pairs("left or right", 12, start=7_100), dense=True)
    _, x, reach = across(these.scenes)
    assert (x / reach).abs().min() > LEFT * 1.9
    pose = attributes(these.scenes)[:, ATTRIBUTES.index("pose")]
    assert torch.equal(pose, torch.tensor([0, 2]).repeat(12))
    columns = torch.arange(64).float() - 31.5
    centre = torch.stack([(m > 0).sum(0).float() @ columns / (m > 0).sum() for m in these.scenes.mask])
    assert (centre[::2] < -2).all()
    assert (centre[1::2] > 2).all()


def test_neither_of_two_objects_hides_the_other():
    these = composition.rendered(composition.pairs("two objects", 25, start=7_000), dense=True)
    for o in (1, 2):
        assert (these.scenes.instance == o).flatten(1).sum(1).min() >= 40  # of 4,096 pixels
    apart = (these.scenes.position[:, 1] - these.scenes.position[:, 0]) * torch.tensor([1.0, 0.0, 1.0])
    assert (F.cosine_similarity(apart, across(these.scenes)[0]).abs() > 0.999).all()


def test_unknown_kinds_and_pairs_outside_of_a_split_are_refused():
    with pytest.raises(ValueError, match="unknown kind 'size'"):
        composition.pairs("size", 2)
    with pytest.raises(ValueError, match="a split has"):
        composition.pairs("floor", 2, start=scenes.SPLIT_SIZE // 2)


def test_fixed_colours_leave_all_else_as_drawn():
    ids = scenes.scene_ids(20, "test", 14_000)
    plain = scenes.sample(ids)
    same = scenes.sample(ids, colours={"colour": plain.colour, "floor": plain.floor, "wall": plain.wall})
    red = scenes.sample(ids, colours={"floor": torch.zeros(20, dtype=torch.long)})
    for f in fields(plain):
        value = getattr(plain, f.name)
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(same, f.name)), f.name
            assert torch.equal(value, getattr(red, f.name)) == (f.name not in ("floor", "floor_rgb")), f.name
