"""Tables of notebook 05: input adaptation beside its controls, what each part is worth, cost, faults.

Small functions return numbers, for figures and for sentences; the tables are written from them. All differences are
paired; "clear" is one whose 95% interval leaves out 0.
"""

from itertools import pairwise

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, over_classifiers, pick, shift_of, versus
from ...evaluation.statistics import Interval, protocol_line
from ...world.labels import CLASSES, VOCABULARY
from ..side_by_side import verdict

SOURCE, LOW = "source/full", "source/low"
ROW_NAMES = {SOURCE: "source", LOW: "source on the low view"}
WATERMARKED = CLASSES.index(VOCABULARY["watermark_class"])
REFERENCE = "50 eta 1"  # of few-step versions


def clear(difference: Interval) -> bool:
    """Whether the interval leaves out 0."""
    return bool(difference.low > 0 or difference.high < 0)


def half_width(difference: Interval) -> float:
    """Half the width of the interval, in points."""
    return float(difference.high - difference.low) / 2


def by_kind(runs: list[Records]) -> dict[str, list[Records]]:
    """The runs under corruptions, on "watermark" and on "clean" scenes, where there are any."""
    groups: dict[str, list[Records]] = {}
    for r in runs:
        shift = r.about["stream"]["shift"]
        groups.setdefault(shift if shift in ("clean", "watermark") else "corruptions", []).append(r)
    return groups


def minus(runs: list[Records], label: str, other: str, classifier: str | None = None) -> Interval:
    """Row `label` minus row `other` on the shifts that `label` met: of a classifier, or of all of them pooled."""
    mine = pick(runs, label, classifier)
    reference = pick(runs, other, classifier, {r.about["stream"]["shift"] for r in mine})
    return over_classifiers(mine, reference) if classifier is None else versus(mine, reference)


def header(runs: list[Records]) -> str:
    """The protocol line of the runs that adapt something."""
    return protocol_line([r for r in runs if r.about["method"] != "source"])


def short(classifier: str | None) -> str:
    """A classifier's name in a table; "all" for None."""
    return "all" if classifier is None else classifier.split("/")[-1]


def _groups(runs: list[Records]) -> list[str | None]:
    """Each classifier, then None for all of them where there are several."""
    names = distinct(runs, "classifier")
    return names + [None] * (len(names) > 1)


# --- methods on corruptions, clean scenes, watermark -----------------------------------------------------------------


def order_of(runs: list[Records], classifier: str | None = None, ensemble: str = "sum") -> dict[str, Interval]:
    """The paper's order DiffPure < source < DDA < SDA, link by link: the right side minus the left.

    `ensemble` is "sum" or "chosen"; without a classifier all are pooled."""
    chain = {"DiffPure": "diffpure", "source": SOURCE, "DDA": f"dda, {ensemble}", "SDA": f"sda, {ensemble}"}
    return {f"{a} < {b}": minus(runs, chain[b], chain[a], classifier) for a, b in pairwise(chain)}


def order_line(links: dict[str, Interval]) -> str:
    """Each link with its difference and its verdict, the whole order first: it holds where every link does."""
    verdicts = [verdict(d) for d in links.values()]
    whole = "reversed" if "reversed" in verdicts else "undecided" if "undecided" in verdicts else "holds"
    said = [f"{name} {d} {word}" for (name, d), word in zip(links.items(), verdicts, strict=True)]
    return f"the order: {whole} ({'; '.join(said)})"


def gains(runs: list[Records], label: str, other: str = SOURCE) -> tuple[list[str], list[str], np.ndarray]:
    """Classifiers, shifts, and the points (classifiers, shifts) by which row `label` is above row `other`."""
    mine = pick(runs, label)
    classifiers, shifts = distinct(mine, "classifier"), list(dict.fromkeys(map(shift_of, mine)))
    right = {k: {(r.about["classifier"], shift_of(r)): accuracy([r]) for r in pick(runs, k)} for k in (label, other)}
    points = [[right[label][c, s] - right[other][c, s] for s in shifts] for c in classifiers]
    return classifiers, shifts, np.array(points)


def worsened(runs: list[Records], label: str, other: str = SOURCE) -> dict[str, dict[str, Interval]]:
    """Classifier -> shift -> difference, of the shifts on which row `label` is below row `other`, worst first."""
    classifiers, shifts, points = gains(runs, label, other)
    found: dict[str, dict[str, Interval]] = {}
    for c, row in zip(classifiers, points, strict=True):
        here = {s: [r for r in runs if r.about["classifier"] == c and shift_of(r) == s] for s in shifts}
        found[c] = {shifts[j]: minus(here[shifts[j]], label, other, c) for j in np.argsort(row) if row[j] < 0}
    return found


