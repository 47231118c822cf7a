"""Streams from folders: labels by name, the published crop, every bad input one sentence; the orders of streams."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from conftest import make_classifier
from PIL import Image

from gentta_utils.evaluation import evaluate, statistics
from gentta_utils.methods import source
from gentta_utils.methods.base import Models
from gentta_utils.streams import folders
from gentta_utils.streams import stream as streams_stream
from gentta_utils.streams.folders import FolderSpec, class_indices, first_of_each, listing, read_image, synsets
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Lazy, Stream, correlated, gradual, iid, mixed, stream
from gentta_utils.world.shifts import shifted
from gentta_utils.world.watermark import watermark


def picture(path, width=20, height=24, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(path)
    return path


def fill(folder, names, content, files=("x.JPEG",)):
    for name in names:
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).write_bytes(content)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tiny images in the layouts of the real sets."""
    root = tmp_path_factory.mktemp("data")
    content = picture(root / "one.jpg", 70, 90).read_bytes()
    stored = picture(root / "two.jpg", 16, 16, seed=1).read_bytes()
    fill(root / "imagenet-a", synsets("imagenet_a"), content, ("b.jpg", "a.jpg", "c.jpg"))
    fill(root / "ImageNet" / "val", synsets(), content)
    fill(root / "imagenetv2-matched-frequency-format-val", map(str, range(1000)), content, ("x.jpeg",))
    fill(root / "ImageNet-C" / "elastic_transform" / "2", synsets(), stored)
    (root / "imagenet-a" / "README.txt").write_text("not a class", encoding="utf-8")
    (root / "imagenet-a" / "n01498041" / "._a.jpg").write_text("not an image", encoding="utf-8")
    return root


# --- which folder is which class -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset, digest",
    [("imagenet-a", "b7195746e4bb4fd17bda307263f85254"), ("imagenet-r", "8fdd25b10b7917df04a3f20fde8f7ae5")],
)
def test_subsets_are_the_published_indices(dataset, digest):
    indices = class_indices(dataset)
    assert len(indices) == 200
    assert list(indices) == sorted(indices)
    assert hashlib.md5(" ".join(map(str, indices)).encode()).hexdigest() == digest


