"""Titles of figures: names of any length stay within their panels."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gentta_utils.course import plots, profile

LONG = sorted(profile("imagenet").classes(), key=len)[-16:]


def boxes(fig):
    """The drawn extents of all titles, in pixels."""
    FigureCanvasAgg(fig).draw()
    renderer = fig.canvas.get_renderer()
    return [ax.title.get_window_extent(renderer) for ax in fig.axes if ax.get_title()]


@pytest.mark.parametrize("columns, width", [(8, 8.0), (6, 7.5), (4, 8.0)])
def test_long_names_do_not_overlap_in_a_gallery(columns, width):
    titles = [" \u2192\n".join((a, b)) for a, b in zip(LONG, LONG[::-1], strict=True)]
    for names in (LONG, titles):
        found = boxes(plots.gallery([torch.rand(3, 32, 32)] * 16, names, columns=columns, width=width))
        assert len(found) == 16
        assert not [(a, b) for i, a in enumerate(found) for b in found[i + 1 :] if a.overlaps(b)]


def test_short_titles_stay_as_they_are():
    size = plots.STYLE["axes.titlesize"]
    for title in ("octahedron", "cube \u2192\ntorus", ""):
        assert plots.fitted(title, 1.0) == (title, size)


def test_a_long_title_keeps_its_words_and_its_arrow():
    text, size = plots.fitted("Chesapeake Bay retriever", 1.0)
    assert text.replace("\n", " ") == "Chesapeake Bay retriever"
    assert "\n" in text
    text, size = plots.fitted("octahedron \u2192\nsquare pyramid", 0.8)
    assert text.split("\n")[0] == "octahedron \u2192"
    assert 5 < size < plots.STYLE["axes.titlesize"]
    text, size = plots.fitted("x" * 60, 1.0)
    assert text.replace("\n", "") == "x" * 60
    assert size == 5
