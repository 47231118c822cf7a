"""What notebook 04 shows while it runs: pictures of maps, the live table, scenes of records, readings of a card."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from tiny_maps import K, map_unet, task

from gentta_utils.course import plots
from gentta_utils.course.nb04 import live, pictures, rows
from gentta_utils.evaluation.records import Records
from gentta_utils.methods import diffusion_tta, map_filters
from gentta_utils.methods.base import Models
from gentta_utils.streams.maps import MapSpec


def counts(right: int, missed: int) -> np.ndarray:
    """A confusion matrix (12, 12) of one image with two classes."""
    found = np.zeros((12, 12), np.uint16)
    found[0, 0], found[2, 2], found[2, 0] = 1000, right, missed
    return found


def record(after: list[int], label: str = rows.OURS, before: int = 50, start: int = 90_000) -> Records:
    """A run over scenes of which the object's pixels found are `before`, then these, of 100."""
    spec = MapSpec(len(after), "fog", 3, start=start)
    about = {"label": label, "classifier": "segmentor/resnet", "stream": spec.describe(), "method": "diffusion_tta"}
    n = len(after)
    made = [np.stack([counts(v, 100 - v) for v in values]) for values in ([before] * n, after)]
    nothing = dict(loss=np.zeros((n, 1), np.float32), seconds=np.ones(n, np.float32))
    return Records(
        start + np.arange(n), np.zeros(n, np.int64), *made, **nothing, nfe={"denoiser fwd": 3.0}, about=about
    )


def test_a_painted_map_has_one_colour_for_each_class():
    classes = torch.arange(12, dtype=torch.uint8).view(3, 4)
    shown = pictures.painted(classes)
    assert shown.shape == (3, 3, 4)
    colours = shown.flatten(1).T
    assert len({tuple(c.tolist()) for c in colours}) == 12
    assert not (colours - torch.tensor(to_rgb(plots.TRUE))).abs().sum(1).lt(0.05).any()  # green says what is right
    void = pictures.painted(torch.full((2, 2), 255, dtype=torch.uint8))
    assert (void == 1).all()


def test_errors_are_painted_where_a_map_is_wrong():
    truth, said = torch.tensor([[0, 2]], dtype=torch.uint8), torch.tensor([[0, 5]])
    shown = pictures.errors(said, truth)
    assert torch.equal(shown[:, 0, 0], torch.full((3,), 0.92))
    assert torch.equal(shown[:, 0, 1], pictures.painted(said)[:, 0, 1])


def test_a_change_is_green_where_it_repairs_and_red_where_it_breaks():
    truth = torch.tensor([[0, 0, 0, 0]], dtype=torch.uint8)
    before, after = torch.tensor([[1, 0, 1, 0]]), torch.tensor([[0, 1, 1, 0]])
    shown = pictures.change(before, after, truth)[:, 0].T
    wanted = [to_rgb(plots.GREEN), to_rgb(plots.RED), (0.45,) * 3, (0.92,) * 3]
    torch.testing.assert_close(shown, torch.tensor(wanted))


def test_objects_are_named_if_they_are_large_enough():
    y = torch.zeros(8, 8, dtype=torch.uint8)
    assert pictures.names_of(y) == "nothing"
    y[:4, :4], y[7, 7] = 3, 5
    assert pictures.names_of(y) == "cube"


def test_signed_numbers_share_one_scale_and_a_region_is_outlined():
    _, ax = plots.figure()
    region = torch.zeros(6, 6, dtype=torch.bool)
    region[1:4, 1:4] = True
    pictures.signed(ax, torch.linspace(-1, 3, 36).view(6, 6), "title", 2.0, region)
    assert ax.images[0].get_clim() == (-2.0, 2.0)
    assert len(ax.collections) == 1
    _, other = plots.figure()
    pictures.signed(other, torch.zeros(6, 6), "title", 2.0, torch.ones(6, 6, dtype=torch.bool))
    assert len(other.collections) == 0  # the whole picture has no outline


