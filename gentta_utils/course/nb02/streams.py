"""Streams as long as methods with a state need: all of them in the same batches, and Diffusion-TTA image by image.

The ResNet, five corruptions of severity 5. TENT and batch statistics meet 1,000 scenes under each; CoTTA and TEA, whose
images cost fifteen times as much, the first of these. Every setting is chosen on streams of the validation corruptions,
those of all but TENT on two of them.
"""

from dataclasses import replace

import numpy as np

from ...common.text import as_table
from ...common.validate import frozen
from ...evaluation.chosen import method_of, tuned
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import Interval, paired_interval, protocol_line
from ...evaluation.tables import Job, results, table
from ...methods import METHODS, bn_adapt, cotta, diffusion_tta, tea, tent
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..side_by_side import verdict
from ..trials import CLASSIFIERS, SMALL, coarse, job, right, source_jobs
from .choose import chosen_rate

RESNET = CLASSIFIERS[0]
SIZES = (1, 10, 50, 200)  # images of a batch, for every row
LONG = 1000  # scenes under each corruption
SHORTER = {1: 20, 10: 50, 50: 100, 200: 200}  # batch size -> scenes that CoTTA and TEA meet

LR = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GRIDS = {  # method -> its candidates; TENT is chosen for each batch size, the others in batches of 10
    "tent": [tent.Settings(lr=lr) for lr in LR],
    "cotta": [
        cotta.Settings(),  # published
        *(cotta.Settings(lr=lr, teacher_momentum=m) for m in (0.9, 0.97) for lr in (3e-4, 1e-3, 3e-3)),
        *(cotta.Settings(teacher_momentum=0.9, restore=r) for r in (0.0, 0.1)),
    ],
    "tea": [tea.Settings(lr=lr) for lr in LR],
}
EXPENSIVE = 2  # validation corruptions on which all but TENT are chosen
# of the rate that the rule gives for one update, for a state that is carried on; by what is adapted
SHARES = {"all": (0.003, 0.01, 0.03), "norm": (0.01, 0.03, 0.1)}
ONE = dict(updates=1, pairs=8)  # of Diffusion-TTA, one image at a time
STREAM = 500  # scenes of it under each corruption


def long_specs(n: int = LONG, start: int = 40_000) -> list[SceneSpec]:
    """The first n of 1,000 scenes under each of the five corruptions."""
    return [SceneSpec(n, name, 5, "test", start + LONG * i) for i, name in enumerate(SMALL)]


def select_specs(n: int) -> list[SceneSpec]:
    """The first n of 400 selection scenes under each validation corruption."""
    return [SceneSpec(n, name, 5, "select", 50_000 + 400 * i) for i, name in enumerate(VALIDATION)]


def named(settings) -> str:
    """A candidate in words: the values that its grid changes."""
    changed = {"lr": settings.lr} | {
        word: getattr(settings, name)
        for name, word in (("teacher_momentum", "m"), ("restore", "r"), ("param_set", "of"))
        if hasattr(settings, name)
    }
    return ", ".join(f"{word} {value:g}" if word != "of" else str(value) for word, value in changed.items())


def stream_job(method: str, settings, spec: SceneSpec, size: int, label: str) -> Job:
    """A method that carries its state through the stream of one shift, in batches of so many images."""
    return job(method, settings, RESNET, spec, label, reset="per_shift", batch=size)


def online_settings(param_set: str, share: float) -> diffusion_tta.Settings:
    """One update per image, the state carried on, at a share of the rate that the rule gives for one update."""
    alone = chosen_rate(RESNET, ONE | {"param_set": param_set})
    return replace(alone, online=True, lr=float(f"{share * alone.lr:.3g}"))


def candidates() -> dict[str, tuple[str, object, int, int]]:
    """Label -> method, settings, batch size, scenes per corruption."""
    found = {}
    for method, grid in GRIDS.items():
        for size in SIZES if method == "tent" else (10,):
            n = min(400, max(100, 4 * size))
            found |= {f"{method} batch {size}, {named(s)}": (method, s, size, n) for s in grid}
    return found


