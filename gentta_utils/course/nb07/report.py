"""Notebook 07's tables as text."""

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.statistics import FEWER_DRAWS, LEAST, Interval, paired_interval, protocol_line
from ...evaluation.tables import results
from ...world.severities import TEST
from . import guide
from .board import BLOCKS, CEILING, Board, Facts, board, family, ranks
from .experiments import BATCHES, CLEAN_AFTER, LONG, ORDERS
from .plan import plan

TAIL = 0.1  # of the runs, the worst
GUIDED = tuple(block for block in BLOCKS if block != "mae")  # a masked autoencoder's ViT has too few rows for a guide


def boards(runs: list[Records]) -> list[Board]:
    """Those blocks of the grid that have rows among these records."""
    there = {r.about["classifier"] for r in runs}
    usual = next(row.networks for row in plan() if row.row == "source")
    return [board(runs, block) for block in BLOCKS if usual.get(block) in there]


def rows_of(b: Board) -> list[dict]:
    """One line for each row: accuracy before and after on the scenes that it met, the difference, what it costs."""
    lines, alone = [], any(f.seconds is not None for f in b.facts.values())
    for row in b.rows:
        met, f = b.met(row, "source"), b.facts[row]
        fixed, broken = b.changed(row)
        needs = {"batch": f.batch, "stream": f.order, "trained before": f.source, "diffusion model": f.denoiser}
        needs |= {"its classes": f.classes, "labels to calibrate": f.labels}
        lines.append(
            {
                "row": row,
                "scenes": int(met.sum()),
                "source": f"{100 * b.right('source')[met].mean():.1f}",
                "after": f"{b.accuracy(row):.1f}",
                "difference": "" if row == "source" else str(b.versus(row)),
                "fixed/broken": f"{fixed}/{broken}",
                "ECE": f"{b.calibration_error(row):.1f}",
                "Brier": f"{b.brier(row):.2f}",
                "forwards": f"{f.forwards:.0f}",
                **(_alone(f) if alone else {}),
                "batch": f.together or "",
                "needs": ", ".join(name for name, value in needs.items() if value),
            }
        )
    return lines


def _alone(f: Facts) -> dict[str, str]:
    """What a row costs alone, where that was measured."""
    return {
        "CPU s": "" if f.seconds is None else f"{f.seconds:.3f}",
        "MB": "" if f.memory is None else str(f.memory),
    }


def grid(runs: list[Records]) -> str:
    """Each block: all rows against its source, then the ranks of those that met the same scenes; the family of all."""
    made, text = boards(runs), []
    for b in made:
        text += [f"\n{BLOCKS[b.block]}\n", as_table(rows_of(b))]
        if len(b.rows) > 2:
            text += ["", as_table(rank_rows(b))]
    return "\n".join([*text, "\n" + family_line(made), "", _protocol(runs)])


def _protocol(runs: list[Records]) -> str:
    """The protocol line of all rows but the source; it stands below the tables, as it says nothing of any one row."""
    return protocol_line([r for r in runs if r.about["method"] != "source"])


def ranked(b: Board) -> tuple[str, ...]:
    """The rows that are ranked: not the ceiling, and none that met too few scenes, for all are compared on the scenes
    that all of them met."""
    return tuple(row for row in b.rows if row != CEILING and b.enough(row))


def shared(b: Board, other: Board) -> tuple[str, ...]:
    """The methods that are ranked in both blocks."""
    methods, there = guide.candidates(b, least=LEAST), ranked(other)
    return tuple(row for row in ranked(b) if row in methods and row in there)


def rank_rows(b: Board) -> list[dict]:
    """The mean rank over the corruptions of each row of `ranked`, on the scenes that all of them met."""
    return [
        {"row": r["row"], "mean rank": f"{r['rank']:.1f} [{r['low']:.1f}, {r['high']:.1f}]",
         "accuracy": f"{r['accuracy']:.1f}", "scenes": r["scenes"]}
        for r in ranks(b, ranked(b))
    ]  # fmt: skip


def family_line(made: list[Board]) -> str:
    """How many intervals there are of a row under a shift, and how many would leave 0 out by chance."""
    f = family(made)
    return (
        f"Of {f['intervals']} intervals of one row under one corruption, each of {LEAST} scenes or more, "
        f"{f['leave 0 out']} leave 0 out ({100 * f['leave 0 out'] / f['intervals']:.0f}%). If every changed prediction "
        f"were as likely a loss as a gain, about {f['by chance']:.0f} would "
        f"({100 * f['by chance'] / f['intervals']:.0f}%)."
    )


# --- streams ---------------------------------------------------------------------------------------------------------


def _pooled(runs: list[Records]) -> Interval:
    """Gain over the source, scenes resampled: a scene that came in several orders or seeds counts as one."""
    after, before, scene = (
        np.concatenate([getattr(r, k) for r in runs]) for k in ("right_after", "right_before", "id")
    )
    return paired_interval(after, before, scene, FEWER_DRAWS)


def tail(runs: list[Records], share: float = TAIL) -> float:
    """Expected accuracy of the worst `share` of the runs (Fuchs et al., 2025), in percent: each run is a stream in one
    order with one seed. Of fewer than 1 / share runs it is the worst one."""
    each = np.sort([r.right_after.mean() for r in runs])
    return 100 * float(each[: max(1, int(share * len(each)))].mean())