def test_a_folder_of_the_subset_is_its_class(root):
    found = listing("imagenet-a", root)
    assert len(found.paths) == 600
    for path, label in zip(found.paths, found.labels.tolist(), strict=True):
        assert synsets()[found.classes[label]] == path.parent.name
    assert [p.name for p in found.paths[:3]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.labels.bincount().tolist() == [3] * 200


def test_numbers_are_read_as_numbers(root):
    found = listing("imagenet-v2", root)
    assert found.classes is None
    assert [int(p.parent.name) for p in found.paths] == found.labels.tolist() == list(range(1000))


def test_corrupted_files_keep_the_ids_of_their_originals(root):
    clean, bent = listing("imagenet", root), listing("imagenet-c", root, "elastic", 2)
    assert bent.paths[5].parent.parent.parent.name == "elastic_transform"
    assert torch.equal(clean.ids, bent.ids)
    assert torch.equal(clean.labels, bent.labels)
    assert len(clean.ids.unique()) == 1000
    for wrong in (("clean", 0), ("elastic", 6), ("elastic_transform", 2)):
        with pytest.raises(ValueError, match="choose 1 to 5"):
            listing("imagenet-c", root, *wrong)


def test_ids_do_not_depend_on_what_else_is_there(root, tmp_path):
    shutil.copytree(root / "imagenet-a", tmp_path / "imagenet-a")
    (tmp_path / "imagenet-a" / "n01498041" / "a.jpg").unlink()
    assert torch.equal(listing("imagenet-a", tmp_path).ids, listing("imagenet-a", root).ids[1:])


def test_sketch_with_the_extra_level(root, tmp_path):
    fill(tmp_path / "ImageNet-Sketch" / "images", synsets(), b"")
    assert len(listing("imagenet-sketch", tmp_path).paths) == 1000


# --- bad folders -----------------------------------------------------------------------------------------------------


def one_sentence(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*gentta_utils data imagenet-a --root") as error:
        listing("imagenet-a", tmp_path)
    one_sentence(error)
    (tmp_path / "imagenet-a").mkdir()
    with pytest.raises(ValueError, match="holds no images") as error:
        listing("imagenet-a", tmp_path)
    one_sentence(error)
    picture(tmp_path / "imagenet-a" / "flat.jpg")
    with pytest.raises(ValueError, match="images but no class folders"):
        listing("imagenet-a", tmp_path)
    with pytest.raises(ValueError, match="unknown data set 'imagenet-q'"):
        listing("imagenet-q", tmp_path)


def test_an_empty_class(root, tmp_path):
    shutil.copytree(root / "imagenet-a", tmp_path / "imagenet-a")
    for image in (tmp_path / "imagenet-a" / "n01531178").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="n01531178 holds no images") as error:
        listing("imagenet-a", tmp_path)
    one_sentence(error)


def test_wrong_class_lists(root, tmp_path):
    shutil.copytree(root / "imagenet-a", tmp_path / "imagenet-r")
    with pytest.raises(ValueError, match=r"is not imagenet-r: 114 of its 200 folders") as error:
        listing("imagenet-r", tmp_path)
    one_sentence(error)
    fill(tmp_path / "ImageNet" / "val", synsets()[:7], b"")
    with pytest.raises(ValueError, match="993 of 1000 classes") as error:
        listing("imagenet", tmp_path)
    one_sentence(error)


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height", [(61, 40), (40, 61), (41, 41), (224, 33)])
def test_the_crop_is_torchvisions(tmp_path, width, height):
    from torchvision import transforms as T

    path = picture(tmp_path / "x.png", width, height)
    theirs = T.Compose([T.Resize(36), T.CenterCrop(32), T.ToTensor()])(Image.open(path).convert("RGB"))
    assert torch.equal(read_image(path, 32, 36), theirs)


def test_stored_crops_are_taken_as_they_are(tmp_path):
    path = picture(tmp_path / "x.png", 16, 16)
    ours = read_image(path, 16, None)
    assert torch.equal(ours, torch.from_numpy(np.array(Image.open(path)) / np.float32(255)).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"16 x 16 pixels where 224 x 224 are stored: set size=16") as error:
        read_image(path, 224, None)
    one_sentence(error)


def test_grey_and_16_bit_become_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "16.png")
    with Image.open(tmp_path / "16.png") as file:
        assert file.mode.startswith("I")  # the test of the test: Pillow does see 16 bits
    deep = read_image(tmp_path / "16.png", 16, None)
    assert (deep[0] - torch.from_numpy(ramp / 65535)).abs().max() < 0.003  # scaled, not cut off
    Image.fromarray((ramp / 257).astype(np.uint8)).save(tmp_path / "8.png")
    grey = read_image(tmp_path / "8.png", 16, None)
    for image in (deep, grey):
        assert image.shape == (3, 16, 16)
        assert image.dtype == torch.float32
        assert torch.equal(image[0], image[2])
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert (deep - grey).abs().max() < 0.005


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_other_kinds_of_pixels_become_rgb(tmp_path, mode):
    plain = Image.open(picture(tmp_path / "x.png", 16, 16, seed=2)).convert("L").convert("RGB")
    path = tmp_path / ("y.jpg" if mode == "CMYK" else "y.png")
    plain.convert(mode).save(path)
    image = read_image(path, 16, None)
    expected = plain.convert(mode).convert("RGB")
    assert (image - torch.from_numpy(np.array(expected) / 255).permute(2, 0, 1)).abs().mean() < 0.1


def test_transparent_palettes(tmp_path):
    image = Image.open(picture(tmp_path / "x.png", 16, 16)).convert("P")
    image.save(tmp_path / "y.png", transparency=bytes([0] * 256))
    assert read_image(tmp_path / "y.png", 16, None).shape == (3, 16, 16)


def test_unknown_ranges_are_refused(tmp_path):
    Image.fromarray(np.ones((16, 16), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="kind 'F', whose range nobody knows") as error:
        read_image(tmp_path / "x.tiff", 16, None)
    one_sentence(error)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_damaged_files_are_named(tmp_path, suffix, share):
    path = picture(tmp_path / f"x.{suffix}", 64, 64)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"x\.{suffix} cannot be read as an image") as error:
        read_image(path)
    one_sentence(error)


