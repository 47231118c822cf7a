"""Records are made again from what they say of themselves, and a changed one is noticed, whatever its kind."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TinyNet, make_classifier, make_dit

from gentta_utils.__main__ import main
from gentta_utils.course import purified as purified_images
from gentta_utils.course import recheck, trials
from gentta_utils.course import tables as course_tables
from gentta_utils.course.nb02 import experiments
from gentta_utils.course.purified import input_job
from gentta_utils.course.trials import job
from gentta_utils.diffusion.synthesis import Synthesis
from gentta_utils.evaluation import records
from gentta_utils.evaluation import tables as evaluation_tables
from gentta_utils.methods import dda, diffpure, diffusion_classifier, diffusion_tta, dusa, sda, source, tent
from gentta_utils.methods.sda import FineTune
from gentta_utils.models import zoo
from gentta_utils.recipes import aligned
from gentta_utils.recipes.aligned import Data
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Stream

RESNET, SPEC, LONG = "classifier/resnet", SceneSpec(4, "fog", 5, start=9), SceneSpec(30, "fog", 5, start=9)
TTA = diffusion_tta.Settings(lr=0.5, updates=2, pairs=2)
S = dda.Settings(start=300, steps=3)
ALIGNED = sda.Settings(**vars(S))
SET = Data(per_class=1, synthesis=Synthesis(steps=2), alignment=ALIGNED)
TUNED = (SET, FineTune("sgd", 0.01, 0.0))
ONLINE = dict(reset="per_shift", batch=8)


def scenes_of(spec: SceneSpec) -> Stream:
    """Random images, each scene its own, in place of rendered ones."""
    ids = torch.arange(spec.n) + spec.start
    images = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in ids.tolist()]
    return Stream(torch.stack(images), ids * 7 % 10, ids, spec.describe())


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Tiny networks under the names of the shipped ones; the list of what was asked for, in which precision."""
    named = dict.fromkeys((aligned.ALIGNER, trials.DIT), make_dit(10)) | {RESNET: make_classifier(10)}
    asked = []

    def build():
        torch.manual_seed(1)
        return TinyNet(10)

    def cached(name: str, precision: str = "auto"):
        asked.append((name, precision))
        return named[name]

    recheck._is_here.cache_clear()
    purified_images._second.cache_clear()  # another test's, in a folder that is gone
    monkeypatch.setattr(zoo, "cached", cached)
    monkeypatch.setattr(zoo, "fingerprint", lambda name: f"of {name}")
    monkeypatch.setattr(zoo, "IMAGE_SIZE", 16)
    monkeypatch.setattr(trials, "RECIPES", {RESNET: SimpleNamespace(build=build)})
    for module in (trials, experiments, purified_images):
        monkeypatch.setattr(module, "stream", scenes_of)
    for module in (trials, purified_images, aligned):
        monkeypatch.setattr(module, "CACHE", tmp_path)
    return asked


def plainly(method: str, settings, spec=SPEC, **how):
    return lambda: job(method, settings, RESNET, spec, "x", **({"batch": 4} | how))


def from_input(method: str, settings, *tuned, spec: SceneSpec = SPEC):
    return lambda: input_job(method, settings, RESNET, spec, "x", *tuned)


ALONE = {
    "source": plainly("source", source.Settings("low"), denoiser=None),
    "reader": plainly("diffusion_classifier", diffusion_classifier.Settings(pairs=3)),
    "diffusion_tta": plainly("diffusion_tta", TTA),
    "untrained": lambda: experiments.random_job(TTA, RESNET, SPEC, "x"),
    "from a table": lambda: experiments._table_job(replace(TTA, mixing="output", pairs=3), RESNET, SPEC, trials.DIT, 6),
    "diffpure": from_input("diffpure", diffpure.Settings(start=200, steps=2)),
    "dda": from_input("dda", S),
    "dda, calibrated": from_input("dda", replace(S, ensemble="calibrated", temperature=3.0)),
    "gda-like": from_input("dda", replace(S, entropy_scale=0.1, entropy_views=1)),
    "sda": from_input("sda", ALIGNED, TUNED),
    "sda of 0": from_input("sda", ALIGNED, (replace(SET, per_class=0), TUNED[1])),
    "sda, not aligned": from_input("sda", ALIGNED, (replace(SET, aligned=False), TUNED[1])),
}
TENT = tent.Settings(lr=0.1)
TOGETHER = {  # and how many images have to be run together
    "tent": (plainly("tent", TENT, LONG, denoiser=None, **ONLINE), 16),
    "tent, one by one": (plainly("tent", TENT, LONG, denoiser=None, reset="per_shift", batch=1), 20),
    "tent, large batches": (plainly("tent", TENT, LONG, denoiser=None, reset="per_shift", batch=24), 30),
    "correlated": (plainly("tent", TENT, LONG, denoiser=None, order="correlated", **ONLINE), 16),
    "mixed": (
        plainly("tent", TENT, (LONG, replace(LONG, start=90)), denoiser=None, order="mixed correlated", **ONLINE),
        16,
    ),
    "diffusion_tta online": (plainly("diffusion_tta", replace(TTA, online=True), LONG, **ONLINE), 16),
    "norm over a batch": (from_input("dda", replace(S, norm="batch", images_at_once=3), spec=LONG), 18),
    "norm over one batch": (from_input("dda", replace(S, norm="batch"), spec=LONG), 25),
}
KINDS = ALONE | {name: make for name, (make, _) in TOGETHER.items()}