def of_streams(runs: list[Records]) -> list[tuple[str, str, list[Records]]]:
    """Row, classifier and records of each row with a state."""
    found = []
    for row in plan():
        for model in row.networks.values() if row.stream else ():
            mine = [r for r in runs if r.about["classifier"] == model and _base(r.about["label"]) == row.label]
            found += [(row.row, model, mine)] if mine else []
    return found


def _base(label: str) -> str:
    return label.removeprefix(CLEAN_AFTER).split(", batch ")[0].split(f", {LONG * 5} images")[0]


def by_order(runs: list[Records], label: str) -> dict[str, list[Records]]:
    """Order -> records, of the streams whose records have this very label."""
    usual = [r for r in runs if r.about["label"] == label]
    return {o: [r for r in usual if r.about["stream"].get("order", "iid") == o] for o in ORDERS}


def positions(r: Records, edges=(0, 10, 30, 100, 300, 1000)) -> dict[str, Interval]:
    """Gain over the source, in points with a 95% interval, by the number of images met before, of one stream."""
    parts = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < len(r)]
    return {
        f"{s.start + 1} to {min(s.stop, len(r))}": paired_interval(
            r.right_after[s], r.right_before[s], r.id[s], FEWER_DRAWS
        )
        for s in parts
    }


def streams(runs: list[Records]) -> str:
    """Gain over the source in each order, with how many images the stream of one corruption has; then by batch size, by
    number of images, and on clean scenes afterwards."""
    orders, sizes, curves = [], [], []
    for row, model, mine in of_streams(runs):
        named = {"row": row, "classifier": model.split("/")[-1]}
        label = next(r.label for r in plan() if r.row == row)
        found = by_order(mine, label)
        head = named | {"images": max(map(len, found["iid"]), default="")}
        line = {o: str(_pooled(v)) if v else "" for o, v in found.items()}
        every = [r for v in found.values() for r in v]
        worst = {"runs": len(every), "worst tenth": f"{tail(every):.1f}"}
        clean = [r for r in mine if r.about["label"].startswith(CLEAN_AFTER)]
        orders.append(head | line | worst | {"clean after 15 corruptions": str(_pooled(clean)) if clean else ""})
        at = {f"batch {n}": [r for r in mine if r.about["label"].endswith(f", batch {n}")] for n in BATCHES}
        sizes += [head | {n: str(_pooled(v)) for n, v in at.items()}] if all(at.values()) else []
        lasting = [r for r in mine if r.about["label"].endswith(" images")]
        curves += [named | {k: str(v) for k, v in positions(lasting[0]).items()}] if lasting else []
    parts = ["Gain over the source in points, each order with its seeds:\n", as_table(orders)]
    parts += ["\nBy batch size, in the usual order:\n", as_table(sizes)] if sizes else []
    long = f"\nBy the number of images met, five corruptions of {LONG} images mixed:\n"
    parts += [long, as_table(curves)] if curves else []
    return "\n".join([*parts, "", protocol_line(runs)])


# --- the guide -------------------------------------------------------------------------------------------------------


def unseen(runs: list[Records]) -> str:
    """The decision table of each block, its rule, and its regret on the shifts that took no part in any choice."""
    rough, grid_runs = guide.roughness(runs), results("grid")
    runs = [r for r in runs if r.about["label"] != "roughness"]
    tests = [shift for shift in rough if shift.rpartition(" ")[0] in TEST]
    at = guide.threshold(rough, tests)
    kind_of, text = guide.kinds(rough, at), []
    text.append(_roughness("the fifteen corruptions", {s: rough[s] for s in tests}, kind_of))
    text.append(_roughness("the unseen shifts", {s: v for s, v in rough.items() if s not in tests}, kind_of))
    for block in GUIDED:
        known, new = board(grid_runs, block), board(runs, block)
        rows = guide.candidates(known, new)
        text += [f"\n{BLOCKS[block]}\n", guide.rule(known, rows, kind_of, at), ""]
        text += [as_table(guide.decision_table(known, rows, kind_of)), "\nRegret on unseen shifts:\n"]
        text.append(as_table(regret_rows(known, new, rows, kind_of)))
        text += ["\nAll rows on the unseen shifts:\n", as_table(rows_of(new))]
    return "\n".join([*text, "", _protocol(runs)])


def _roughness(where: str, rough: dict[str, float], kind_of: dict[str, str]) -> str:
    by_rough = sorted(rough, key=lambda s: -rough[s])
    said = (f"{s.removesuffix(' 5')} {rough[s]:.3f}{' (noise)' * (kind_of[s] == 'noise')}" for s in by_rough)
    return f"Mean |x - low view of x| of {where}, pixels from 0 to 1: " + ", ".join(said)


def regret_rows(known: Board, new: Board, rows: tuple[str, ...], kind_of: dict[str, str]) -> list[dict]:
    """One line for each batch and budget: regret of the guide and of the overall best row, and their difference."""
    lines = []
    for s in guide.SITUATIONS:
        if s.kind == guide.KINDS[0]:
            found = guide.regret(known, new, rows, kind_of, s)
            head = {"batches": "yes" if s.batch else "no", "forward equivalents": s.budget}
            head["overall best row"] = guide.always(known, rows, s)
            lines.append(head | {name: str(value) for name, value in found.items()})
    return lines
