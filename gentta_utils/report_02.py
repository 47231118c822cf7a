"""Tables of notebook 02 that need more than rows and columns: ablations, trust, and the map of when feedback helps."""

import numpy as np

from . import plots, trust
from .batch import as_table
from .corruptions import HELD_OUT
from .evaluate import Records, gain, paired_interval, protocol_line, results
from .experiments import CLASSIFIERS, TEST
from .experiments_02 import BUDGETS, WEAK


def points_of_phase(runs: list[Records]) -> list[dict]:
    """One cell for each diffusion model, budget, ResNet and shift: how much better the reader is, and the gain.

    `ahead`: accuracy of the Diffusion Classifier minus that of the classifier, in points; `gain`: of Diffusion-TTA."""
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
    """The map on an axes: gain against the lead of the reader, one mark a cell, open for the weaker diffusion model."""
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
    """Mean lead and gain for each diffusion model, budget and ResNet, and how often the sign is foretold."""
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


# the codes that stored labels begin with
ABLATIONS = {"K10": "components", "K11": "parameters", "K12": "pairs"}


def ablations(runs: list[Records]) -> str:
    """Rows of the three ablations with paired gains; the ensemble is computed from the records of "logits"."""
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    rows = []
    for label in dict.fromkeys(r.about["label"] for r in adapted):
        mine = [r for r in adapted if r.about["label"] == label]
        rows.append(_ablation(spoken(label), mine, [r.right_after for r in mine]))
        if label == "K11: logits":  # the mean of two probabilities, adapted and not
            both = [(trust.softmax(r.before) + trust.softmax(r.after)).argmax(1) == r.label for r in mine]
            rows.append(_ablation(spoken(f"{label}, ensemble with the source"), mine, both))
    return protocol_line(adapted) + "\n" + as_table(rows)


def spoken(label: str) -> str:
    """A stored row label with the code of its published table (docs/experiments.md) in words."""
    code, colon, rest = label.partition(": ")
    return f"{ABLATIONS[code]}: {rest}" if colon and code in ABLATIONS else label


def _ablation(label: str, runs: list[Records], after: list[np.ndarray]) -> dict:
    before = np.concatenate([r.right_before for r in runs])
    right, scene = np.concatenate(after), np.concatenate([r.id for r in runs])
    row = {"row": label, "n": len(before), "source": f"{100 * before.mean():.1f}", "after": f"{100 * right.mean():.1f}"}
    row |= {r.about["stream"]["shift"]: f"{100 * a.mean():.0f}" for r, a in zip(runs, after, strict=True)}
    evaluations = sum(n for kind, n in runs[0].nfe.items() if kind.startswith("denoiser"))
    return row | {"gain": str(paired_interval(right, before, scene)), "evaluations": f"{evaluations:g}"}


def of_trust(readers_of_heldout: list[Records]) -> str:
    """The rule chosen on held-out corruptions, judged on the 15 test corruptions; the reader's agreement beside it."""
    held_out = [r for r in results("heldout") if r.about["label"] == "diffusion_tta/full"]
    rule, threshold = trust.choose(trust.evidence(held_out, readers_of_heldout))
    test = results("test")
    readers = [r for r in test if r.about["method"] == "diffusion_classifier"]
    rows = []
    for option, cut in {rule: threshold, "reader agrees": 0.0}.items():
        for name in (*CLASSIFIERS, "both"):
            adapted = [r for r in test if r.about["label"] == "diffusion_tta/full"]
            e = trust.evidence([r for r in adapted if name in (r.about["classifier"], "both")], readers)
            row = {"rule": f"{option}, at least {cut:.2f}", "classifier": name}
            right = {"never": e.right_before, "always": e.right_after, "by the rule": trust.accepted(e, option, cut)}
            row |= {when: f"{100 * values.mean():.1f}" for when, values in right.items()}
            rows.append(row | {name: str(gain) for name, gain in trust.judge(e, option, cut).items()})
    chosen = f"Chosen on held-out corruptions: {rule}, at least {threshold:.2f}."
    return f"{protocol_line(readers)}\n{chosen}\n\n{as_table(rows)}"


def headlines(runs: list[Records]) -> list[dict]:
    """One row a classifier: source and control, Diffusion-TTA on both views, paired gains."""
    rows = []
    for name in dict.fromkeys(r.about["classifier"] for r in runs if r.about["method"] == "diffusion_tta"):
        row = {"classifier": name.split("/")[1]}
        heads = {"source/full": "source", "source/low": "low-passed"}
        heads |= {"diffusion_tta/full": "Diffusion-TTA", "diffusion_tta/low": "on the low view"}
        for label, head in heads.items():
            mine = [r for r in runs if (r.about["classifier"], r.about["label"]) == (name, label)]
            row[head] = f"{100 * np.concatenate([r.right_after for r in mine]).mean():.1f}"
            if label.startswith("diffusion_tta"):
                row["gain" if label.endswith("full") else "gain there"] = str(gain(mine))
        rows.append(row)
    return rows


