"""Each corruption by its defining property, at 64 and at 224 px; seeding; growing damage; bad input; the watermark."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from gentta_utils.world import corruptions, frost, scenes, severities
from gentta_utils.world.watermark import ALPHA, coverage, font_size, watermark


@pytest.fixture(scope="module")
def clean():
    return scenes.make(12, "select", 500, dense=False).image


def flat(value=0.6, n=8, side=64):
    return torch.full((n, 3, side, side), value)


def edge(side=64):
    """Left half black, right half white."""
    x = torch.zeros(1, 3, side, side)
    x[..., side // 2 :] = 1
    return x


def test_lists():
    assert len(severities.TEST) == 15
    assert len(severities.VALIDATION) == 4
    assert not set(severities.TEST) & set(severities.VALIDATION)
    for constants in severities.CONSTANTS.values():
        assert set(constants) == set(severities.ALL)
        assert all(len(c) == 5 for c in constants.values())


@pytest.mark.parametrize("name", severities.ALL)
def test_output_is_an_image_and_belongs_to_its_id(clean, name):
    y = corruptions.corrupt(clean[:4], name, 4)
    assert y.shape == (4, 3, 64, 64)
    assert y.dtype == torch.float32
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    assert (y * 255 - (y * 255).round()).abs().max() < 1e-4
    assert not torch.equal(y, clean[:4])
    alone = corruptions.corrupt(clean[2:3], name, 4, torch.tensor([2]))
    assert torch.equal(y[2:3], alone)
    deterministic = name in (
        ["defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg", "gaussian_blur", "saturate"]
    )
    assert torch.equal(alone, corruptions.corrupt(clean[2:3], name, 4, torch.tensor([9]))) == deterministic
    assert torch.equal(alone, corruptions.corrupt(clean[2:3], name, 4, torch.tensor([2]), seed=1)) == deterministic


@pytest.mark.parametrize("name", severities.ALL)
def test_what_passes_for_a_pixel_can_be_corrupted(clean, name):
    """Rounding leaves images a hair below 0, which `check_pixels` lets through."""
    near = clean[:1].clone()
    near[:, :, :8] = -9e-5
    found, wanted = (corruptions.corrupt(x, name, 5) for x in (near, near.clamp_min(0)))
    assert (found - wanted).abs().max() < 1.5 / 255


def test_damage_grows_with_severity_on_average(clean):
    damage = np.array(
        [
            [(corruptions.corrupt(clean, n, s) - clean).square().mean().sqrt().item() for s in range(1, 6)]
            for n in severities.ALL
        ]
    )
    assert (np.diff(damage.mean(0)) > 0).all()
    # the published constants of these change kind with severity (elastic, spatter, saturate, snow's zoom, glass at 1)
    mixed = {"elastic", "spatter", "saturate", "snow", "glass_blur", "frost"}
    for name, row in zip(severities.ALL, damage, strict=True):
        if name not in mixed:
            assert (np.diff(row) > 0).all(), name


@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noises_have_the_published_spread(side, severity):
    sigma = severities.CONSTANTS[side]["gaussian_noise"][severity - 1]
    x = flat(0.5, 4, side)
    if sigma < 0.2:  # beyond, clipping matters
        assert (corruptions.corrupt(x, "gaussian_noise", severity) - x).std().item() == pytest.approx(sigma, rel=0.02)
    s = severities.CONSTANTS[side]["speckle_noise"][severity - 1]
    if s < 0.5:
        assert (corruptions.corrupt(x, "speckle_noise", severity) - x).std().item() == pytest.approx(0.5 * s, rel=0.02)
    c = severities.CONSTANTS[side]["shot_noise"][severity - 1]
    shot = corruptions.corrupt(flat(0.3, 4, side), "shot_noise", severity)
    if c >= 15:  # variance of Poisson(c x) / c is x / c
        assert (shot - 0.3).std().item() == pytest.approx((0.3 / c) ** 0.5, rel=0.03)
    share = severities.CONSTANTS[side]["impulse_noise"][severity - 1]
    impulse = corruptions.corrupt(x, "impulse_noise", severity)
    changed = (impulse - 0.5).abs() > 0.1
    assert changed.float().mean().item() == pytest.approx(share, rel=0.05)
    assert set(impulse[changed].tolist()) == {0.0, 1.0}
    assert impulse[changed].mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(changed[:, 0], changed[:, 1])  # channel values on their own


def test_blurs_keep_the_mean_and_smooth_an_edge():
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "glass_blur"):
        y = corruptions.corrupt(edge(), name, 5)[0, 0]
        profile = y.mean(0)
        assert y.mean().item() == pytest.approx(0.5, abs=0.03)
        assert 3 <= int(((profile > 0.02) & (profile < 0.98)).sum()) < 40
        assert corruptions.corrupt(flat(), name, 5).unique().numel() == 1


def test_gaussian_blur_has_the_published_width():
    for severity, sigma in enumerate(severities.CONSTANTS[64]["gaussian_blur"], start=1):
        profile = corruptions.corrupt(edge(), "gaussian_blur", severity)[0, 0, 32].double()
        spread = profile.diff()  # the kernel itself
        x = torch.arange(63) + 0.5
        mean = (spread * x).sum()
        assert ((spread * (x - mean) ** 2).sum() ** 0.5).item() == pytest.approx(sigma, rel=0.12, abs=0.05)


def test_defocus_below_one_pixel_is_only_the_alias_blur():
    dot = torch.zeros(1, 3, 64, 64)
    dot[..., 32, 32] = 1
    y = corruptions.corrupt(dot, "defocus_blur", 1)[0, 0]  # radius .5
    assert int((y > 0).sum()) == 9
    disk = corruptions.corrupt(dot, "defocus_blur", 5)[0, 0]  # radius 3: 29 pixels of equal weight, edges softened
    assert int((disk > 0.5 / 29).sum()) == 29


def test_glass_blur_exchanges_and_the_switch_copies(clean):
    """At severity 1 sigma is .1: an exchange keeps the multiset of pixels, the benchmark's copy does not."""
    sort = lambda x: (x * 255).round().flatten(2).sort(-1).values  # noqa: E731
    assert torch.equal(sort(corruptions.corrupt(clean, "glass_blur", 1)), sort(clean))
    assert not torch.equal(sort(corruptions.corrupt(clean, "glass_blur", 1, swap=False)), sort(clean))