def test_the_live_table_pairs_every_row_with_the_source_and_with_ours():
    runs = {
        rows.SOURCE: [record([50, 50, 50], rows.SOURCE)],
        rows.MEDIAN: [record([60, 60, 60], rows.MEDIAN)],
        rows.OURS: [record([90, 80, 70])],
    }
    source, median, ours = live.table(runs)
    assert [r["method"] for r in (source, median, ours)] == [*runs]
    assert float(source["mean class accuracy"]) == 75.0
    assert float(ours["mean class accuracy"]) == 90.0
    assert source["mean class accuracy, minus source"] == ours["mean class accuracy, ours minus it"] == ""
    assert ours["mean class accuracy, minus source"].startswith("+15.0")
    assert median["mean class accuracy, minus source"].startswith("+5.0")
    assert median["mean class accuracy, ours minus it"].startswith("+10.0")
    assert live.gains(runs[rows.OURS])["mean class accuracy"].startswith("+15.0")
    alone = live.table({name: mine for name, mine in runs.items() if name != rows.OURS})
    assert [r["mean class accuracy, ours minus it"] for r in alone] == ["", ""]


def test_scenes_are_drawn_by_the_seed_from_those_that_changed():
    runs = [record([50, 90, 20, 95, 50]), record([50, 10], start=91_000), record([99] * 5, rows.MEDIAN)]
    found = live.drawn_scenes(runs, "segmentor/resnet", 2, seed=0)
    assert found == live.drawn_scenes(runs, "segmentor/resnet", 2, seed=0)
    assert {(s.start, rose) for s, rose in found} == {(90_001, True), (90_003, True), (90_002, False), (91_001, False)}
    assert all((s.n, s.shift, s.severity) == (1, "fog", 3) for s, _ in found)
    assert len(live.drawn_scenes(runs, "segmentor/resnet", 9, seed=0)) == 4  # as many as there are
    assert len({s.start for seed in range(20) for s, _ in live.drawn_scenes(runs, "segmentor/resnet", 1, seed)}) == 4


def test_readings_of_a_card_are_a_row_for_each_shift_and_wrong_map():
    of = {"read": [100, 40], "gap": [3.25, -1.0]}
    card = {
        "quality": {"scenes": 40, "windows": [[20, 150], [150, 300]], "clean": {"swapped": of}, "spatter": {"x": of}}
    }
    first, second = live.reading_of_card(card)
    assert first == {"shift": "clean", "wrong map": "swapped", "t 20..150": "100% (+3.2%)", "t 150..300": "40% (-1.0%)"}
    assert (second["shift"], second["wrong map"]) == ("spatter", "x")


def test_what_became_of_damaged_pixels_is_counted():
    truth = torch.zeros(1, 2, 4, dtype=torch.uint8)
    before, after = truth.long().clone(), truth.long().clone()
    before[0, 0], after[0, 0, 0], after[0, 1, 0] = 1, 1, 1
    assert live.still_right(before, after, truth) == {
        "wrong pixels": "4",
        "repaired, %": "75",
        "others broken, %": "25.0",
    }
    assert live.still_right(truth, truth, truth)["repaired, %"] == "0"


@pytest.mark.parametrize("controls", [{}, {rows.MEDIAN: ("map_filters", map_filters.Settings(median=1))}])
def test_the_live_rows_are_the_source_the_cheap_controls_and_ours(controls):
    models = Models(task("pyramid"), map_unet())
    settings = diffusion_tta.Settings(lr=0.1, updates=1, pairs=2)
    slow = {rows.CONSISTENCY: ("consistency", None)}
    found = live.methods(models, settings, controls | slow)
    assert [*found] == [rows.SOURCE, *controls, rows.OURS]
    images = torch.rand(2, 3, 32, 32)
    outs = {name: m.adapt(images, torch.arange(2)).logits for name, m in found.items()}
    assert all(v.shape[:2] == (2, K) for v in outs.values())
    assert not any(torch.equal(outs[rows.SOURCE], v) for name, v in outs.items() if name != rows.SOURCE)
