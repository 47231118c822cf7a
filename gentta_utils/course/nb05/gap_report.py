"""What `measure sda_gap` found: the table, the points of the figure, and the slope beside that of a null.

What could be recovered and what SDA gains share a term, the source on the projected image: even without any relation
between them they rise together. So one is read on every second scene and the other on the scenes between, and the null
keeps the source as it is while ceilings and SDA's accuracies are exchanged between the settings of a network."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, paired, pick
from ...evaluation.statistics import Interval, paired_interval
from .gap import PAPER_GAP, PAPER_START, clean_gaps, dials, paper_like, read_first
from .report import SOURCE, by_corruption, header, short, shown, verdict

DRAWS = 4_000
PAPER_GAINS = (2.5, 2.9)  # SDA - DDA of five networks on ImageNet-C (Guo et al., 2025, Table 1)
DIFFERENCES = {  # column -> row and the row that is subtracted, at one setting; {} stands for the setting
    "source - DDA": (SOURCE, "{}, dda, alone"),
    "recoverable": ("{}, own scenes, alone", "{}, dda, alone"),
    "SDA - DDA": ("{}, sda, alone", "{}, dda, alone"),
    "in the sum": ("{}, sda, sum", "{}, dda, sum"),
    "aligned - unaligned": ("{}, sda, alone", "{}, unaligned, alone"),
    "SDA - real aligned": ("{}, sda, alone", "{}, real, alone"),
    "asked - read labels": ("{}, sda, alone", "{}, read labels, alone"),
    "SDA's network, image as it is": ("{}, sda, as it is", SOURCE),
}


def seeds_of(runs: list[Records], row: str) -> dict[int | None, str]:
    """Seed -> label, of a row that was fine-tuned; {None: row} for one that was not; {} for one that is not there."""
    there, start = distinct(runs, "label"), f"{row}, seed "
    found = {int(label.removeprefix(start)): label for label in there if label.startswith(start)}
    return found or ({None: row} if row in there else {})


def shared(one: list[Records], other: list[Records]) -> list[list[Records]]:
    """Both rows of one network without the streams that only one of them met."""
    first = [{_scenes(r): r for r in row} for row in (one, other)]
    both = [key for key in first[0] if key in first[1]]
    return [[row[key] for key in both] for row in first]


def _scenes(r: Records) -> tuple:
    """What tells the scenes of one run from those of another."""
    return r.about["stream"]["shift"], r.about["stream"].get("start")


def apart(runs: list[Records], row: str, other: str, classifier: str | None = None) -> Interval:
    """Row minus another on the same scenes, pooled over networks, or of one of them, and over the seeds that both have;
    a row without seeds stands beside each. Scenes that only one of them met are left out; one is resampled with all
    that was read on it."""
    one, two = seeds_of(runs, row), seeds_of(runs, other)
    both = [(label, two.get(s, two.get(None))) for s, label in one.items() if s in two or None in two]
    parts = [
        paired(*shared(pick(runs, a, c), pick(runs, b, c)))
        for a, b in both
        for c in ([classifier] if classifier else distinct(runs, "classifier"))
    ]
    return paired_interval(*map(np.concatenate, zip(*parts, strict=True)))


def settings_of(runs: list[Records], row: str = "sda") -> list[str]:
    """The settings of the dial at which a row was measured, in the order of `dials`."""
    return [name for name in dials() if seeds_of(runs, f"{name}, {row}, alone")]


def half(runs: list[Records], which: int) -> list[Records]:
    """Every second scene of each run, from the first one (0) or the second one (1) on: no scene is in both."""
    columns = ("id", "label", "before", "after", "loss", "seconds")
    return [replace(r, **{name: getattr(r, name)[which::2] for name in columns}) for r in runs]


def differences(
    runs: list[Records], setting: str, classifier: str | None = None, heads: tuple = tuple(DIFFERENCES)
) -> dict[str, Interval]:
    """`DIFFERENCES` at one setting, those whose rows were measured; without a classifier all are pooled."""
    found, here = {}, [r for r in runs if r.about["label"].startswith((f"{setting}, ", SOURCE))]  # of thousands
    for head in heads:
        one, other = (row.format(setting) for row in DIFFERENCES[head])
        if seeds_of(here, one) and seeds_of(here, other):
            found[head] = apart(here, one, other, classifier)
    return found


def points(runs: list[Records]) -> list[dict]:
    """A point of the figure for each setting with a ceiling and each network, then for all of them together (None): the
    source - DDA and what is recoverable, of the first half of the scenes, and SDA - DDA, of the other, as intervals."""
    one, other = half(runs, 0), half(runs, 1)
    rows = []
    for name in settings_of(runs):
        for c in [*distinct(runs, "classifier"), None]:
            row = {"setting": name, "classifier": c, "kind": dials()[name].kind}
            row |= differences(one, name, c, ("source - DDA", "recoverable"))
            rows.append(row | {"gain": differences(other, name, c, ("SDA - DDA",))["SDA - DDA"]})
    return rows


def slopes(runs: list[Records], seed: int = 0) -> dict:
    """Over dial A: the slope of SDA - DDA against what is recoverable, and against source - DDA, with intervals that
    resample networks, each with all its settings, and scenes; of the null its mean and 95% range, and in how many of
    its draws the slope is as large."""
    names = [name for name in settings_of(runs) if dials()[name].kind == "A"]
    networks = distinct(runs, "classifier")
    if len(names) < 3:
        raise ValueError(f"a slope takes three settings of dial A or more, here are {len(names)}: `measure sda_gap`")
    rng = np.random.default_rng(seed)
    met = set.intersection(*({_scenes(r) for r in pick(runs, f"{name}, dda, alone")} for name in names))
    runs = [r for r in runs if _scenes(r) in met]  # the control met more
    halves = [half(runs, 0), half(runs, 1)]
    scenes = [_weights(sum(map(len, pick(part, SOURCE, networks[0]))), rng) for part in halves]
    drawn = _weights(len(networks), rng)  # (1 + DRAWS, C)

    def read(which: int, row: str) -> np.ndarray:
        """Percent right (1 + DRAWS, C, P): as measured, then of resampled scenes; the mean over seeds."""
        of = [[_right(halves[which], row.format(name), c) for name in names] for c in networks]  # (C, P, n)
        return 100 * np.einsum("dn,cpn->dcp", scenes[which], np.array(of), optimize=True)

    rows = ("{}, dda, alone", "{}, own scenes, alone", "{}, sda, alone")
    (dda, ceiling, _), (dda_, _, sda) = ([read(i, row) for row in rows] for i in (0, 1))
    slope = _slope(ceiling - dda, sda - dda_, drawn)
    gap = np.repeat(read(0, SOURCE)[..., :1], len(names), -1) - dda
    null = np.array([
        _slope(*(np.stack([v[0, c, rng.permutation(len(names))] for c in range(len(networks))])[None] - base[:1]
                 for v, base in ((ceiling, dda), (sda, dda_))), drawn[:1])[0]
        for _ in range(DRAWS)
    ])  # fmt: skip
    return {
        "slope": _interval(slope),
        "against source - DDA": _interval(_slope(gap, sda - dda_, drawn)),
        "null": Interval(float(null.mean()), *np.percentile(null, [2.5, 97.5]).tolist()),
        "as large": float((null >= slope[0]).mean()),
        "points": len(names) * len(networks),
        "middle": (float((ceiling - dda)[0].mean()), float((sda - dda_)[0].mean())),
    }


def contrast_line(runs: list[Records]) -> str:
    """Does SDA add to DDA where DDA adds to the source? Over corruptions, each difference on scenes of its own."""
    dda, sda = (by_corruption(half(runs, i)) for i in (0, 1))
    x, y = (np.array([r[k].mean for r in v]) for k, v in (("DDA - source", dda), ("SDA - DDA", sda)))
    r = float(np.corrcoef(x, y)[0, 1])
    return (
        f"over {len(x)} corruptions DDA - source and SDA - DDA, on disjoint halves of the scenes, correlate by {r:+.2f}"
    )


def _weights(n: int, rng: np.random.Generator) -> np.ndarray:
    """Shares (1 + DRAWS, n): each of n once, then n drawn with replacement."""
    return np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)]) / n


def _right(runs: list[Records], row: str, classifier: str) -> np.ndarray:
    """(n,) share of seeds that read each scene rightly, over all shifts; of every row the scenes in one order."""
    each = [
        np.concatenate([r.right_after for r in sorted(pick(runs, label, classifier), key=lambda r: r.id[0])])
        for label in seeds_of(runs, row).values()
    ]
    return np.mean(each, 0)


def _slope(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Least squares with an intercept, (D,) of x and y (D, C, P) with a weight (D, C) for each network."""
    w = np.broadcast_to(weight[..., None] / x.shape[2], x.shape)
    x, y = (v - (w * v).sum((1, 2), keepdims=True) for v in (x, y))
    return (w * x * y).sum((1, 2)) / np.maximum((w * x * x).sum((1, 2)), 1e-9)