def test_motion_blur_is_one_sided_along_its_angle():
    dot = torch.zeros(1, 3, 64, 64)
    dot[..., 32, 32] = 1
    y = corruptions.corrupt(dot, "motion_blur", 5)[0, 0]
    rows, columns = (y > 0).nonzero(as_tuple=True)
    assert int(columns.min()) == 32  # angle in (-45, 45): only to the right
    assert int(columns.max()) > 35
    assert (rows - 32).abs().max() <= (columns - 32).max() + 1
    assert y.sum().item() == pytest.approx(1, abs=0.02)
    far = (rows - 32).square() + (columns - 32).square()
    weights = y[rows, columns]
    assert weights[far < 9].sum() > weights[far >= 9].sum() > 0  # exp(-i^2 / 2 sigma^2) with sigma 3


def test_zoom_lists_have_the_published_lengths():
    assert [c[0] for c in severities.CONSTANTS[224]["zoom_blur"]] == [12, 16, 11, 13, 11]
    assert [c[0] for c in severities.CONSTANTS[64]["zoom_blur"]] == [7, 12, 16, 21, 26]
    y = corruptions.corrupt(edge(), "zoom_blur", 5)[0, 0]
    assert (y[:, 31] - y[:, 32]).abs().min() > 0.4  # the middle stays sharp
    x = torch.zeros(1, 3, 64, 64)
    x[..., 12:] = 1
    off = corruptions.corrupt(x, "zoom_blur", 5)[0, 0].mean(0)
    assert int(((off > 0.02) & (off < 0.98)).sum()) > 4  # away from it the image is smeared outwards


def test_photometric_corruptions():
    x = torch.zeros(1, 3, 64, 64)
    x[:, 0], x[:, 1], x[:, 2] = 0.4, 0.2, 0.2
    x[..., :32] = 0.3
    close = lambda got, want: torch.testing.assert_close(got, want, atol=0.5 / 255 + 1e-6, rtol=0)  # noqa: E731
    y = corruptions.corrupt(x, "contrast", 3)
    mean = x.mean((2, 3), keepdim=True)
    close(y, (x - mean) * 0.2 + mean)
    y = corruptions.corrupt(x, "brightness", 3)
    close(y.amax(1), x.amax(1) + 0.3)  # V of HSV
    torch.testing.assert_close(y[:, 1] / y[:, 0], x[:, 1] / x[:, 0], atol=0.01, rtol=0)  # hue and saturation stay
    y = corruptions.corrupt(x, "saturate", 2)  # S * .1
    saturation = (y[0, 0, 0, 40] - y[0, 1, 0, 40]) / y[0, 0, 0, 40]
    assert saturation.item() == pytest.approx(0.05, abs=0.01)
    close(y.amax(1), x.amax(1))


