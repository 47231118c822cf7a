"""ADE20K and NYU Depth v2 from folders: crops, labels and metres, corruptions at their own size, what is refused."""

import shutil

import fake_hub
import numpy as np
import pytest
import torch
from PIL import Image

from gentta_utils.__main__ import main
from gentta_utils.streams import folders, photo_maps
from gentta_utils.streams.photo_maps import PhotoMapSpec, read_image, read_truth
from gentta_utils.streams.stream import stream
from gentta_utils.world.corruptions import corrupt
from gentta_utils.world.maps import VOID

SIDES = {"ade20k": 512, "nyu": 448}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_hub.write_maps(tmp_path_factory.mktemp("maps"))


@pytest.fixture
def own(root, tmp_path):
    """A copy to damage."""
    shutil.copytree(root, tmp_path / "own")
    return tmp_path / "own"


def spec(name, root, **changes):
    return PhotoMapSpec(**dict(dataset=name, root=str(root), n=2) | changes)


@pytest.mark.parametrize("name", SIDES)
def test_images_and_maps_are_cropped_alike(root, name):
    s, side = stream(spec(name, root, n=6)), SIDES[name]
    images = s.rows(torch.arange(6)).images
    assert images.shape == (6, 3, side, side)
    assert s.labels.shape == (6, side, side)
    assert len(set(s.ids.tolist())) == 6
    assert s.about["target"] == photo_maps.SETS[name].target
    assert "root" not in s.about
    for image, truth in photo_maps.listing(name, root):
        row = s.ids.tolist().index(int(spec_id(name, root, image)))
        assert torch.equal(s.labels[row], read_truth(name, truth, image))
        assert torch.equal(images[row], read_image(name, image))


def spec_id(name, root, image):
    at = root / photo_maps.SETS[name].folder
    return folders.id_of(f"{name}/{image.relative_to(at).with_suffix('')}")


def test_labels_begin_at_0_and_nothing_is_void(root):
    image, truth = photo_maps.listing("ade20k", root)[1]  # 683 x 512: no pixel is resized
    stored = np.asarray(Image.open(truth))[:, 86 : 86 + 512]
    found = read_truth("ade20k", truth, image)
    assert found.dtype == torch.uint8
    assert VOID == 255
    expected = np.where(stored == 0, 255, stored.astype(int) - 1)
    assert torch.equal(found.long(), torch.from_numpy(expected))
    assert set(found.unique().tolist()) <= {*range(150), VOID}
    pixels = np.asarray(Image.open(image))[:, 86 : 86 + 512]
    assert torch.equal(read_image("ade20k", image), folders.to_tensor(Image.fromarray(pixels)))


def test_labels_of_resized_images_are_labels(root):
    image, truth = photo_maps.listing("ade20k", root)[0]  # 300 x 400
    there = {(int(v) - 1) % 256 for v in np.unique(np.asarray(Image.open(truth)))}
    assert set(read_truth("ade20k", truth, image).unique().tolist()) <= there


def test_depth_is_metres_and_holes_take_the_nearest_pixel(root):
    image, truth = photo_maps.listing("nyu", root)[0]
    stored = np.asarray(Image.open(truth))[16:464, 96:544]
    found = read_truth("nyu", truth, image)
    assert found.dtype == torch.float32
    known = torch.from_numpy(stored > 0)
    assert (~known).sum() == 100
    torch.testing.assert_close(found[known], torch.from_numpy(stored / 1000).float()[known])
    assert found.min() >= 0.7
    assert found[184, 208] == found[183, 208]  # in the hole's first row, and the pixel above it
    pixels = np.asarray(Image.open(image))[16:464, 96:544]
    assert torch.equal(read_image("nyu", image), folders.to_tensor(Image.fromarray(pixels)))


@pytest.mark.parametrize("shift, severity", [("gaussian_noise", 3), ("fog", 5), ("elastic", 3), ("frost", 3)])
@pytest.mark.parametrize("name", SIDES)
def test_corruptions_are_made_at_the_size_that_is_seen(root, name, shift, severity):
    clean = stream(spec(name, root, n=1)).rows(torch.arange(1))
    s = stream(spec(name, root, n=1, shift=shift, severity=severity)).rows(torch.arange(1))
    assert torch.equal(s.ids, clean.ids)
    assert torch.equal(s.labels, clean.labels)
    assert torch.equal(s.images, corrupt(clean.images, shift, severity, clean.ids))
    assert not torch.equal(s.images, clean.images)
    assert s.about["corruptions"].startswith("in-memory")


