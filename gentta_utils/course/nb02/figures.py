"""Small tables of notebook 02 that look at one question: who moves, who reads, what the step and a filter do."""

import numpy as np

from ...evaluation.records import Records
from ...evaluation.rows import accuracy, is_clean, pick, versus
from ...evaluation.statistics import gain, paired_interval, summary
from . import trust


def live(runs: dict[str, list[Records]], baseline: str = "source") -> list[dict]:
    """One row for each method of name -> records of the same streams: right of n, difference, protocol, cost."""
    rows = []
    for name, mine in runs.items():
        after, other, scene = (
            np.concatenate(v)
            for v in (
                [r.right_after for r in mine],
                [r.right_after for r in runs[baseline]],
                [r.id for r in mine],
            )
        )
        row = {"method": name} | {r.about["stream"]["shift"]: f"{r.right_after.sum()} of {len(r)}" for r in mine}
        row["minus source"] = "" if name == baseline else str(paired_interval(after, other, scene))
        p = mine[0].about["protocol"]
        row["protocol"] = f"{p['reset']}, {p['predict']}, batch {p['batch']}"
        spent = {k.split(" ")[1]: v for k, v in mine[0].nfe.items() if k.startswith("denoiser")}
        row["denoiser"] = ", ".join(f"{v:g} {k}" for k, v in spent.items())
        rows.append(row | {"s/image": f"{np.concatenate([r.seconds for r in mine]).mean():.2f}"})
    return rows


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


def by_confidence(runs: list[Records], edges: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)) -> list[dict]:
    """How often the prediction changed, and accuracy before and after, by the confidence of the source."""
    sure = np.concatenate([trust.softmax(r.before).max(1) for r in runs])
    before, after = (np.concatenate([getattr(r, f"right_{k}") for r in runs]) for k in ("before", "after"))
    changed = np.concatenate([r.before.argmax(1) != r.after.argmax(1) for r in runs])
    rows = []
    for low, high in zip(edges, edges[1:], strict=False):
        at = (sure >= low) & ((sure < high) | (high == edges[-1]))
        row = {"confidence": f"{low:.2f} to {high:.2f}", "n": int(at.sum())}
        values = {"changed": changed, "source right": before, "adapted right": after}
        rows.append(row | {k: f"{100 * v[at].mean():.0f}" if at.any() else "" for k, v in values.items()})
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