def made(kind: str) -> records.Records:
    """A run as a table holds it: what it says of itself went through JSON."""
    r = KINDS[kind]()[1]()
    return replace(r, about=json.loads(json.dumps(r.about, default=vars)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_made_anew_and_a_changed_one_noticed(asked, monkeypatch, kind):
    monkeypatch.setattr(recheck, "MARGINS", {"bf16": 1e-5, "fp32": 1e-5})  # random networks are never sure
    r = made(kind)
    n = len(r) if kind in ALONE else TOGETHER[kind][1]
    assert recheck.together(r) == (0 if kind in ALONE else n)
    rows = range(2, 3) if kind in ALONE else range(n)
    _, before, after = recheck.again(r, rows)
    np.testing.assert_allclose(before, r.before[rows], atol=1e-5)
    np.testing.assert_allclose(after, r.after[rows], atol=1e-4)
    found = recheck.recheck([r], 4)
    assert (found.equal, found.different, found.close) == (n, [], 0)
    changes = {
        "id": r.id + 1,
        "label": (r.label + 1) % 10,
        "prediction before": np.roll(r.before, 1, 1),
        "prediction after": np.roll(r.after, 1, 1),
    }
    for what, values in changes.items():
        column = what.split()[-1]
        found = recheck.recheck([replace(r, **{column: values})], 4)
        assert (found.equal, len(found.different)) == (0, n)
        assert all(line.endswith(f": {what}") for line in found.different)


def test_the_state_is_part_of_what_is_made_again(asked):
    r = made("tent")
    images = scenes_of(LONG)
    fresh = tent.configure(trials.models(RESNET, None), TENT).adapt(images.images[8:16], images.ids[8:16])
    assert np.abs(fresh.logits.numpy() - r.after[8:16]).max() > 0.1  # the second batch without the first


def test_one_changed_record_of_a_stream_is_enough(asked):
    r = made("tent")
    r.label[5] += 1
    found = recheck.recheck([r], 1)
    assert (found.equal, len(found.different)) == (15, 1)


def test_as_many_as_asked_for_and_no_stream_twice(asked):
    runs = [made("dda"), made("diffusion_tta"), made("tent")]
    assert recheck.recheck(runs[:2], 3).equal == 3
    assert recheck.recheck(runs[:2], 100).equal == 8
    assert recheck.recheck(runs[2:], 100).equal == 16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_other_of_two_near_classes_counts_within_the_margin_alone(asked, monkeypatch, precision):
    r = made("reader")
    real = recheck.again
    monkeypatch.setattr(recheck, "again", lambda *at: (*(parts := real(*at))[:2], 1000 * parts[2]))  # it leads by far
    r.about["precision"] = precision
    margin = recheck.MARGINS[precision]
    top = r.after.argmax(1)
    rival = (top + 1) % 10
    for lead, right in ((0.5 * margin, True), (2 * margin, False)):
        changed = r.after.copy()  # both lead by `lead`: what is recorded, and what comes out, each by its own class
        np.put_along_axis(changed, rival[:, None], changed.max(1, keepdims=True) + lead, 1)
        changed += np.where(np.arange(10) == top[:, None], 0, -1000) * (np.arange(10) != rival[:, None])
        found = recheck.recheck([replace(r, after=changed)], 4)
        assert (found.equal, found.close, len(found.different)) == ((4, 4, 0) if right else (0, 0, 4))
    r.after[:] = r.after.max(1, keepdims=True)  # rounded until all are the largest
    found = recheck.recheck([r], 4)
    assert (found.equal, found.close) == (4, 0)


def test_two_rows_of_logits_are_apart_by_the_smaller_lead():
    for kept, again, apart in (((3, 1), (2, 1), 0), ((3, 3), (1, 2), 0), ((3, 1), (1, 4), 2), ((3, 1), (1, 2), 1)):
        assert recheck._apart(np.array(kept), np.array(again)) == apart


def test_bf16_is_never_emulated(asked, monkeypatch):
    r = made("diffusion_tta")
    for kept, fast, used in (("bf16", True, "bf16"), ("bf16", False, "fp32"), ("fp32", True, "fp32")):
        r.about["precision"] = kept
        monkeypatch.setattr(recheck, "precision_on", lambda device, fast=fast: "bf16" if fast else "fp32")
        asked.clear()
        assert recheck.recheck([r], 1).equal == 1
        assert (trials.DIT, used) in asked


def test_what_is_made_on_demand_is_named_and_left_out(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(recheck, "MODELS", tmp_path)
    r = made("diffusion_tta")
    r.about["denoiser"] = zoo.ON_DEMAND[0]
    found = recheck.recheck([r, made("source")], 8)
    assert (found.equal, found.different) == (4, [])
    other = replace(r, about=r.about | {"denoiser": zoo.ON_DEMAND[1]})
    (line,) = str(recheck.recheck([r, other])).splitlines()[1:]
    assert line.startswith(f"  left out: 8 records of {', '.join(zoo.ON_DEMAND[:2])}: made on demand (")
    for file in zoo.files_of(zoo.ON_DEMAND[0]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert recheck.obstacle(r) is None


def test_a_fine_tuned_network_that_is_not_here_is_left_out(asked, tmp_path):
    r = made("sda")
    (kept,) = (tmp_path / "fine-tuned").iterdir()
    kept.unlink()
    found = recheck.recheck([r], 4)
    assert (found.equal, found.different) == (0, [])
    assert "left out: 4 records of classifier/resnet: fine-tuned on sets that are not shipped" in str(found)


def test_a_method_that_amplifies_rounding_is_left_out(asked):
    settings = dusa.Settings(lr=0.1, t=100, online=False)
    found = recheck.recheck([made("dda"), plainly("dusa", settings)()[1]()], 8)
    assert (found.equal, found.different) == (4, [])
    assert "left out: 4 records of DUSA image by image: a rounding error" in str(found)


def test_records_of_other_networks_do_not_come_out(asked, monkeypatch):
    runs = [made("sda"), made("tent")]
    monkeypatch.setattr(zoo, "fingerprint", lambda name: "another")
    found = recheck.recheck(runs, 2)
    assert (found.equal, len(found.different)) == (0, 2)
    assert all("changed since: measure the table again" in line for line in found.different)


def test_a_setting_that_is_gone_is_a_line(asked):
    r = made("dda")
    r.about["settings"]["gone"] = 1
    (line,) = recheck.recheck([r], 1).different
    assert "cannot be made again" in line
    assert "gone" in line


def test_the_command_says_so_by_its_exit_status(asked, monkeypatch, capsys):
    tables = {"test": [made("dda")], "clean": [made("source")]}

    def results(name: str):
        if name == "select":
            raise ValueError("select.npz is damaged")
        return tables[name]

    monkeypatch.setattr(recheck, "results", results)
    monkeypatch.setattr(course_tables, "TABLES", dict.fromkeys((*tables, "select")))
    assert main(["recheck", "test", "clean", "--n", "2"]) == 0
    made_again = "2 of 2 predictions made again are equal"
    assert capsys.readouterr().out.splitlines() == [f"test: {made_again}", f"clean: {made_again}"]
    tables["test"][0].label[:] += 1
    assert main(["recheck", "clean"]) == 0
    assert main(["recheck"]) == 1  # all of them
    printed = capsys.readouterr().out
    assert printed.count("different: ") == 5
    assert "select.npz is damaged" in printed
    assert main(["recheck", "none"]) == 2
    assert "unknown table 'none'" in capsys.readouterr().err


def test_a_few_fit_the_time(asked, monkeypatch, capsys):
    tables = {"one": [made("reader"), made("source")], "two": [made("tent")], "three": [made("diffusion_tta")]}
    monkeypatch.setattr(recheck, "results", tables.get)
    prices = {"diffusion_classifier": 1.0, "source": 0.1, "tent": 4.0, "diffusion_tta": 1.0}
    monkeypatch.setattr(recheck, "cost", lambda r: prices[r.about["method"]])
    assert recheck.few(*tables, seconds=4.0)
    equal = "predictions made again are equal"
    assert capsys.readouterr().out.splitlines() == [
        f"one: 3 of 3 {equal}",
        "two: no record was made again",
        f"three: 1 of 1 {equal}",
    ]
    tables["three"][0].label[:] += 1
    assert not recheck.few(*tables, seconds=4.0)
    capsys.readouterr()
    recheck.few(*tables, seconds=0.7)  # time for the source alone
    assert capsys.readouterr().out.splitlines()[0] == f"one: 3 of 3 {equal}"


@pytest.mark.parametrize("name", course_tables.TABLES)
def test_what_a_record_costs_is_known_of_every_table(name):
    runs = evaluation_tables.results(name)
    costs = {r.about["label"]: recheck.cost(r) for r in runs}
    assert min(costs.values()) > 0
    assert max(costs.values()) < 120
    if name == "information":  # there networks are compared, none of them with a method
        assert {r.about["method"] for r in runs} == {"source"}
        assert max(costs.values()) < 3
        return
    most = 5 if name == "maps_clean" else 3  # there every row has all updates and the judge
    assert any(c < most for label, c in costs.items() if "source" not in label)  # a notebook makes some again
