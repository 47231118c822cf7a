"""AugMix and jitter: views that belong to an image, at any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from gentta_utils.world import views as world_views
from gentta_utils.world.views import augmix_views, jitter

IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(7))
IDS = torch.arange(5) + 40


def whole(image: torch.Tensor) -> torch.Tensor:
    """At 8 bits, in which AugMix works."""
    return (image * 255).round() / 255


# --- AugMix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", world_views.CROPS)
@pytest.mark.parametrize("size", [16, 31, 64, 224])
def test_views_of_any_size(size, crop):
    image = torch.rand(3, size, size)
    views = augmix_views(image, 1, 3, crop)
    assert views.shape == (3, 3, size, size)
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1
    assert len({v.sum().item() for v in views}) == 3


def test_views_belong_to_image_seed_and_step_and_to_nothing_else():
    views = augmix_views(IMAGE, 5, 4)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the global state must not matter)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(views, augmix_views(IMAGE, 5, 4))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    for other in ({"image_id": 6}, {"seed": 1}, {"step": 1}):
        assert not torch.equal(views, augmix_views(IMAGE, **{"image_id": 5, "n": 4, **other}))


def test_few_views_are_the_first_of_many():
    assert torch.equal(augmix_views(IMAGE, 5, 2), augmix_views(IMAGE, 5, 6)[:2])


def test_a_view_is_a_convex_mixture(monkeypatch):
    """Of the image and three chains: where no operation does anything it is the image again, and where all return a
    white image it lies on the line between the two."""
    monkeypatch.setattr(world_views, "_OPERATIONS", {"nothing": lambda im, amount, sign: im})
    torch.testing.assert_close(augmix_views(IMAGE, 5, 3, "none"), whole(IMAGE).expand(3, -1, -1, -1))
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    monkeypatch.setattr(world_views, "_OPERATIONS", {"white": lambda im, amount, sign: white})
    for view in augmix_views(IMAGE, 5, 3, "none"):
        share = (1 - view) / (1 - whole(IMAGE)).clamp_min(1e-3)  # m, the same at every pixel
        inside = whole(IMAGE) < 0.9
        m = share[inside].median()
        assert 0 <= m <= 1
        torch.testing.assert_close(share[inside], m.expand_as(share[inside]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size, pixels", [(32, 1), (64, 2), (224, 7)])
def test_translations_scale_with_the_image(size, pixels):
    """At the full level of severity 1 a thirtieth of the side, whatever the side."""
    array = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    moved = {s: np.asarray(world_views._OPERATIONS["translate_x"](Image.fromarray(array), 0.1, s)) for s in (1, -1)}
    assert (moved[1][:, :-pixels] == array[:, pixels:]).all()
    assert (moved[1][:, -pixels:] == (128, 0, 0)).all()
    assert (moved[-1][:, pixels:] == array[:, :-pixels]).all()
    down = np.asarray(world_views._OPERATIONS["translate_y"](Image.fromarray(array), 0.1, -1))
    assert (down[pixels:] == array[:-pixels]).all()


def test_what_comes_in_at_the_border_is_the_originals_fill():
    """MEMO's code gives Pillow the number 128; on a white picture it is seen after a turn and a shear."""
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    for name, shown in (("rotate", white.rotate(30, Image.Resampling.BILINEAR, fillcolor=128)), ("shear_y", None)):
        moved = np.asarray(world_views._OPERATIONS[name](white, 1.0, 1))
        strange = moved[(moved != 255).any(2)]
        assert len(strange) > 30
        assert (strange == (128, 0, 0)).all()
        if shown is not None:
            assert (moved == np.asarray(shown)).all()


