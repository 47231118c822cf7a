"""What stands in folders beside images, specs that are wrong, and the first of many scenes."""

import hashlib
import os
import shutil

import pytest
import torch
from PIL import Image

from gentta_utils.__main__ import main
from gentta_utils.course.profiles import NATURAL, profile
from gentta_utils.streams import downloads, folders
from gentta_utils.streams.folders import FolderSpec, listing, read_image, synsets
from gentta_utils.streams.open_vocabulary import PhotoSpec
from gentta_utils.streams.scenes import COLOUR_BLIND, SceneSpec
from gentta_utils.world import corruptions, renditions, severities
from gentta_utils.world.words import LABEL_SETS


@pytest.fixture
def root(tmp_path):
    """One tiny image for each class of ImageNet-A."""
    Image.new("RGB", (20, 20)).save(tmp_path / "one.jpg")
    for wnid in synsets("imagenet_a"):
        (tmp_path / "imagenet-a" / wnid).mkdir(parents=True)
        os.link(tmp_path / "one.jpg", tmp_path / "imagenet-a" / wnid / "x.jpg")
    return tmp_path


def a_class(root):
    return root / "imagenet-a" / synsets("imagenet_a")[0]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_what_systems_leave_is_passed_over_in_one_line(root, capsys):
    before = listing("imagenet-a", root)
    for name in folders.NOT_CLASSES:
        (root / "imagenet-a" / name).mkdir()
    after = listing("imagenet-a", root)
    assert after.paths == before.paths
    assert len(set(after.labels.tolist())) == 200
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert all(name in said for name in folders.NOT_CLASSES)


def test_two_images_of_one_name_are_refused(root):
    shutil.copy(root / "one.jpg", a_class(root) / "x.JPEG")
    with pytest.raises(ValueError, match=r"holds 2 images 'x': delete all but one"):
        listing("imagenet-a", root)


def test_a_pipe_is_refused_and_not_waited_for(root):
    os.mkfifo(a_class(root) / "y.jpg")
    with pytest.raises(ValueError, match=r"'y.jpg' in .* is no file"):
        listing("imagenet-a", root)


@pytest.mark.parametrize("what", ["folder", "link to nothing"])
def test_so_is_whatever_else_is_no_file(root, what):
    path = a_class(root) / "y.jpg"
    path.mkdir() if what == "folder" else path.symlink_to(root / "none")
    with pytest.raises(ValueError, match=r"'y.jpg' in .* is no file"):
        listing("imagenet-a", root)


