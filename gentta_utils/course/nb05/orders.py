"""What the order of a stream and the size of its batches do: TENT beside methods without a state, and an image beside
its neighbours (`measure sda_order`, `measure sda_batches`)."""

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import accuracy_interval, paired_interval
from .experiments import ORDERS
from .report import SOURCE, header, percent, short, shown


def spread(runs: list[Records]) -> list[dict]:
    """For each classifier: TENT's lowest and highest accuracy over orders and batches, and what lies between, beside
    DDA and SDA, which have one accuracy whatever the order."""
    rows = []
    for c in distinct(runs, "classifier"):
        tent = {label: accuracy(pick(runs, label, c)) for label in distinct(runs, "label") if label.startswith("tent/")}
        row = {"classifier": short(c), "source": accuracy(pick(runs, SOURCE, c))}
        row |= {"TENT lowest": min(tent.values()), "TENT highest": max(tent.values())}
        row |= {"spread": max(tent.values()) - min(tent.values()), "worst": min(tent, key=tent.get)}
        rows.append(row | {name: accuracy(pick(runs, f"{name.lower()}, sum", c)) for name in ("DDA", "SDA")})
    return rows


def order(runs: list[Records]) -> str:
    """Every order and batch size of TENT, and the rows without a state, with intervals; then the spread of TENT."""
    classifiers = distinct(runs, "classifier")
    rows = []
    for label in distinct(runs, "label"):
        each = {short(c): accuracy_interval(pick(runs, label, c)) for c in classifiers}
        row = {"row": label, "scenes": sum(map(len, pick(runs, label, classifiers[0])))}
        rows.append(row | {c: percent(v) for c, v in each.items()})
    return f"{header(runs)}\n{as_table(rows)}\n\n{as_table([shown(row) for row in spread(runs)])}"


def batch_effects(runs: list[Records]) -> list[dict]:
    """For each kind: the largest difference of a logit between a batch of 20 and single images, and the share of equal
    predictions (percent). Records keep logits in half precision: a difference below its rounding is 0 here.

    Raises ValueError where the two did not meet the same scenes in one order."""
    rows = []
    for kind in dict.fromkeys(r.about["label"].split(", batch ")[0] for r in runs if "batch " in r.about["label"]):
        (many,), (single,) = (pick(runs, f"{kind}, batch {b}") for b in (20, 1))
        if not np.array_equal(many.id, single.id):
            raise ValueError(f"{kind}: the two runs did not meet the same scenes in one order")
        equal = many.after.argmax(1) == single.after.argmax(1)
        largest = float(np.abs(many.after - single.after).max())
        rows.append({"kind": kind, "largest difference": largest, "equal predictions": 100 * float(equal.mean())})
    return rows


def order_effects(runs: list[Records]) -> list[dict]:
    """For each method without a state and each order, all networks together: accuracy, the paired difference to the
    first order on the same scenes, and the largest difference of a logit to it, as in `batch_effects`.

    Raises ValueError where two orders did not meet the same scenes."""
    rows = []
    for label in distinct(runs, "label"):
        method, _, how = label.partition(", ")
        if how not in ORDERS:
            continue
        (at, logits, right), (there, known, before) = (
            _answers(pick(runs, f"{method}, {name}")) for name in (how, ORDERS[0])
        )
        if at != there:
            raise ValueError(f"{method}: the orders {how} and {ORDERS[0]} did not meet the same scenes")
        scene = np.array([i for _, i in at])
        spread, change = (paired_interval(right, v, scene) for v in (np.zeros(len(right)), before))
        row = {"row": method, "order": how, "scenes": len(set(scene.tolist())), "percent": percent(spread)}
        row[f"minus {ORDERS[0]}"] = None if how == ORDERS[0] else change
        rows.append(row | {"largest difference": float(np.abs(logits - known).max())})
    return rows


def _answers(runs: list[Records]) -> tuple[list[tuple], np.ndarray, np.ndarray]:
    """Network and scene of every prediction, sorted, its logits (N, K) and whether it is right (N,)."""
    at = [(r.about["classifier"], i) for r in runs for i in r.id.tolist()]
    order = sorted(range(len(at)), key=at.__getitem__)
    logits, right = (np.concatenate([getattr(r, k) for r in runs])[order] for k in ("after", "right_after"))
    return [at[k] for k in order], logits, right


def batches(runs: list[Records]) -> str:
    """Does an image know of its neighbours in the batch, or of its place in the stream?"""
    tables = [
        as_table([shown(row | {"largest difference": f"{row['largest difference']:.2g}"}) for row in rows])
        for rows in (batch_effects(runs), order_effects(runs))
        if rows
    ]
    return header(runs) + "\n" + "\n\n".join(tables)