def gains_by_shift(runs: list[Records], label: str = "diffusion_tta/full") -> dict[str, dict[str, float]]:
    """Classifier -> shift -> paired gain in points, of the rows with this label."""
    parts: dict[str, dict[str, list[Records]]] = {}
    for r in (r for r in runs if r.about["label"] == label):
        name, shift = r.about["classifier"].split("/")[1], r.about["stream"]["shift"].replace("_", " ")
        parts.setdefault(name, {}).setdefault(shift, []).append(r)
    return {name: {shift: gain(mine).mean for shift, mine in by.items()} for name, by in parts.items()}


def signs(runs: list[Records]) -> list[dict]:
    """For each classifier and view: corruptions with a gain, with a loss, the largest loss, the mean gain."""
    rows = []
    for classifier in dict.fromkeys(r.about["classifier"] for r in runs):
        for view in ("full", "low"):
            mine = [
                r for r in runs if r.about["classifier"] == classifier and r.about["label"] == f"diffusion_tta/{view}"
            ]
            by_shift = {
                name: gain([r for r in mine if r.about["stream"]["shift"] == name]).mean
                for name in TEST
                if any(r.about["stream"]["shift"] == name for r in mine)
            }
            worst = min(by_shift, key=by_shift.get)
            rows.append(
                {
                    "classifier": classifier.split("/")[1],
                    "view": view,
                    "gain": str(gain(mine)),
                    "corruptions that gain": sum(g > 0 for g in by_shift.values()),
                    "that lose": sum(g < 0 for g in by_shift.values()),
                    "worst": f"{worst} {by_shift[worst]:+.1f}",
                }
            )
    return rows


def compared(runs: list[Records]) -> str:
    """One row for each label and classifier: accuracy by shift, paired difference to that classifier's frozen source.

    Scenes of a mixed stream are told apart by their ids. Naive ensembles are computed where there are readers."""
    ours = [r for r in runs if r.about["method"] not in ("source", "diffusion_classifier")]
    names = list(dict.fromkeys(_name(r) for r in runs if r.about["stream"]["shift"] != "mixed"))
    shift = {int(i): _name(r) for r in runs if r.about["stream"]["shift"] != "mixed" for i in r.id}
    rows = []
    for classifier in dict.fromkeys(r.about["classifier"] for r in runs):
        mine = [r for r in runs if r.about["classifier"] == classifier]
        source = _by_scene([r for r in mine if r.about["label"] == "source/full"])
        for label in dict.fromkeys(r.about["label"] for r in mine):
            here = [r for r in mine if r.about["label"] == label]
            rows.append(_compared(label, classifier, here, _by_scene(here), source, shift, names))
        readers = dict.fromkeys(r.about["label"] for r in mine if r.about["method"] == "diffusion_classifier")
        for label in readers:
            here = [r for r in mine if r.about["label"] == label]
            tau = ensemble_temperature(label)
            right = {int(i): bool(ok) for r in here for i, ok in zip(r.id, averaged(r, tau), strict=True)}
            name = f"mean with {label}, tau {tau:g}"
            rows.append(_compared(name, classifier, here, right, source, shift, names))
    return protocol_line(ours) + "\n" + as_table(rows)


def _name(r: Records) -> str:
    s = r.about["stream"]
    return f"{s['shift']} {s['severity'] or ''}".strip()


def _by_scene(runs: list[Records]) -> dict[int, bool]:
    """Scene id -> right after adaptation."""
    return {int(i): bool(ok) for r in runs for i, ok in zip(r.id, r.right_after, strict=True)}


def _compared(label: str, classifier: str, runs: list[Records], right: dict, source: dict, shift: dict, names) -> dict:
    row = {"row": label, "classifier": classifier.split("/")[1]}
    for name in names:
        seen = [ok for i, ok in right.items() if shift[i] == name]
        row[name] = f"{100 * np.mean(seen):.0f}" if seen else ""
    both = [i for i in right if i in source]
    pairs = np.array([[right[i], source[i]] for i in both])
    row["mean"] = f"{100 * np.mean(list(right.values())):.1f}"
    row["minus source"] = (
        "" if label == "source/full" else str(paired_interval(pairs[:, 0], pairs[:, 1], np.array(both)))
    )
    spent = {k: v for k, v in runs[0].nfe.items() if k.startswith("denoiser")}
    row["denoiser"] = ", ".join(f"{v:g} {k.removeprefix('denoiser ')}" for k, v in spent.items())
    return row | {"s/img": f"{np.concatenate([r.seconds for r in runs]).mean():.2f}"}


TAUS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def averaged(r: Records, tau: float) -> np.ndarray:
    """Right predictions (N,) of the mean of two posteriors: the classifier's, and the reader's at temperature tau."""
    made_at = (r.about["settings"] or {})["temperature"]
    mean = trust.softmax(r.before) + trust.softmax(r.after * made_at / tau)
    return mean.argmax(1) == r.label


def ensemble_temperature(label: str) -> float:
    """The temperature that is best on the held-out corruptions of `reading`, for a reader with about as many pairs."""
    pairs = int(label.removeprefix("reader/").split(" ")[0])
    read = [
        r
        for r in results("reading")
        if r.about["label"].startswith(f"reader/{48 if pairs > 24 else 12} pairs/")
        and "(25 scenes)" not in r.about["label"]
        and r.about["stream"]["shift"] in HELD_OUT
    ]
    return max(TAUS, key=lambda tau: sum(averaged(r, tau).sum() for r in read))
