"""Methods on the same scenes: rows compared with the frozen source, gains by shift, what several notebooks tabulate."""

from dataclasses import replace

import numpy as np
from scipy.special import softmax

from ..common.text import as_table
from ..evaluation.records import Records
from ..evaluation.rows import one_severity, shift_of
from ..evaluation.statistics import Interval, gain, paired_interval, protocol_line
from ..evaluation.tables import results
from ..world.severities import TEST, VALIDATION


def verdict(difference: Interval, negative: bool = False) -> str:
    """ "holds" where a difference that should be positive (or negative) is clear, "reversed", or "undecided"."""
    low, high = (-difference.high, -difference.low) if negative else (difference.low, difference.high)
    return "holds" if low > 0 else "reversed" if high < 0 else "undecided"


def on_scenes(runs: list[Records], met: set[int]) -> list[Records]:
    """Of each run the rows of these scenes; runs that met none of them are left out."""
    columns = ("id", "label", "before", "after", "loss", "seconds")
    here = [(r, np.isin(r.id, list(met))) for r in runs]
    return [replace(r, **{k: getattr(r, k)[rows] for k in columns}) for r, rows in here if rows.any()]


def compared(runs: list[Records]) -> str:
    """One row for each label and classifier: accuracy by shift, paired difference to that classifier's frozen source.

    Scenes of a mixed stream are told apart by their ids. Naive ensembles are computed where there are readers.

    Raises ValueError where one scene stands under two shifts: their numbers would be mixed up."""
    ours = [r for r in runs if r.about["method"] not in ("source", "diffusion_classifier")]
    names = list(dict.fromkeys(shift_of(r) for r in runs if r.about["stream"]["shift"] != "mixed"))
    shift = {int(i): shift_of(r) for r in runs if r.about["stream"]["shift"] != "mixed" for i in r.id}
    places = {(int(i), shift_of(r)) for r in runs if r.about["stream"]["shift"] != "mixed" for i in r.id}
    if len(places) > len(shift):
        raise ValueError(
            f"one scene stands under two of {', '.join(names)}: give each shift scenes of its own (`start`)"
        )
    rows = []
    for classifier in dict.fromkeys(r.about["classifier"] for r in runs):
        mine = [r for r in runs if r.about["classifier"] == classifier]
        source = by_scene([r for r in mine if r.about["label"] == "source/full"])
        for label in dict.fromkeys(r.about["label"] for r in mine):
            here = [r for r in mine if r.about["label"] == label]
            rows.append(_compared(label, classifier, here, by_scene(here), source, shift, names))
        readers = dict.fromkeys(r.about["label"] for r in mine if r.about["method"] == "diffusion_classifier")
        for label in readers:
            here = [r for r in mine if r.about["label"] == label]
            tau = ensemble_temperature(label)
            right = {int(i): bool(ok) for r in here for i, ok in zip(r.id, averaged(r, tau), strict=True)}
            name = f"mean with {label}, tau {tau:g}"
            rows.append(_compared(name, classifier, here, right, source, shift, names))
    return protocol_line(ours) + "\n" + as_table(rows)


def by_scene(runs: list[Records]) -> dict[int, bool]:
    """Scene id -> right after adaptation."""
    return {int(i): bool(ok) for r in runs for i, ok in zip(r.id, r.right_after, strict=True)}


def _compared(label: str, classifier: str, runs: list[Records], right: dict, source: dict, shift: dict, names) -> dict:
    row = {"row": label, "classifier": classifier.split("/")[1]}
    for name in names:
        seen = [ok for i, ok in right.items() if shift[i] == name]
        row[name] = f"{100 * np.mean(seen):.0f}" if seen else ""
    both = [i for i in right if i in source]
    if not both:
        raise ValueError(f"no scene of the row {label!r} was met by the source of {classifier}: compare like with like")
    pairs = np.array([[right[i], source[i]] for i in both])
    row["mean"] = f"{100 * np.mean(list(right.values())):.1f}"
    row["minus source"] = (
        "" if label == "source/full" else str(paired_interval(pairs[:, 0], pairs[:, 1], np.array(both)))
    )
    row["denoiser"] = denoiser_cost(runs[0])
    return row | {"s/img": f"{np.concatenate([r.seconds for r in runs]).mean():.2f}"}


