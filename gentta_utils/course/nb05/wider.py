"""Choices that stood at an edge of their grid, beside settings beyond it (`measure select_sda_wider`).

`choose` found DiffPure's start, SDA's learning rate for four networks of six and MEMO's for all of them at the end of
what it tried. Here the grids go on, on half of the same validation scenes, which keeps the table below twelve minutes
of a core. The rule is that of `choose`: most right predictions, ties to the earlier setting. What was chosen stays,
since every table rests on it: this says what the wider grid would have taken, and by how much that leads.

The best of what lies beyond is picked and compared on the same scenes, so its lead is too large rather than too small:
an edge that *holds* holds all the more, and a lead that is *undecided* is no reason to choose again.
"""

from dataclasses import replace

from ...common.text import as_table
from ...evaluation.chosen import selection
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, over_classifiers, pick
from ...evaluation.tables import results
from ...methods import diffpure, memo
from ...methods.sda import published
from ...recipes.aligned import BACKBONES, chosen
from ...streams.scenes import SceneSpec
from ..purified import input_job, ours, small_table
from ..side_by_side import on_scenes
from ..trials import decided, job, right
from .choose import MEMO_RATES, RATES, STARTS, select_specs
from .experiments import input_jobs
from .report import header, short, shown, verdict

BEYOND = {"start": (19, 29), "memo": (5e-5, 2.5e-4)}  # 20 levels take a start of 19; 2.5e-4 is MEMO's rate on ImageNet
LOWER, HIGHER = (1 / 16, 1 / 4), (64.0, 256.0)  # times the published rate, beyond both ends of `RATES`


def wider_specs() -> list[SceneSpec]:
    """The first half of each of `choose.select_specs`."""
    return [replace(spec, n=spec.n // 2) for spec in select_specs()]


def pure_rows() -> dict[str, diffpure.Settings]:
    """Label -> DiffPure from a start below `STARTS`, named as in `choose`."""
    at = ((t, eta) for t in BEYOND["start"] for eta in (1.0, 0.0))
    return {f"diffpure start {t}, eta {eta:g}": diffpure.Settings(start=t, steps=20, eta=eta) for t, eta in at}


def factor(classifier: str) -> float:
    """The chosen rate of a classifier's fine-tuning, in published ones: one of `RATES`."""
    x = chosen(classifier)[1].lr / published(classifier).lr
    return min(RATES, key=lambda rate: abs(rate - x))


def factors(classifier: str) -> tuple[float, ...]:
    """The rates beyond the edge at which a classifier's lies; none for one that lies inside."""
    return {min(RATES): LOWER, max(RATES): HIGHER}.get(factor(classifier), ())


def choices() -> list[tuple[str, str | None, str, list[str]]]:
    """What stood at an edge: its name, the classifier it is for (None: all), the label that was chosen, and those of
    the settings beyond."""
    pure = ours("diffpure")
    found = []
    if pure.start == min(STARTS):
        found.append(("DiffPure's start", None, f"diffpure start {pure.start}, eta {pure.eta:g}", list(pure_rows())))
    for c in BACKBONES:
        if more := factors(c):
            found.append(("SDA's rate", c, f"sda {factor(c):g} x lr, sum", [f"sda {x:g} x lr, sum" for x in more]))
    for c, lr in selection()["memo"].items():
        if lr == min(MEMO_RATES):
            found.append(("MEMO's rate", c, f"memo lr {lr:g}", [f"memo lr {x:g}" for x in BEYOND["memo"]]))
    return found


def wider() -> list[Records]:
    """The settings beyond the edges; those on them stand in the records of `select_sda`."""
    specs, jobs, found = wider_specs(), [], choices()
    if any(c is None for _, c, *_ in found):
        jobs += input_jobs({k: ("diffpure", s) for k, s in pure_rows().items()}, BACKBONES, specs)
    for c in (c for name, c, *_ in found if name == "SDA's rate"):
        data, how = chosen(c)
        for x in factors(c):
            tuned = data, replace(how, lr=x * published(c).lr)
            jobs += [input_job("sda", data.alignment, c, p, f"sda {x:g} x lr, sum", tuned) for p in specs]
    rates = {f"memo lr {lr:g}": memo.Settings(lr=lr) for lr in BEYOND["memo"]}
    for c in (c for name, c, *_ in found if name == "MEMO's rate"):
        jobs += [job("memo", s, c, p, k, None, batch=25) for k, s in rates.items() for p in specs]
    return small_table("select_sda_wider", jobs, decided)


def rows_of(runs: list[Records]) -> list[dict]:
    """A row for each choice: what was chosen, the best of what lies beyond, and whether the edge is the better one."""
    edges, rows = on_scenes(results("select_sda"), {int(i) for r in runs for i in r.id}), []
    for name, c, edge, beyond in choices():
        here = pick(runs, classifier=c)
        best = max(beyond, key=lambda label: right(here, label))  # ties go to the earlier one
        mine, other = pick(edges, edge, c), pick(here, best)
        d = over_classifiers(mine, other)
        row = {"choice": name, "classifier": short(c), "chosen": edge, "right": accuracy(mine)}
        row |= {
            "best beyond": best,
            "right beyond": accuracy(other),
            "edge - beyond": d,
            "the edge is best": verdict(d),
        }
        more = sum(r.right_after.sum() for r in other) > sum(r.right_after.sum() for r in mine)
        rows.append(row | {"the wider grid takes": best if more else edge})
    return rows


def report(runs: list[Records]) -> str:
    """The table, with how many scenes a network met."""
    n = len({int(i) for r in runs for i in r.id})
    classifiers = len(distinct(runs, "classifier"))
    rows = [shown(row) for row in rows_of(runs)]
    return f"{header(runs)}\n{n} validation scenes, {classifiers} networks\n{as_table(rows)}"
