"""Notebook 06's tables: selection scenes apart, equal numbers of views and steps, the same scenes for rows compared."""

from dataclasses import replace

import pytest
import torch
from scipy.special import log_softmax, softmax

from gentta_utils.course import drawn, nb06, trials
from gentta_utils.course.nb06 import choose, experiments, looking, rows, starts
from gentta_utils.course.trials import Wording
from gentta_utils.evaluation import tables as evaluation_tables
from gentta_utils.evaluation.chosen import prompted
from gentta_utils.methods import tpt, zero
from gentta_utils.methods.many_views import select
from gentta_utils.methods.variations import CHOSEN, Settings
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world.severities import TEST, VALIDATION

SAME_SCENES = {"prompt_s1", "prompt_s2", "prompt_views", "prompt_filters", "prompt_budget", "prompt_init"}
SAME_SCENES |= {"prompt_t1", "prompt_t1_sets"}  # the first of which are those of prompt_s1 and prompt_s2


@pytest.fixture(scope="module")
def tables():
    """Name -> the jobs of every table, none of them run."""
    found = {}

    def collect(name, jobs, **_):
        found[name] = list(jobs)
        return evaluation_tables.results(name) if name == "select_prompt" else []

    patch = pytest.MonkeyPatch()
    for module in (choose, experiments, starts):
        patch.setattr(module, "table", collect)
    patch.setattr(choose, "write_json", lambda *a: None)
    try:
        for measure, _ in nb06.TABLES.values():
            measure()
    finally:
        patch.undo()
    return found


def streams_of(about: dict) -> list[dict]:
    return about["stream"].get("parts", [about["stream"]])


def test_choices_are_made_on_selection_scenes_and_validation_corruptions(tables):
    for about, _ in tables["select_prompt"]:
        assert {s["split"] for s in streams_of(about)} == {"select"}
        assert {s["shift"] for s in streams_of(about)} <= {*VALIDATION, "clean", "far"}
    for name in set(tables) - {"select_prompt"}:
        met = {(s["split"], s["shift"]) for about, _ in tables[name] for s in streams_of(about)}
        assert {split for split, _ in met} == {"test"}
        assert not {shift for _, shift in met} & set(VALIDATION)
    assert {a["stream"]["shift"] for a, _ in tables["prompt_test"]} == set(TEST)


def test_tables_on_other_scenes_share_none_and_rows_are_named_once(tables):
    used = {}
    for name in set(tables) - {"select_prompt"}:
        used[name] = {
            i for about, _ in tables[name] for s in streams_of(about) for i in range(s["start"], s["start"] + s["n"])
        }
        assert min(used[name]) >= 60_000
        assert max(used[name]) < 80_000  # of other notebooks
        at = ("shift", "severity", "start", "labels", "order", "order_seed")
        keys = [(a["label"], a["classifier"], *(a["stream"].get(k) for k in at)) for a, _ in tables[name]]
        assert len(set(keys)) == len(keys), name
    for one in used:
        for other in set(used) - {one}:
            assert not used[one] & used[other] or {one, other} <= SAME_SCENES, (one, other)


def test_rows_that_are_compared_have_equal_views_and_steps(tables):
    """All of DiffTPT, TPT with four steps and the untuned rows have 64 views, by all tables but that of budgets."""
    every = [rows.MEAN, rows.ZERO, rows.MTA, rows.TPT1, rows.TPT4, rows.TPT_MANY, rows.CTPT, rows.PARALLEL]
    every += [*rows.DIFFTPT.values(), *rows.ON_THEIRS.values(), rows.ALIKE]
    for name in ("prompt_s1", "prompt_t1", "prompt_s2", "prompt_t1_sets", "prompt_test", "prompt_filters"):
        for about, _ in tables[name]:
            s = about["settings"]
            if about["label"] in every:
                assert s["views"] + s["generated"] == 64, about["label"]
            if about["method"] in ("tpt", "difftpt") and about["label"] not in (rows.TPT1, rows.PUBLISHED):
                assert s["updates"] == 4, about["label"]
    labels = {a["label"] for a, _ in tables["prompt_s1"]}
    assert {*every, rows.TRUE, rows.TDA, rows.DOTA, rows.PUBLISHED, rows.LOW_CROPS} <= labels


