"""The map of when Diffusion-TTA helps: the gain against the reader's lead over the classifier."""

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import one_severity
from ...evaluation.statistics import protocol_line
from ...recipes.dit import WEAK
from .. import plots
from .experiments import BUDGETS


def points_of_phase(runs: list[Records]) -> list[dict]:
    """One cell for each diffusion model, budget, ResNet and shift: how much better the reader is, and the gain.

    `ahead`: accuracy of the Diffusion Classifier minus that of the classifier, in points; `gain`: of Diffusion-TTA.

    Raises ValueError for records of two severities: a cell names the shift alone."""
    one_severity(runs)
    cells = []
    for denoiser in (WEAK, "denoiser/dit"):
        name = denoiser.split("/")[1]
        for pairs in BUDGETS:
            readers = {
                _shift(r): r
                for r in runs
                if r.about["label"].startswith(f"reader/{pairs} pairs") and r.about["label"].endswith(f" {name}")
            }
            for r in runs:
                if r.about["label"] == f"{name}/{pairs}":
                    reader = readers[_shift(r)]
                    cells.append(
                        {
                            "denoiser": name,
                            "pairs": pairs,
                            "classifier": r.about["classifier"].split("/")[1],
                            "shift": r.about["stream"]["shift"],
                            "ahead": 100 * float(reader.right_after.mean() - r.right_before.mean()),
                            "gain": 100 * float(r.right_after.mean() - r.right_before.mean()),
                        }
                    )
    return cells


def _shift(r: Records) -> tuple:
    return r.about["stream"]["shift"], r.about["stream"]["severity"]


def draw_phase(ax, cells: list[dict]) -> None:
    """The map: gain against the lead of the reader, one mark per cell, open for the weaker diffusion model."""
    names = list(dict.fromkeys(c["classifier"] for c in cells))
    markers = dict(zip(BUDGETS, ("v", "s", "o"), strict=True))
    for c in cells:
        colour, filled = plots.PALETTE[names.index(c["classifier"])], "10min" not in c["denoiser"]
        face = colour if filled else "none"
        ax.plot(c["ahead"], c["gain"], markers[c["pairs"]], color=colour, mfc=face, ms=5, alpha=0.8)
    ends = [min(c["ahead"] for c in cells) - 5, max(c["ahead"] for c in cells) + 5]
    ax.plot(ends, ends, ":", color="0.6", lw=1)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.axvline(0, color="0.3", lw=0.8)
    for name, colour in zip(names, plots.PALETTE, strict=False):
        ax.plot([], [], "o", color=colour, label=name)
    for pairs, marker in markers.items():
        ax.plot([], [], marker, color="0.5", label=f"{pairs} evaluations")
    ax.plot([], [], "o", color="0.5", mfc="none", label="weaker DiT")
    ax.set(xlabel="accuracy of the reader minus that of the classifier (points)", ylabel="gain of Diffusion-TTA")
    ax.legend(loc="upper left", fontsize=8)


def predicted_sign(cells: list[dict]) -> dict[str, float]:
    """In what share (percent) of the cells, ties aside, the gain has the sign of the reader's lead; how many."""
    clear = [(c["ahead"], c["gain"]) for c in cells if c["ahead"] and c["gain"]]
    right = sum((a > 0) == (g > 0) for a, g in clear)
    return {"percent": 100 * right / max(1, len(clear)), "cells": len(clear), "ties": len(cells) - len(clear)}


def phase(runs: list[Records]) -> str:
    """Mean lead and gain for each diffusion model, budget and ResNet, and how often the sign is predicted."""
    groups: dict[tuple, list[dict]] = {}
    for cell in points_of_phase(runs):
        groups.setdefault((cell["denoiser"], cell["pairs"], cell["classifier"]), []).append(cell)
    rows = []
    for (denoiser, pairs, classifier), cells in groups.items():
        row = {"diffusion model": denoiser, "evaluations": pairs, "classifier": classifier}
        row |= {c["shift"]: f"{c['ahead']:+.0f} -> {c['gain']:+.0f}" for c in cells}
        ahead, mean = (np.mean([c[key] for c in cells]) for key in ("ahead", "gain"))
        rows.append(row | {"mean": f"{ahead:+.0f} -> {mean:+.1f}"})
    sign = predicted_sign([c for cells in groups.values() for c in cells])
    return "\n".join(
        [
            protocol_line([r for r in runs if r.about["method"] == "diffusion_tta"]),
            "Each cell: lead of the Diffusion Classifier over the classifier -> gain of Diffusion-TTA, in points.\n",
            as_table(rows),
            f"\nThe lead has the sign of the gain in {sign['percent']:.0f}% of {sign['cells']} cells "
            f"({sign['ties']} more have a lead or a gain of exactly 0).",
        ]
    )