def test_fog_and_plasma():
    rng = np.random.default_rng(0)
    smooth, rough = (np.stack([corruptions.plasma(64, d, rng) for _ in range(20)]) for d in (3.0, 1.75))
    assert smooth.min() == 0
    assert smooth.max() == 1
    roughness = lambda f: np.abs(np.diff(f, axis=1)).mean()  # noqa: E731
    assert roughness(smooth) < roughness(rough)
    y = corruptions.corrupt(flat(0.5), "fog", 5)  # (x + s m) max / (max + s) keeps the maximum
    assert y.max().item() == pytest.approx(0.5, abs=0.01)
    assert y.min().item() == pytest.approx(0.5 * 0.5 / 2.5, abs=0.02)


def test_weather_whitens_and_keeps_structure(clean):
    for name in ("snow", "frost"):
        y = corruptions.corrupt(clean, name, 3)
        assert y.mean() > clean.mean()
        correlation = torch.corrcoef(torch.stack([y.flatten(), clean.flatten()]))[0, 1]
        assert 0.2 < correlation < 0.98


@pytest.mark.parametrize(
    "side, published",  # the table of `bench/frost.py`
    [(224, (0.636, 0.095, 0.046, 0.36, 0.15)), (64, (0.658, 0.066, 0.028, 0.33, 0.15))],
)
def test_frost_has_the_statistics_of_the_published_pictures(side, published):
    assert frost.statistics(side, 100) == pytest.approx(published, rel=0.2)


def test_frost_is_a_crop_of_a_picture_slightly_blue():
    crops = [frost.texture(32, np.random.default_rng(i)) for i in (0, 0, 1)]
    assert crops[0].shape == (32, 32, 3)
    assert np.array_equal(crops[0], crops[1])
    assert np.abs(crops[0] - crops[2]).mean() > 0.03
    assert crops[0][..., 2].mean() > crops[0][..., 0].mean()


def test_spatter_is_water_then_mud(clean):
    water = corruptions.corrupt(clean, "spatter", 3) - clean
    mud = corruptions.corrupt(clean, "spatter", 5)
    assert water.min() > -1.1 / 255
    changed = (mud - clean).abs().amax(1) > 0.02
    assert 0.01 < changed.float().mean() < 0.6
    brown = torch.tensor([63, 42, 20]) / 255
    covered = (mud - brown[:, None, None]).abs().amax(1) < 0.02
    assert covered.float().mean() > 0.01


def test_elastic_moves_but_does_not_recolour(clean):
    for severity in (1, 5):
        y = corruptions.corrupt(clean, "elastic", severity)
        assert (y - clean).abs().mean() > 0.005
        torch.testing.assert_close(y.mean((2, 3)), clean.mean((2, 3)), atol=0.06, rtol=0)
    assert corruptions.corrupt(flat(), "elastic", 5).unique().numel() == 1


def published_elastic(x, moves, dx, dy):
    """The published formula for one channel (S, S): three points (x, y) moved, the affine map inverted, then dx, dy."""
    side = len(x)
    c, t = side // 2, side // 3
    points = np.array([[c + t, c + t], [c + t, c - t], [c - t, c - t]], float)
    forward = np.linalg.solve(np.c_[points, np.ones(3)], points + moves).T  # (2, 3): moved = A point + b
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    at = np.linalg.solve(forward[:, :2], np.stack([column, row]).reshape(2, -1) - forward[:, 2:]).reshape(2, side, side)
    x = ndimage.map_coordinates(x, at[::-1], order=1, mode="mirror")
    return ndimage.map_coordinates(x, [row + dy, column + dx], order=1, mode="reflect")