def test_one_pixel_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 x 1 pixels, too few") as error:
        read_image(picture(tmp_path / "x.png", 1, 1, "L"))
    one_sentence(error)


# --- streams ---------------------------------------------------------------------------------------------------------


def spec(root, dataset="imagenet-a", **changes):
    return FolderSpec(dataset, str(root), **(dict(size=16, resize=17) | changes))


def test_a_stream_reads_only_what_is_asked_for(root, monkeypatch):
    read = []
    monkeypatch.setattr(
        folders, "read_image", lambda path, *a: read.append(path) or torch.full((3, 16, 16), len(read) / 9)
    )
    s = stream(spec(root, n=50, seed=3))
    assert len(s) == 50
    assert s.classes == class_indices("imagenet-a")
    assert read == []
    part = s.rows(torch.tensor([4, 2]))
    assert len(read) == 2
    assert part.images.shape == (2, 3, 16, 16)
    wnids = [synsets()[s.classes[k]] for k in part.labels.tolist()]
    assert [p.parent.name for p in read] == wnids
    assert torch.equal(part.ids, s.ids[[4, 2]])
    assert s.order == "iid"
    assert s.labels.tolist() != s.labels.sort().values.tolist()


def test_draws_are_nested_and_seeded(root):
    ten, all_ = stream(spec(root, n=10)), stream(spec(root))
    assert len(all_) == 600
    assert torch.equal(ten.ids, all_.ids[:10])
    assert not torch.equal(ten.ids, stream(spec(root, n=10, seed=1)).ids)
    two = stream(spec(root, per_class=2))
    assert two.labels.bincount().tolist() == [2] * 200
    with pytest.raises(ValueError, match="n=601 asked of 600"):
        stream(spec(root, n=601))
    assert first_of_each(torch.tensor([0, 0, 0, 2, 2]), 2).tolist() == [0, 1, 3, 4]


def test_shifts_in_memory_and_from_files(root):
    clean = stream(spec(root, "imagenet", n=3, size=64, resize=66))
    rows = torch.arange(3)
    for shift, severity in (("fog", 3), ("watermark", 0)):
        other = stream(spec(root, "imagenet", n=3, size=64, resize=66, shift=shift, severity=severity))
        expected = shifted(clean.images[:], shift, severity, clean.ids)
        assert torch.equal(other.rows(rows).images, expected)
    assert torch.equal(expected, watermark(clean.images[:]))
    stored = stream(spec(root, "imagenet-c", n=3, shift="elastic", severity=2))
    assert torch.equal(stored.rows(rows).images[0], read_image(root / "two.jpg", 16, None))
    assert stored.about["corruptions"] == "files"
    assert clean.about["corruptions"].startswith("in-memory")
    assert str(root) not in str(stored.about)
    with pytest.raises(ValueError, match="on disk it is a data set"):
        stream(spec(root, "imagenet", shift="r"))
    with pytest.raises(ValueError, match="crop would leave the image"):
        stream(spec(root, resize=15))


def test_one_geometry_for_clean_images_and_stored_corruptions_or_it_is_said(root):
    """ImageNet-C was cropped from 256: by default clean images are too, and another `resize` stands in the protocol."""
    assert FolderSpec("imagenet", "").resize == folders.STORED_RESIZE == 256
    clean = stream(FolderSpec("imagenet", str(root), n=2))
    own = stream(FolderSpec("imagenet", str(root), n=2, resize=248))
    stored = stream(FolderSpec("imagenet-c", str(root), n=2, size=16, resize=17, shift="elastic", severity=2))
    assert stored.about["resize"] == 256  # what the files were made with, whatever was asked for
    assert not torch.equal(clean.images[:], own.images[:])
    runs = [evaluate.run(source.configure(Models(make_classifier(1000, 224))), s) for s in (clean, own)]
    assert " resize=256 " in statistics.protocol_line(runs[:1])
    assert "two geometries" not in statistics.protocol_line(runs[:1])
    assert " resize=248|256 (two geometries" in statistics.protocol_line(runs)


def test_a_damaged_file_in_a_stream_is_named(root, tmp_path):
    shutil.copytree(root / "imagenet-a", tmp_path / "imagenet-a")
    for path in (tmp_path / "imagenet-a").rglob("*.jpg"):
        path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        stream(spec(tmp_path)).rows(torch.tensor([0]))


