"""What each forward pass buys: batch statistics, filter, reader and Diffusion-TTA by cost, on the fifteen corruptions.

Readers meet the 600 scenes of `test`, the other rows 900 more of `backbones`; two rows are compared on the scenes of
the first.
"""

from ...common.text import as_table
from ...evaluation.chosen import chosen_window, rival
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import results, table
from ...methods import bn_adapt, diffusion_classifier
from ...streams.scenes import SceneSpec
from ...world.severities import TEST
from ..trials import effect_jobs, job, method_job, reader_jobs
from .streams import RESNET, common

STAGES = ((3, 3), (9, 1))  # three pairs of all classes, six more of the best three
PRUNED = "reader, pruned"
OURS = ("diffusion_tta/full", "diffusion_tta/low")


def corruption_specs() -> tuple[list[SceneSpec], list[SceneSpec]]:
    """The fifteen corruptions at severity 5: the 40 scenes of `test` under each, and the 60 more of `backbones`."""
    first = [SceneSpec(40, name, 5, "test", 40 * i) for i, name in enumerate(TEST)]
    return first, [SceneSpec(60, name, 5, "test", 27_000 + 60 * i) for i, name in enumerate(TEST)]


def frontier() -> list[Records]:
    """The ResNet and what helps it, from one forward pass per image to 480; those of `test` and `backbones` again."""
    (first, more), window = corruption_specs(), chosen_window()
    jobs = effect_jobs([*first, *more], (RESNET,))
    for row, settings, label in (
        ("bn_adapt", bn_adapt.Settings(), "BN-adapt"),
        ("tent", rival("tent", RESNET), "tent"),
    ):
        jobs += [method_job(row, settings, RESNET, s, label, batch=50) for s in (*first, *more)]
    for pairs in (1, 3, 48):
        jobs += reader_jobs(first, pairs, window)
    staged = diffusion_classifier.Settings(pairs=STAGES[-1][0], window=window, stages=STAGES)
    parts = [SceneSpec(n, s.shift, s.severity, s.split, s.start + at) for s in first for n, at in ((10, 0), (30, 10))]
    jobs += [job("diffusion_classifier", staged, RESNET, s, PRUNED, batch=25) for s in parts]
    return table("frontier", jobs)


def forwards(r: Records) -> float:
    """Forward equivalents per image of all networks: a backward pass counts as two forward ones."""
    return sum(n * (3 if kind.endswith("bwd") else 1) for kind, n in r.nfe.items())


def by_cost(runs: list[Records]) -> str:
    """One line for each row, the cheapest first: cost, accuracy, and paired differences on the scenes that it met."""
    labels = sorted(distinct(runs, "label"), key=lambda label: forwards(pick(runs, label)[0]))
    rows = []
    for label in labels:
        mine = pick(runs, label)
        row = {"row": label, "forward equivalents": f"{forwards(mine[0]):.0f}", "n": sum(map(len, mine))}
        row |= {"right": f"{accuracy(mine):.1f}"}
        row["minus source"] = "" if label == "source/full" else str(common(mine, pick(runs, "source/full")))
        for name, ours in zip(("minus Diffusion-TTA", "minus that on the low view"), OURS, strict=True):
            row[name] = "" if label in OURS else str(common(mine, pick(runs, ours)))
        rows.append(row)
    return protocol_line([r for r in runs if r.about["method"] != "source"]) + "\n" + as_table(rows)


def reader_or_ours() -> list[dict]:
    """For each network of `backbones`: the reader and the adapted network on the 600 scenes of `test`, in pairs."""
    reader = [r for r in results("test") if r.about["method"] == "diffusion_classifier"]
    rows = []
    for name in distinct(results("backbones"), "classifier"):
        row = {"network": name.split("/")[1], "n": sum(map(len, reader)), "reader": f"{accuracy(reader):.1f}"}
        for view in ("full", "low"):
            found = common(reader, pick(results("backbones"), f"diffusion_tta/{view}", name))
            row[f"reader minus Diffusion-TTA, {view} view"] = str(found)
        rows.append(row)
    return rows
