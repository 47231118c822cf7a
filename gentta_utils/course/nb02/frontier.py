"""What each forward pass buys: batch statistics, filter, reader and Diffusion-TTA by cost, on the fifteen corruptions.

The ResNet. Rows that cost little meet the 1,500 scenes of `backbones`, those with a diffusion model the 600 of `test`
or the first of these; two rows are compared on the scenes of the first.
"""

import re

from matplotlib.axes import Axes

from ...common.evaluations import forwards
from ...common.text import as_table
from ...evaluation.chosen import PRUNED, chosen_window, rival
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import protocol_line
from ...methods import bn_adapt, diffusion_classifier, memo, tta_averaging
from .. import plots
from ..trials import effect_jobs, job, method_job, part, reader_jobs
from .choose import chosen_rate
from .experiments import BUDGETS
from .one_by_one import RESNET, common, light_table
from .rivals import corruption_specs

FULL, LOW = "diffusion_tta/full", "diffusion_tta/low"
SMALLER = {6: 40, 24: 10}  # evaluations of smaller budgets of Diffusion-TTA -> scenes under each corruption
CEILINGS = (1, 10, 50, 100, 350, 500)  # forward equivalents per image
LEAST = 600  # scenes of a row that may be the best at a cost
KINDS = {"reader": "reader", "diffusion_tta": "Diffusion-TTA"}


def frontier() -> list[Records]:
    """The ResNet and what helps it, from one forward pass per image to 480; records of other tables stand here too."""
    (first, more), window = corruption_specs(), chosen_window()
    jobs = effect_jobs([*first, *more], (RESNET,))
    named = lambda row, settings, label, specs, **how: [  # noqa: E731
        method_job(row, settings, RESNET, s, label, **how) for s in specs
    ]
    jobs += named("bn_adapt", bn_adapt.Settings(), "BN-adapt", (*first, *more), batch=50)
    # in streams of 40 and 60 scenes TENT answers all but the last ten of the 60 before its first update; see streams.py
    jobs += named("tent", rival("tent", RESNET), "tent", (*first, *more), batch=50)
    few = [part(s, *at) for s in first for at in ((0, 3), (3, 7))]
    jobs += named("tta_averaging", tta_averaging.Settings(), "TTA-averaging", few)
    jobs += named("memo", memo.Settings(lr=rival("memo", RESNET).lr), "MEMO", few)
    for pairs in (1, 3, 48):
        jobs += reader_jobs(first, pairs, window)
    staged = diffusion_classifier.Settings(pairs=PRUNED[-1][0], window=window, stages=PRUNED)
    cut = [part(s, *at) for s in first for at in ((0, 10), (10, 30))]
    jobs += named("diffusion_classifier", staged, "reader, pruned", cut)
    for pairs, n in SMALLER.items():
        settings, label = chosen_rate(RESNET, BUDGETS[pairs]), f"diffusion_tta/full, {pairs}"
        jobs += [job("diffusion_tta", settings, RESNET, part(s, 0, n), label, batch=25) for s in first]
    return light_table("frontier", jobs)


def by_label(runs: list[Records]) -> dict[str, list[Records]]:
    """Row -> its records, the cheapest first."""
    labels = sorted(distinct(runs, "label"), key=lambda label: forwards(pick(runs, label)[0].nfe))
    return {label: pick(runs, label) for label in labels}


def by_cost(runs: list[Records]) -> str:
    """One line for each row, the cheapest first: cost, accuracy, and paired differences on the scenes that it met; and
    below, what is best at each cost."""
    rows = []
    for label, mine in by_label(runs).items():
        row = {"row": label, "forward equivalents": f"{forwards(mine[0].nfe):.0f}", "n": sum(map(len, mine))}
        row["right"] = f"{accuracy(mine):.1f}"
        for name, other in (("source", "source/full"), ("Diffusion-TTA", FULL), ("Diffusion-TTA, low view", LOW)):
            row[f"minus {name}"] = "" if label == other else common(mine, pick(runs, other))
        rows.append(row)
    line = protocol_line([r for r in runs if r.about["method"] != "source"])
    return f"{line}\n{as_table(rows)}\n\n{as_table(best_at(runs))}"


def best_at(runs: list[Records]) -> list[dict]:
    """What is right most often at each of `CEILINGS` on the scenes of the reader, and its paired lead over the next.

    The best is picked by these very scenes, so its lead is a little too large."""
    met = {int(i) for r in runs if r.about["label"].startswith("reader/48 pairs/") for i in r.id}
    shared = {}
    for label, mine in by_label(runs).items():
        here = [r for r in mine if set(r.id.tolist()) <= met]
        if sum(map(len, here)) >= LEAST:
            shared[label] = here
    rows = []
    for most in CEILINGS:
        within = [label for label, mine in shared.items() if forwards(mine[0].nfe) <= most]
        first, second = sorted(within, key=lambda label: -accuracy(shared[label]))[:2]
        row = {"at most": str(most), "best": first, "right": f"{accuracy(shared[first]):.1f}", "next": second}
        rows.append(row | {"best minus next": str(common(shared[first], shared[second]))})
    return rows


def draw(ax: Axes, runs: list[Records]) -> None:
    """Paired gain over the source with its interval against forward equivalents, a colour for each kind of row."""
    source, kinds = pick(runs, "source/full"), {}
    for label, mine in by_label(runs).items():
        if label == "source/full":
            continue
        kind = KINDS.get(label.split("/")[0].split(",")[0], "classifier alone")
        colour = plots.OTHERS[kinds.setdefault(kind, len(kinds))]
        g, x = common(mine, source), forwards(mine[0].nfe)
        ax.plot([x, x], [g.low, g.high], color=colour, lw=1, alpha=0.6)
        ax.plot(x, g.mean, "o", color=colour, ms=4)
        short, left = re.sub(r"/\d+\.\.\d+$", "", label).replace("diffusion_tta", "D-TTA"), kind == "Diffusion-TTA"
        where = dict(xytext=(-4, 3 if label == LOW else -9) if left else (4, 3), ha="right" if left else "left")
        ax.annotate(short, (x, g.mean), fontsize=6.5, textcoords="offset points", **where)
    for kind, k in kinds.items():
        ax.plot([], [], "o", color=plots.OTHERS[k], label=kind)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set(
        xscale="log", xlim=(0.8, 1500), xlabel="forward equivalents per image", ylabel="gain over the source in points"
    )
    ax.legend(loc="lower left", fontsize=8)
