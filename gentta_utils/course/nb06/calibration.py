"""Calibration in notebook 06's tables: the error that a row shows, and how much of it chance alone would show.

An expected calibration error adds absolute values, so few predictions make it large by themselves (Guo et al., 2017).
"""

import numpy as np
from scipy.special import softmax

from ...evaluation.records import Records
from ...evaluation.rows import pick
from ...evaluation.statistics import calibration_error, paired_interval

ECE = "ECE (by chance)"
BINS = 15


def sure_and_right(runs: list[Records]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence, and whether right, of each prediction (N,) after adaptation; runs may differ in classes."""
    sure = np.concatenate([softmax(r.after.astype(float), axis=1).max(1) for r in runs])
    return sure, np.concatenate([r.right_after for r in runs])


def chance_error(runs: list[Records], draws: int = 200, seed: int = 0) -> float:
    """The calibration error, in points, that a perfectly calibrated model with the confidences of these predictions
    shows on average: each is right with a probability equal to its confidence, drawn so often."""
    sure, _ = sure_and_right(runs)
    index = np.minimum((sure * BINS).astype(int), BINS - 1)
    surplus = sure - (np.random.default_rng(seed).random((draws, len(sure))) < sure)  # (draws, N)
    gaps = [np.abs(surplus[:, index == b].sum(1)) for b in np.unique(index)]
    return float(100 * np.sum(gaps, axis=0).mean() / len(sure))


def ece(runs: list[Records], digits: int = 0) -> str:
    """Calibration error in points; in brackets what a calibrated model as sure would show by chance alone."""
    return f"{calibration_error(runs, BINS):.{digits}f} ({chance_error(runs):.{digits}f})"


def calibration(tables: list[list[Records]], labels: tuple[str, ...]) -> list[dict]:
    """Pooled over tables: predictions, percent right and mean confidence minus that, the calibration error, and both
    differences to the first row in pairs. Only streams that all of these rows met count."""
    rows, (sure_before, before) = [], sure_and_right(pooled(tables, labels[0], labels))
    for label in labels:
        here = pooled(tables, label, labels)
        sure, right = sure_and_right(here)
        row = {"row": label, "n": len(right), "right": f"{100 * right.mean():.1f}"}
        row |= {"confidence minus right": f"{100 * (sure - right).mean():+.1f}", ECE: ece(here, 1)}
        paired = {f"right, minus {labels[0]}": (right, before), "sure, minus the same": (sure, sure_before)}
        scenes = np.concatenate([r.id for r in here])
        row |= {k: "" if label == labels[0] else str(paired_interval(*v, scenes)) for k, v in paired.items()}
        rows.append(row)
    return rows


def pooled(tables: list[list[Records]], label: str, labels: tuple[str, ...]) -> list[Records]:
    """The runs of a row on the streams and by the CLIPs that all of these rows met, in one order for all rows; a run
    that stands in several tables counts once."""

    def key(r: Records) -> tuple:
        s = r.about["stream"]
        return r.about["classifier"], s.get("labels", ""), s["shift"], s["severity"], s["start"], len(r)

    found = {row: {key(r): r for table in tables for r in pick(table, row)} for row in labels}
    return [found[label][at] for at in sorted(set.intersection(*map(set, found.values())))]
