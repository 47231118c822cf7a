"""The renderer against closed forms: silhouettes, depths, masks; determinism in the seed, free size and number."""

import math
from dataclasses import replace

import pytest
import torch

from gentta_utils.world import labels, scenes, tracing
from gentta_utils.world.labels import CLASSES
from gentta_utils.world.scenes import make, render, sample, scene_ids
from gentta_utils.world.solids import SHAPES
from gentta_utils.world.tracing import camera_rays


def placed(name: str, size: int = 96, **changes) -> scenes.Scenes:
    """One object, straight ahead of a level camera: height 1, distance 4.2."""
    world = sample(scene_ids(1), classes=torch.tensor([[CLASSES.index(name)]]))
    fixed = dict(
        rotation=torch.eye(3).view(1, 1, 3, 3),
        position=torch.tensor([[[0.0, 1.0, 0.0]]]),
        scale=torch.ones(1, 1),
        camera=torch.tensor([[0.0, 1.0, -4.2]]),
        target=torch.tensor([[0.0, 1.0, 0.0]]),
    )
    return render(replace(world, **(fixed | changes)), size=size)


def test_sphere_has_the_right_silhouette_and_depth():
    size, r, D, tan = 96, 0.8, 4.2, 0.29
    s = placed("sphere", size)
    edge = r / math.sqrt(D**2 - r**2)  # tangent of the half angle under which the sphere is seen
    area = math.pi * (edge / tan * size / 2) ** 2
    assert (s.mask == CLASSES.index("sphere") + 1).sum().item() == pytest.approx(area, rel=0.01)
    centre = s.depth[0, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1]
    assert centre.mean().item() == pytest.approx(D - r, abs=0.002)


def test_cube_has_the_right_silhouette():
    s = placed("cube", 96)
    front = 0.65 / (4.2 - 0.65) / 0.29 * 96  # side of its front face in pixels
    assert (s.mask > 0).sum().item() == pytest.approx(front**2, rel=0.03)


def test_floor_and_wall_depth_are_planes():
    s = placed("sphere", 64, position=torch.tensor([[[50.0, 1.0, 0.0]]]))  # out of sight
    origin, direction, axis = camera_rays(s, 64)
    down, along = direction[0, :, 1], direction[0] @ axis[0]
    floor = torch.where(down < 0, origin[0, :, 1] / -down, math.inf) * along
    wall = (tracing.WALL - origin[0, :, 2]) / direction[0, :, 2] * along
    torch.testing.assert_close(s.depth[0].flatten(), torch.minimum(floor, wall), rtol=1e-4, atol=1e-4)
    assert (s.mask == 0).all()


def test_mask_is_the_argmin_of_the_distance_fields_at_the_hit_point():
    s = make(6, "test", 300, n_objects=3)
    origin, direction, axis = camera_rays(s, 64)
    t = s.depth.flatten(1) / (direction * axis[:, None]).sum(-1)
    point = origin + t[..., None] * direction
    distances = []
    for o in range(3):
        local = (point - s.position[:, o, None]) @ s.rotation[:, o] / s.scale[:, o, None, None]
        each = [SHAPES[CLASSES[k]].sdf(local[b]) * s.scale[b, o] for b, k in enumerate(s.classes[:, o].tolist())]
        distances.append(torch.stack(each))
    distances = torch.stack(distances, -1)  # (B, N, O)
    nearest, which = distances.min(-1)
    instance = s.instance.flatten(1).long()
    on_object = instance > 0
    assert torch.equal(which[on_object] + 1, instance[on_object])
    assert nearest[on_object].abs().max() < 0.02
    assert (nearest[~on_object] > -0.02).all()
    label = torch.where(on_object, s.classes.gather(1, which) + 1, 0)
    assert torch.equal(label, s.mask.flatten(1).long())


@pytest.mark.parametrize("name", CLASSES)
def test_support_and_radius_belong_to_the_distance_field(name):
    """support(n) = max <p, n> over the solid; checked on a dense grid of points of the solid."""
    shape, h = SHAPES[name], 0.03
    axis = torch.arange(-1.3, 1.3, h)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    solid = grid[shape.sdf(grid) <= 0]
    n = torch.nn.functional.normalize(torch.randn(40, 3), dim=-1)
    reached = (solid @ n.T).amax(0)
    exact = shape.support(n)
    assert (reached <= exact + 1e-4).all()
    assert (exact - reached).max() < 2.5 * h
    assert solid.norm(dim=1).max() <= shape.radius + 1e-5
    assert shape.support(torch.nn.functional.normalize(torch.randn(20_000, 3), dim=-1)).max() <= shape.radius + 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_distance_fields_never_overestimate(name):
    """|sdf(p) - sdf(q)| <= |p - q|: sphere tracing cannot step through a surface."""
    p, q = torch.randn(2, 4000, 3)
    sdf = SHAPES[name].sdf
    assert ((sdf(p) - sdf(q)).abs() <= (p - q).norm(dim=1) + 1e-4).all()