def summaries(runs: list[Records]) -> list[dict]:
    """A row for each classifier, then all of them, and label: number of records, accuracy, what share of the source's
    on the same scenes that is (percent), and, as intervals or None, the difference to the source, to the source
    on the low view, and of SDA and GDA-like to DDA."""
    rows = []
    for classifier in _groups(runs):
        for label in distinct(runs, "label"):
            mine = pick(runs, label, classifier)
            if not mine:  # GDA-like meets few classifiers
                continue
            row = {"row": label, "classifier": short(classifier), "n": sum(map(len, mine)), "accuracy": accuracy(mine)}
            source = pick(runs, SOURCE, classifier, {r.about["stream"]["shift"] for r in mine})
            source = [r for r in source if r.about["classifier"] in distinct(mine, "classifier")]
            row["kept"] = 100 * row["accuracy"] / max(accuracy(source), 1e-9)
            method, _, ensemble = label.partition(", ")
            dda = {"sda": f"dda, {ensemble}", "gda-like": "dda, sum"}.get(method)
            others = {"minus source": SOURCE, "minus low view": LOW, "minus DDA": dda}
            for head, other in others.items():
                wanted = other is not None and label not in (SOURCE, other) and pick(runs, other)
                row[head] = minus(runs, label, other, classifier) if wanted else None
            rows.append(row)
    return rows


def headlines(shifted: list[Records], clean: list[Records]) -> list[dict]:
    """A row per method, over all classifiers: accuracy on the corruptions, its gain, accuracy on clean scenes."""
    rows = []
    for label in (label for label in distinct(shifted, "label") if label != "gda-like"):  # which met three corruptions
        gain = "" if label == SOURCE else str(minus(shifted, label, SOURCE))
        row = {"row": ROW_NAMES.get(label, label), "accuracy": f"{accuracy(pick(shifted, label)):.1f}", "gain": gain}
        rows.append(row | {"clean": f"{accuracy(pick(clean, label)):.1f}" if pick(clean, label) else ""})
    return rows


def main(runs: list[Records], each: bool = True) -> str:
    """All methods by network and shift, what lies above what in words; for clean scenes and the watermark also what the
    shortcut does. Without `each` in short: all networks together, of the shortcut the main rows."""
    parts = [header(runs)]
    for kind, here in by_kind(runs).items():
        parts += [
            f"\n{kind}: {len(set(map(shift_of, here)))} shifts\n",
            as_table([shown(r) for r in summaries(here) if each or r["classifier"] == "all"]),
        ]
        if kind == "corruptions":  # of the others the paper says no order
            parts.append("")
            for classifier in _groups(here):
                for ensemble in ("sum", "chosen"):
                    line = order_line(order_of(here, classifier, ensemble))
                    parts.append(f"- {short(classifier)}, {ensemble}: {line}.")
            parts += ["", *_losses(here, "dda, sum"), *_losses(here, "sda, sum")] if each else []
    short_rows = (SOURCE, LOW, "dda, sum", "sda, sum")
    if {"clean", "watermark"} <= set(by_kind(runs)):
        parts += [
            "\nThe shortcut, by the watermark:\n",
            as_table([shown(r) for r in shortcut_cost(runs) if each or r["row"] in short_rows]),
        ]
    return "\n".join(parts)


def shown(row: dict) -> dict:
    """Numbers to one decimal, intervals as text, nothing for None."""
    return {
        k: "" if v is None else f"{v:.1f}" if isinstance(v, float) else ROW_NAMES.get(v, str(v)) for k, v in row.items()
    }


def percent(accuracy: Interval, digits: int = 1) -> str:
    """An accuracy with its interval as text, without the signs of a difference."""
    return f"{accuracy.mean:.{digits}f} [{accuracy.low:.{digits}f}, {accuracy.high:.{digits}f}]"


def _losses(runs: list[Records], label: str) -> list[str]:
    lines = []
    for c, lost in worsened(runs, label).items():
        said = [f"{s} {d}{' clear' if clear(d) else ''}" for s, d in lost.items()]
        lines.append(f"- {label}, {short(c)}, worse than the source on: {'; '.join(said) or 'nothing'}.")
    return lines


