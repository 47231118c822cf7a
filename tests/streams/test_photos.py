"""Photographs inside the pinned packages: licences, labels, and 224 px code on real pixels."""

import json

import pytest
import torch
from PIL import Image

from gentta_utils.__main__ import main
from gentta_utils.streams import folders, photos
from gentta_utils.streams.stream import stream
from gentta_utils.world.corruptions import corrupt
from gentta_utils.world.severities import ALL

CHELSEA = next(p for p in photos.PHOTOS if p.name == "chelsea")


def test_the_command_copies_them_with_labels_and_licences(tmp_path, capsys):
    for _ in range(2):  # again changes nothing
        assert main(["data", "photos", "--root", str(tmp_path)]) == 0
    assert f"photos: 8 images, their labels and licences in {tmp_path / 'photos'}" in capsys.readouterr().out
    listed = json.loads((tmp_path / "photos" / "photos.json").read_text(encoding="utf-8"))
    assert {p.name for p in (tmp_path / "photos").iterdir()} == {*listed, "photos.json"}
    assert listed["chelsea.png"]["classes"] == [281, 282, 285]
    for name, about in listed.items():
        assert about["licence"].startswith(("public domain", "CC0", "CC BY 2.0")), name
        assert about["stated"], name
        assert (tmp_path / "photos" / name).stat().st_size > 10_000


def test_no_class_is_a_right_answer_to_two_of_them():
    accepted = [k for p in photos.PHOTOS for k in p.classes]
    assert len(accepted) == len(set(accepted)) >= len(photos.PHOTOS)


def test_a_package_without_the_file_is_one_sentence():
    gone = photos.Photo("gone", "skimage", "data/gone.png", ("tabby",), "CC0", "nowhere")
    with pytest.raises(FileNotFoundError, match=r"gone.png: run `pip install -c constraints.txt -e .`"):
        photos.opened(gone)


def test_data_readme_lists_every_one():
    from gentta_utils.common.paths import DATA

    text = (DATA / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for p in photos.PHOTOS:
        assert p.licence.partition(",")[0] in rows[p.name], p.name
        assert ", ".join(p.accepted) in rows[p.name], p.name


# --- as timm reads them ----------------------------------------------------------------------------------------------


def turned(path) -> None:
    """A JPEG that a camera held sideways would write: the pixels lie, the file says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photos.opened(CHELSEA).save(path, exif=exif, quality=95)


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_read_as_by_timms_transforms(tmp_path, crop_pct, interpolation):
    """In colour, grey, and turned by EXIF, which neither of the two looks at."""
    from timm.data import create_transform

    turned(tmp_path / "turned.jpg")
    paths = [p.path for p in photos.PHOTOS if p.name in ("astronaut", "camera", "hopper", "china")]
    theirs = create_transform(
        224, crop_pct=crop_pct, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3, is_training=False
    )
    for path in [*paths, tmp_path / "turned.jpg"]:
        with Image.open(path) as image:
            expected = theirs(image.convert("RGB"))
        how = getattr(Image.Resampling, interpolation.upper())
        assert torch.equal(folders.read_image(path, 224, int(224 / crop_pct), how), expected), path.name


def test_a_grey_photograph_has_three_equal_channels():
    camera = next(p for p in photos.PHOTOS if p.name == "camera")
    image = folders.read_image(camera.path)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    assert image.std() > 0.1


# --- crops and corruptions -------------------------------------------------------------------------------------------


def test_crops_are_drawn_by_seed_and_number():
    first, again = photos.CropSpec(2).load(), photos.CropSpec(3).load()
    assert (len(first), first.images.shape[1:]) == (16, (3, 224, 224))
    for i, image in zip(first.ids.tolist(), first.images):  # crops of fewer are crops of more
        (at,) = (again.ids == i).nonzero()[:, 0].tolist()
        assert torch.equal(again.images[at], image)
    assert len({image.numpy().tobytes() for image in again.images}) == 24
    other = photos.CropSpec(2, seed=1).load()
    assert not torch.equal(other.images[0], first.images[(first.ids == other.ids[0]).nonzero()[0, 0]])
    assert set(first.labels.tolist()) == {p.classes[0] for p in photos.PHOTOS}


def test_corrupted_crops_are_the_clean_ones_corrupted():
    clean, dark = stream(photos.CropSpec(1)), stream(photos.CropSpec(1, "contrast", 5))
    assert torch.equal(clean.ids, dark.ids)
    assert torch.equal(corrupt(clean.images, "contrast", 5, clean.ids), dark.images)
    assert dark.images.std() < 0.5 * clean.images.std()


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(crops=0), "crops"),
        (dict(crops=2.0), "crops"),
        (dict(crops=1, shift="fogg"), "unknown shift 'fogg'"),
        (dict(crops=1, shift="fog", severity=6), "severity=6"),
        (dict(crops=1, severity=3), "clean has none"),
        (dict(crops=1, shift="r"), "is for scenes"),
    ],
)
def test_wrong_specs_are_one_sentence(wrong, says):
    with pytest.raises(ValueError, match=says):
        photos.CropSpec(**wrong)


@pytest.mark.parametrize("name", ALL)
def test_corruptions_change_real_pixels_and_more_at_higher_severity(name):
    image = photos.crop(CHELSEA, 0)[None]
    mild, strong = (corrupt(image, name, severity) for severity in (1, 5))
    for made in (mild, strong):
        assert made.shape == image.shape
        assert torch.equal(made, (made * 255).round() / 255)
        assert 0 <= made.min() <= made.max() <= 1
    errors = [float((made - image).square().mean().sqrt()) for made in (mild, strong)]
    assert min(errors) > 0.002
    if name not in ("frost", "elastic"):  # a drawn layer, and a warp: other pixels, not more wrong ones
        assert errors[0] < errors[1]
