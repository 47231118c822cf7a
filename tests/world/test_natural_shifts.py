"""The natural shifts: same classes and exact masks, each look what it says it is, "a" what the filter gets wrong."""

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from gentta_utils.models import zoo
from gentta_utils.recipes import classifiers, data
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import renditions, scenes, tracing
from gentta_utils.world.labels import CLASSES
from gentta_utils.world.scenes import make, render, sample, scene_ids
from gentta_utils.world.shifts import SHIFTS, shifted
from gentta_utils.world.solids import EDGE, SHAPES, VOXELS

# --- what all of them keep -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", ["v2", "r", "sketch", "stylized", "far"])
def test_classes_stay_and_pictures_change(shift):
    plain, other = make(4, start=40), renditions.make(4, shift, start=40)
    assert torch.equal(plain.id, other.id)
    assert torch.equal(plain.label, other.label)
    assert other.image.shape == plain.image.shape
    assert other.image.min() >= 0
    assert other.image.max() <= 1
    assert ((plain.image - other.image).abs().mean((1, 2, 3)) > 0.005).all()
    for b in range(4):  # the mask is of the class alone
        assert other.mask[b].unique().tolist() == [0, int(other.label[b]) + 1]


def test_masks_and_depths_of_painted_scenes_are_those_of_the_scene():
    plain = make(3, start=40)
    for shift in ("sketch", "stylized"):
        painted = renditions.make(3, shift, start=40)
        assert torch.equal(plain.mask, painted.mask)
        assert torch.equal(plain.depth, painted.depth)


def test_a_scene_of_a_shift_is_a_function_of_its_id():
    whole = renditions.make(6, "r", start=60, dense=False)
    for i in (4, 1):
        alone = renditions.make(1, "r", start=60 + i, dense=False)
        assert (whole.image[i] - alone.image[0]).abs().max() <= 1 / 255 + 1e-6


def test_a_third_of_each_rendition():
    share = (renditions._uniform(scene_ids(600), 1, "rendition") * 3).long().flatten().bincount() / 600
    assert len(share) == len(renditions.RENDITIONS)
    assert (share - 1 / 3).abs().max() < 0.06


def test_any_size():
    small, large = (renditions.make(2, "sketch", start=40, size=s, dense=False).image for s in (32, 128))
    assert (small - F.avg_pool2d(large, 4)).abs().mean() < 0.06  # the lines keep their width


# --- what each is ----------------------------------------------------------------------------------------------------


def test_v2_draws_pose_and_light_from_wider_ranges_only():
    plain, wide = scenes.World(), renditions.V2
    for f in fields(plain):
        ours, theirs = getattr(plain, f.name), getattr(wide, f.name)
        if ours != theirs:
            assert f.name.split("_")[0] in {"scale", "tilt", "x", "z", "camera", "light"}
            assert theirs[0] <= ours[0]
            assert ours[1] <= theirs[1]
    s = sample(scene_ids(2000), world=wide)
    assert (s.camera[:, 1] > plain.camera_y[1]).float().mean() > 0.05


def test_far_objects_are_small_and_nothing_else_changes():
    plain, far = make(6, start=40), renditions.make(6, "far", start=40)
    assert ((far.scale >= 0.5) & (far.scale <= 0.65)).all()
    covered = [(w.mask > 0).float().mean((1, 2)) for w in (plain, far)]
    assert (covered[1] < 0.65 * covered[0]).all()
    same = ("colour", "material", "floor", "wall", "object_rgb", "rotation", "camera", "light", "amplitude")
    assert all(torch.equal(getattr(plain, name), getattr(far, name)) for name in same)
    size = stream(SceneSpec(6, "far", start=40, labels="size"))
    assert (size.labels == 0).all()  # by the far world, not by the usual one
    assert (stream(SceneSpec(6, start=40, labels="size")).labels == 1).any()


@pytest.mark.parametrize("name", ["drawing", "sketch", "stylized"])
def test_nothing_is_left_of_colours_and_textures(name):
    _, look = renditions.STYLES[name]
    s = sample(scene_ids(2, start=40))
    repainted = replace(s, object_rgb=1 - s.object_rgb, floor_rgb=1 - s.floor_rgb, wall_rgb=1 - s.wall_rgb)
    one, other = (render(v, dense=False, look=look).image for v in (s, replace(repainted, amplitude=s.amplitude + 0.1)))
    assert torch.equal(one, other)


