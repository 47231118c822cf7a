"""What intervals over scenes leave out: the same scenes with other draws, and the networks trained again.

Draws and ResNets meet the first scenes under each of the fifteen corruptions of `test`, whose rows have the first seed
of both; the ten-minute DiTs meet the shifted scenes of `phase`, where the first of them stands at the same budget.
"""

from itertools import combinations

import numpy as np

from ...common.text import as_table
from ...evaluation.chosen import tuned
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import Job, results
from ...recipes.dit import SEEDS, WEAK
from ..trials import job, source_jobs
from .choose import chosen_rate
from .experiments import BUDGETS, phase_specs
from .frontier import part
from .one_by_one import RESNET, common, light_table, on_scenes
from .rivals import corruption_specs

N, MORE = 8, 9  # scenes under each corruption, and how many more of them other draws meet
DRAWS = (1, 2, 3, 4)  # seeds of the draws beside 0
TRAINED = ("classifier/resnet-seed2", "classifier/resnet-seed3")  # made on demand: `train NAME --promote`
OURS = "diffusion_tta/full"
BUDGET, BLOCK = 48, 20  # evaluations with another ten-minute DiT, scenes of a run with it


def seeds() -> list[Records]:
    """The ResNet with other draws; two ResNets and two ten-minute DiTs of other seeds, each with its own rate by the
    rule."""
    first = [part(s, 0, N) for s in corruption_specs()[0]]
    more, jobs = [part(s, N, MORE) for s in corruption_specs()[0]], []
    for seed in DRAWS:
        settings = tuned(RESNET, seed=seed)
        jobs += [job("diffusion_tta", settings, RESNET, s, f"{OURS}, draws {seed}", batch=s.n) for s in first + more]
    for name in TRAINED:
        jobs += source_jobs(first, (name,))
        jobs += [job("diffusion_tta", chosen_rate(name, {}), name, s, f"{OURS}, draws 0", batch=N) for s in first]
    return light_table("seeds", jobs + dit_jobs())


def budget_of(denoiser: str) -> str:
    """The label of a DiT's row, as in `phase`."""
    return f"{denoiser.split('/')[1]}/{BUDGET}"


def dit_jobs() -> list[Job]:
    """Diffusion-TTA of the ResNet with the ten-minute DiTs of other seeds, at the 48 evaluations of `phase`."""
    shifted = [s for s in phase_specs() if s.shift != "clean"]
    cut = [part(s, first, BLOCK) for s in shifted for first in range(0, s.n, BLOCK)]
    found = {name: chosen_rate(RESNET, BUDGETS[BUDGET], name) for name in SEEDS}
    return [
        job("diffusion_tta", settings, RESNET, s, budget_of(name), denoiser=name, batch=BLOCK)
        for name, settings in found.items()
        for s in cut
    ]


def by_seed(runs: list[Records]) -> str:
    """Accuracy and paired gain of every row, those of one kind of seed on the same scenes; below, how far the rows of a
    kind differ: the standard deviation of their accuracies, and the share of predictions that two do not share."""
    test, phase = results("test"), results("phase")
    sources, first = pick(test + phase + runs, "source/full"), {"ResNet, draws 0": pick(test, OURS, RESNET)}
    kinds = {  # kind -> the row of the first seed, those of the others
        "draws": (first, {f"ResNet, draws {seed}": pick(runs, f"{OURS}, draws {seed}") for seed in DRAWS}),
        "the ResNet": (first, {f"{k.split('/')[1]}, draws 0": pick(runs, f"{OURS}, draws 0", k) for k in TRAINED}),
        "the DiT": (
            {budget_of(WEAK): pick(phase, budget_of(WEAK), RESNET)},
            {budget_of(name): pick(runs, budget_of(name)) for name in SEEDS},
        ),
    }
    rows, spread = [], []
    for kind, (known, others) in kinds.items():
        met = {int(i) for mine in others.values() for r in mine for i in r.id}
        same = {name: on_scenes(mine, met) for name, mine in (known | others).items()}
        rows += [{"seeds of": kind} | _row(name, mine, sources, met) for name, mine in same.items()]
        deviation, apart = np.std([accuracy(mine) for mine in same.values()], ddof=1), 100 * unshared([*same.values()])
        row = {"seeds of": kind, "number": len(same), "standard deviation": f"{deviation:.1f} points"}
        spread.append(row | {"predictions that two do not share": f"{apart:.1f}%"})
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    return f"{protocol_line(adapted)}\n{as_table(rows)}\n\n{as_table(spread)}"


def _row(name: str, adapted: list[Records], sources: list[Records], met: set[int]) -> dict:
    source = on_scenes(pick(sources, classifier=adapted[0].about["classifier"]), met)
    row = {"row": name, "n": sum(map(len, adapted)), "source": f"{accuracy(source):.1f}"}
    return row | {"Diffusion-TTA": f"{accuracy(adapted):.1f}", "gain": str(common(adapted, source))}


def unshared(rows: list[list[Records]]) -> float:
    """The share of scenes for which two of these rows predict another class, the mean over all pairs of rows."""
    said = [{int(i): int(k) for r in mine for i, k in zip(r.id, r.after.argmax(1), strict=True)} for mine in rows]
    return float(np.mean([one[i] != two[i] for one, two in combinations(said, 2) for i in one]))