def _interval(draws: np.ndarray) -> Interval:
    return Interval(float(draws[0]), *np.percentile(draws[1:], [2.5, 97.5]).tolist())


def slope_line(runs: list[Records]) -> str:
    """The slopes in a sentence, with the verdict on what was predicted; then what dial B gains, and whether the line of
    dial A, without its own spread, lies within that interval."""
    s = slopes(runs)
    said = {k: f"{v.mean:+.2f} [{v.low:+.2f}, {v.high:+.2f}]" for k, v in s.items() if isinstance(v, Interval)}
    one, other, beside = half(runs, 0), half(runs, 1), []
    for name in (name for name in settings_of(runs) if dials()[name].kind == "B"):
        x = differences(one, name, heads=("recoverable",))["recoverable"].mean
        d = differences(other, name, heads=("SDA - DDA",))["SDA - DDA"]
        line = s["middle"][1] + s["slope"].mean * (x - s["middle"][0])
        within = "within" if d.low <= line <= d.high else "outside"
        beside.append(f" {name}: SDA - DDA {d} ({verdict(d)}), {within} it the {line:+.1f} of dial A's line.")
    return (
        f"slope of SDA - DDA over dial A ({s['points']} points): against what is recoverable {said['slope']} "
        f"({verdict(s['slope'])}), against source - DDA {said['against source - DDA']}; of the null {said['null']}, as "
        f"large in {s['as large']:.0%} of its draws." + "".join(beside)
    )


