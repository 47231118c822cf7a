"""CLIP's photographs: each data set in torchvision's layout, names and labels from its own files, CLIP's crop."""

import json
import shutil

import fake_hub
import numpy as np
import pytest
import torch
from PIL import Image

from gentta_utils.__main__ import main
from gentta_utils.streams import folders, open_vocabulary
from gentta_utils.streams.coop_splits import SPLIT_SETS, few_shots, read_split
from gentta_utils.streams.open_vocabulary import LABEL_SETS, SETS, PhotoSpec, label_set
from gentta_utils.streams.stream import stream
from gentta_utils.world.shifts import shifted

NAMED = {  # the second class of each, as it is asked
    "food101": "odd dish 01",
    "cifar100": "odd thing 01",
    "aircraft": "Odd 01-100",
    "pets": "Odd Breed B",
    "flowers": "hard-leaved pocket orchid",
    "imagenet": "goldfish",
} | dict.fromkeys(SPLIT_SETS, "Odd Kind 01")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return fake_hub.write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def root(photos, monkeypatch):
    fake_hub.checksums_of(photos, monkeypatch)
    open_vocabulary.photos_of.cache_clear()
    yield photos
    open_vocabulary.photos_of.cache_clear()


def one_sentence(error, *parts):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    for part in parts:
        assert part in str(error.value)


def path_of(name: str, root, i: int, k: int):
    return {
        "food101": root / "food-101" / "images" / f"odd_dish_{k:02d}" / f"{i}.jpg",
        "aircraft": root / "fgvc-aircraft-2013b" / "data" / "images" / f"{i:07d}.jpg",
        "pets": root / "oxford-iiit-pet" / "images" / f"odd_breed_{chr(97 + k)}_{i}.jpg",
        "flowers": root / "flowers-102" / "jpg" / f"image_{i + 1:05d}.jpg",
    }[name]


@pytest.mark.parametrize("name", SETS)
def test_an_image_has_its_own_label(root, name):
    """Read back from what the fakes were written with: picture i is of class i modulo 12."""
    n = 36 if name == "flowers" else 40  # four are in its other splits
    s = stream(PhotoSpec(name, str(root), n))
    assert len(s.ids.unique()) == n
    found = open_vocabulary.photos_of(name, root)
    assert (len(found), s.classes) == (n, None)
    first, label = (5 - 1 if name == "flowers" else 0), np.arange(40) % fake_hub.KINDS
    assert s.labels.bincount().tolist() == np.bincount(label[first:]).tolist()
    by_id = dict(zip(s.ids.tolist(), range(n), strict=True))
    for i in (first, 17, 39):
        k = int(label[i])
        called = i if name == "cifar100" else path_of(name, root, i, k).stem
        at = by_id[folders.id_of(f"{name}/{called}")]
        assert int(s.labels[at]) == k
        if name == "cifar100":
            image = Image.fromarray(found.data[i]).resize((224, 224), Image.Resampling.BICUBIC)
        else:
            image = Image.open(path_of(name, root, i, k)).convert("RGB")  # 100 x 80 or 80 x 100: 280 by 224
            wide = image.width > image.height
            image = image.resize((280, 224) if wide else (224, 280), Image.Resampling.BICUBIC)
            image = image.crop((28, 0, 252, 224) if wide else (0, 28, 224, 252))
        expected = torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)
        assert torch.equal(s.images[torch.tensor([at])][0], expected)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_names_and_wordings(root, name):
    asked = label_set(name, root)
    assert asked.classes[1] == NAMED[name]
    assert len(set(asked.classes)) == len(asked.classes)
    assert len(asked.classes) == {"flowers": 102, "imagenet": 1000}.get(name, fake_hub.KINDS)
    assert asked.templates[0] == "a photo of a {}."
    assert 1 <= len(set(asked.templates)) == len(asked.templates) <= 6
    assert asked.prompts()[1] == f"a photo of a {NAMED[name]}."
    for i, template in enumerate(asked.templates):
        assert template.count("{}") == 1
        assert asked.prompts(i) == [template.format(c) for c in asked.classes]


def test_no_name_has_marks_that_nobody_reads(root):
    names = [c for name in LABEL_SETS for c in label_set(name, root).classes]
    assert not [c for c in names if c != c.strip() or "_" in c or "?" in c]


def test_the_draw_and_the_shift(root):
    one, two = (PhotoSpec("pets", str(root), 6, seed=seed).load() for seed in (0, 1))
    assert one.ids.tolist() != two.ids.tolist()
    foggy = PhotoSpec("pets", str(root), 6, "fog", 5).load()
    assert torch.equal(foggy.ids, one.ids)
    rows = torch.arange(2)
    torch.testing.assert_close(foggy.images[rows], shifted(one.images[rows], "fog", 5, one.ids[:2], 0))
    assert foggy.about["corruptions"].startswith("in-memory")
    assert (foggy.about["labels"], foggy.about["shift"], foggy.about["size"]) == ("pets", "fog", 224)
    assert str(root) not in str(foggy.about)
    for n in (0, 41):
        with pytest.raises(
            ValueError, match=f"n={n} asked of 40 images of pets: choose 1 to 40" if n else "n=0: choose"
        ):
            PhotoSpec("pets", str(root), n).load()
    with pytest.raises(ValueError, match="'sketch' is for scenes"):
        PhotoSpec("pets", str(root), 6, "sketch").load()