def test_larger_images_have_the_constants_of_224_px():
    grey = torch.full((1, 3, 512, 512), 0.5)
    noisy = corrupt(grey, "gaussian_noise", 1)
    assert abs(float((noisy - grey).std()) - 0.08) < 2e-3
    with pytest.raises(ValueError, match="32, 64 or 224 to 512"):
        corrupt(torch.rand(1, 3, 513, 513), "gaussian_noise", 1)


def test_other_draws_and_other_seeds(root):
    a, b = (stream(spec("ade20k", root, n=3, seed=seed)).ids.tolist() for seed in (0, 1))
    assert a != b
    assert a == spec("ade20k", root, n=3).load().ids.tolist()
    few = stream(spec("ade20k", root, n=2)).ids.tolist()
    assert few == a[:2]  # the first of the same order


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dataset="cityscapes"), "unknown data set 'cityscapes': choose one of ade20k, nyu"),
        (dict(n=0), "n=0: choose a whole number above 0"),
        (dict(shift="mist"), "unknown shift 'mist'"),
        (dict(shift="fog"), "choose 1 to 5 for fog"),
        (dict(severity=2), "clean has none"),
        (dict(shift="a"), "'a' is for scenes"),
    ],
)
def test_wrong_specs(root, changes, message):
    with pytest.raises(ValueError, match=message):
        spec("ade20k", root, **changes)


@pytest.mark.parametrize("name", SIDES)
def test_missing_files(tmp_path, own, name):
    with pytest.raises(FileNotFoundError, match=rf"no folder .*: `python -m gentta_utils data {name} --root"):
        spec(name, tmp_path / "nothing").load()
    with pytest.raises(ValueError, match="n=7 asked of 6 images"):
        spec(name, own, n=7).load()
    image, truth = photo_maps.listing(name, own)[0]
    truth.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 6 images in .* have no map, such as .*data"):
        spec(name, own).load()
    shutil.copy(image, image.with_suffix(".jpeg"))
    with pytest.raises(ValueError, match="holds an image twice"):
        photo_maps.listing(name, own)
    for path in image.parent.parent.rglob("*.jp*g"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        photo_maps.listing(name, own)


def refused(name, root, message):
    with pytest.raises(ValueError, match=message) as error:
        spec(name, root, n=6).load().rows(torch.arange(6))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SIDES)
def test_damaged_files(own, name):
    image, truth = photo_maps.listing(name, own)[2]
    kept = truth.read_bytes()
    truth.write_bytes(kept[:200])
    refused(name, own, r"png cannot be read as an image .*: get it again")
    truth.write_bytes(kept)
    whole = Image.open(image).copy()
    image.write_bytes(image.read_bytes()[:200])
    refused(name, own, r"jpg cannot be read as an image")
    whole.resize((500, 460)).save(image)
    refused(name, own, r"pixels and its image \(500, 460\)")


def test_maps_of_another_kind(own):
    image, truth = photo_maps.listing("ade20k", own)[0]
    labels = np.asarray(Image.open(truth))
    Image.fromarray(np.full_like(labels, 151)).save(truth)
    refused("ade20k", own, "a label of 151, not labels up to 150: take the scene parsing benchmark")
    Image.fromarray(labels).convert("RGB").save(truth)
    refused("ade20k", own, "pixels of kind 'RGB', not labels")
    image, truth = photo_maps.listing("nyu", own)[0]
    depth = np.asarray(Image.open(truth))
    Image.fromarray((depth // 256).astype(np.uint8)).save(truth)
    refused("nyu", own, "kind 'L', not of 16 bits: save depth in whole millimetres")
    Image.fromarray(np.zeros_like(depth)).save(truth)
    refused("nyu", own, "has no depth anywhere in the middle")
    for path in (image, truth):
        Image.open(path).resize((320, 240)).save(path)
    refused("nyu", own, "320 x 240 pixels, fewer than 448 x 448: take the originals")


@pytest.mark.parametrize("name", SIDES)
def test_the_data_command_counts_them_or_says_how_to_get_them(root, tmp_path, capsys, name):
    assert main(["data", name, "--root", str(root)]) == 0
    assert f"{name}: 6 images ({photo_maps.SETS[name].images} are expected)" in capsys.readouterr().out
    assert main(["data", name, "--root", str(tmp_path)]) == 0
    assert f"{tmp_path}/{photo_maps.SETS[name].folder}" in capsys.readouterr().out
