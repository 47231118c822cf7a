"""Streams as long as methods with a state need, all of them in the same batches.

The ResNet, five corruptions of severity 5. TENT and batch statistics meet 1,000 scenes under each, 200 one by one;
CoTTA and TEA, whose images cost many times as much, the first of these. Every setting is chosen on streams of two
validation corruptions, that of CoTTA and TEA in batches of ten. What an update adds is counted from
the row's own twin, which sees the same and learns nothing.
"""

from ...common.text import as_table
from ...common.validate import frozen
from ...evaluation.chosen import method_of
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import Job, results
from ...methods import METHODS, bn_adapt, cotta, tea, tent
from ...streams.scenes import SceneSpec
from ..trials import job, right, source_jobs
from .one_by_one import LONG, RESNET, VOTES, common, light_table, long_specs, select_specs

SIZES = {1: 200, 10: LONG, 50: LONG, 200: LONG}  # images of a batch -> scenes under each corruption
SHORTER = {1: 10, 10: 60, 50: 100}  # the same of CoTTA and TEA
GRIDS = {  # method -> its candidates, the published ones among them; TENT is chosen for each batch size
    "tent": [tent.Settings(lr=lr) for lr in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)],
    "cotta": [
        cotta.Settings(),
        *(cotta.Settings(lr=lr, teacher_momentum=m) for m in (0.9, 0.97) for lr in (3e-5, 1e-4, 3e-4, 1e-3)),
        *(cotta.Settings(lr=3e-4, teacher_momentum=0.9, restore=r) for r in (0.0, 0.1)),
        cotta.Settings(lr=3e-3, teacher_momentum=0.97),
    ],
    "tea": [tea.Settings(lr=lr) for lr in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)],
}
CORRUPTIONS = 2  # validation corruptions of a choice
CHOSEN_ON = {1: 50, 10: 400, 50: 400, 200: 400}  # batch size -> scenes under each of them
BATCH, FEW = 10, 100  # in which CoTTA and TEA are chosen, and on how many scenes
VIEWS = "cotta views"  # CoTTA whose teacher never moves
TWINS = {"tent": "bn_adapt", "tea": "bn_adapt", "cotta": VIEWS}  # row -> what it is without its update
ORDER = ("bn_adapt", "tent", "tea", VIEWS, "cotta")


def named(settings) -> str:
    """A candidate in words: the values that its grid changes."""
    words = {"teacher_momentum": "m", "restore": "r"}
    changed = {"lr": settings.lr} | {words[k]: getattr(settings, k) for k in words if hasattr(settings, k)}
    return ", ".join(f"{word} {value:g}" for word, value in changed.items())


def stream_job(method: str, settings, spec: SceneSpec, size: int, label: str) -> Job:
    """A method that carries its state through the stream of one shift, in batches of so many images."""
    return job(method, settings, RESNET, spec, label, reset="per_shift", batch=size)


def select_streams() -> list[Records]:
    """Every candidate on streams of the validation corruptions; `chosen_for` reads what did best."""
    jobs = []
    for method, grid in GRIDS.items():
        for size, n in CHOSEN_ON.items() if method == "tent" else ((BATCH, FEW),):
            for settings in grid:
                label = f"{method} batch {size}, {named(settings)}"
                jobs += [stream_job(method, settings, s, size, label) for s in select_specs(n, CORRUPTIONS)]
    return light_table("select_streams", jobs, VOTES)


def chosen_for(row: str, size: int):
    """The settings of a row in batches of this size, by the records of `select_streams`; raises as `results`.

    Batch statistics have nothing to choose; without a moving teacher, no setting of CoTTA matters but its views."""
    if row == "bn_adapt":
        return bn_adapt.Settings()
    if row == VIEWS:
        return cotta.Settings(teacher_momentum=1.0)
    start = f"{row} batch {size if row == 'tent' else BATCH},"
    runs = [r for r in results("select_streams") if r.about["label"].startswith(start)]
    # of equals the last one: the lowest rates do nothing
    best = max(reversed(distinct(runs, "label")), key=lambda label: right(runs, label))
    return METHODS[row].Settings(**frozen(pick(runs, best)[0].about["settings"]))


def scenes_of(row: str) -> dict[int, int]:
    """Batch size -> how many scenes a row meets under each corruption; a row's twin as many as the row."""
    return SHORTER if method_of(row) in ("cotta", "tea") else SIZES


def streams() -> list[Records]:
    """Batch statistics, TENT, CoTTA and TEA in the same batches, each chosen on validation corruptions."""
    jobs = source_jobs(long_specs(LONG), (RESNET,))[::2]  # the full view alone
    for row in ORDER:
        for size, n in scenes_of(row).items():
            settings = chosen_for(row, size)
            jobs += [stream_job(method_of(row), settings, s, size, f"{row} batch {size}") for s in long_specs(n)]
    return light_table("streams", jobs, VOTES)


def contributions(runs: list[Records]) -> str:
    """One line for each row and batch size: accuracy, and what its update adds to the same without it.

    A row that met fewer scenes is compared on those; the source is, too."""
    source, rows = pick(runs, "source/full"), []
    for name in ORDER:
        for size in scenes_of(name):
            mine = pick(runs, f"{name} batch {size}")
            row = {"batch": size, "row": name, "n": sum(map(len, mine)), "right": f"{accuracy(mine):.1f}"}
            row["minus source"] = str(common(mine, source))
            twin = f"{TWINS[name]} batch {size}" if name in TWINS else ""
            row["its update adds"] = str(common(mine, pick(runs, twin))) if twin else ""
            rows.append(row | {"s/img": f"{sum(r.seconds.sum() for r in mine) / sum(map(len, mine)):.3f}"})
    rows.sort(key=lambda row: row["batch"])
    return protocol_line([r for r in runs if r.about["label"] != "source/full"]) + "\n" + as_table(rows)