def select_streams() -> list[Records]:
    """Every candidate on streams of the validation corruptions; `chosen_for` reads what did best."""
    jobs = [
        stream_job(method, settings, spec, size, label)
        for i in range(len(VALIDATION))
        for label, (method, settings, size, n) in candidates().items()
        for spec in select_specs(n)[i : i + 1]
        if i < (len(VALIDATION) if method == "tent" else EXPENSIVE)
    ]
    return light_table("select_streams", jobs)


def light_table(name: str, jobs: list[Job]) -> list[Records]:
    """`tables.table` with coarse logits and without losses: streams are long."""
    none = lambda r: np.zeros((len(r), 0), np.float32)  # noqa: E731
    mean = lambda r: np.full(len(r), r.seconds.mean(), np.float32)  # noqa: E731
    kept = lambda r: replace(r, before=coarse(r.before), after=coarse(r.after), loss=none(r), seconds=mean(r))  # noqa: E731
    return table(name, jobs, kept=kept)


def select_one_by_one() -> list[Records]:
    """Parameters and rate of Diffusion-TTA with one update per image, on two streams of validation corruptions."""
    jobs = []
    for spec in select_specs(100)[:EXPENSIVE]:
        for param_set, shares in SHARES.items():
            for settings in (online_settings(param_set, share) for share in shares):
                label = f"diffusion_tta online batch 1, {named(settings)}"
                jobs.append(stream_job("diffusion_tta", settings, spec, 1, label))
    return light_table("select_one_by_one", jobs)


def chosen_for(row: str, size: int):
    """The settings of a row in batches of this size, by the records of `select_streams` or `select_one_by_one`.

    TENT's are chosen for each size, of the others for one; batch statistics have nothing to choose. Raises as
    `results`."""
    if row == "bn_adapt":
        return bn_adapt.Settings()
    table_of = "select_one_by_one" if row.startswith("diffusion_tta") else "select_streams"
    runs = [r for r in results(table_of) if r.about["label"].startswith(f"{row} batch ")]
    at = f"{row} batch {size},"
    mine = [r for r in runs if r.about["label"].startswith(at)] or runs
    best = max(distinct(mine, "label"), key=lambda label: right(mine, label))
    return METHODS[method_of(row)].Settings(**frozen(pick(mine, best)[0].about["settings"]))


def streams() -> list[Records]:
    """Batch statistics, TENT, CoTTA and TEA in the same batches, each chosen on validation corruptions."""
    jobs = source_jobs(long_specs(), (RESNET,))[::2]  # the full view alone
    for row in ("bn_adapt", "tent", "cotta", "tea"):
        for size in SIZES:
            n = SHORTER[size] if row in ("cotta", "tea") else LONG
            jobs += [stream_job(row, chosen_for(row, size), s, size, f"{row} batch {size}") for s in long_specs(n)]
    return light_table("streams", sorted(jobs, key=lambda j: (j[0]["stream"]["start"], j[0]["stream"]["n"])))


def contributions(runs: list[Records]) -> str:
    """One line for each batch size: accuracy of each row, and what its update adds to batch statistics alone.

    A row that met fewer scenes is compared on those."""
    source, rows = pick(runs, "source/full"), []
    for label in [name for name in distinct(runs, "label") if name != "source/full"]:
        method, _, size = label.partition(" batch ")
        mine, base = pick(runs, label), pick(runs, f"bn_adapt batch {size}")
        row = {"batch": size, "row": method, "n": sum(map(len, mine)), "right": f"{accuracy(mine):.1f}"}
        row |= {r.about["stream"]["shift"]: f"{100 * r.right_after.mean():.0f}" for r in by_shift(mine)}
        row["minus source"] = str(common(mine, source))
        row["minus batch statistics"] = "" if method == "bn_adapt" else str(common(mine, base))
        rows.append(row | {"s/img": f"{sum(r.seconds.sum() for r in mine) / sum(map(len, mine)):.3f}"})
    order = ("bn_adapt", "tent", "cotta", "tea")
    rows.sort(key=lambda row: (int(row["batch"]), order.index(row["row"])))
    return protocol_line([r for r in runs if r.about["label"] != "source/full"]) + "\n" + as_table(rows)