def control_line(runs: list[Records]) -> str:
    """What SDA gains in the control, and whether its interval lies within two points of 0; where more scenes than those
    of `read_first` were met, also what these say alone."""
    said = []
    for name in (name for name in settings_of(runs) if dials()[name].kind == "control"):
        d, first = (differences(part, name, heads=("SDA - DDA",))["SDA - DDA"] for part in (runs, read_first(runs)))
        inside = d.low >= -2 and d.high <= 2
        said.append(f"{name}: SDA - DDA {d}, {'within' if inside else 'not shown to be within'} two points of 0")
        if len(read_first(mine := pick(runs, f"{name}, dda, alone"))) < len(mine):
            said[-1] += f" (on the scenes read first alone {first})"
    return "; ".join(said) + "."


def order_at(runs: list[Records], setting: str, classifier: str | None = None) -> dict[str, Interval]:
    """The paper's order at a setting, link by link, in the published sum; DiffPure from its published start."""
    chain = {"DiffPure": "diffpure, t 149", "source": SOURCE}
    chain |= {"DDA": f"{setting}, dda, sum", "SDA": f"{setting}, sda, sum"}
    return {f"{a} < {b}": apart(runs, chain[b], chain[a], classifier) for a, b in pairwise(chain)}


def order_rows(runs: list[Records]) -> list[dict]:
    """Where the order is asked for, a row for each network and for all of them: its links with their verdicts."""
    gaps, rows = clean_gaps(runs), []
    for name in (name for name in paper_like(gaps) if name in settings_of(runs)):
        what = "the paper's start" if name == f"t {PAPER_START}" else f"first clean loss of {PAPER_GAP:g} points"
        for c in [*distinct(runs, "classifier"), None]:
            links = {link: f"{d}, {verdict(d)}" for link, d in order_at(runs, name, c).items()}
            rows.append({"setting": f"{name} ({what})", "classifier": short(c), **links})
    return rows


def table(runs: list[Records], each: bool = True) -> list[dict]:
    """A row for each setting, all networks pooled, and with `each` below it every network."""
    rows = []
    for name in settings_of(runs, "dda"):
        for c in [None, *(distinct(runs, "classifier") if each else ())]:
            alone = pick(runs, f"{name}, dda, alone", c)
            scenes = sum(map(len, alone)) // len(distinct(alone, "classifier"))
            row = {"setting": name, "classifier": short(c), "scenes": str(scenes), "DDA alone": accuracy(alone)}
            found = differences(runs, name, c)
            rows.append(row | {head: found.get(head) for head in DIFFERENCES})
    return rows


def main(runs: list[Records], each: bool = True) -> str:
    """The table, without `each` of all networks together; what clean scenes lose, the slope, the control, and the
    paper's order where it was asked for."""
    gaps = clean_gaps(runs)
    parts = [header(runs), as_table([shown(row) for row in table(runs, each)]), ""]
    parts.append("clean scenes alone lose, projected: " + ", ".join(f"{k} {v:+.1f}" for k, v in gaps.items()) + ".")
    parts += [slope_line(runs), control_line(runs), "", as_table(order_rows(runs))]
    return "\n".join(parts)
