"""The map of when Diffusion-TTA helps: the gain against the reader's lead over the classifier."""

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import one_severity
from ...evaluation.statistics import FEWER_DRAWS, protocol_line
from ...recipes.dit import WEAK
from .. import plots
from .experiments import BUDGETS


def points_of_phase(runs: list[Records], labelled: int | None = None) -> list[dict]:
    """One cell for each diffusion model, budget, ResNet and shift: how much better the reader is, and the gain.

    The two come from disjoint halves of the cell's images, every other image each: on the same images both would hold
    the same "minus source", and chance alone would make them agree.

    `ahead`: accuracy of the Diffusion Classifier minus that of the classifier, in points, on the first half, or on its
    first `labelled` images. On the second half: `before` and `after`, accuracies of the classifier and of
    Diffusion-TTA, and `gain`, their difference.

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
                    reader, first, second = readers[_shift(r)], slice(0, None, 2), slice(1, None, 2)
                    lead = (reader.right_after[first] * 1.0 - r.right_before[first])[:labelled]
                    before, after = (100 * float(v[second].mean()) for v in (r.right_before, r.right_after))
                    cells.append(
                        {
                            "denoiser": name,
                            "pairs": pairs,
                            "classifier": r.about["classifier"].split("/")[1],
                            "shift": r.about["stream"]["shift"],
                            "ahead": 100 * float(lead.mean()),
                            "before": before,
                            "after": after,
                            "gain": after - before,
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
    ends = np.array([min(c["ahead"] for c in cells) - 5, max(c["ahead"] for c in cells) + 5])
    ax.plot(ends, ends, ":", color="0.6", lw=1, label="gain = lead")
    slope, level = np.polyfit(*np.hstack(shuffled(cells)), 1)
    ax.plot(ends, slope * ends + level, "--", color="0.6", lw=1, label="chance: adapted accuracies shuffled")
    ax.axhline(0, color="0.3", lw=0.8)
    ax.axvline(0, color="0.3", lw=0.8)
    for name, colour in zip(names, plots.PALETTE, strict=False):
        ax.plot([], [], "o", color=colour, label=name)
    for pairs, marker in markers.items():
        ax.plot([], [], marker, color="0.5", label=f"{pairs} pairs")
    ax.plot([], [], "o", color="0.5", mfc="none", label="weaker DiT")
    ax.set(xlabel="accuracy of the reader minus that of the classifier (points)", ylabel="gain of Diffusion-TTA")
    ax.legend(loc="upper left", fontsize=8)


def predicted_sign(cells: list[dict]) -> dict[str, float]:
    """In what share (percent) of the cells, ties aside, the gain has the sign of the reader's lead; how many."""
    clear = [(c["ahead"], c["gain"]) for c in cells if c["ahead"] and c["gain"]]
    right = sum((a > 0) == (g > 0) for a, g in clear)
    return {"percent": 100 * right / max(1, len(clear)), "cells": len(clear), "ties": len(cells) - len(clear)}


def shuffled(cells: list[dict], times: int = 200, seed: int = 0) -> list[np.ndarray]:
    """What chance gives: (lead, gain) (2, cells) of each of some shuffles of the adapted accuracies among the cells.

    The classifier's own accuracy stays where it is, so what its place in both axes does is part of it."""
    rng = np.random.default_rng(seed)
    ahead, before, after = (np.array([c[key] for c in cells]) for key in ("ahead", "before", "after"))
    return [np.stack([ahead, rng.permutation(after) - before]) for _ in range(times)]


def agreement(cells: list[dict], draws: int = FEWER_DRAWS, seed: int = 0) -> dict[str, float]:
    """Correlation of lead and gain with a 95% interval that resamples whole shifts, slope of the gain over the lead,
    and what shuffles give for both and for the sign, on average."""
    rng, shifts = np.random.default_rng(seed), list(dict.fromkeys(c["shift"] for c in cells))
    of = {s: np.array([(c["ahead"], c["gain"]) for c in cells if c["shift"] == s]).T for s in shifts}
    drawn = [np.hstack([of[s] for s in rng.choice(shifts, len(shifts))]) for _ in range(draws)]
    low, high = np.percentile([np.corrcoef(v)[0, 1] for v in drawn], [2.5, 97.5])
    chance = shuffled(cells)
    signs = [predicted_sign([{"ahead": a, "gain": g} for a, g in v.T])["percent"] for v in chance]
    found = {"r": np.corrcoef(np.hstack([*of.values()]))[0, 1], "low": low, "high": high}
    found |= {"r by chance": np.mean([np.corrcoef(v)[0, 1] for v in chance]), "sign by chance": np.mean(signs)}
    slope = lambda v: np.polyfit(*v, 1)[0]  # noqa: E731
    found |= {"slope": slope(np.hstack([*of.values()])), "slope by chance": np.mean([slope(v) for v in chance])}
    return {name: float(value) for name, value in found.items()}


def phase(runs: list[Records]) -> str:
    """Mean lead and gain for each diffusion model, budget and ResNet, and how often the sign is predicted."""
    groups: dict[tuple, list[dict]] = {}
    for cell in points_of_phase(runs):
        groups.setdefault((cell["denoiser"], cell["pairs"], cell["classifier"]), []).append(cell)
    rows = []
    for (denoiser, pairs, classifier), cells in groups.items():
        row = {"diffusion model": denoiser, "pairs": pairs, "classifier": classifier}
        row |= {c["shift"]: f"{c['ahead']:+.0f} -> {c['gain']:+.0f}" for c in cells}
        ahead, mean = (np.mean([c[key] for c in cells]) for key in ("ahead", "gain"))
        rows.append(row | {"mean": f"{ahead:+.0f} -> {mean:+.1f}"})
    cells = [c for of_group in groups.values() for c in of_group]
    sign, found = predicted_sign(cells), agreement(cells)
    return "\n".join(
        [
            protocol_line([r for r in runs if r.about["method"] == "diffusion_tta"]),
            "Each cell: lead of the Diffusion Classifier over the classifier on one half of its images -> gain of "
            "Diffusion-TTA on the other half, in points.\n",
            as_table(rows),
            f"\nThe lead has the sign of the gain in {sign['percent']:.0f}% of {sign['cells']} cells "
            f"({sign['ties']} more have a lead or a gain of exactly 0); by chance in {found['sign by chance']:.0f}%.\n"
            f"Correlation {found['r']:.2f} [{found['low']:.2f}, {found['high']:.2f}], by chance "
            f"{found['r by chance']:.2f}.",
        ]
    )
