"""Shipped views: they come back for the images that they are of, and for no others."""

import pytest
import torch

from gentta_utils.course import drawn
from gentta_utils.course.drawn import Drawn, ship, shipped
from gentta_utils.streams.scenes import SceneSpec


@pytest.fixture
def sheet(monkeypatch, tmp_path):
    """Views of two scenes: each a flat grey of its own."""

    def made(images, ids, n, *_):
        grey = torch.arange(len(ids) * n).view(-1, n, 1, 1, 1) * 10 + 20
        return drawn.Generated(ids, grey.expand(-1, -1, 3, 64, 64).byte(), {}, 0.25, 40)

    monkeypatch.setattr(drawn, "generated", made)
    monkeypatch.setattr(drawn, "SHIPPED", tmp_path / "variations.webp")
    drawn._tiles.cache_clear()
    s = SceneSpec(2, "far", start=60_950).load()
    ship(Drawn("image_to_image"), s.images, s.ids, 3)
    yield s
    drawn._tiles.cache_clear()


def test_they_come_back_in_any_order(sheet):
    found = shipped(Drawn("image_to_image"), sheet.images.flip(0), sheet.ids.flip(0), 2)
    assert (found.seconds, found.nfe) == (0.25, 40)
    wanted = torch.tensor([[50, 60], [20, 30]])
    assert (found.images.float().mean((2, 3, 4)) - wanted).abs().max() < 2


def test_of_other_images_generators_or_numbers_there_are_none(sheet):
    clean = SceneSpec(2, start=60_950).load()
    assert torch.equal(clean.ids, sheet.ids)
    usual = Drawn("image_to_image")
    assert shipped(usual, clean.images, clean.ids, 2) is None
    assert shipped(usual, sheet.images, sheet.ids + 1, 2) is None
    assert shipped(usual, sheet.images, sheet.ids, 4) is None
    assert shipped(Drawn("image_to_image", 199), sheet.images, sheet.ids, 2) is None