def test_imagenets_images_keep_their_ids(tmp_path):
    (tmp_path / "ImageNet" / "val").mkdir(parents=True)
    for k, wnid in enumerate(folders.synsets()):
        (tmp_path / "ImageNet" / "val" / wnid).mkdir()
        if k == 0:
            path = tmp_path / "ImageNet" / "val" / wnid / "x.jpg"
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        else:
            (tmp_path / "ImageNet" / "val" / wnid / "x.jpg").hardlink_to(path)
    s, usual = PhotoSpec("imagenet", str(tmp_path), 9).load(), folders.FolderSpec("imagenet", str(tmp_path), 9).load()
    assert torch.equal(s.ids, usual.ids)
    assert torch.equal(s.labels, usual.labels)
    expected = folders.read_image(path, 224, 224, Image.Resampling.BICUBIC)
    assert torch.equal(s.images[torch.tensor([0])][0], expected)


# --- what is missing or damaged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_missing_data_sets_are_one_sentence(tmp_path, name):
    for call in (lambda: label_set(name, tmp_path), lambda: PhotoSpec(name, str(tmp_path), 2).load()):
        with pytest.raises(FileNotFoundError) as error:
            call()
        get = f"`python -m gentta_utils data {name} --root {tmp_path}`"
        one_sentence(error, f"no folder {tmp_path / SETS[name].folder}", get)
    (tmp_path / SETS[name].folder).mkdir()
    with pytest.raises(FileNotFoundError) as error:
        label_set(name, tmp_path)
    one_sentence(error, "is not whole", get)


@pytest.mark.parametrize("name", ["cifar100", "flowers"])
def test_other_files_than_torchvisions_are_not_read(photos, name):
    """What would be unpickled is held against its checksum first: the fakes are refused without theirs."""
    open_vocabulary.photos_of.cache_clear()
    with pytest.raises(FileNotFoundError, match="is not whole"):
        label_set(name, photos)


def test_lists_and_images_that_are_not_there(root, tmp_path):
    shutil.copytree(root / "food-101", tmp_path / "food-101")
    shutil.copytree(root / "oxford-iiit-pet", tmp_path / "oxford-iiit-pet")
    (tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("no list at all\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lists of images .* cannot be read") as error:
        label_set("pets", tmp_path)
    one_sentence(error, "gentta_utils data pets")
    gone = path_of("food101", tmp_path, 5, 5)
    gone.unlink()
    with pytest.raises(FileNotFoundError) as error:
        PhotoSpec("food101", str(tmp_path), 40).load()
    one_sentence(error, f"no image {gone}", "gentta_utils data food101")
    gone.write_bytes(b"half an image")
    s = PhotoSpec("food101", str(tmp_path), 40).load()
    with pytest.raises(ValueError, match="cannot be read as an image") as error:
        s.images[torch.arange(40)]
    one_sentence(error, str(gone))
    (tmp_path / "food-101" / "meta" / "test.json").write_text(json.dumps({}), encoding="utf-8")
    open_vocabulary.photos_of.cache_clear()
    with pytest.raises(ValueError, match="names no images"):
        PhotoSpec("food101", str(tmp_path), 1).load()


def test_unknown_sets(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'cats': choose one of food101, .*imagenet"):
        label_set("cats", tmp_path)
    with pytest.raises(ValueError, match="unknown data set 'cats'"):
        PhotoSpec("cats", str(tmp_path), 1).load()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_the_command_counts_what_is_there(root, tmp_path, capsys, name):
    assert main(["data", name, "--root", str(root)]) == 0
    n = 36 if name == "flowers" else 40
    expected = f"{name}: {n} images ({SETS[name].images} are expected) in {root / SETS[name].folder}\n"
    assert capsys.readouterr().out == expected
    assert main(["data", name, "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / SETS[name].folder) in out
    assert f"import {SETS[name].reader}; {SETS[name].reader}('{tmp_path}', " in out


# --- sets by CoOp's lists of images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_images_of_a_list_have_their_own_labels(root, name, capsys):
    s, how = PhotoSpec(name, str(root), 40).load(), SPLIT_SETS[name]
    paths, labels, _ = read_split(name, root)
    assert s.labels.bincount().tolist() == np.bincount(np.arange(40) % fake_hub.KINDS).tolist()
    by_id = dict(zip(s.ids.tolist(), range(40), strict=True))
    for i in (0, 17):
        at = by_id[folders.id_of(f"{name}/{paths[i].relative_to(root / how.folder)}")]
        assert int(s.labels[at]) == int(labels[i]) == i % fake_hub.KINDS
        expected = folders.read_image(paths[i], 224, 224, Image.Resampling.BICUBIC)
        assert torch.equal(s.images[torch.tensor([at])][0], expected)
    main(["data", name, "--root", str(root)])
    assert f"{name}: 40 images ({how.images} are expected) in {root / how.folder}" in capsys.readouterr().out


def test_a_few_labelled_images_of_each_class(root):
    paths, labels, _ = read_split("dtd", root, "train")
    assert len(paths) == 24
    assert few_shots(labels, 1).shape == (12,)
    chosen = few_shots(labels, 16)
    assert sorted(chosen.tolist()) == list(range(24))  # where there are fewer, all
    assert labels[few_shots(labels, 1, seed=3)].tolist() == list(range(12))
    assert few_shots(labels, 1, seed=3).tolist() != few_shots(labels, 1, seed=4).tolist()


@pytest.mark.parametrize("content", ["", "[]", '{"train": []}', '{"train": [["a", "b"]], "val": [], "test": []}'])
def test_a_list_that_is_missing_or_damaged_is_one_sentence(tmp_path, content):
    with pytest.raises(FileNotFoundError, match="data dtd --root") as error:
        PhotoSpec("dtd", str(tmp_path), 1).load()
    one_sentence(error, "split_zhou_DescribableTextures.json")
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="not CoOp's list of images") as error:
        PhotoSpec("dtd", str(tmp_path), 1).load()
    one_sentence(error)
    with pytest.raises(ValueError, match="choose one of caltech101"):
        read_split("dtd", tmp_path, "all")