def test_a_cartoon_is_flat():
    s = replace(sample(scene_ids(3, start=40)), noise=0.0)
    picture = render(s, supersample=1, look=renditions.cartoon)
    for image, mask in zip(picture.image, picture.mask, strict=True):
        assert len(image[:, mask > 0].T.unique(dim=0)) <= 4  # light, shade, glint, outline
        assert len(image.flatten(1).T.unique(dim=0)) <= 9  # the same of floor and wall


def test_a_sketch_is_lines_along_edges_of_the_object():
    picture = renditions.make(4, "sketch", start=40)
    near = F.max_pool2d((picture.mask > 0).float()[:, None], 5, stride=1, padding=2)[:, 0] > 0
    assert picture.image.mean(1)[~near].min() > 0.85  # blank paper
    rim = near & (F.max_pool2d((picture.mask == 0).float()[:, None], 5, stride=1, padding=2)[:, 0] > 0)
    for image, at in zip(picture.image, rim, strict=True):
        assert (image.mean(0)[at] < 0.75).float().mean() > 0.2  # the outline is drawn
        assert (image[0] - image[1]).abs().max() < 0.05  # without colour, up to the sensor noise


def test_a_sketch_shows_creases_and_only_where_there_are_some():
    for name, creased in (("octahedron", True), ("sphere", False)):
        classes = torch.full((4, 1), CLASSES.index(name))
        picture = render(sample(scene_ids(4, start=40), classes=classes), look=renditions.pencil)
        inside = F.max_pool2d((picture.mask == 0).float()[:, None], 7, stride=1, padding=3)[:, 0] == 0
        drawn = (picture.image.mean(1) < 0.85) & inside
        assert (drawn.flatten(1).any(1) == creased).all(), name


@pytest.mark.parametrize("name", CLASSES)
def test_voxels_are_cubes_and_their_distance_field_is_one(name):
    shape, g = VOXELS[name], torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 3000, 3, generator=g)
    assert ((shape.sdf(p) - shape.sdf(q)).abs() <= (p - q).norm(dim=1) + 1e-4).all()
    p = torch.rand(4000, 3, generator=g) * 2.6 - 1.3
    centre = (p / EDGE).round() * EDGE
    solid = SHAPES[name].sdf(centre) <= 0
    clear = (p - centre).abs().amax(-1) < 0.49 * EDGE  # not on the border of two cubes
    assert torch.equal((shape.sdf(p) < 0)[clear], solid[clear])
    n = F.normalize(torch.randn(50, 3, generator=g), dim=-1)
    assert ((p[solid & clear] @ n.T).amax(0) <= shape.support(n) + 1e-4).all()
    assert p[solid & clear].norm(dim=1).max() <= shape.radius


def test_voxels_stand_on_the_floor_and_face_along_their_axes():
    s = sample(scene_ids(3, start=40), world=scenes.World(solids=VOXELS))
    origin, direction, _ = tracing.camera_rays(s, 64)
    surface = tracing.surfaces(s, origin, direction)
    for b in range(3):
        on = surface.instance[b] > 0
        local = surface.normal[b][on] @ s.rotation[b, 0]
        assert (local.abs().amax(-1) > 0.99).float().mean() > 0.9  # all but the cubes' edges
    plain = sample(scene_ids(3, start=40))
    assert (s.position - plain.position).abs().max() < 0.2 * s.scale.max()
    assert not torch.equal(s.position[..., 1], plain.position[..., 1])


# --- a: hard views ---------------------------------------------------------------------------------------------------


