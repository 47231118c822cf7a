"""Each part of Diffusion-TTA left out in turn, with a rate of its own; and more or fewer updates that go equally far.

The ResNet on the scenes of `ablations`. Rates are chosen on the validation corruptions, four for each row.
"""

from dataclasses import replace

from ...common.text import as_table
from ...common.validate import frozen
from ...evaluation.chosen import tuned
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import results
from ...methods import diffusion_tta
from ..trials import job, part, right, small_grid, validation_specs
from .one_by_one import RESNET, common, light_table

WHOLE = "nothing left out"
SHARES = (0.3, 1.0, 3.0, 10.0)  # of the chosen rate
LEFT_OUT = {  # row -> what is other than chosen, and four rates: shares of the chosen one, or those of Adam
    WHOLE: ({}, SHARES),
    "temperature 1": ({"temperature": 1.0}, (1.0, 3.0, 10.0, 30.0)),
    "no window": ({"window": (0, 1000)}, SHARES),
    "Adam": ({"optimizer": "adamw"}, (1e-4, 3e-4, 1e-3, 3e-3)),
}
UPDATES = (1, 3, 24)  # in the place of twelve, with as many evaluations in all
TRIED = 8  # scenes under each validation corruption
SCENES = 25  # of the 50 under each corruption


def candidates() -> dict[str, diffusion_tta.Settings]:
    """Label -> settings of what `select_leave_one_out` tries."""
    ours, found = tuned(RESNET), {}
    for row, (changes, rates) in LEFT_OUT.items():
        for rate in rates:
            lr = rate if "optimizer" in changes else float(f"{rate * ours.lr:.3g}")
            found[f"{row}, lr {lr:g}"] = replace(ours, lr=lr, **changes)
    return found


def select_leave_one_out() -> list[Records]:
    """Every candidate on the validation corruptions; `chosen_for` reads what did best."""
    tried = candidates().items()
    specs = validation_specs(3750, TRIED)
    jobs = [job("diffusion_tta", s, RESNET, spec, label, batch=TRIED) for spec in specs for label, s in tried]
    return light_table("select_leave_one_out", jobs)


def chosen_for(row: str) -> diffusion_tta.Settings:
    """The settings of a row of `LEFT_OUT` with the rate that did best, the lowest of equals; raises as `results`."""
    runs = [r for r in results("select_leave_one_out") if r.about["label"].startswith(f"{row}, lr ")]
    best = max(distinct(runs, "label"), key=lambda label: right(runs, label))
    return diffusion_tta.Settings(**frozen(pick(runs, best)[0].about["settings"]))


def reach(updates: int, momentum: float) -> float:
    """How far SGD goes along one unchanging gradient, in units of rate times gradient."""
    velocity = distance = 0.0
    for _ in range(updates):
        velocity = momentum * velocity + 1
        distance += velocity
    return distance


def rows() -> dict[str, diffusion_tta.Settings]:
    """Row -> settings: each part left out, and other numbers of updates, whose rate is set by equal displacement."""
    found = {row: chosen_for(row) for row in LEFT_OUT}
    whole = found[WHOLE]
    for updates in UPDATES:
        pairs = whole.updates * whole.pairs // updates
        lr = whole.lr * reach(whole.updates, whole.momentum) / reach(updates, whole.momentum)
        label = f"{updates} x {pairs} in the place of {whole.updates} x {whole.pairs}"
        found[label] = replace(whole, updates=updates, pairs=pairs, lr=float(f"{lr:.3g}"))
    return found


def leave_one_out() -> list[Records]:
    """All rows on the first scenes of `ablations`."""
    specs = [part(spec, 0, SCENES) for spec in small_grid()]
    jobs = [job("diffusion_tta", s, RESNET, spec, label, batch=SCENES) for label, s in rows().items() for spec in specs]
    return light_table("leave_one_out", jobs)


def without(runs: list[Records]) -> str:
    """One line for each row: its rate and whether that is the first or last of its four, accuracy by corruption, paired
    differences to the source and to the whole."""
    source, whole, lines = pick(results("ablations"), "source/full"), pick(runs, WHOLE), []
    for label in distinct(runs, "label"):
        mine = pick(runs, label)
        tried = [s.lr for name, s in candidates().items() if name.startswith(f"{label}, lr ")]
        lr = mine[0].about["settings"]["lr"]
        row = {"row": label, "rate": f"{lr:g}" + ", at the edge" * (lr in tried[:1] + tried[-1:])}
        row |= {"n": sum(map(len, mine)), "right": f"{accuracy(mine):.1f}"}
        for shift in dict.fromkeys(r.about["stream"]["shift"] for r in mine):
            row[shift] = f"{accuracy(pick(mine, shifts=[shift])):.0f}"
        row["minus source"] = str(common(mine, source))
        lines.append(row | {f"minus {WHOLE}": "" if label == WHOLE else str(common(mine, whole))})
    return f"{protocol_line(runs)}\n{as_table(lines)}"