def test_methods_run_on_folders(root):
    s = stream(spec(root, n=5))
    models = Models(make_classifier(1000)).restrict(s.classes)
    records = evaluate.run(source.configure(models), s, batch=2)
    assert records.label.tolist() == s.labels.tolist()
    assert records.before.shape == (5, 200)
    assert "stream=iid" in statistics.protocol_line([records])
    assert "split=imagenet-a" in statistics.protocol_line([records])


# --- orders ----------------------------------------------------------------------------------------------------------


def numbers(n, severity=1, shift="fog", lazy=False, start=0):
    """A stream whose images hold their ids."""
    ids = torch.arange(start, start + n)
    images = ids.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    images = Lazy(lambda rows: images_of[rows], torch.arange(n)) if lazy else images
    images_of = ids.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Stream(images, ids % 3, ids, {"shift": shift, "severity": severity, "n": n})


def consistent(s):
    rows = s.rows(torch.arange(len(s)))
    assert rows.images[:, 0, 0, 0].tolist() == s.ids.tolist()
    assert (s.ids % 3).tolist() == s.labels.tolist()


@pytest.mark.parametrize("lazy", [False, True])
def test_iid_and_correlated(lazy):
    s = numbers(30, lazy=lazy)
    shuffled, again, other = iid(s), iid(s), iid(s, seed=1)
    assert sorted(shuffled.ids.tolist()) == list(range(30))
    assert torch.equal(shuffled.ids, again.ids)
    assert not torch.equal(shuffled.ids, other.ids)
    by_class = correlated(shuffled)
    assert by_class.labels.tolist() == sorted(s.labels.tolist())
    assert by_class.order == "correlated"
    assert by_class.ids[:10].tolist() != sorted(by_class.ids[:10].tolist())  # within a class as it was
    for each in (shuffled, by_class):
        consistent(each)


def test_mixed_never_repeats_a_shift():
    parts = [numbers(4, shift=name, start=100 * i, lazy=i == 1) for i, name in enumerate(("fog", "snow", "jpeg"))]
    s = mixed(parts)
    shift = (s.ids // 100).tolist()
    assert all(a != b for a, b in zip(shift, shift[1:]))
    assert s.ids.tolist() == [0, 100, 200, 1, 101, 201, 2, 102, 202, 3, 103, 203]
    assert s.order == "mixed"
    assert s.about == {"shift": ["fog", "snow", "jpeg"], "severity": 1, "n": 4}
    consistent(s)
    sorted_ = mixed([correlated(p) for p in parts])
    assert sorted_.order == "mixed+correlated"
    consistent(sorted_)
    with pytest.raises(ValueError, match="one length"):
        mixed([numbers(3), numbers(4)])
    with pytest.raises(ValueError, match="one length"):
        mixed([])


def test_gradual_rises_and_falls():
    s = gradual([numbers(3, severity=k, start=100 * k) for k in (1, 2, 3)])
    assert (s.ids // 100).tolist() == [1, 1, 2, 2, 3, 3, 3, 2, 1]
    assert sorted(s.ids.tolist()) == [100, 101, 102, 200, 201, 202, 300, 301, 302]
    assert s.about["severity"] == [1, 2, 3]
    consistent(s)
    consistent(gradual([numbers(3)]))
    for wrong in ([numbers(2, 2), numbers(2, 1)], [numbers(2, 1), numbers(2, 1)], []):
        with pytest.raises(ValueError, match="rising severity"):
            gradual(wrong)


def test_streams_of_different_classes_do_not_mix(root):
    with pytest.raises(ValueError, match="labels do not mean the same"):
        mixed([stream(spec(root, n=4)), numbers(4)])


def test_scenes_in_orders(tiny):
    parts = [stream(SceneSpec(4, "speckle_noise", k, "select", 10 * k)) for k in (1, 3)]
    s = gradual(parts)
    assert torch.equal(s.rows(torch.tensor([0])).images, parts[0].images[:1])
    images = torch.nn.functional.avg_pool2d(s.images[:], 4)
    small = streams_stream.replace(s, images=images, labels=s.labels % 4)
    records = evaluate.run(source.configure(tiny), small)
    assert "stream=gradual" in statistics.protocol_line([records])
