"""Draws of the bootstrap are kept in files, and are what they would be without."""

import numpy as np
import pytest

from gentta_utils.evaluation import statistics

N, DRAWS = 60, 10_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "CACHE", tmp_path)
    statistics._drawn.cache_clear()
    yield tmp_path / "draws"
    statistics._drawn.cache_clear()


def again(n: int = N) -> np.ndarray:
    statistics._drawn.cache_clear()
    return statistics._drawn(n, DRAWS, 0)


def test_a_file_takes_the_place_of_drawing(folder, monkeypatch):
    drawn = again()
    assert (drawn == np.random.default_rng(0).multinomial(N, np.full(N, 1 / N), size=DRAWS)).all()
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(np.random, "default_rng", lambda seed: pytest.fail("drawn again"))
    assert (again() == drawn).all()


def test_a_damaged_file_is_drawn_again(folder):
    drawn = again()
    (path,) = folder.iterdir()
    whole, changed = path.read_bytes(), drawn.copy()
    changed[5, 7] += 1
    for write in (
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(whole[:-1000]),
        lambda: np.save(path, drawn[:100]),
        lambda: np.save(path, changed),
    ):
        write()
        assert (again() == drawn).all()
        assert path.read_bytes() == whole


def test_few_are_not_worth_a_file_and_a_folder_may_be_closed(folder, monkeypatch):
    again(20)
    assert not folder.exists()
    monkeypatch.setattr(statistics, "CACHE", folder / "file" / "below")
    folder.mkdir()
    (folder / "file").touch()
    assert again().shape == (DRAWS, N)
