"""Rows out of records, and how two of them are compared: what the tables of all notebooks are made with."""

import numpy as np

from .records import Records
from .statistics import Interval, paired_interval


def pick(runs: list[Records], label: str | None = None, classifier: str | None = None, shifts=None) -> list[Records]:
    """The runs with this label, classifier, and one of these shifts."""
    return [
        r
        for r in runs
        if (label is None or r.about["label"] == label)
        and (classifier is None or r.about["classifier"] == classifier)
        and (shifts is None or r.about["stream"]["shift"] in shifts)
    ]


def distinct(runs: list[Records], key: str) -> list[str]:
    """Values of `about[key]` in the order of the runs."""
    return list(dict.fromkeys(r.about[key] for r in runs))


def accuracy(runs: list[Records]) -> float:
    """Percent right after adaptation, over all rows."""
    return 100 * float(np.concatenate([r.right_after for r in runs]).mean())


def shift_of(r: Records) -> str:
    """Shift and severity of a run, e.g. "fog 5" or "clean"."""
    s = r.about["stream"]
    return f"{s['shift']} {s['severity'] or ''}".strip()


def one_severity(runs: list[Records]) -> None:
    """Raise ValueError where a shift stands in these runs at two severities: a mean over them is of neither."""
    at: dict[str, set] = {}
    for r in runs:
        s = r.about["stream"]
        at.setdefault(s["shift"], set()).add(s.get("severity", 0))
    if mixed := {shift: sorted(severities) for shift, severities in at.items() if len(severities) > 1}:
        shift, severities = next(iter(mixed.items()))
        raise ValueError(
            f"{shift} stands here at the severities {', '.join(map(str, severities))}, which one row would average: "
            "report each severity for itself"
        )


def is_clean(r: Records) -> bool:
    """Whether a run saw unshifted scenes."""
    return r.about["stream"]["shift"] == "clean"


def paired(one: list[Records], other: list[Records]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right after adaptation in two rows on the same scenes, and the scenes, each (N,).

    Raises ValueError unless both met the same shifts and scenes, each once."""

    def by_scene(runs: list[Records]) -> dict:
        at = [shift_of(r) for r in runs]
        return {(a, i): v for a, r in zip(at, runs, strict=True) for i, v in zip(r.id, r.right_after, strict=True)}

    a, b = by_scene(one), by_scene(other)
    if set(a) != set(b) or len(a) != sum(map(len, one)) or len(b) != sum(map(len, other)):
        raise ValueError("the two rows did not meet the same scenes, each once: they cannot be paired")
    return np.array(list(a.values())), np.array([b[key] for key in a]), np.array([i for _, i in a])


def versus(one: list[Records], other: list[Records]) -> Interval:
    """Paired difference of two rows on the same scenes, `one` minus `other`, after adaptation; raises as `paired`."""
    return paired_interval(*paired(one, other))


def over_classifiers(one: list[Records], other: list[Records]) -> Interval:
    """`versus` of each classifier, pooled: a scene that several classifiers met is resampled as one."""
    parts = [paired(*(pick(runs, classifier=c) for runs in (one, other))) for c in distinct(one, "classifier")]
    return paired_interval(*map(np.concatenate, zip(*parts, strict=True)))
