"""Tables from records: the only way from a file in data/results to a number that somebody reads."""

from collections.abc import Callable

import numpy as np

from .batch import as_table
from .evaluate import Records, gain, paired_interval, protocol_line, results, summary
from .experiments import EXPERIMENTS, UNTOUCHED


def pick(runs: list[Records], label: str | None = None, classifier: str | None = None, shifts=None) -> list[Records]:
    """The runs with this label, classifier, and one of these shifts."""
    return [
        r
        for r in runs
        if (label is None or r.about["label"] == label)
        and (classifier is None or r.about["classifier"] == classifier)
        and (shifts is None or r.about["stream"]["shift"] in shifts)
    ]


def labels(runs: list[Records]) -> list[str]:
    """Row labels in the order of the runs."""
    return list(dict.fromkeys(r.about["label"] for r in runs))


def accuracy(runs: list[Records]) -> float:
    """Percent right after adaptation, over all rows."""
    return 100 * float(np.concatenate([r.right_after for r in runs]).mean())


def shift_names(runs: list[Records]) -> list[str]:
    """Shift and severity in the order of the runs."""
    return list(dict.fromkeys(_shift(r) for r in runs))


def _shift(r: Records) -> str:
    s = r.about["stream"]
    return f"{s['shift']} {s['severity'] or ''}".strip()


def effect_rows(runs: list[Records], classifier: str) -> list[dict]:
    """A row a shift: source, control, Diffusion-TTA on both views, fixed and broken; then the mean with intervals."""
    rows = []
    mine = pick(runs, classifier=classifier)
    reader = [r for r in runs if r.about["method"] == "diffusion_classifier"]
    for name in [*shift_names(mine), "mean"]:
        here = [r for r in mine if name in ("mean", _shift(r))]
        row = {"shift": name}
        for label, head in (("source/full", "source"), ("source/low", "low-passed")):
            row[head] = f"{accuracy(pick(here, label)):.1f}"
        for view, head in (("full", "Diffusion-TTA"), ("low", "on the low view")):
            s = summary(pick(here, f"diffusion_tta/{view}"))
            row |= {head: f"{s['after']:.1f}", f"fixed/broken {view}": f"{s['fixed']}/{s['broken']}"}
            row[f"gain {view}"] = str(s["gain"]) if name == "mean" else f"{s['gain'].mean:+.1f}"
        if reader:
            row["reader"] = f"{accuracy([r for r in reader if name in ('mean', _shift(r))]):.1f}"
        rows.append(row)
    return rows


def effect(runs: list[Records]) -> str:
    """The table of `heldout`, `test` and `clean`, one part a classifier, and the gains over both."""
    parts = [protocol_line([r for r in runs if r.about["method"] == "diffusion_tta"])]
    for classifier in dict.fromkeys(r.about["classifier"] for r in runs):
        parts += [f"\n{classifier}", as_table(effect_rows(runs, classifier))]
    for view in ("full", "low"):
        mine = pick(runs, f"diffusion_tta/{view}")
        parts.append(f"\ngain over both classifiers, {view} view: {gain(mine)} points")
        untouched = pick(mine, shifts=UNTOUCHED)
        if untouched:
            parts.append(f"of it on {', '.join(UNTOUCHED)}: {gain(untouched)}")
    return "\n".join(parts)


def plain(runs: list[Records]) -> str:
    """Rows by label and classifier, columns by shift: accuracy after; the paired gain where something was adapted."""
    rows = []
    for label in labels(runs):
        for classifier in dict.fromkeys(r.about["classifier"] for r in pick(runs, label)):
            mine = pick(runs, label, classifier)
            row = {"row": label, "classifier": classifier.split("/")[-1]}
            row |= {name: f"{accuracy([r for r in mine if _shift(r) == name]):.1f}" for name in shift_names(runs)}
            shifted = [r for r in mine if r.about["stream"]["shift"] != "clean"]
            row["mean of shifts"] = f"{accuracy(shifted):.1f}" if shifted else ""
            s = summary(shifted or mine)
            adapted = mine[0].about["method"] == "diffusion_tta"
            row |= {"gain": str(s["gain"]) if adapted else "", "s/img": f"{s['seconds']:.2f}" if adapted else ""}
            rows.append(row)
    return protocol_line(runs) + "\n" + as_table(rows)


def versus(runs: list[Records], one: str, other: str, classifier: str, shifts=None) -> str:
    """Paired difference of two rows on the same scenes, `one` minus `other`, with its interval."""
    a, b = pick(runs, one, shifts=shifts), pick(runs, other, classifier, shifts)
    pairs = {(_shift(r), i): (right, None) for r in a for i, right in zip(r.id, r.right_after, strict=True)}
    joined = [(pairs[_shift(r), i][0], right, i) for r in b for i, right in zip(r.id, r.right_after, strict=True)]
    after, before, scene = map(np.array, zip(*joined, strict=True))
    return f"{one} - {other} ({classifier}): {paired_interval(after, before, scene)}"


TABLES: dict[str, Callable[[list[Records]], str]] = {
    "select": plain,
    "reading": plain,
    "heldout": effect,
    "test": effect,
    "clean": effect,
    "why": plain,
}
assert set(TABLES) == set(EXPERIMENTS)


def report(name: str) -> str:
    """A table of the course from its committed records. Raises ValueError for an unknown name."""
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}: choose one of {', '.join(TABLES)}")
    return TABLES[name](results(name))