def test_elastic_is_the_published_one_with_rows_and_columns_exchanged(clean):
    x = clean[0].permute(1, 2, 0).double().numpy()
    alpha, sigma, reach = (64 * value for value in severities.CONSTANTS[64]["elastic"][4])
    ours = corruptions._elastic(x, severities.CONSTANTS[64]["elastic"][4], np.random.default_rng(3))
    rng = np.random.default_rng(3)
    moves = rng.uniform(-reach, reach, (3, 2))
    fields = [rng.uniform(-1, 1, (64, 64)) for _ in range(2)]
    dx, dy = (alpha * ndimage.gaussian_filter(f.T, sigma, mode="reflect", truncate=3) for f in fields)
    theirs = np.stack([published_elastic(x[..., i].T, moves, dx, dy).T for i in range(3)], -1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_equalisation_begins_at_0_by_the_integer_table():
    levels = np.array([[3, 3, 3, 3], [5, 5, 5, 9]], np.uint8)  # cdf 4, 7, 8: (cdf - 4) / (8 - 4)
    assert corruptions.equalized(levels).tolist() == [[0, 0, 0, 0], [191, 191, 191, 255]]
    assert corruptions.equalized(np.full((4, 4), 7, np.uint8)).tolist() == np.zeros((4, 4)).tolist()


def test_every_corruption_gives_what_it_gave():
    """Pixels and means of version 1, and of version 2 where there is one; what changes needs a new version."""
    golden = json.loads((Path(__file__).parent / "corruptions.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(17)
    x = 0.75 * ndimage.zoom(rng.random((8, 8, 3)), (8, 8, 1), order=1)
    x += 0.25 * np.kron(rng.random((16, 16, 3)), np.ones((4, 4, 1)))
    x = torch.from_numpy(np.round(x * 255) / 255).permute(2, 0, 1)[None].float()
    places = np.random.default_rng(0).choice(x.numel(), 24, replace=False)
    assert set(golden) == {
        f"{name} {s} version {corruptions.version(name, s)}" for name in severities.ALL for s in range(1, 6)
    }
    for key, (mean, values) in golden.items():
        name, severity = key.split()[:2]
        y = 255 * corruptions.corrupt(x, name, int(severity), torch.tensor([5]), seed=3).flatten().double()
        assert y.mean().item() == pytest.approx(mean, abs=0.1), key
        np.testing.assert_allclose(y[places], values, atol=1.01, err_msg=key)


def test_small_images_work_with_the_published_constants():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in severities.ALL:
        assert corruptions.corrupt(x, name, 5).shape == x.shape
    assert [int(32 * f) for f in severities.CONSTANTS[32]["pixelate"]] == [30, 28, 27, 24, 20]
    difference = corruptions.corrupt(flat(0.5, 16, 32), "gaussian_noise", 5) - 0.5
    assert difference.std().item() == pytest.approx(0.1, rel=0.02)
    assert severities.CONSTANTS[32]["frost"][4] == (0.75, 0.45)


def test_pixelate_has_the_published_sides(clean):
    for side, expected in ((64, [57, 51, 44, 38, 32]), (224, [134, 112, 89, 67, 56])):
        assert [int(side * f) for f in severities.CONSTANTS[side]["pixelate"]] == expected
    y = corruptions.corrupt(clean, "pixelate", 5)  # 32 of 64: blocks of 2 x 2
    blocks = torch.nn.functional.avg_pool2d(y, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(y, blocks, atol=1e-6, rtol=0)
    mean = torch.nn.functional.avg_pool2d(clean, 2)
    torch.testing.assert_close(y[:, :, ::2, ::2], mean, atol=1.01 / 255, rtol=0)


def test_jpeg_is_the_librarys():
    x = scenes.make(1, "select", 3, dense=False).image
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=25)
    expected = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(corruptions.corrupt(x, "jpeg", 5)[0], expected)


def test_large_images_work():
    x = scenes.render(scenes.sample(scenes.scene_ids(1)), size=224, supersample=1, dense=False).image
    for name in severities.ALL:
        y = corruptions.corrupt(x, name, 1)
        assert y.shape == x.shape
        assert not torch.equal(y, x)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda x: corruptions.corrupt(x, "rain", 1), "unknown corruption 'rain'"),
        (lambda x: corruptions.corrupt(x, "fog", 0), "severity 0"),
        (lambda x: corruptions.corrupt(x, "fog", 6), "severity 6"),
        (lambda x: corruptions.corrupt(x[..., :48, :48], "fog", 1), "32, 64 or 224"),
        (lambda x: corruptions.corrupt(x[0], "fog", 1), "corruptions take"),
        (lambda x: corruptions.corrupt(x * 255, "fog", 1), "in \\[0, 1\\]"),
        (lambda x: corruptions.corrupt(x.log().log(), "fog", 1), "NaN or infinity"),
    ],
)
def test_wrong_calls_are_refused_in_one_sentence(clean, call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(clean)
    assert "\n" not in str(error.value)


# --- watermark -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, size", [(32, 5), (64, 10), (224, 36), (384, 62), (512, 82), (518, 84)])
def test_watermark_has_the_published_size_and_place(side, size):
    assert font_size(side) == size
    if side >= 64:
        mask = coverage(side, side)
        rows, columns = (mask > 0.5).nonzero(as_tuple=True)
        assert int(rows.min()) >= round(0.4 * side)
        assert int(rows.max()) <= round(0.4 * side) + size
        assert int(columns.min()) >= round(0.01 * side)
        assert 5.5 * size <= int(columns.max()) <= 6 * size + round(0.01 * side)


def test_watermark_is_half_transparent_white(clean):
    y, mask = watermark(clean), coverage(64, 64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    on = mask.bool()
    exact = clean[..., on] + ALPHA * (1 - clean[..., on])
    torch.testing.assert_close(y[..., on], exact, atol=0.51 / 255, rtol=0)
    assert torch.equal(y[..., ~on], clean[..., ~on])
    assert 0.05 < mask.mean() < 0.15
    with pytest.raises(ValueError, match="at least 32"):
        watermark(torch.rand(1, 3, 16, 16))
    with pytest.raises(OSError):
        watermark(clean, font="no-such-font.otf")