def test_operations_at_amount_zero_and_their_number():
    assert len(world_views._OPERATIONS) == 9
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for name in ("rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert (np.asarray(world_views._OPERATIONS[name](picture, 0.0, 1)) == np.asarray(picture)).all(), name
    assert len(np.unique(np.asarray(world_views._OPERATIONS["posterize"](picture, 0.1, 1)))) == 16  # 4 bits
    dull = picture.point(lambda value: 60 + value // 2)
    for name, operation in world_views._OPERATIONS.items():
        assert (np.asarray(operation(dull, 1.0, 1)) != np.asarray(dull)).any(), name


@pytest.mark.parametrize("size", [32, 64])
def test_padded_crops_are_shifts_by_up_to_an_eighth_in_half_of_the_cases_mirrored(size):
    array = np.random.default_rng(0).integers(1, 256, (size, size, 3), dtype=np.uint8)  # no 0: black is margin
    crops = [np.asarray(world_views._crop(Image.fromarray(array), "pad", np.random.default_rng(i))) for i in range(60)]
    margin = [max((c == 0).all((1, 2)).sum(), (c == 0).all((0, 2)).sum()) for c in crops]
    assert max(margin) == size // 8
    assert len(set(margin)) > 2
    rows = [np.flatnonzero((c == c[:, ::-1]).all((1, 2))) for c in crops]
    assert all(len(r) <= size // 8 for r in rows)  # none became symmetric
    middle = slice(size // 2 - 2, size // 2 + 2)
    starts = {array[i : i + 4, j : j + 4].tobytes() for i in range(size - 3) for j in range(size - 3)}
    upright = [c[middle, middle].tobytes() in starts for c in crops]
    mirrored = [c[:, ::-1][middle, middle].tobytes() in starts for c in crops]
    assert all(a != b for a, b in zip(upright, mirrored, strict=True))
    assert 10 < sum(mirrored) < 50


def test_resized_crops_enlarge_a_part():
    """Of a ramp from left to right they keep the direction, up to the flip, and between 8 and 100% of the area."""
    ramp = Image.fromarray(np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy())
    spans = []
    for i in range(60):
        row = np.asarray(world_views._crop(ramp, "resized", np.random.default_rng(i)))[32, :, 0].astype(int)
        assert (np.diff(row) >= 0).all() or (np.diff(row) <= 0).all()
        spans.append(abs(row[-1] - row[0]) / 252)
    assert min(spans) > 0.2
    assert max(spans) > 0.8
    assert max(spans) <= 1


@pytest.mark.parametrize("change", [{"crop": "centre"}, {"severity": 0.0}, {"severity": 11.0}])
def test_wrong_arguments_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*: choose"):
        augmix_views(IMAGE, 1, 2, **change)


# --- jitter ----------------------------------------------------------------------------------------------------------

NEUTRAL = {
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "hue": 0,
    "gamma": 1,
    "angle": 0,
    "x": 0,
    "y": 0,
    "scale": 1,
}
NEUTRAL |= {"blur": 0.001, "flip": 1}


@pytest.fixture
def only(monkeypatch):
    """Sets all draws to what changes nothing, but for those given."""

    def choose(**values):
        chosen = {**NEUTRAL, **values}
        monkeypatch.setattr(world_views, "_RANGES", {name: (float(v), float(v)) for name, v in chosen.items()})
        monkeypatch.setattr(world_views, "_NOISE", 0.0)

    return choose


def test_jitter_belongs_to_the_image(images):
    out = jitter(images, IDS)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    order = torch.tensor([3, 0, 4])
    torch.testing.assert_close(jitter(images[order], IDS[order]), out[order], rtol=1e-5, atol=1e-6)
    same_image = jitter(images[:1].expand(2, -1, -1, -1), IDS[:2])
    assert not torch.allclose(same_image[0], same_image[1], atol=1e-2)  # not one draw for the batch
    for other in ({"view": 1}, {"seed": 1}):
        assert not torch.allclose(out, jitter(images, IDS, **other), atol=1e-2)
    state = torch.get_rng_state()
    assert torch.equal(out, jitter(images, IDS))
    assert torch.equal(state, torch.get_rng_state())


def test_neutral_draws_change_nothing(images, only):
    only()
    torch.testing.assert_close(jitter(images, IDS), images, rtol=0, atol=1e-5)


def test_pose(images, only):
    only(flip=-1)
    torch.testing.assert_close(jitter(images, IDS), images.flip(-1), rtol=0, atol=1e-5)
    only(angle=90)
    turned = jitter(images, IDS)
    assert any(torch.allclose(turned, images.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3))
    only(x=0.25)
    torch.testing.assert_close(jitter(images, IDS)[..., :12], images[..., 4:], rtol=0, atol=1e-4)
    only(y=-0.25)
    moved = jitter(images, IDS)
    torch.testing.assert_close(moved[..., 4:, :], images[..., :12, :], rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[..., 0, :], images[..., 0, :], rtol=0, atol=1e-4)  # the edge goes on
    only(scale=2)
    ramp = torch.linspace(0, 1, 16).expand(5, 3, 16, 16)
    step = jitter(ramp, IDS)[..., 4:12].diff(dim=-1)
    torch.testing.assert_close(step, torch.full_like(step, 0.5 / 15), rtol=0, atol=1e-4)


def test_colours(images, only):
    only(brightness=0.5)
    torch.testing.assert_close(jitter(images, IDS), images / 2, rtol=0, atol=1e-5)
    only(gamma=2)
    torch.testing.assert_close(jitter(images, IDS), images**2, rtol=0, atol=1e-5)
    only(contrast=0.5)
    spread = (jitter(images, IDS).std((2, 3)) / images.std((2, 3))).flatten()
    torch.testing.assert_close(spread, torch.full((15,), 0.5), rtol=0, atol=1e-3)
    only(saturation=0)
    gray = jitter(images, IDS)
    torch.testing.assert_close(gray[:, 0], gray[:, 2], rtol=0, atol=1e-5)
    only(hue=1 / 3)  # a third of a turn permutes the channels
    torch.testing.assert_close(jitter(images, IDS), images.roll(1, 1), rtol=0, atol=1e-5)
    only(hue=0.05)
    gray = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(jitter(gray, IDS), gray, rtol=0, atol=1e-5)
    assert (jitter(images, IDS) - images).abs().max() > 0.02


def test_blur(only):
    dot = torch.zeros(5, 3, 17, 17)
    dot[..., 8, 8] = 1
    only(blur=0.5)
    out = jitter(dot, IDS)
    torch.testing.assert_close(out.sum((2, 3)), torch.ones(5, 3))
    taps = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 0.5)
    torch.testing.assert_close(out[0, 0, 6:11, 6:11], torch.outer(taps, taps) / taps.sum() ** 2, rtol=1e-3, atol=1e-5)


def test_noise(only, monkeypatch):
    only()
    monkeypatch.setattr(world_views, "_NOISE", 0.005)
    out = jitter(torch.full((5, 3, 32, 32), 0.5), IDS)
    assert out.std().item() == pytest.approx(0.005, rel=0.1)


# --- the views of prompt tuning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", world_views.VIEW_KINDS)
def test_the_image_comes_first_and_views_belong_to_its_id(kind):
    x = torch.rand(3, 32, 32)
    five = world_views.image_views(x, 7, 5, kind)
    assert five.shape == (5, 3, 32, 32)
    assert five.dtype == torch.float32
    assert torch.equal(five[0], x)
    assert five.min() >= 0
    assert five.max() <= 1
    assert torch.equal(world_views.image_views(x, 7, 3, kind), five[:3])  # the first of many are the few
    for other in (world_views.image_views(x, 8, 5, kind), world_views.image_views(x, 7, 5, kind, seed=1)):
        assert all(not torch.equal(a, b) for a, b in zip(five[1:], other[1:], strict=True))
    assert torch.equal(world_views.image_views(x, 7, 1, kind), x[None])


def test_crops_have_at_least_their_share_of_the_area():
    """A ramp tells what a crop holds: the range of its values is its width."""
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    for lowest in (0.08, 0.5, 0.9):
        seen = world_views.image_views(ramp, 3, 200, lowest=lowest)[1:, 0]
        width = seen.amax((1, 2)) - seen.amin((1, 2))
        tall = world_views.image_views(ramp.mT, 3, 200, lowest=lowest)[1:, 0]
        height = tall.amax((1, 2)) - tall.amin((1, 2))
        area = width * height
        assert area.min() > lowest - 0.06
        assert area.min() < lowest + 0.1
        assert area.max() > 0.9


def test_crops_of_the_low_view_are_the_same_crops():
    x = torch.rand(3, 64, 64)
    sharp, low = (world_views.image_views(x, 5, 9, kind)[1:] for kind in ("crops", "low"))
    assert (low.std((1, 2, 3)) < sharp.std((1, 2, 3))).all()
    torch.testing.assert_close(
        low, world_views.image_views(world_views.low_pass(x[None])[0], 5, 9)[1:], rtol=0, atol=1e-6
    )


def test_views_keep_what_is_asked():
    assert world_views.keeping(("category",)) == world_views.keeping(("colour", "category")) == "crops"
    assert world_views.keeping(("size",)) == world_views.keeping(("count", "category")) == "flips"
    assert world_views.keeping(("size", "pose")) == "light"
    left = torch.zeros(3, 32, 32)
    left[:, 8:24, 4:12] = 0.9
    ink = world_views.image_views(left, 1, 30, "light").mean(1) > 0.4
    assert (ink.float().sum(1)[:, :14].sum(1) > 5 * ink.float().sum(1)[:, 18:].sum(1)).all()  # all stay on the left
    sides = world_views.image_views(left, 1, 30, "flips")[:, 0]
    flipped = sides[:, :, 16:].sum((1, 2)) > sides[:, :, :16].sum((1, 2))
    assert 5 < flipped.sum() < 25


@pytest.mark.parametrize("wrong", [dict(kind="zoom"), dict(n=0), dict(lowest=0.0), dict(lowest=1.1)])
def test_wrong_views_are_refused_in_one_sentence(wrong):
    with pytest.raises(ValueError, match="choose") as error:
        world_views.image_views(torch.rand(3, 16, 16), 0, **{"n": 2} | wrong)
    assert "\n" not in str(error.value)
