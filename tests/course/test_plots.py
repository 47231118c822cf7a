"""Titles of figures: names of any length stay within their panels."""

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gentta_utils.course import plots, profile
from gentta_utils.evaluation.statistics import Interval

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


def test_a_part_of_a_figure_has_a_width_too():
    """As in `bench/overview.py`."""
    fig = plt.figure(figsize=(8, 2))
    left, right = fig.subfigures(1, 2, width_ratios=[1, 3])
    assert plots._width(left.subplots(1, 2)[0]) == pytest.approx(1.0)
    assert plots._width(right.subplots()) == pytest.approx(6.0)
    assert plots._width(plots.figure(1, 4, width=8.0)[1][0]) == pytest.approx(2.0)


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


def test_a_caption_shows_the_text_as_it_is():
    assert plots.literal("by t*, exact: p_i < 1 [%]") == r"by t\*, exact: p\_i \< 1 \[%\]"


def test_bars_draw_the_intervals_they_get():
    _, ax = plots.figure()
    plots.bars(ax, ["fog", "snow"], {"ours": [Interval(3.0, 1.0, 6.0), 2.0], "source": [0.0, 1.0]}, "points")
    (segments,) = (c.get_segments() for c in ax.collections)
    assert [(s[0][0], s[1][0]) for s in segments] == [(1.0, 6.0), (2.0, 2.0)]
    assert [bar.get_width() for bar in ax.patches] == [3.0, 2.0, 0.0, 1.0]


def test_the_true_class_alone_has_its_colour():
    history = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    lines = plots.adaptation(torch.rand(3, 8, 8), history, [1.0], list("abcd"), 2).axes[1].lines
    assert {line.get_label() for line in lines if line.get_color() == plots.TRUE} == {"c"}
