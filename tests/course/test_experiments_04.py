"""Notebook 04's tables: selection scenes apart, one rule for ours and the controls, rows that share their draws."""

import numpy as np
import pytest

from gentta_utils.course import nb04, recheck, trials
from gentta_utils.course.nb04 import candidates, choose, clean_costs, experiments, rows
from gentta_utils.evaluation import tables as evaluation_tables
from gentta_utils.evaluation.chosen import map_controls, maps_choice, tuned_maps
from gentta_utils.evaluation.map_rows import METRICS
from gentta_utils.evaluation.records import Records
from gentta_utils.methods import diffusion_tta
from gentta_utils.streams.maps import MapSpec
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world.severities import TEST, VALIDATION


@pytest.fixture(scope="module")
def tables():
    """Name -> the jobs of every table but the choice, none of them run."""
    found, patch = {}, pytest.MonkeyPatch()
    for module in (experiments, candidates, clean_costs):
        patch.setattr(module, "table", lambda name, jobs: found.update({name: list(jobs)}) or [])
    try:
        for name, (measure, _) in nb04.TABLES.items():
            if name != "select_maps":
                measure()
    finally:
        patch.undo()
    return found


def test_choices_are_made_on_selection_scenes_and_validation_corruptions(tables):
    for r in evaluation_tables.results("select_maps"):
        assert r.about["stream"]["split"] == "select"
        assert r.about["stream"]["shift"] in ("clean", *VALIDATION)
    for name, jobs in tables.items():
        met = {(a["stream"]["split"], a["stream"]["shift"]) for a, _ in jobs}
        if name == "maps_candidates":
            assert met == {("select", shift) for shift in VALIDATION}
        elif name == "maps_clean":
            assert met == {("select", shift) for shift in ("clean", *VALIDATION)}
        else:
            assert {split for split, _ in met} == {"test"}
            assert {shift for _, shift in met} <= {"clean", *TEST}
    assert {a["stream"]["shift"] for a, _ in tables["maps_all"]} == set(TEST)
    assert trials.PLACEBO["split"] == "select"


def test_every_row_stands_on_the_same_scenes(tables):
    for name in ("maps_classes", "maps_depth", "maps_all"):
        met = {}
        for a, _ in tables[name]:
            s = a["stream"]
            base = a["classifier"].removesuffix("-ceiling").removesuffix("-60000")
            met.setdefault((base, a["label"]), set()).add((s["shift"], s["severity"], s["start"], s["n"]))
        by_network = {}
        for (network, _), streams in met.items():
            by_network.setdefault(network, []).append(streams)
        for streams in by_network.values():
            assert all(s == streams[0] for s in streams), name


def test_all_rows_of_the_issue_are_there(tables):
    labels = {a["label"] for a, _ in tables["maps_classes"]}
    assert {rows.SOURCE, rows.OURS, *rows.PLACEBOS, *rows.CONTROLS, *rows.RIVALS} <= labels
    assert {*experiments.bold_rows("segmentor/resnet")} <= labels
    labels = {a["label"] for a, _ in tables["maps_depth"]}
    assert {
        rows.OURS,
        *rows.PLACEBOS,
        rows.LOW,
        rows.MEDIAN,
        rows.GUIDED,
        rows.BLEND,
        rows.CONSISTENCY,
        rows.DDA,
    } <= labels
    assert rows.DILATE not in labels
    for name in ("maps_classes", "maps_depth"):
        met = {(a["stream"]["shift"], a["stream"]["severity"]) for a, _ in tables[name]}
        assert met == {("clean", 0), *((s, v) for s in experiments.SIX for v in (3, 5))}


