"""Streams as long as methods with a state need, all of them in the same batches.

The ResNet, five corruptions of severity 5. TENT and batch statistics meet 1,000 scenes under each; CoTTA and TEA, whose
images cost fifteen times as much, the first of these. Every setting is chosen on streams of the validation corruptions,
those of CoTTA and TEA on two of them, in batches of ten. What an update adds is counted from the row's own twin, which
sees the same and learns nothing.
"""

from dataclasses import replace

import numpy as np

from ...common.text import as_table
from ...common.validate import frozen
from ...evaluation.chosen import method_of
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import Interval, paired_interval, protocol_line
from ...evaluation.tables import Job, results, table
from ...methods import METHODS, bn_adapt, cotta, tea, tent
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..trials import CLASSIFIERS, SMALL, coarse, job, right, source_jobs

RESNET = CLASSIFIERS[0]
SIZES = (1, 10, 50, 200)  # images of a batch, for every row
LONG = 1000  # scenes under each corruption
SHORTER = {1: 10, 10: 40, 50: 100, 200: 200}  # batch size -> scenes under each that CoTTA and TEA meet

LR = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GRIDS = {  # method -> its candidates, the published ones among them; TENT is chosen for each batch size
    "tent": [tent.Settings(lr=lr) for lr in LR],
    "cotta": [
        cotta.Settings(),
        *(cotta.Settings(lr=lr, teacher_momentum=m) for m in (0.9, 0.97) for lr in (3e-4, 1e-3, 3e-3)),
        *(cotta.Settings(teacher_momentum=0.9, restore=r) for r in (0.0, 0.1)),
    ],
    "tea": [tea.Settings(lr=lr) for lr in LR],
}
CHOSEN_ON = {1: 50, 10: 100, 50: 200, 200: 400}  # batch size -> scenes under each validation corruption
BATCH, CORRUPTIONS = 10, 2  # in which CoTTA and TEA are chosen, and on how many of these
VIEWS = "cotta views"  # CoTTA whose teacher never moves
TWINS = {"tent": "bn_adapt", "tea": "bn_adapt", "cotta": VIEWS}  # row -> what it is without its update
ORDER = ("bn_adapt", "tent", "tea", VIEWS, "cotta")


def long_specs(n: int = LONG, start: int = 40_000) -> list[SceneSpec]:
    """The first n of 1,000 scenes under each of the five corruptions."""
    return [SceneSpec(n, name, 5, "test", start + LONG * i) for i, name in enumerate(SMALL)]


def select_specs(n: int, corruptions: int = len(VALIDATION)) -> list[SceneSpec]:
    """The first n of 400 selection scenes under each of the first validation corruptions."""
    return [SceneSpec(n, name, 5, "select", 50_000 + 400 * i) for i, name in enumerate(VALIDATION[:corruptions])]


def named(settings) -> str:
    """A candidate in words: the values that its grid changes."""
    words = {"teacher_momentum": "m", "restore": "r"}
    changed = {"lr": settings.lr} | {words[k]: getattr(settings, k) for k in words if hasattr(settings, k)}
    return ", ".join(f"{word} {value:g}" for word, value in changed.items())


def stream_job(method: str, settings, spec: SceneSpec, size: int, label: str, classifier: str = RESNET, **how) -> Job:
    """A method that carries its state through the stream of one shift, in batches of so many images."""
    return job(method, settings, classifier, spec, label, reset="per_shift", batch=size, **how)


def light_table(name: str, jobs: list[Job]) -> list[Records]:
    """`tables.table` with coarse logits and without losses, for streams are long; jobs on one corruption one after the
    other, so that its scenes are rendered once."""
    none = lambda r: np.zeros((len(r), 0), np.float32)  # noqa: E731
    mean = lambda r: np.full(len(r), r.seconds.mean(), np.float32)  # noqa: E731
    kept = lambda r: replace(r, before=coarse(r.before), after=coarse(r.after), loss=none(r), seconds=mean(r))  # noqa: E731
    return table(name, sorted(jobs, key=lambda j: (j[0]["stream"]["start"], j[0]["stream"]["n"])), kept=kept)


