"""What intervals over scenes leave out: the same scenes with other draws, the same ResNet trained again, and the same
diffusion model, the one of ten minutes.

The first scenes under each of the fifteen corruptions of `test`, whose rows have the first seed of both.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np

from ...common.text import as_table
from ...evaluation.chosen import tuned
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import results
from ..side_by_side import on_scenes
from ..trials import job, source_jobs
from .choose import chosen_rate
from .one_by_one import RESNET, common, light_table
from .rivals import corruption_specs

N = 8  # scenes under each corruption
DRAWS = (1, 2, 3, 4)  # seeds of the draws beside 0
TRAINED = ("classifier/resnet-seed2", "classifier/resnet-seed3")  # made on demand: `train NAME --promote`
DITS = {  # row -> diffusion model
    f"ResNet, ten-minute DiT {i}": f"denoiser/dit-10min{end}" for i, end in enumerate(("", "-seed2", "-seed3"), 1)
}
OURS = "diffusion_tta/full"


def seeds() -> list[Records]:
    """The ResNet with other draws; two ResNets of other seeds, each with its own rate by the rule; and the ResNet with
    three diffusion models that were trained for ten minutes, at the rate that was chosen with the shipped one."""
    specs, jobs = [replace(s, n=N) for s in corruption_specs()[0]], []
    for seed in DRAWS:
        settings = tuned(RESNET, seed=seed)
        jobs += [job("diffusion_tta", settings, RESNET, s, f"{OURS}, draws {seed}", batch=N) for s in specs]
    for name in TRAINED:
        jobs += source_jobs(specs, (name,))
        jobs += [job("diffusion_tta", chosen_rate(name, {}), name, s, f"{OURS}, draws 0", batch=N) for s in specs]
    for row, dit in DITS.items():
        jobs += [job("diffusion_tta", tuned(RESNET), RESNET, s, f"{OURS}, {row}", denoiser=dit, batch=N) for s in specs]
    return light_table("seeds", jobs)


def by_seed(runs: list[Records]) -> str:
    """Accuracy and paired gain of every row on the same scenes; below, for draws and for trainings of either model, how
    far the rows differ: the standard deviation of their accuracies, and the share of predictions that two of them do
    not share."""
    drawn = {f"ResNet, draws {seed}": pick(runs, f"{OURS}, draws {seed}") for seed in DRAWS}
    met = {int(i) for mine in drawn.values() for r in mine for i in r.id}
    source, first = (on_scenes(pick(results("test"), label, RESNET), met) for label in ("source/full", OURS))
    other = {name: pick(runs, f"{OURS}, draws 0", name) for name in TRAINED}
    rows = [_row(name, mine, source) for name, mine in ({"ResNet, draws 0": first} | drawn).items()]
    rows += [_row(k.split("/")[1] + ", draws 0", v, pick(runs, "source/full", k)) for k, v in other.items()]
    dits = {row: pick(runs, f"{OURS}, {row}") for row in DITS}
    rows += [_row(row, mine, source) for row, mine in dits.items() if mine]
    kinds = {"draws": [first, *drawn.values()], "training the ResNet": [first, *other.values()]}
    kinds |= {"training the diffusion model": list(dits.values())} if all(dits.values()) else {}
    spread = []
    for kind, same in kinds.items():
        deviation, apart = np.std([accuracy(mine) for mine in same], ddof=1), 100 * unshared(same)
        row = {"seeds of": kind, "number": len(same), "standard deviation": f"{deviation:.1f} points"}
        spread.append(row | {"predictions that two do not share": f"{apart:.1f}%"})
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    return f"{protocol_line(adapted)}\n{as_table(rows)}\n\n{as_table(spread)}"


def _row(name: str, adapted: list[Records], source: list[Records]) -> dict:
    row = {"row": name, "n": sum(map(len, adapted)), "source": f"{accuracy(source):.1f}"}
    return row | {"Diffusion-TTA": f"{accuracy(adapted):.1f}", "gain": str(common(adapted, source))}


def unshared(rows: list[list[Records]]) -> float:
    """The share of scenes for which two of these rows predict another class, the mean over all pairs of rows."""
    said = [{int(i): int(k) for r in mine for i, k in zip(r.id, r.after.argmax(1), strict=True)} for mine in rows]
    return float(np.mean([one[i] != two[i] for one, two in combinations(said, 2) for i in one]))