def shortcut_cost(runs: list[Records]) -> list[dict]:
    """How much the watermark costs each row, clean scenes (others) beside it; how often its class is predicted.

    `lost`: accuracy on clean scenes minus that with the watermark, an interval over both samples. `to the class`: share
    (percent) of the scenes of other classes that are read as the class whose training scenes bore the watermark."""
    rows, kinds = [], by_kind(runs)
    for classifier in distinct(runs, "classifier"):
        for label in distinct(runs, "label"):
            marked, plain = (pick(kinds[k], label, classifier) for k in ("watermark", "clean"))
            if not marked or not plain:
                continue
            right = [np.concatenate([r.right_after for r in part]) for part in (plain, marked)]
            row = {"row": label, "classifier": short(classifier), "clean": accuracy(plain)}
            row |= {"watermark": accuracy(marked), "lost": unpaired(*right)}
            shares = {"to the class, clean": plain, "to the class, watermark": marked}
            rows.append(row | {name: shortcut_share(part) for name, part in shares.items()})
    return rows


def shortcut_share(runs: list[Records]) -> float:
    """Percent of the scenes of other classes that are read as the class of the watermark."""
    read = np.concatenate([r.after.argmax(1)[r.label != WATERMARKED] for r in runs])
    return 100 * float((read == WATERMARKED).mean()) if len(read) else float("nan")