def test_objects_stand_on_the_floor():
    s = sample(scene_ids(200))
    h = 0.04
    axis = torch.arange(-1.3, 1.3, h)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).view(-1, 3)
    for b in range(0, 200, 9):
        solid = grid[SHAPES[CLASSES[s.label[b]]].sdf(grid) <= 0] * s.scale[b, 0]
        lowest = (solid @ s.rotation[b, 0].T + s.position[b, 0])[:, 1].min()
        assert -1e-3 < lowest < 2.5 * h


def test_a_scene_is_a_function_of_its_id():
    whole = make(12, "test", 100)
    parts = [make(1, "test", 100 + i) for i in (7, 0, 11)]
    for i, part in zip((7, 0, 11), parts, strict=True):
        assert (whole.image[i] - part.image[0]).abs().max() <= 1 / 255 + 1e-6
        assert (whole.mask[i] == part.mask[0]).float().mean() > 0.999
        assert whole.caption[i] == part.caption[0]
    again = make(12, "test", 100)
    assert torch.equal(whole.image, again.image)
    other = make(12, "select", 100)
    assert not torch.equal(whole.label, other.label)


def test_any_size_and_number_of_objects():
    small, large = make(2, size=32), make(2, size=128)
    down = torch.nn.functional.avg_pool2d(large.image, 4)
    assert (small.image - down).abs().mean() < 0.02  # the same scene
    many = make(4, n_objects=2)
    assert all(len(set(row)) == 2 for row in many.classes.tolist())
    assert many.image.shape == (4, 3, 64, 64)
    assert many.image.min() >= 0
    assert many.image.max() <= 1
    assert ((many.image * 255).round() / 255 - many.image).abs().max() < 1e-6


def test_everything_varies_and_classes_are_even():
    s = sample(scene_ids(4000))
    counts = torch.bincount(s.label, minlength=10)
    assert counts.min() > 320
    assert counts.max() < 480
    for values in (s.colour[:, 0], s.floor, s.wall):
        assert torch.bincount(values, minlength=8).min() > 400
    assert 0.45 < s.material.float().mean() < 0.55
    world = scenes.World()
    assert world.scale[0] <= s.scale.min()
    assert s.scale.max() <= world.scale[1]


def test_shipped_scenes_are_fresh_ones():
    shipped = scenes.shipped()
    fresh = render(sample(shipped.id))
    assert (shipped.image - fresh.image).abs().max() <= 1 / 255 + 1e-6
    assert (shipped.mask == fresh.mask).float().mean() > 0.999
    torch.testing.assert_close(shipped.depth, fresh.depth, atol=0.01, rtol=0.01)
    assert shipped.caption == fresh.caption


def test_captions_name_what_is_seen():
    s = sample(scene_ids(3))
    for b, caption in enumerate(s.caption):
        words = [labels.MATERIALS[s.material[b, 0]], labels.COLOURS[s.colour[b, 0]], CLASSES[s.label[b]]]
        assert caption == f"a photo of a {' '.join(words)} on a {labels.COLOURS[s.floor[b]]} floor"


def test_batches_are_make_in_parts():
    parts = list(scenes.batches(5, "test", 20, chunk=2))
    assert [len(p) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p.id for p in parts]), scene_ids(5, start=20))


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="choose one of train"):
        scene_ids(3, "validation")
    with pytest.raises(ValueError, match="a split has"):
        scene_ids(0)
    with pytest.raises(ValueError, match="1, 2 or 3"):
        sample(scene_ids(1), n_objects=4)


def test_splits_never_meet():
    ids = [scene_ids(3, split, start) for split in scenes.SPLITS for start in (0, scenes.SPLIT_SIZE - 3)]
    assert len(torch.cat(ids).unique()) == 3 * len(ids)
    assert int(torch.cat(ids).max()) + 2_000_000_000 < 2**32  # the generators' seeds stay apart too