def test_as_many_views_count_in_the_row_that_says_so():
    many = {a["label"]: a for a, _ in experiments.tuned("clip/small", experiments.spec_of("far", 2))}[rows.TPT_MANY]
    theirs = prompted("difftpt", "clip/small")
    n = {}
    for name, values in (("tpt", many["settings"]), ("difftpt", None)):
        s = tpt.Settings(**values) if values else theirs
        n[name] = select(torch.randn(2, 64, 8), torch.randn(2, 64, 10), s).shape[1]
    assert n["tpt"] == n["difftpt"] == experiments.difftpt_count("clip/small") == 15


def test_a_generated_row_counts_what_its_views_cost(monkeypatch):
    """Evaluations and seconds of the generator stand in the record; the method is handed these very views."""
    asked = []

    def made(images, ids, n, generator, settings, captions, **_):
        asked.append((generator, captions))
        shown = (images[:, None].expand(-1, n, -1, -1, -1) * 255).round().byte()
        return drawn.Generated(ids, shown, {}, 0.5, 7)

    monkeypatch.setattr(drawn, "generated", made)
    s = zero.Settings(views=1, generated=3, filter="none", temperature=1.0)
    spec = SceneSpec(2, "far", start=60_900)
    _, work = choose.prompt_job("zero", s, "clip/small", spec, "row", drawn.Drawn("prompted_own", 199))
    r = work()
    assert r.nfe["generator fwd"] == 21
    assert r.seconds.min() > 1.5
    assert abs(softmax(r.after, 1) - softmax(r.before, 1)).max() < 0.1  # four times the image, rounded to 8 bits
    names = Wording().templates[0]
    assert asked[0] == ("prompted", [names.format(trials.label_set("category").classes[k]) for k in r.before.argmax(1)])


def test_more_scenes_leave_the_first_ones_alone():
    """Parts are the scenes of the whole, in "a" too, whose ids are searched for; the first part is a run of its own."""
    for shift in ("far", "a"):
        spec = experiments.spec_of(shift, 5)
        parts = experiments.parts_of(replace(spec, n=2), 2, 3)
        assert parts[0] == experiments.spec_of(shift, 2)
        assert torch.equal(torch.cat([part.load().ids for part in parts]), spec.load().ids)


def test_views_that_are_alike_are_the_first_one_and_cost_one(monkeypatch):
    asked = []

    def made(images, ids, n, *a, **_):
        asked.append(n)
        shown = torch.arange(n).view(1, n, 1, 1, 1).expand(len(images), n, *images.shape[1:]).to(torch.uint8)
        return drawn.Generated(ids, shown, {}, 0.5, 7)

    monkeypatch.setattr(drawn, "generated", made)
    one = drawn.Drawn("image_to_image", 199, alike=True)
    assert one.describe() == drawn.Drawn("image_to_image", 199).describe() | {"alike": True}
    models, images = trials.models("clip/small", None, wording=Wording()), torch.zeros(2, 3, 8, 8)
    views = one.views(models, [], 3)(images, torch.arange(2))
    assert views.shape == (2, 3, 3, 8, 8)
    assert not views.any()
    assert one.make(images, torch.arange(2), 3, models, []).images.shape[1] == 1
    assert asked == [1, 1]