def unpaired(one: np.ndarray, other: np.ndarray, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean of one (N,) bool minus mean of other (M,) bool, in points: different scenes, each set resampled alone."""
    rng = np.random.default_rng(seed)
    a, b = (rng.binomial(len(v), v.mean(), draws) / len(v) for v in (one, other))  # a resampled mean of bools
    low, high = np.percentile(100 * (a - b), [2.5, 97.5])
    return Interval(100 * float(one.mean() - other.mean()), low, high)


def by_corruption(runs: list[Records]) -> list[dict]:
    """A row for each corruption, all classifiers pooled: what DDA adds to the source, and SDA to DDA."""
    pairs = {"DDA - source": ("dda, sum", SOURCE), "SDA - DDA": ("sda, sum", "dda, sum")}
    pairs |= {"DDA - source, chosen": ("dda, chosen", SOURCE), "SDA - DDA, chosen": ("sda, chosen", "dda, chosen")}
    shifts = dict.fromkeys(shift_of(r) for r in pick(runs, "sda, sum"))
    here = {s: [r for r in runs if shift_of(r) == s] for s in shifts}
    return [{"shift": s} | {k: minus(part, *pair) for k, pair in pairs.items()} for s, part in here.items()]


def costs(runs: list[Records]) -> list[dict]:
    """What an image costs each row: evaluations of the diffusion model, forward and with a gradient, of classifiers,
    and seconds where the table was measured."""
    rows = []
    for label in distinct(runs, "label"):
        mine, row = pick(runs, label), {"row": ROW_NAMES.get(label, label)}
        for head, start, end in (
            ("diffusion, forward", "denoiser", " fwd"),
            ("diffusion, with gradient", "denoiser", " fwd+bwd"),
            ("classifiers", ("classifier", "aligned"), ""),
        ):
            each = [sum(n for k, n in r.nfe.items() if k.startswith(start) and k.endswith(end)) for r in mine]
            row[head] = float(np.mean(each))
        row["classifiers"] += float(np.mean([views_that_guide(r) for r in mine]))
        rows.append(row | {"s/image": f"{seconds(mine):.2f}"})
    return rows


def views_that_guide(r: Records) -> int:
    """How many views of an image a classifier reads, with a gradient, while it guides the projection (GDA-like); 0
    without `entropy_scale`. `r.nfe` leaves them out: the cache of purified images counts the diffusion model alone."""
    s = r.about["settings"]
    return s["steps"] * s["entropy_views"] if s.get("entropy_scale") else 0


# --- sets of synthetic images: components, number, guidance ----------------------------------------------------------


PAIRS = (("+ synthetic, aligned (sda)", "+ real, aligned"), ("+ synthetic, aligned (sda)", "+ synthetic"))


def components(runs: list[Records]) -> list[dict]:
    """Rows of other training sets under corruptions and on the watermark: accuracy, and difference to DDA or None."""
    rows = []
    for kind, here in by_kind(runs).items():
        for classifier in _groups(here):
            for label in distinct(here, "label"):
                row = {"scenes": kind, "row": label, "classifier": short(classifier)}
                row["accuracy"] = accuracy(pick(here, label, classifier))
                reference = label in (SOURCE, LOW, "dda, sum")
                row["minus DDA"] = None if reference else minus(here, label, "dda, sum", classifier)
                rows.append(row)
    return rows


def between(runs: list[Records]) -> list[dict]:
    """Pairs of components: alignment with synthetic beside real images, and synthetic images with and without it."""
    return [
        {"scenes": kind, "classifier": short(c), "difference": f"{a}, minus {b}", "points": minus(here, a, b, c)}
        for kind, here in by_kind(runs).items()
        for a, b in PAIRS
        if pick(here, a) and pick(here, b)
        for c in _groups(here)
    ]


def training_sets(runs: list[Records], each: bool = True) -> str:
    """The components of SDA, the number of its images, or the guidance of their synthesis; without `each` of all
    networks together."""
    tables = [
        as_table([shown(row) for row in rows if each or row["classifier"] == "all"])
        for rows in (components(runs), between(runs))
        if rows
    ]
    return header(runs) + "\n" + "\n\n".join(tables)


# --- cost ------------------------------------------------------------------------------------------------------------


def evaluations(runs: list[Records]) -> float:
    """Evaluations of the denoiser per image, forward or with gradient."""
    return float(np.mean([sum(n for kind, n in r.nfe.items() if kind.startswith("denoiser")) for r in runs]))


def seconds(runs: list[Records]) -> float:
    """Seconds per image."""
    return float(np.concatenate([r.seconds for r in runs]).mean())


def few_steps(runs: list[Records], classifier: str | None = None) -> list[dict]:
    """Each number of levels of DDA and SDA: accuracy, evaluations and seconds per image, how many times cheaper than 50
    ancestral steps in both, and the paired difference to them. Without a classifier all are pooled."""
    rows = []
    for label in (label for label in distinct(runs, "label") if label not in (SOURCE, LOW)):
        method, _, levels = label.partition(", ")
        reference = f"{method}, {REFERENCE}"
        mine, full = (pick(runs, name, classifier) for name in (label, reference))
        row = {"method": method, "levels": levels, "classifier": short(classifier), "accuracy": accuracy(mine)}
        row |= {"evaluations": evaluations(mine), "seconds": seconds(mine)}
        row |= {"fewer": evaluations(full) / row["evaluations"], "faster": seconds(full) / row["seconds"]}
        row["difference"] = None if label == reference else minus(runs, label, reference, classifier)
        rows.append(row)
    return rows


def steps(runs: list[Records], each: bool = True) -> str:
    """Accuracy against evaluations, with the half width of each difference; without `each` of all networks together."""
    rows = []
    for row in (row for c in (_groups(runs) if each else [None]) for row in few_steps(runs, c)):
        d = row["difference"]
        texts = {"seconds": f"{row['seconds']:.2f}", "fewer": f"{row['fewer']:.1f}x", "faster": f"{row['faster']:.1f}x"}
        rows.append(shown(row | texts) | {"half width": "" if d is None else f"{half_width(d):.1f}"})
    return f"{header(runs)}\nDifferences are to {REFERENCE} of the same method.\n\n{as_table(rows)}"


# --- faults ------------------------------------------------------------------------------------------


def fault_costs(runs: list[Records]) -> dict[str, dict[str, Interval]]:
    """Ensemble -> published switch -> points that it costs against "ours", over all classifiers and shifts."""
    labels = [tuple(label.rsplit(", ", 1)) for label in distinct(runs, "label") if label not in (SOURCE, LOW)]
    found: dict[str, dict[str, Interval]] = {e: {} for _, e in labels}
    for switch, e in labels:
        if switch != "ours":
            found[e][switch] = minus(runs, f"ours, {e}", f"{switch}, {e}")
    return found


def faults(runs: list[Records]) -> str:
    """What each published switch costs, in all and by shift."""
    rows = []
    for e, costs in fault_costs(runs).items():
        for switch, cost in costs.items():
            row = {"ensemble": e, "switch": switch, "accuracy": accuracy(pick(runs, f"{switch}, {e}"))}
            row |= {"ours": accuracy(pick(runs, f"ours, {e}")), "costs": cost}
            _, shifts, points = gains(runs, f"ours, {e}", f"{switch}, {e}")
            rows.append(row | {s: float(p) for s, p in zip(shifts, points.mean(0), strict=True)})
    return f"{header(runs)}\n{as_table([shown(row) for row in rows])}"
