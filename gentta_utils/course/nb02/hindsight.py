"""Each rival's settings side by side: published, chosen on validation corruptions, best in hindsight.

From the records of the choices alone, on their scenes: every setting was tried on all of them, so any two are paired.
"""

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import is_clean
from ...evaluation.statistics import paired_interval, protocol_line
from ...evaluation.tables import results
from .choose import MAE
from .one_by_one import ONLINE, RESNET

# row -> its table, how labels of its settings begin, how the published one ends ("": not tried), and the label of one
# that was chosen elsewhere
ROWS = {
    **{f"TENT, batches of {n}": ("select_streams", f"tent batch {n}, ", "lr 0.001", "") for n in (10, 50, 200)},
    "CoTTA, batches of 10": ("select_streams", "cotta batch 10, ", "lr 0.001, m 0.999, r 0.01", ""),
    "TEA, batches of 10": ("select_streams", "tea batch 10, ", "lr 0.001", ""),
    "MEMO": ("select_rivals", "memo lr ", "0.005", ""),
    "DUSA, batches of 10": ("select_rivals", "dusa lr ", "1e-05", ""),
    "DUSA, image by image": ("select_rivals", "dusa one by one, ", "", ""),
    "TTT-MAE": ("select_rivals", "ttt_mae lr ", "0.005", ""),
    "Diffusion-TTA online, batches of 10": ("select_rivals", "diffusion_tta lr ", "", ""),
    "Diffusion-TTA online, image by image": ("select_one_by_one", f"{ONLINE}, ", "", ""),
    "Diffusion-TTA": ("why", "", "published (Adam 1e-5)", "all together"),
}
NOTE = (
    "chosen: for each corruption the setting that is best on the others; of Diffusion-TTA that of `select`, on other "
    "scenes. In hindsight: the one setting that is best on these very scenes, so a little too good. Published: rate "
    "and optimiser (TENT, CoTTA, TEA, MEMO: those for CIFAR), in our batches; DUSA adapts the classifier alone, "
    "TTT-MAE has 16 masks where 128 are published."
)


def side_by_side() -> str:
    """One line for each of `ROWS`: percent right with each of the three settings, and their paired differences."""
    rows, used = [], []
    for name, (table, start, published, chosen) in ROWS.items():
        runs = [
            r
            for r in results(table)
            if r.about["classifier"] in (RESNET, MAE) and r.about["method"] != "source" and not is_clean(r)
        ]
        runs = [r for r in runs if r.about["label"].startswith(start)]
        rows.append({"row": name} | three(runs, published and start + published, chosen))
        used += runs
    return f"{protocol_line(used)}\n{as_table(rows)}\n\n{NOTE}"


def three(runs: list[Records], published: str = "", chosen: str = "") -> dict:
    """What three settings do on the scenes of these runs, in which each label is a setting that met every shift.

    Args:
        published: its label; "" where it was not tried.
        chosen: that of a choice made on other scenes; else for each shift the label that is best on the others."""
    right: dict[str, dict] = {}  # label -> shift -> (n,) bool
    for r in runs:
        right.setdefault(r.about["label"], {})[r.about["stream"]["shift"]] = r.right_after
    scenes = {r.about["stream"]["shift"]: r.id for r in runs}
    best = lambda shifts: max(right, key=lambda label: sum(right[label][s].sum() for s in shifts))  # noqa: E731
    picked = {
        "published": dict.fromkeys(scenes, published),
        "chosen": {s: chosen or best([other for other in scenes if other != s]) for s in scenes},
        "in hindsight": dict.fromkeys(scenes, best(scenes)),
    }
    if not published:
        del picked["published"]
    found = {kind: np.concatenate([right[label][s] for s, label in at.items()]) for kind, at in picked.items()}
    scene = np.concatenate(list(scenes.values()))
    row = {"settings": len(right), "n": len(scene)}
    kinds = ("published", "chosen", "in hindsight")
    row |= {kind: f"{100 * found[kind].mean():.1f}" if kind in found else "" for kind in kinds}
    for one, other in (("chosen", "published"), ("in hindsight", "chosen")):
        row[f"{one} minus {other}"] = str(paired_interval(found[one], found[other], scene)) if other in found else ""
    return row
