"""The small tables and figures of notebook 05: published numbers beside ours, families, the filter, drowned votes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_report_05 import PAPER as COUNTS
from test_report_05 import RESNET, SWIN, main_runs, record, rights

from gentta_utils.course import plots
from gentta_utils.course.nb05 import figures, paper
from gentta_utils.world.severities import TEST


def test_families_are_the_fifteen():
    assert sorted(s for shifts in figures.FAMILIES.values() for s in shifts) == sorted(TEST)


@pytest.mark.parametrize("name", paper.PAPER)
def test_published_numbers_stand_beside_those_of_the_same_family(name):
    shift = "watermark" if name == "sda_watermark" else "fog"
    rows = [record(label, rights(40 + i), shift, RESNET) for i, label in enumerate(paper.PAPER[name])]
    rows += [record("source/full", rights(30), shift, c) for c in (RESNET, SWIN) if c != RESNET or "source/full" not in
             paper.PAPER[name]]  # fmt: skip
    shown = paper.beside(rows, name)
    assert [r["row"] for r in shown] == list(paper.PAPER[name])
    for i, (row, numbers) in enumerate(zip(shown, paper.PAPER[name].values(), strict=True)):
        assert row["resnet / ResNet-50"] == f"{40 + i}.0 / {numbers[0]}"
        assert row["swin / Swin-T"].endswith(f" / {numbers[1]}")
    assert shown[-1]["swin / Swin-T"].startswith("- /")


def test_a_row_on_fewer_shifts_is_not_set_beside_the_paper():
    runs = [*main_runs(), record("gda-like", rights(90), "fog", RESNET)]
    (row,) = (r for r in paper.beside(runs, "sda_corruptions") if r["row"] == "gda-like")
    assert row["resnet / ResNet-50"] == "- / 31.8"
    assert row["swin-wide / Swin-B"] == "- / -"


def test_gains_and_verdicts_by_family():
    runs = main_runs()  # fog and snow: weather alone
    row, rest = figures.by_family(runs, ("dda, sum", "sda, sum"))
    assert (rest["corruptions"], row["SDA - DDA, sum"][:5]) == ("all but noise", "+10.0")
    assert {**rest, "corruptions": "weather"} == row
    assert (row["corruptions"], row["source"], row["source on the low view"]) == ("weather", "40.0", "45.0")
    assert row["dda, sum, minus source"].startswith("+10.0 [")
    (line,) = figures.against_control(runs, ("diffpure", "dda, sum"))
    assert line.startswith("weather: best of all is dda, sum (50.0)")
    assert "diffpure -15.0" in line
    assert "below it" in line
    assert "dda, sum +5.0" in line
    tied = main_runs({**COUNTS, "dda, sum": 45})
    assert "undecided" in figures.against_control(tied, ("dda, sum",))[0]


def test_a_sure_source_drowns_what_the_purified_image_says():
    purified = record("ours, purified", [3, 3, 3, 0])
    purified = replace(
        purified, before=np.eye(10, dtype=np.float32)[[0, 0, 3, 0]] * np.float32([[30], [1], [30], [30]])
    )
    both = record("ours, sum", [0, 3, 3, 0])
    rows = figures.drowned_votes([purified, both])
    assert [r["predictions"] for r in rows] == [1, 0, 0, 3]
    assert [r["source wrong, purified right"] for r in rows] == [1, 0, 0, 1]
    assert [r["sum right, percent"] for r in rows] == ["100 [100, 100]", "", "", "0 [0, 0]"]
    swapped = replace(purified, before=purified.after, after=purified.before)
    row = figures.drowned_votes([swapped, both])[2]
    assert (row["source right, purified wrong"], row["source wrong, purified right"]) == (2, 0)
    assert row["sum still right, percent"].startswith("50 [")


def test_figures_show_what_the_records_hold():
    _, ax = plots.figure()
    runs = [*main_runs(shifts=("fog",)), *main_runs({**COUNTS, "dda, sum": 20}, ("snow",))]
    worse = figures.draw_by_corruption(ax, runs, ("dda, sum", "sda, sum"))
    assert worse == ["snow -20.0"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["fog", "snow"]
    _, ax = plots.figure()
    runs = [record("source/full", rights(40)), record("source/low", rights(45))]
    for n, eta, k in ((50, 1, 60), (5, 1, 50), (5, 0, 52), (50, 0, 58)):
        runs += [record(f"{method}, {n} eta {eta}", rights(k), nfe=float(n)) for method in ("dda", "sda")]
    figures.draw_steps(ax, runs)
    assert ax.get_lines()[0].get_xydata().flatten().tolist() == pytest.approx([5, 50, 50, 60])
    assert ax.get_lines()[1].get_xydata().flatten().tolist() == pytest.approx([5, 52, 50, 58])
    _, ax = plots.figure()
    number = [record("dda, sum", rights(50)), *(record(f"sda, {n} a class", rights(50 + n)) for n in (0, 1, 10))]
    figures.draw_number(ax, number)
    assert [x for _, x in ax.get_lines()[0].get_xydata()] == pytest.approx([0, 1, 10])


def test_agreement_of_panels():
    g = torch.Generator().manual_seed(0)
    panel = SimpleNamespace(title="one", predicted=torch.tensor([1, 2]), correlation=torch.tensor([0.2, 0.4]),
                            overlap=torch.tensor([1.0, 0.0]), maps=torch.rand(2, 4, 4, generator=g))  # fmt: skip
    other = SimpleNamespace(**{**vars(panel), "title": "two", "predicted": torch.tensor([1, 3])})
    row, chance = figures.panel_agreement({"classifier/resnet": [panel, other]})
    assert row["correlation with panel 1"] == "0.30 +- 0.10"
    assert (row["n"], row["same prediction"]) == (2, "50%")
    expected = figures.gradcam.correlation(panel.maps[:1], panel.maps[1:])  # of two images both ways are one
    assert chance["correlation with panel 1"] == f"{float(expected):.2f} +- 0.00"
    assert chance["same prediction"] == "0%"
    _, axes = plots.figure(1, 2)
    figures.draw_panels(axes, [torch.rand(2, 3, 4, 4)] * 2, [panel, other], 1, ("a", "b", "c", "d"))
    assert axes[1].get_title() == "two\nd"


def test_the_closer_panel_is_said():
    each = [SimpleNamespace(correlation=torch.full((20,), v).double()) for v in (1.0, 0.3, 0.5, 0.6)]
    (line,) = figures.closest_panel({"classifier/resnet": each})
    assert "+10.0 [+10.0, +10.0], holds" in line
    (line,) = figures.closest_panel({"classifier/resnet": [*each[:2], each[3], each[2]]})
    assert line.endswith("reversed")


def test_a_gallery_in_both_directions_is_drawn_by_the_seed():
    before, after = record("source/full", [3, 3, 0, 0, 0, 0]), record("dda, sum", [3, 0, 3, 3, 3, 0])
    image, ready = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2), torch.arange(6.0).view(6, 1, 1, 1) + 10
    shown = figures.turned([before], [after], [SimpleNamespace(images=image)], [ready.expand(6, 3, 2, 2)], 0, 2)
    titles = [title for _, title in shown]
    assert titles == ["repaired, image", "repaired, projected"] * 2 + ["broken, image", "broken, projected"]
    values = [int(v[0, 0, 0]) for v, _ in shown]
    assert {values[0], values[2]} < {2, 3, 4}  # two of the three that became right
    assert values[4:] == [1, 11]
    assert all(b == a + 10 for a, b in zip(values[::2], values[1::2], strict=True))
    again = figures.turned([before], [after], [SimpleNamespace(images=image)], [ready.expand(6, 3, 2, 2)], 0, 2)
    assert [int(v[0, 0, 0]) for v, _ in again] == values


def test_a_push_is_as_long_as_the_estimate_follows_the_sample():
    """x0_hat(x_t) of this denoiser is a x_t + b with the same slope everywhere, so the length is |a| times that of the
    gradient by x0_hat."""
    slopes = torch.linspace(0.5, 4.0, 1000)

    class Linear:
        alphas_cumprod = torch.linspace(0.99, 0.01, 1000)

        def encode(self, images):
            return images

        def __call__(self, x_t, t, cond):
            a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
            return (x_t - a.sqrt() * slopes[t].view(-1, 1, 1, 1) * x_t) / (1 - a).sqrt()

    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    s = figures.dda.Settings(start=900, steps=2, clip=False)
    found = torch.tensor(figures.push_lengths(Linear(), images, torch.arange(3), (100, 900), s))
    assert found.shape == (2, 3)
    torch.testing.assert_close(
        found[1] / found[0], torch.full((3,), float(slopes[900] / slopes[100])), rtol=0.15, atol=0
    )


def test_the_table_of_pushes_has_the_numbers_of_its_figure():
    rows = figures.push_rows((50, 700), [[0.5, 0.25, 0.75], [8.0, 6.0, 4.0]])
    assert rows[0] == {"t": 50, "shortest": "0.25 w", "mean": "0.50 w", "longest": "0.75 w"}
    assert rows[1] == {"t": 700, "shortest": "4.00 w", "mean": "6.00 w", "longest": "8.00 w"}


def test_a_picture_of_the_dial_has_a_row_for_each_scene(monkeypatch):
    monkeypatch.setattr(figures.dda, "align", lambda d, images, ids, s: images + s.start)
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    shown = figures.at_dial(
        ("t 494", "control, t 300"), {"A": "u-net", "control": "dit"}, images, torch.arange(2), steps=3
    )
    assert [title for _, title in shown] == ["clean", "t 494", "control, t 300", "", "", ""]
    assert [int(v[0, 0, 0]) for v, _ in shown] == [0, 494, 300, 1, 495, 301]
