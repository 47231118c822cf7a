"""What the loss says by window of t, and what the judge of maps takes: on records made by hand, and on one scene."""

from dataclasses import replace

import numpy as np
import torch

from gentta_utils.course.nb04 import by_window, experiments, rows
from gentta_utils.course.nb04.where import near_edges, towards_truth
from gentta_utils.course.trials import models
from gentta_utils.evaluation import dense
from gentta_utils.evaluation.chosen import tuned_maps
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.statistics import ON_VALIDATION
from gentta_utils.models.map_unet import at_map
from gentta_utils.streams.stream import stream

NETWORK = "segmentor/resnet"
WINDOWS = ([20, 150], [250, 600])


def record(label, right, before=50, shift="fog", loss=None, **about):
    """A run of images of two classes of 100 pixels each, so many of each right."""
    table = lambda values: np.array([[[v, 100 - v], [100 - v, v]] for v in values], np.uint16)  # noqa: E731
    n = len(right)
    stream = {"shift": shift, "severity": 3, "start": 0, "n": n, "seed": 0, "target": "classes"}
    about = {"label": label, "classifier": NETWORK, "method": "diffusion_tta", "stream": stream} | about
    protocol = {"order": "iid", "reset": "per_image", "predict": "after", "batch": 12, "device": "cpu"}
    about |= {"select": ON_VALIDATION, "protocol": protocol}
    loss = np.zeros((n, 1)) if loss is None else loss
    return Records(np.arange(n), np.zeros(n, int), table([before] * n), table(right), loss, np.ones(n), {}, about)


def test_shares_are_pooled_over_pixels_and_gains_stand_beside_their_window():
    first = [[0.1, 100, 40, 5000, 2000], [-0.3, 300, 160, 7000, 2000]]  # two images, the first window
    second = [[0.2, 100, 100, 1000, 2000], [0.4, 300, 300, 1000, 2000]]
    looked = record(rows.SOURCE, [50, 50], loss=np.hstack([first, second]), looked={"windows": list(WINDOWS)})
    altered = [
        record(rows.OURS, [60, 60], settings={"window": [250, 600]}),
        record("t 20..150", [55, 55], settings={"window": [20, 150]}),
        record("free map", [51, 51], settings={"window": [250, 600]}),
    ]
    low, chosen = by_window.rows_of([looked], altered)
    assert (low["window"], chosen["window"]) == ("20..150", "250..600")
    assert (low["true map has the lower loss, %"], low["by, %"]) == ("50", "-10.0")
    assert low["wrong pixels pointing to the truth, %"] == "50"  # 200 of 400, not the mean of 40 and 53%
    assert (low["gradient's energy near edges, %"], low["pixels near edges, %"]) == ("60", "20")
    assert chosen["wrong pixels pointing to the truth, %"] == "100"
    assert low["gain of weights, mean class accuracy"].startswith("+5.0")
    assert chosen["gain of weights, mean class accuracy"].startswith("+10.0")
    assert chosen["gain of a free map, mean class accuracy"].startswith("+1.0")
    assert low["gain of a free map, mean class accuracy"] == ""
    (row,) = by_window.by_shift([looked])
    assert (row["shift"], row["t 20..150"], row["t 250..600"]) == ("fog", "50% (-10.0%)", "100% (+30.0%)")


def test_the_judge_is_right_where_it_takes_the_better_map():
    """Four scenes: a gain taken, a gain refused, a loss taken, a loss refused; and one that does not change."""
    adapted, taken, pair = [60, 60, 40, 40, 50], [60, 50, 40, 50, 50], (rows.OURS, "no judge")
    (row,) = by_window.judged([record(rows.OURS, taken), record("no judge", adapted)], NETWORK, pair)
    assert (row["n"], row["better than the source's"], row["judge takes it"]) == (5, 2, 2)
    assert row["judge takes the better of the two"] == "2 of 4"
    assert by_window.judged([record(rows.OURS, taken)], NETWORK, pair) == []


def test_a_record_holds_what_the_model_says_of_the_answer():
    spec = experiments.blocks(1, "fog", 3, "classes")[0]
    now = tuned_maps(NETWORK, pairs=2)
    about, _ = by_window.jobs(NETWORK, [spec], ((300, 500),))[0]
    assert about["looked"]["windows"] == [[300, 500], list(now.window)]
    how = dict(how=now, windows=((300, 500),))
    _, work = by_window.window_job(NETWORK, spec, "source", by_window.METHODS["source"].Settings(), rows.SOURCE, **how)
    found = work().loss
    assert found.shape == (1, len(by_window.ASKED))
    used, s = models(NETWORK, "maps/classes"), stream(spec)
    with torch.no_grad():
        answer = used.classifier(s.images)
    true = at_map("classes", s.labels, answer.shape[1])
    gap = dense.reading(used.denoiser, s.images, s.ids, true, {"its": answer.softmax(1)}, 2, ((300, 500),))["its"]
    assert abs(found[0, 0] - gap.item()) < 1e-3
    said = towards_truth(used, replace(now, window=(300, 500)), s, answer, near_edges(s.labels))
    np.testing.assert_allclose(found[0, 1:], [float(v) for v in said[: len(by_window.ASKED) - 1]], rtol=1e-2)
    wrong, points = found[0, 1:3]
    assert 0 < points < wrong < answer[0, 0].numel()


def test_the_numbers_of_a_window_stand_together():
    gap = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # (windows, B)
    each = [[torch.tensor([10 * w + q, 100 + 10 * w + q]) for q in range(4)] for w in (1, 2)]
    first, second = by_window.together(gap, each).tolist()
    assert first == [1, 10, 11, 12, 13, 3, 20, 21, 22, 23]
    assert second == [2, 110, 111, 112, 113, 4, 120, 121, 122, 123]
