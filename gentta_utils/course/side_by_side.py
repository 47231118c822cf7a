"""Methods on the same scenes: one row for each label and classifier, compared with the frozen source."""

import numpy as np
from scipy.special import softmax

from ..common.text import as_table
from ..evaluation.records import Records
from ..evaluation.statistics import paired_interval, protocol_line
from ..evaluation.tables import results
from ..world.severities import VALIDATION


def compared(runs: list[Records]) -> str:
    """One row for each label and classifier: accuracy by shift, paired difference to that classifier's frozen source.

    Scenes of a mixed stream are told apart by their ids. Naive ensembles are computed where there are readers.

    Raises ValueError where one scene stands under two shifts: their numbers would be mixed up."""
    ours = [r for r in runs if r.about["method"] not in ("source", "diffusion_classifier")]
    names = list(dict.fromkeys(_name(r) for r in runs if r.about["stream"]["shift"] != "mixed"))
    shift = {int(i): _name(r) for r in runs if r.about["stream"]["shift"] != "mixed" for i in r.id}
    places = {(int(i), _name(r)) for r in runs if r.about["stream"]["shift"] != "mixed" for i in r.id}
    if len(places) > len(shift):
        raise ValueError(
            f"one scene stands under two of {', '.join(names)}: give each shift scenes of its own (`start`)"
        )
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
    mean = softmax(r.before, axis=1) + softmax(r.after * made_at / tau, axis=1)
    return mean.argmax(1) == r.label


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