def test_hard_takes_the_first_view_that_is_wrong(monkeypatch):
    """A world of numbers: view k of scene i is wrong from k = i on."""
    monkeypatch.setattr(renditions, "sample", lambda ids: ids)
    monkeypatch.setattr(
        renditions, "render", lambda ids, dense: SimpleNamespace(image=ids, label=torch.zeros_like(ids))
    )
    seen = []

    def network(ids):
        seen.append(len(ids))
        return F.one_hot((ids // renditions.STRIDE >= ids % renditions.STRIDE).long(), 2)

    ids = torch.tensor([3, 0, 60, 1])
    assert renditions.hard(ids, network).tolist() == [i + i * renditions.STRIDE for i in ids.tolist()]
    assert sum(seen) == 4 + 3 + 2 + 2 + 57  # nothing is rendered that is not needed
    assert ids.tolist() == [3, 0, 60, 1]
    with pytest.raises(ValueError, match="right on all 400 views"):
        renditions.hard(torch.tensor([400]), network)


class Stub(torch.nn.Module):
    """Answers by brightness: wrong nine times in ten."""

    def forward(self, images):
        return F.one_hot((images.mean((1, 2, 3)) * 1000).long() % 10, 10)


@pytest.fixture
def filtered(monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda: [renditions.FILTER])
    monkeypatch.setattr(zoo, "load", lambda name: {renditions.FILTER: Stub()}[name])
    monkeypatch.setattr(zoo, "fingerprint", lambda name: f"of {name}")


def test_a_is_what_the_filter_gets_wrong(filtered):
    hard = renditions.make(5, "a", "select", start=10, network=Stub())
    assert (Stub()(hard.image).argmax(1) != hard.label).all()
    assert torch.equal(hard.id % renditions.STRIDE, scene_ids(5, "select", 10) % renditions.STRIDE)
    assert set((hard.id // scenes.SPLIT_SIZE).tolist()) == {scenes.SPLITS["select"]}
    again = render(sample(hard.id))  # an ordinary scene of its id
    assert (hard.image - again.image).abs().max() <= 1 / 255 + 1e-6
    with pytest.raises(ValueError, match="has 0 to 249999"):
        renditions.make(2, "a", start=renditions.STRIDE - 1, network=Stub())


def test_a_without_its_filter_is_one_sentence(monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda: ["classifier/resnet"])
    with pytest.raises(FileNotFoundError, match="train classifier/filter --promote") as error:
        stream(SceneSpec(2, "a"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="needs a network"):
        renditions.make(2, "a")


def test_the_filter_has_a_split_of_its_own(monkeypatch):
    recipe = classifiers.RECIPES[renditions.FILTER]
    assert [name for name, r in classifiers.RECIPES.items() if r.split == "filter"] == [renditions.FILTER]
    asked = []
    empty = (torch.zeros(64, 3, 64, 64, dtype=torch.uint8), torch.zeros(64, dtype=torch.long))
    monkeypatch.setattr(classifiers, "training_set", lambda n, split: asked.append((n, split)) or empty)
    classifiers.make_loss(recipe)
    assert asked == [(recipe.labels, "filter")]


def test_training_scenes_come_from_the_split_that_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    monkeypatch.setattr(data, "SHARD", 2)
    for split in ("filter", "train"):
        images, labels = data.training_set(2, split=split)
        plain = make(2, split, dense=False)
        assert torch.equal(labels, plain.label)
        assert images.shape == (2, 3, 64, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["filter", "train"]


# --- as streams ------------------------------------------------------------------------------------------------------


def test_streams_of_natural_shifts(filtered):
    s = stream(SceneSpec(3, "sketch", start=40))
    assert torch.equal(s.images, renditions.make(3, "sketch", start=40, dense=False).image)
    assert s.about["natural"] == renditions.VERSION
    assert SceneSpec(3, "a").describe()["filter"] == f"of {renditions.FILTER}"
    assert set(SHIFTS) > set(renditions.SHIFTS)
    for wrong in (lambda: stream(SceneSpec(3, "r", 2)), lambda: shifted(s.images, "r", 0, s.ids)):
        with pytest.raises(ValueError, match=r"severity=2|rendered"):
            wrong()
    with pytest.raises(ValueError, match="choose one of v2"):
        renditions.make(2, "b")


def test_descriptions_of_other_streams_are_as_they_were():
    """Records on disk are found by these: a new key would orphan them."""
    assert list(SceneSpec(3, "fog", 5).describe()) == [
        "n", "shift", "severity", "split", "start", "seed", "world", "corruptions",
    ]  # fmt: skip
