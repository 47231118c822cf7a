"""What intervals over scenes leave out: the same scenes with other draws, and the same ResNet trained anew.

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
from ..trials import job, source_jobs
from .choose import chosen_rate
from .one_by_one import RESNET, common, light_table
from .rivals import corruption_specs

N = 8  # scenes under each corruption
DRAWS = (1, 2, 3, 4)  # seeds of the draws beside 0
TRAINED = ("classifier/resnet-seed2", "classifier/resnet-seed3")  # made on demand: `train NAME --promote`
OURS = "diffusion_tta/full"


def seeds() -> list[Records]:
    """The ResNet with other draws, and two ResNets of other seeds, each with its own rate by the rule."""
    specs, jobs = [replace(s, n=N) for s in corruption_specs()[0]], []
    for seed in DRAWS:
        settings = tuned(RESNET, seed=seed)
        jobs += [job("diffusion_tta", settings, RESNET, s, f"{OURS}, draws {seed}", batch=N) for s in specs]
    for name in TRAINED:
        jobs += source_jobs(specs, (name,))
        jobs += [job("diffusion_tta", chosen_rate(name, {}), name, s, f"{OURS}, draws 0", batch=N) for s in specs]
    return light_table("seeds", jobs)


def by_seed(runs: list[Records]) -> str:
    """Accuracy of every row on the same scenes; how far seeds of the draws and of the training differ, and how many
    predictions two seeds of the draws do not share."""
    drawn = [pick(runs, f"{OURS}, draws {seed}") for seed in DRAWS]
    met = {int(i) for r in drawn[0] for i in r.id}
    first = {label: cut(pick(results("test"), label, RESNET), met) for label in ("source/full", "source/low", OURS)}
    rows = [line("ResNet, draws 0", first[OURS], first["source/full"])]
    rows += [line(f"ResNet, draws {s}", mine, first["source/full"]) for s, mine in zip(DRAWS, drawn, strict=True)]
    trained = [first[OURS]]
    for name in TRAINED:
        trained.append(pick(runs, f"{OURS}, draws 0", name))
        rows.append(line(f"{name.split('/')[1]}, draws 0", trained[-1], pick(runs, "source/full", name)))
    said = [predictions(mine) for mine in (first[OURS], *drawn)]
    apart = [np.mean([a[i] != b[i] for i in a]) for a, b in combinations(said, 2)]
    over = {"draws": [first[OURS], *drawn], "training": trained}
    lines = [f"over {len(v)} seeds of the {k}: standard deviation {spread(v):.1f} points" for k, v in over.items()]
    lines.append(f"two seeds of the draws disagree on {100 * np.mean(apart):.1f}% of the predictions")
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    return f"{protocol_line(adapted)}\n{as_table(rows)}\n\n" + "; ".join(lines)


def cut(runs: list[Records], met: set[int]) -> list[Records]:
    """Of each run the rows of these scenes."""
    kept = []
    for r in runs:
        rows = np.isin(r.id, list(met))
        columns = {k: getattr(r, k)[rows] for k in ("id", "label", "before", "after", "loss", "seconds")}
        kept.append(replace(r, **columns))
    return kept


def line(name: str, adapted: list[Records], source: list[Records]) -> dict:
    """A row: accuracy before and after, paired gain."""
    row = {"row": name, "n": sum(map(len, adapted)), "source": f"{accuracy(source):.1f}"}
    return row | {"Diffusion-TTA": f"{accuracy(adapted):.1f}", "gain": str(common(adapted, source))}


def predictions(runs: list[Records]) -> dict[int, int]:
    """Scene id -> predicted class."""
    return {int(i): int(k) for r in runs for i, k in zip(r.id, r.after.argmax(1), strict=True)}


def spread(rows: list[list[Records]]) -> float:
    """Standard deviation of the accuracies of these rows."""
    return float(np.std([accuracy(mine) for mine in rows], ddof=1))