def select_streams() -> list[Records]:
    """Every candidate on streams of the validation corruptions; `chosen_for` reads what did best."""
    jobs = []
    for method, grid in GRIDS.items():
        cheap = method == "tent"
        for size in SIZES if cheap else (BATCH,):
            specs = select_specs(CHOSEN_ON[size], len(VALIDATION) if cheap else CORRUPTIONS)
            for settings in grid:
                label = f"{method} batch {size}, {named(settings)}"
                jobs += [stream_job(method, settings, s, size, label) for s in specs]
    return light_table("select_streams", jobs)


def best_of(table_of: str, start: str) -> Records:
    """A record of the candidate that did best on the validation corruptions, of those whose label starts so."""
    runs = [r for r in results(table_of) if r.about["label"].startswith(start)]
    best = max(distinct(runs, "label"), key=lambda label: right(runs, label))  # ties go to the earlier one
    return pick(runs, best)[0]


def chosen_for(row: str, size: int):
    """The settings of a row in batches of this size, by the records of `select_streams`; raises as `results`.

    Batch statistics have nothing to choose; without a moving teacher, no setting of CoTTA matters but its views."""
    if row == "bn_adapt":
        return bn_adapt.Settings()
    if row == VIEWS:
        return cotta.Settings(teacher_momentum=1.0)
    found = best_of("select_streams", f"{row} batch {size if row == 'tent' else BATCH},")
    return METHODS[row].Settings(**frozen(found.about["settings"]))


def streams() -> list[Records]:
    """Batch statistics, TENT, CoTTA and TEA in the same batches, each chosen on validation corruptions."""
    jobs = source_jobs(long_specs(), (RESNET,))[::2]  # the full view alone
    for row in ORDER:
        for size in SIZES:
            n = SHORTER[size] if row in ("cotta", VIEWS, "tea") else LONG
            settings = chosen_for(row, size)
            jobs += [stream_job(method_of(row), settings, s, size, f"{row} batch {size}") for s in long_specs(n)]
    return light_table("streams", jobs)


def contributions(runs: list[Records]) -> str:
    """One line for each row and batch size: accuracy, and what its update adds to the same without it.

    A row that met fewer scenes is compared on those; the source is, too."""
    source, rows = pick(runs, "source/full"), []
    for name in ORDER:  # rows of as many scenes one after the other: they are resampled alike
        for size in SIZES:
            mine = pick(runs, f"{name} batch {size}")
            twin = pick(runs, f"{TWINS[name]} batch {size}") if name in TWINS else []
            row = {"batch": size, "row": name, "n": sum(map(len, mine)), "right": f"{accuracy(mine):.1f}"}
            row["minus source"] = str(common(mine, source))
            row["its update adds"] = str(common(mine, twin)) if twin else ""
            rows.append(row | {"s/img": f"{sum(r.seconds.sum() for r in mine) / sum(map(len, mine)):.3f}"})
    rows.sort(key=lambda row: row["batch"])
    return protocol_line([r for r in runs if r.about["label"] != "source/full"]) + "\n" + as_table(rows)


DRAWS = 2_000  # of the bootstrap: streams have thousands of scenes


def common(one: list[Records], other: list[Records]) -> Interval:
    """Paired difference of two rows, `one` minus `other`, on the scenes of `one`.

    Raises ValueError where the other did not meet all of them."""
    met = {int(i): bool(ok) for r in other for i, ok in zip(r.id, r.right_after, strict=True)}
    scene = np.concatenate([r.id for r in one])
    if missing := set(scene.tolist()) - set(met):
        raise ValueError(f"the second row did not meet {len(missing)} scenes of the first: they cannot be paired")
    right_of = np.concatenate([r.right_after for r in one])
    return paired_interval(right_of, np.array([met[i] for i in scene.tolist()]), scene, draws=DRAWS)