def by_shift(runs: list[Records]) -> list[Records]:
    """The runs of one row in the order of the corruptions."""
    return sorted(runs, key=lambda r: SMALL.index(r.about["stream"]["shift"]))


def common(one: list[Records], other: list[Records]) -> Interval:
    """Paired difference of two rows, `one` minus `other`, on the scenes of `one`.

    Raises ValueError where the other did not meet all of them."""
    met = {int(i): bool(ok) for r in other for i, ok in zip(r.id, r.right_after, strict=True)}
    scene = np.concatenate([r.id for r in one])
    if missing := set(scene.tolist()) - set(met):
        raise ValueError(f"the second row did not meet {len(missing)} scenes of the first: they cannot be paired")
    return paired_interval(
        np.concatenate([r.right_after for r in one]), np.array([met[i] for i in scene.tolist()]), scene
    )


# --- one image at a time ---------------------------------------------------------------------------------------------


def one_by_one() -> list[Records]:
    """Diffusion-TTA online as published, an update per image; beside it, on the last hundred scenes of each stream, the
    same evaluations from the source each time, and on the last twenty the chosen episodic settings."""
    jobs, online = [], chosen_for("diffusion_tta online", 1)
    alone = chosen_rate(RESNET, ONE | {"param_set": online.param_set})
    for spec in long_specs(STREAM):
        jobs += source_jobs([spec], (RESNET,))[:1]
        jobs.append(stream_job("diffusion_tta", online, spec, 1, "online, 8 evaluations"))
        for settings, n, label in ((alone, 100, "episodic, 8 evaluations"), (tuned(RESNET), 20, "episodic, 96")):
            last = replace(spec, n=n, start=spec.start + STREAM - n)
            jobs.append(job("diffusion_tta", settings, RESNET, last, label, batch=20))
    return light_table("one_by_one", jobs)


def online_rows(runs: list[Records]) -> str:
    """Accuracy and paired difference to the source of each row, on the scenes that it met; online minus episodic on the
    last hundred scenes of each stream, and the verdict on the published shape; below it the accuracy of the carried
    state before each update, by hundreds of images."""
    rows = []
    for label in distinct(runs, "label"):
        mine = by_shift(pick(runs, label))
        row = {"row": label, "n": sum(map(len, mine)), "mean": f"{accuracy(mine):.1f}"}
        row |= {r.about["stream"]["shift"]: f"{100 * r.right_after.mean():.0f}" for r in mine}
        row["minus source"] = "" if label == "source/full" else str(common(mine, pick(runs, "source/full")))
        rows.append(row)
    online, alone = pick(runs, "online, 8 evaluations"), pick(runs, "episodic, 8 evaluations")
    turned, states = common(alone, online), ", ".join(f"{v:.1f}" for v in carried(online))
    difference = Interval(-turned.mean, -turned.high, -turned.low)
    return "\n".join(
        [
            protocol_line([r for r in runs if r.about["method"] != "source"]),
            as_table(rows),
            f"\nonline minus episodic at the same evaluations, on the last scenes: {difference}; the published shape, "
            f"online above episodic: {verdict(difference)}",
            f"the carried state before each update, by hundreds of images: {states}",
        ]
    )


def carried(runs: list[Records], block: int = 100) -> list[float]:
    """Percent right of the carried state before it has seen an image, by blocks of images along the streams."""
    right_of = np.stack([r.right_before[: len(r) // block * block].reshape(-1, block).mean(1) for r in runs])
    return (100 * right_of.mean(0)).tolist()