def denoiser_cost(r: Records) -> str:
    """Evaluations of the diffusion model per image, e.g. "96 fwd+bwd"; empty without any."""
    spent = {k.split(" ")[1]: v for k, v in r.nfe.items() if k.startswith("denoiser")}
    return ", ".join(f"{v:g} {kind}" for kind, v in spent.items())


TAUS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def mean_posterior(r: Records, tau: float) -> np.ndarray:
    """The mean (N, K) of two posteriors: the classifier's, and the reader's at temperature tau."""
    made_at = (r.about["settings"] or {})["temperature"]
    return (softmax(r.before, axis=1) + softmax(r.after * made_at / tau, axis=1)) / 2


def averaged(r: Records, tau: float) -> np.ndarray:
    """Right predictions (N,) of `mean_posterior`."""
    return mean_posterior(r, tau).argmax(1) == r.label


def ensemble_temperature(label: str) -> float:
    """The temperature that is best on the validation corruptions of `reading` for a reader with about as many pairs."""
    pairs = int(label.removeprefix("reader/").split(" ")[0])
    read = [
        r
        for r in results("reading")
        if r.about["label"].startswith(f"reader/{48 if pairs > 24 else 12} pairs/")
        and "(25 scenes)" not in r.about["label"]
        and r.about["stream"]["shift"] in VALIDATION
    ]
    return max(TAUS, key=lambda tau: sum(averaged(r, tau).sum() for r in read))


# --- gains by shift, by confidence, live ------------------------------------------------------------------------------


def gains_by_shift(runs: list[Records], label: str = "diffusion_tta/full") -> dict[str, dict[str, Interval]]:
    """Classifier -> shift -> paired gain in points, of the rows with this label.

    Raises ValueError for records of two severities, as all here that names a shift alone."""
    one_severity([r for r in runs if r.about["label"] == label])
    parts: dict[str, dict[str, list[Records]]] = {}
    for r in (r for r in runs if r.about["label"] == label):
        name, shift = r.about["classifier"].split("/")[1], r.about["stream"]["shift"].replace("_", " ")
        parts.setdefault(name, {}).setdefault(shift, []).append(r)
    return {name: {shift: gain(mine) for shift, mine in by.items()} for name, by in parts.items()}


def signs(runs: list[Records]) -> list[dict]:
    """For each classifier and view that is there: corruptions with a gain, with a loss, the worst, the mean gain."""
    one_severity(runs)
    rows = []
    for classifier in dict.fromkeys(r.about["classifier"] for r in runs):
        for view in ("full", "low"):
            mine = [
                r for r in runs if r.about["classifier"] == classifier and r.about["label"] == f"diffusion_tta/{view}"
            ]
            if not mine:
                continue
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


def by_confidence(runs: list[Records], edges: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)) -> list[dict]:
    """How often the prediction changed, and accuracy before and after, by the confidence of the source."""
    sure = np.concatenate([softmax(r.before, axis=1).max(1) for r in runs])
    before, after = (np.concatenate([getattr(r, f"right_{k}") for r in runs]) for k in ("before", "after"))
    changed = np.concatenate([r.before.argmax(1) != r.after.argmax(1) for r in runs])
    rows = []
    for low, high in zip(edges, edges[1:], strict=False):
        at = (sure >= low) & ((sure < high) | (high == edges[-1]))
        row = {"confidence": f"{low:.2f} to {high:.2f}", "n": int(at.sum())}
        values = {"changed": changed, "source right": before, "adapted right": after}
        rows.append(row | {k: f"{100 * v[at].mean():.0f}" if at.any() else "" for k, v in values.items()})
    return rows


def live(runs: dict[str, list[Records]], baseline: str = "source") -> list[dict]:
    """One row for each method of name -> records of the same streams: right of n, difference, protocol, cost.

    Raises ValueError unless every method met the images of the baseline, at one severity, each once."""
    one_severity([r for mine in runs.values() for r in mine])
    met = {
        name: sorted((r.about["stream"]["shift"], int(i)) for r in mine for i in r.id) for name, mine in runs.items()
    }
    if other := [name for name in met if met[name] != met[baseline]]:
        raise ValueError(f"{', '.join(other)} did not meet the images that {baseline} met: run all on the same streams")
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
        row["denoiser"] = denoiser_cost(mine[0])
        rows.append(row | {"s/image": f"{np.concatenate([r.seconds for r in mine]).mean():.2f}"})
    return rows
