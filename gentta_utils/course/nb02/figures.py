"""Small tables of notebook 02 that look at one question: who moves, who reads, what the step and a filter do."""

from dataclasses import replace

import numpy as np
from scipy.special import softmax

from ...common.evaluations import together
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, is_clean, pick, versus
from ...evaluation.statistics import gain, summary
from ..side_by_side import by_confidence, live  # noqa: F401  (the notebook's names for them)


def with_reader(runs: dict[str, list[Records]]) -> dict[str, list[Records]]:
    """The published ensemble as a row of its own: the mean of the adapted probabilities and the reader's, at the
    cost of both."""

    def mean(a: Records, b: Records) -> Records:
        p = (softmax(a.after, axis=1) + softmax(b.after, axis=1)) / 2
        return replace(a, after=np.log(p), nfe=together(a.nfe, b.nfe), seconds=a.seconds + b.seconds)

    both = zip(runs.get("diffusion_tta", []), runs.get("diffusion_classifier", []), strict=False)
    found = [mean(a, b) for a, b in both]
    return {"Diffusion-TTA + reader": found} if found else {}


def readable(runs: list[Records], shifts: tuple[str, ...]) -> list[dict]:
    """For some shifts: what the reader reads, and what Diffusion-TTA does to each classifier there."""
    adapted, rows = pick(runs, "diffusion_tta/full", shifts=shifts), []
    for shift in shifts:
        reader = [r for r in pick(runs, shifts=[shift]) if r.about["method"] == "diffusion_classifier"]
        row = {"shift": shift, "reader": f"{accuracy(reader):.0f}"}
        for r in pick(adapted, shifts=[shift]):
            s = summary([r])
            row[r.about["classifier"].split("/")[1]] = (
                f"{s['before']:.0f} -> {s['after']:.0f} ({s['fixed']} fixed, {s['broken']} broken)"
            )
        rows.append(row)
    return rows


def steps(runs: list[Records], labels: tuple[str, ...]) -> list[dict]:
    """Rows of `why`: before and after under shift and on clean scenes; an empty cell where a row did not meet them."""
    rows = []
    for label in labels:
        row = {"row": label}
        for kind, clean in (("shifted", False), ("clean", True)):
            mine = [r for r in pick(runs, label) if is_clean(r) == clean]
            s = summary(mine) if mine else None
            row[kind] = f"{s['before']:.0f} -> {s['after']:.0f}" if s else ""
            row[f"gain {kind}"] = str(gain(mine)) if s else ""
        rows.append(row)
    return rows


def filtered(runs: list[Records], classifiers: tuple[str, ...]) -> list[dict]:
    """What the low view gains and what adaptation adds, for noise and for all other shifts."""
    shifts = list(dict.fromkeys(r.about["stream"]["shift"] for r in runs))
    rows = []
    for classifier in classifiers:
        for kind, part in (
            ("noise", [s for s in shifts if "noise" in s]),
            ("others", [s for s in shifts if "noise" not in s]),
        ):
            mine = {
                label: pick(runs, label, classifier, part)
                for label in ("source/full", "source/low", "diffusion_tta/full", "diffusion_tta/low")
            }
            row = {"classifier": classifier.split("/")[1], "shifts": kind}
            row |= {label: f"{accuracy(v):.1f}" for label, v in mine.items()}
            row["adapted minus filtered"] = str(versus(mine["diffusion_tta/full"], mine["source/low"]))
            rows.append(row | {"both minus filtered": str(versus(mine["diffusion_tta/low"], mine["source/low"]))})
    return rows
