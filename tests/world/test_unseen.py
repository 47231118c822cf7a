"""The ten unseen corruptions: images that belong to their ids, damage that grows, and nothing was chosen on them."""

import ast

import numpy as np
import pytest
import torch

from gentta_utils.common.paths import RESULTS, ROOT
from gentta_utils.evaluation.tables import results
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import corruptions, scenes, unseen
from gentta_utils.world.fields import coloured, gradient_noise
from gentta_utils.world.severities import ALL, TEST, UNSEEN, UNSEEN_CONSTANTS, VALIDATION
from gentta_utils.world.shifts import SHIFTS


@pytest.fixture(scope="module")
def clean():
    return scenes.make(8, "select", 700, dense=False).image


def power(images: torch.Tensor) -> np.ndarray:
    """Mean power (S / 2,) of images (B, C, S, S) by whole waves per side, without the mean."""
    x = images - images.mean((2, 3), keepdim=True)
    spectrum = np.abs(np.fft.fft2(x.numpy())) ** 2
    side = images.shape[-1]
    f = np.round(np.hypot(*np.meshgrid(*[np.fft.fftfreq(side, 1 / side)] * 2))).astype(int)
    return np.array([spectrum.mean((0, 1))[f == k].mean() for k in range(1, side // 2)])


def test_there_are_ten_apart_from_all_others():
    assert len(UNSEEN) == len(set(UNSEEN)) == 10
    assert not set(UNSEEN) & set(ALL)
    assert set(UNSEEN_CONSTANTS) == set(UNSEEN) <= set(SHIFTS)
    for name, constants in UNSEEN_CONSTANTS.items():
        assert len(constants) == 5
        assert list(constants) == sorted(set(constants)), name


@pytest.mark.parametrize("name", UNSEEN)
def test_output_is_an_image_that_belongs_to_its_id_and_seed(clean, name):
    y = corruptions.corrupt(clean[:4], name, 3)
    assert y.shape == (4, 3, 64, 64)
    assert y.dtype == torch.float32
    assert 0 <= float(y.min()) < float(y.max()) <= 1
    assert (y * 255 - (y * 255).round()).abs().max() < 1e-4
    again = corruptions.corrupt(clean[2:3], name, 3, torch.tensor([2]))
    assert torch.equal(y[2:3], again)  # and so the first of many images are the many's first
    assert not torch.equal(again, corruptions.corrupt(clean[2:3], name, 3, torch.tensor([9])))
    assert not torch.equal(again, corruptions.corrupt(clean[2:3], name, 3, torch.tensor([2]), seed=1))


@pytest.mark.parametrize("name", UNSEEN)
def test_damage_grows_with_severity(clean, name):
    distance = [(corruptions.corrupt(clean, name, s) - clean).square().mean().sqrt().item() for s in range(1, 6)]
    assert distance[0] > 0.005
    assert (np.diff(distance) > 0).all(), distance


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.parametrize("side", [7, 8, 32, 100])
def test_any_size_will_do_and_a_constant_of_nothing_does_nothing(name, side):
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([5, 6])
    y = corruptions.with_constant(x, name, UNSEEN_CONSTANTS[name][4], ids)
    assert y.shape == x.shape
    assert (y - x).abs().max() > 0.02
    assert (corruptions.with_constant(x, name, 1e-9, ids) - x).abs().max() < 1 / 255


def test_noises_have_their_colour_and_spread():
    grey, ids = torch.full((6, 3, 64, 64), 0.5), torch.arange(6)
    made = {k: corruptions.with_constant(grey, k, 0.1, ids) for k in ("blue_noise", "brown_noise", "perlin_noise")}
    for name, y in made.items():
        assert (y - 0.5).std().item() == pytest.approx(0.1, rel=0.05), name
    rise = {k: np.polyfit(np.log(np.arange(1, 29)), np.log(power(y))[:28], 1)[0] for k, y in made.items()}
    assert rise["blue_noise"] == pytest.approx(2, abs=0.2)  # power is amplitude squared
    assert rise["brown_noise"] == pytest.approx(-2, abs=0.2)
    assert power(made["perlin_noise"])[:12].sum() > 5 * power(made["perlin_noise"])[20:].sum()
    assert torch.equal(made["perlin_noise"][:, 0], made["perlin_noise"][:, 1])  # grey
    assert not torch.equal(made["blue_noise"][:, 0], made["blue_noise"][:, 1])


def test_fields_have_unit_spread_and_their_lattice():
    rng = np.random.default_rng(0)
    for field in (coloured(33, 1, rng), coloured(64, -1, rng), gradient_noise(50, 3, 2, rng)):
        assert field.mean() == pytest.approx(0, abs=1e-9)
        assert field.std() == pytest.approx(1)
    one = gradient_noise(400, 4, 1, np.random.default_rng(1))  # at the corners of the lattice the noise is 0
    corners = one[::100, ::100]
    assert np.abs(corners - np.median(one)).max() < 0.4 < np.abs(one).max()


def test_waves_have_one_frequency_and_their_amplitude():
    grey, ids = torch.full((4, 3, 64, 64), 0.5), torch.arange(4)
    y = corruptions.with_constant(grey, "single_frequency_greyscale", 0.2, ids)
    assert torch.equal(y[:, 0], y[:, 2])
    assert (y - 0.5).abs().amax((1, 2, 3)).tolist() == pytest.approx([0.2] * 4, abs=0.01)
    for image in y:
        share = power(image[None]) / power(image[None]).sum()
        assert share.max() > 0.5
        assert 3 <= share.argmax() + 1 <= 17
    rings = corruptions.with_constant(grey, "concentric_sine_waves", 0.2, ids)
    assert (rings - 0.5).abs().max().item() == pytest.approx(0.2, abs=0.01)
    assert power(rings).argmax() + 1 in range(4, 17)


def test_a_board_covers_its_share_with_the_mean_colour(clean):
    grey, ids = torch.zeros(6, 3, 64, 64), torch.arange(6)
    grey[:, :, ::2] = 1
    for share in (0.25, 1.0):
        y = corruptions.with_constant(grey, "checkerboard_cutout", share, ids)
        covered = 1 - 2 * (y - 0.5).abs()  # of a pixel, black or white before
        assert covered.mean().item() == pytest.approx(share / 2, abs=0.02)


def test_stars_are_white_or_black_and_the_same():
    grey, ids = torch.full((3, 3, 64, 64), 0.5), torch.arange(3)
    light, dark = (corruptions.with_constant(grey, k, 0.1, ids) for k in ("sparkles", "inverse_sparkles"))
    assert light.min() >= 0.5
    assert light.max() > 0.9
    assert dark.max() <= 0.51
    assert dark.min() < 0.2
    assert torch.equal(light[:, 0], light[:, 1])


def test_water_bends_and_gathers_light():
    grey, ids = torch.full((6, 3, 64, 64), 0.3), torch.arange(6)
    y = corruptions.with_constant(grey, "caustic_refraction", 0.01, ids)
    assert y.mean().item() == pytest.approx(0.3, rel=0.1)  # light is moved, not made
    assert y.max() > 0.35
    edge = torch.zeros(6, 3, 64, 64)
    edge[..., 32:] = 1
    bent = corruptions.with_constant(edge, "caustic_refraction", 0.02, ids)
    where = (bent[:, 0] > 0.5).float().argmax(-1).float()  # first bright column of each row
    assert where.std(1).mean() > 0.3


def names_in(path) -> tuple[set[str], set]:
    """Names that a Python file uses or imports, and its constants."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.name for n in nodes if isinstance(n, ast.alias)}
    return names, {n.value for n in nodes if isinstance(n, ast.Constant)}


def test_no_choice_and_no_training_names_them():
    """Neither their names, nor lists that hold them: `UNSEEN`, `SHIFTS`, the module itself."""
    files = [*ROOT.glob("gentta_utils/course/nb*/choose.py"), *ROOT.glob("gentta_utils/recipes/*.py")]
    assert len(files) > 8
    for path in files:
        names, constants = names_in(path)
        found = names & {"UNSEEN", "UNSEEN_CONSTANTS", "SHIFTS", "unseen"} | constants & set(UNSEEN)
        assert not found, f"{path.name} names {found}: settings are chosen on {', '.join(VALIDATION)} alone"
    assert "VALIDATION" in names_in(ROOT / "gentta_utils" / "course" / "nb02" / "choose.py")[0]  # names are seen


def test_no_record_of_a_choice_met_them():
    tables = [p.stem for p in RESULTS.glob("select*.npz")]
    assert tables
    for name in tables:
        met = {r.about["stream"]["shift"] for r in results(name)}
        assert met & {"clean", *VALIDATION}, name
        assert not met & {*UNSEEN, *TEST}, name


def test_a_stream_meets_them_as_any_corruption():
    s = stream(SceneSpec(3, UNSEEN[0], 5, start=100))
    assert s.about["corruptions"] == "in-memory 1"
    plain = stream(SceneSpec(3, start=100))
    assert torch.equal(s.images, corruptions.corrupt(plain.images, UNSEEN[0], 5, plain.ids))
    with pytest.raises(ValueError, match="choose 1 to 5"):
        SceneSpec(3, UNSEEN[0], 0)
    with pytest.raises(ValueError, match="unknown corruption"):
        corruptions.corrupt(plain.images, "cosine_noise", 1)


def test_each_says_its_formula():
    for name in UNSEEN:
        assert getattr(unseen, name).__doc__.startswith("x"), name