def test_a_name_in_another_encoding_is_refused(root):
    try:
        shutil.copy(root / "one.jpg", os.fsencode(a_class(root)) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    with pytest.raises(ValueError, match=r"is a name in another encoding than UTF-8: rename it") as error:
        listing("imagenet-a", root)
    str(error.value).encode()


def test_images_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    Image.new("L", (8, 60_000)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match=r"long.png has 8 x 60000 pixels, too long and narrow"):
        read_image(tmp_path / "long.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb.png cannot be read as an image \(.*decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_the_advice_about_half_a_data_set_helps(root, monkeypatch, capsys):
    shutil.rmtree(a_class(root))
    assert main(["data", "imagenet-a", "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert f"move {root / 'imagenet-a'} away; then `python -m gentta_utils data imagenet-a" in error


def test_an_archive_that_is_there_whole_is_not_fetched_again(tmp_path, monkeypatch):
    path = tmp_path / "x.tar"
    path.write_bytes(b"whole")
    asked = []
    monkeypatch.setattr(downloads, "_receive", lambda *args: asked.append(args) or 0)
    downloads.fetch("http://nowhere/x.tar", path, hashlib.md5(b"whole").hexdigest())
    assert not asked
    path.with_name("x.tar.part").write_bytes(b"other")
    downloads.fetch("http://nowhere/x.tar", path, hashlib.md5(b"other").hexdigest())  # of another content: fetched
    assert asked
    assert path.read_bytes() == b"other"


# --- specs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(shift="fogg"), "unknown shift 'fogg': choose one of clean, "),
        (dict(shift="clean", severity=3), "severity=3: clean has none"),
        (dict(shift="fog"), "severity=0: choose 1 to 5 for fog"),
        (dict(shift="fog", severity=5, size=200), "size=200: fog has constants for 32, 64, 224 pixels"),
        (dict(shift="sketch"), "'sketch' is for scenes"),
        (dict(shift="fog", severity=True), "severity=True: choose a whole number"),
        (dict(shift="fog", severity=5.0), "severity=5.0: choose a whole number"),
        (dict(shift="fog", severity="5"), "severity='5': choose a whole number"),
        (dict(dataset="imagenet-q"), "unknown data set 'imagenet-q': choose one of imagenet, "),
        (dict(dataset="imagenet-c"), "imagenet-c has no 'clean' of severity 0"),
        (dict(dataset="imagenet-c", shift="fog", severity=True), "severity=True"),
        (dict(n=0), "n=0: choose a whole number above 0"),
        (dict(n=2.5), "n=2.5: choose"),
        (dict(per_class=-1), "per_class=-1: choose"),
        (dict(size=0), "size=0: choose"),
        (dict(size=300), "resize=256 is smaller than size=300"),
        (dict(seed="a"), "seed='a': choose"),
    ],
)
def test_folder_specs_are_checked_before_any_file_is_looked_at(changes, says):
    with pytest.raises(ValueError) as error:
        FolderSpec(**dict(dataset="imagenet", root="none") | changes)
    assert says in str(error.value)


@pytest.mark.parametrize("changes", [dict(dataset="none"), dict(dataset="imagenet-c"), dict(shift="fogg"), dict(n=0)])
def test_photo_specs_too(changes):
    with pytest.raises(ValueError, match="choose"):
        PhotoSpec(**dict(dataset="pets", root="none", n=2) | changes)


@pytest.mark.parametrize("severity", [True, 0, 6, -1])
def test_a_profile_refuses_a_wrong_severity_in_one_sentence(severity, tmp_path):
    for name in ("scenes", "imagenet"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"severity"):
            profile(name, str(tmp_path)).stream(2, "fog", severity)


def test_a_new_rendition_is_no_data_set_that_nobody_has(monkeypatch):
    assert {name: f"imagenet-{name}" for name in ("v2", "a", "r", "sketch", "stylized")} == NATURAL
    monkeypatch.setattr(renditions, "SHIFTS", (*renditions.SHIFTS, "negative"))
    with pytest.raises(ValueError, match="shift 'negative' is for scenes"):
        profile("imagenet", "none").stream(2, "negative")


def test_a_corruption_without_constants_of_a_size_says_so(monkeypatch):
    monkeypatch.setitem(severities.CONSTANTS, 32, {})
    with pytest.raises(ValueError, match="fog has no constants for 32 px: add them to CONSTANTS"):
        corruptions.corrupt(torch.rand(1, 3, 32, 32), "fog", 3)
    with pytest.raises(ValueError, match="size=32: fog has constants for 64, 224 pixels"):
        FolderSpec("imagenet", "none", shift="fog", severity=3, size=32)


# --- the first k of n are those of n = k -----------------------------------------------------------------------------

KINDS = [SceneSpec(4, labels=name) for name in LABEL_SETS]
KINDS += [SceneSpec(4, "fog", 3), SceneSpec(4, "elastic", 5, "select", 7, 2), SceneSpec(4, "watermark")]
KINDS += [SceneSpec(4, shift) for shift in (*COLOUR_BLIND, "v2")]


@pytest.mark.parametrize("spec", KINDS, ids=lambda s: f"{s.shift} {s.labels}")
def test_the_first_scenes_are_those_of_a_shorter_stream(spec):
    whole = spec.load()
    for k in (1, 2):
        few = SceneSpec(**vars(spec) | {"n": k}).load()
        assert torch.equal(few.ids, whole.ids[:k])
        assert torch.equal(few.labels, whole.labels[:k])
        torch.testing.assert_close(few.images, whole.images[:k], rtol=0, atol=1e-6)


def test_counts_of_one_and_two_scenes():
    assert SceneSpec(1, labels="count").load().labels.tolist() == [2]
    assert SceneSpec(2, labels="count").load().labels.tolist() == [2, 0]