def test_levels_keep_the_steps_per_timestep():
    usual = CHOSEN["image_to_image"]
    assert drawn.Drawn("image_to_image").settings == usual
    half = drawn.Drawn("image_to_image", (usual.start + 1) // 2 - 1).settings
    assert (half.steps, half.guidance) == (usual.steps // 2, usual.guidance)
    assert drawn.Drawn("variation", 199).settings == Settings(start=None, steps=8, guidance=3.0)  # begins with noise
    assert drawn.Drawn("variation", profile="imagenet").settings.steps == 50
    with pytest.raises(ValueError, match="choose one of variation"):
        drawn.Drawn("prompted")


def test_quantities_of_views():
    """Three views: the image itself, one like it, one at a right angle that is wrong."""
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    logits = 5 * torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    found = dict(
        zip(
            rows.QUANTITIES,
            looking.quantities(features, logits, torch.tensor([[0, 1]]), torch.tensor([0]))[0].tolist(),
            strict=True,
        )
    )
    assert found == pytest.approx(
        {
            "cosine, all": 0.5,
            "cosine, kept": 1.0,
            "spread, all": 2**0.5,
            "spread, kept": 0.0,
            "right, all": 0.5,
            "right, kept": 1.0,
        }
    )
    alone = looking.quantities(features, logits, torch.tensor([[0]]), torch.tensor([0]))[0]
    assert not alone.isnan().any()


def test_what_counts_is_counted():
    """An image and a crop, then two drawn views of which one is right; all but the wrong one count."""
    logits = torch.eye(2)[torch.tensor([[0, 0, 1, 0]])]
    found = looking.counted(logits, torch.tensor([[0, 1, 3]]), torch.tensor([0]), made=2)[0].tolist()
    assert dict(zip(rows.COUNTED, found, strict=True)) == {
        "count": 3,
        "drawn among them": 1,
        "right, crops": 2,
        "right, drawn": 1,
    }


def test_the_ceiling_is_told_the_truth():
    spec = SceneSpec(4, "far", start=60_910)
    _, work = looking.truth_job(tpt.Settings(lr=0.25, updates=4), "clip/small", spec, rows.TRUE)
    r = work()
    of_truth = [log_softmax(z, 1)[range(4), r.label] for z in (r.before, r.after)]
    assert r.loss[:, 0] == pytest.approx(-of_truth[0], abs=1e-3)  # cross entropy of the image alone
    assert of_truth[1].mean() > of_truth[0].mean()


def test_tuned_words_that_read_the_views_are_read_on_the_views(monkeypatch):
    """Told views that are the image itself both rows are one; else they begin with one tuning and end with another
    reading."""
    spec, drawn_ = SceneSpec(2, "far", start=60_920), drawn.Drawn("image_to_image", 199)

    def runs(changed):
        def made(images, ids, n, *a, **_):
            shown = changed(images)[:, None].expand(-1, n, -1, -1, -1)
            return drawn.Generated(ids, (shown * 255).round().byte(), {}, 0.5, 7)

        monkeypatch.setattr(drawn, "generated", made)
        jobs = looking.purified_jobs("clip/small", spec, drawn_, 3)
        assert len({about["label"] for about, _ in jobs}) == 2
        return [work() for _, work in jobs]

    on_image, on_views = runs(lambda images: images)
    assert abs(softmax(on_image.after, 1) - softmax(on_views.after, 1)).max() < 0.05  # rounded to 8 bits
    on_image, on_views = runs(lambda images: images.flip(1))
    assert on_image.loss == pytest.approx(on_views.loss)
    assert abs(softmax(on_image.after, 1) - softmax(on_views.after, 1)).max() > 0.05
    assert on_views.nfe["generator fwd"] == 21


def test_orders_are_permutations_of_the_same_images():
    streams = {order: experiments.in_order(order, 1, 3)[1] for order in experiments.ORDERS}
    ids = {order: s.ids.tolist() for order, s in streams.items()}
    assert len({tuple(v) for v in ids.values()}) == 3
    assert len({tuple(sorted(v)) for v in ids.values()}) == 1
    labels = streams["class by class"].labels
    assert torch.equal(labels, labels.sort().values)
    blocks = torch.tensor(ids["shift by shift"]).view(4, 3).tolist()
    sets = [experiments.spec_of(shift, 3, table="order").load().ids.tolist() for shift in ("clean", "far", "r", "a")]
    assert [sorted(b) for b in blocks] == [sorted(b) for b in sets]
    assert experiments.in_order("mixed", 2, 3)[1].ids.tolist() != ids["mixed"]