def test_placebos_and_mixing_share_our_draws(tables):
    """All but what a row is about is the same, the seed of the pairs among it."""
    bold = {"view", "statistics", "trust", "margin", "updates", "lr"}  # of the row that gains most, and of its parts
    of_bold = {rows.BOLD, *rows.PARTS}
    for name, changes in (("maps_classes", {"feedback_from"}), ("maps_mixing", {"mixing", "map_classes", "lr"})):
        by_network = {}
        for a, _ in tables[name]:
            if a["method"] == "diffusion_tta":
                by_network.setdefault(a["classifier"], []).append((a["label"], a["settings"]))
        assert by_network
        for settings in by_network.values():
            first, ours = settings[0]
            assert name != "maps_classes" or first == rows.OURS
            assert len({label for label, _ in settings}) > 1
            for label, s in settings[1:]:
                keys = {k for k in {*s, *ours} if s.get(k) != ours.get(k)}
                assert keys <= (bold if label in of_bold else changes), (name, label)


def test_no_control_that_was_chosen_leaves_the_answer_as_it_is():
    for network in maps_choice()["settings"]:
        found = map_controls(network)
        for key, among in (("best", rows.CONTROLS), ("rival", rows.RIVALS)):
            assert set(maps_choice()[key][network]) == set(METRICS[rows.target_of(network)])
            assert set(maps_choice()[key][network].values()) <= set(found) & set(among)
        for row, (method, settings) in found.items():
            if method == "map_filters":
                assert settings != type(settings)(), row
        assert isinstance(tuned_maps(network), diffusion_tta.Settings)
    with pytest.raises(ValueError, match="choose one of"):
        tuned_maps("segmentor/none")


def scored(shift, gained):
    """A run of which mean class accuracy and mean IoU rise by so much (two classes, 100 pixels each)."""
    right = 50 + gained
    after, before = (np.array([[[r, 100 - r], [100 - r, r]]], np.uint16) for r in (right, 50))
    stream = {"shift": shift, "severity": 3, "seed": 0, "target": "classes", "start": 0, "n": 1}
    about = {"stream": stream, "label": "x", "classifier": "c"}
    return Records(np.zeros(1, int), np.zeros(1, int), before, after, np.zeros((1, 0)), np.ones(1), {}, about)


def test_clean_scenes_come_first():
    source = [scored("clean", 0), scored("speckle_noise", 0)]
    careful = choose.merit([scored("clean", 0), scored("speckle_noise", 2)], source)
    better = choose.merit([scored("clean", 5), scored("speckle_noise", 3)], source)
    harmful = choose.merit([scored("clean", -2), scored("speckle_noise", 40)], source)
    assert better > careful > harmful
    assert careful[0] == better[0] == choose.CLEAN


def test_blocks_are_taken_up_by_longer_tables():
    n = experiments.BLOCK["classes"]
    few, many = (experiments.blocks(m, "fog", 3, "classes") for m in (n, 3 * n))
    assert many[:1] == few == [MapSpec(n, "fog", 3, start=few[0].start, target="classes")]
    assert sum(s.n for s in many) == 3 * n
    assert len({s.start for s in many}) == len(many) == 3
    assert experiments.blocks(n, "fog", 5, "classes")[0].start == few[0].start
    assert abs(experiments.blocks(n, "snow", 3, "classes")[0].start - few[0].start) >= 200


def test_a_record_says_what_stream_it_met():
    for spec in (MapSpec(3, "fog", 3, target="depth"), SceneSpec(4, "snow", 5, "select", 7)):
        assert trials.spec_of(spec.describe()) == spec
        assert trials.spec_of(spec.describe(), n=2).n == 2
    assert trials.placebo(diffusion_tta.Settings(lr=1.0), {}) == ()


def test_a_few_records_come_out_again():
    """The frozen network and a filter, of each kind of map."""
    for name in ("maps_classes", "maps_depth"):
        runs = evaluation_tables.results(name)
        cheap = [r for r in runs if r.about["label"] in (rows.SOURCE, rows.MEDIAN)]
        found = recheck.recheck(cheap, 3)
        assert not found.different
        assert found.equal == 3
