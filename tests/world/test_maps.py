"""Scenes with maps: class and depth of every pixel, the splits, and the wrong maps that are made of true ones."""

import pytest
import torch

from gentta_utils.common.resize import resized
from gentta_utils.models.map_unet import at_map, one_hot_map
from gentta_utils.streams.maps import MapSpec
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world import maps, scenes
from gentta_utils.world.labels import CLASSES
from gentta_utils.world.maps import MAP_CLASSES, STUFF, VOID
from gentta_utils.world.tracing import camera_rays, surfaces

IDS = scenes.scene_ids(12, "select", 4_000)


@pytest.fixture(scope="module")
def made():
    return maps.make(IDS, 32)


def test_there_are_twelve_classes_and_one_to_three_objects(made):
    assert MAP_CLASSES[:2] == list(STUFF)
    assert MAP_CLASSES[2:] == CLASSES
    assert made.classes.dtype == torch.uint8
    assert set(maps.objects_in(IDS).tolist()) == {1, 2, 3}
    for i, classes in enumerate(made.classes):
        shown = set(classes.unique().tolist()) - {0, 1}
        drawn = scenes.sample(IDS[i : i + 1], int(maps.objects_in(IDS)[i])).classes[0]
        assert len(drawn.unique()) == len(drawn)
        assert shown <= {int(k) + 2 for k in drawn}  # one may stand behind another
        assert shown


def test_a_class_map_agrees_with_the_mask_and_with_the_surfaces_that_rays_meet(made):
    for objects in (1, 2, 3):
        rows = maps.objects_in(IDS) == objects
        world = scenes.render(scenes.sample(IDS[rows], objects), 32)
        classes = made.classes[rows]
        assert torch.equal((classes >= len(STUFF)), world.mask > 0)
        assert torch.equal(classes[world.mask > 0], world.mask[world.mask > 0] + 1)
        origin, direction, _ = camera_rays(world, 32)
        floor = surfaces(world, origin, direction).on_floor.view_as(classes)
        assert torch.equal(classes == 0, floor)
        assert (classes == 1).any()
        assert torch.equal(made.depth[rows], world.depth)
        assert torch.equal(made.image[rows], world.image)


def test_scenes_do_not_depend_on_their_company(made):
    alone = maps.make(IDS[4:5], 32)
    assert torch.equal(alone.classes[0], made.classes[4])
    torch.testing.assert_close(alone.depth[0], made.depth[4])


def test_a_stream_of_counts_may_be_of_one_scene_too():
    """Its scenes are these; of a few scenes none may have one, two or three objects."""
    few, more = (SceneSpec(n, split="select", start=4_000, labels="count").load() for n in (1, 2))
    assert torch.equal(few.images[0], more.images[0])
    assert more.labels.tolist() == [int(n) - 1 for n in maps.objects_in(more.ids)]
    torch.testing.assert_close(maps.make(more.ids).image, more.images)


def test_depth_lies_within_the_fixed_range(made):
    assert made.depth.min() > maps.NEAR
    assert made.depth.max() < maps.FAR


def test_a_stream_has_maps_as_labels_and_splits_do_not_meet():
    specs = [MapSpec(2, "speckle_noise", 3, split, 5, target="depth") for split in ("train", "select", "test")]
    streams = [s.load() for s in specs]
    ids = torch.cat([s.ids for s in streams])
    assert len(ids.unique()) == 6
    clean = MapSpec(2, split="train", start=5).load()
    assert streams[0].labels.shape == clean.labels.shape == (2, 64, 64)
    assert streams[0].labels.is_floating_point()
    assert clean.labels.dtype == torch.uint8
    assert not torch.equal(clean.images, streams[0].images)
    assert streams[0].about["shift"] == "speckle_noise"


@pytest.mark.parametrize(
    "change", [dict(shift="fogg"), dict(severity=3), dict(shift="fog"), dict(target="edges"), dict(n=True), dict(n=0)]
)
def test_bad_streams_are_refused_before_anything_is_rendered(change):
    with pytest.raises(ValueError, match=r"choose|leave it at 0|asked for"):
        MapSpec(**dict(n=2) | change)


# --- maps as conditions ----------------------------------------------------------------------------------------------


def test_void_is_a_uniform_map():
    classes = torch.tensor([[[0, 3], [VOID, 11]]], dtype=torch.uint8)
    p = one_hot_map(classes, 12)
    torch.testing.assert_close(p.sum(1), torch.ones(1, 2, 2))
    torch.testing.assert_close(p[0, :, 1, 0], torch.full((12,), 1 / 12))
    assert p[0, 3, 0, 1] == p[0, 11, 1, 1] == 1
    assert torch.equal(at_map("classes", classes, 12), p)
    assert at_map("depth", torch.rand(2, 4, 4), 1).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("side", [4, 5, 8, 16])
def test_resampled_probabilities_sum_to_one_everywhere(side):
    """R(P) sums to 1 everywhere, and at its own size it is P."""
    p = torch.randn(2, 5, 8, 8).softmax(1)
    out = resized(p, side)
    torch.testing.assert_close(out.sum(1), torch.ones(2, side, side))
    assert (out >= 0).all()
    if side == 8:
        assert torch.equal(out, p)
    if side == 4:
        torch.testing.assert_close(out[..., 0, 0], p[..., :2, :2].mean((2, 3)))  # areas, no nearest pixel


# --- wrong maps ------------------------------------------------------------------------------------------------------


def test_two_classes_have_changed_places(made):
    wrong = maps.swapped(made.classes, IDS)
    assert torch.equal(wrong < 2, made.classes < 2)
    assert ((wrong != made.classes).flatten(1).sum(1) > 0).all()
    for one, other in zip(made.classes, wrong, strict=True):
        pairs = {(int(a), int(b)) for a, b in zip(one.flatten(), other.flatten(), strict=True) if a != b}
        assert len(pairs) in (1, 2)
        assert len({frozenset(pair) for pair in pairs}) == 1


def test_objects_grow_over_what_is_no_object(made):
    wrong = maps.dilated(made.classes, 2)
    objects = made.classes >= 2
    assert torch.equal(wrong[objects], made.classes[objects])
    assert ((wrong >= 2).flatten(1).sum(1) > objects.flatten(1).sum(1)).all()
    point = torch.zeros(1, 9, 9, dtype=torch.uint8)
    point[0, 4, 4] = 5
    assert (maps.dilated(point, 2) == 5).sum() == 25
    point[0, 0, 0] = VOID
    assert maps.dilated(point, 2)[0, 0, 0] == VOID
    assert (maps.dilated(point, 2) == VOID).sum() == 1


def test_depth_of_objects_is_off_by_a_fifth_and_edges_have_moved(made):
    wrong = maps.rescaled(made.depth, made.classes, IDS)
    ratio = wrong / made.depth
    objects = made.classes >= 2
    assert (ratio[~objects] == 1).all()
    expected = torch.where(IDS % 2 == 0, 1.2, 0.8)[:, None, None].expand_as(ratio)
    torch.testing.assert_close(ratio[objects], expected[objects])
    grown = maps.grown(made.depth, 2)
    assert (grown <= made.depth).all()
    assert torch.equal(grown[:, 2, 2], made.depth[:, :5, :5].flatten(1).amin(1))
