"""Figures of notebook 04 from records: gains by corruption, score by window of t, what is repaired where."""

from matplotlib.figure import Figure

from ...evaluation.map_rows import METRICS, gain_of, metrics_of, minus
from ...evaluation.records import Records
from ...evaluation.rows import is_clean, pick
from ...world.severities import TEST
from .. import plots
from . import rows
from .experiments import WINDOWS
from .report import networks_of, pooled, short


def gains(runs: list[Records]) -> Figure:
    """Paired gain of Diffusion-TTA with its interval on each corruption, every network, a panel for each score of one
    kind of map; the largest mean gain on top."""
    metrics, names = metrics_of(pick(runs, rows.OURS)), networks_of(runs)
    shifts = [s for s in TEST if pick(runs, rows.OURS, shifts=[s])]
    found = {m: {c: {s: gain_of(pick(runs, rows.OURS, c, [s]), m) for s in shifts} for c in names} for m in metrics}
    order = sorted(shifts, key=lambda s: -sum(by[s].mean for by in found[metrics[0]].values()))
    fig, axes = plots.figure(1, len(metrics), height=0.9 + 0.26 * len(order), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        series = {short(c): [by[s] for s in order] for c, by in found[metric].items()}
        plots.bars(ax, [s.replace("_", " ") for s in order], series, f"gain in {metric}, points")
        ax.axvline(0, color="0.6", lw=0.8)
    axes[-1].legend(fontsize=7)
    return fig


def controls(runs: list[Records], network: str) -> Figure:
    """Gain of every row of a network over its source under the corruptions, with intervals, both scores."""
    shifted = [r for r in runs if not is_clean(r)]
    known = (rows.OURS, rows.BOLD, *rows.PARTS, *rows.PLACEBOS, *rows.CONTROLS, *rows.RIVALS, rows.CEILING)
    known += (rows.INFORMED,)
    found = {label: mine for label in known if (mine := rows.of_network(shifted, network, label))}
    source = rows.of_network(shifted, network, rows.SOURCE)
    fig, axes = plots.figure(1, 2, height=0.9 + 0.24 * len(found), sharey=True)
    for ax, metric in zip(axes, metrics_of(source), strict=True):
        plots.bars(ax, list(found), {short(network): [minus(v, source, metric) for v in found.values()]}, metric)
        ax.axvline(0, color="0.6", lw=0.8)
        ax.set_xlabel(f"gain in {metric}, points")
    return fig


def windows(runs: list[Records]) -> Figure:
    """Gain by the window of t from which the pairs are drawn, under corruptions and clean, a panel for each score."""
    targets = [t for t in METRICS if any(r.target == t for r in runs)]
    panels = [(t, m) for t in targets for m in METRICS[t]]
    fig, axes = plots.figure(1, len(panels), height=2.6, squeeze=False)
    labels = [*(f"t {a}..{b}" for a, b in WINDOWS), rows.OURS]
    for ax, (target, metric) in zip(axes[0], panels, strict=True):
        for colour, (head, clean) in zip(plots.PALETTE, (("corrupted", False), ("clean", True)), strict=False):
            here = [r for r in runs if r.target == target and is_clean(r) == clean]
            known = [(x, gain_of(pick(here, name), metric)) for x, name in enumerate(labels) if pick(here, name)]
            if known:
                x, values = zip(*known, strict=True)
                ends = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
                ax.errorbar(x, [v.mean for v in values], ends, color=colour, marker="o", ms=4, lw=1, label=head)
        ax.axhline(0, color="0.6", lw=0.8)
        ax.set_xticks(range(len(labels)), [n.removeprefix("t ") for n in labels], rotation=40, ha="right", fontsize=7)
        ax.set(xlabel="window of t", ylabel=f"gain in {metric}")
    axes[0, 0].legend(fontsize=7)
    return fig


def repaired(runs: list[Records]) -> Figure:
    """Share of wrong pixels that are repaired and of right ones that are broken, near edges and inside, by row."""
    found = {}
    for network in networks_of(runs):
        for label in dict.fromkeys(r.about["label"] for r in pick(runs, classifier=network)):
            found[f"{short(network)}, {label}"] = pooled([r for r in pick(runs, label, network) if not is_clean(r)])
    fig, axes = plots.figure(1, 2, height=0.9 + 0.4 * len(found), sharey=True)
    for ax, (did, of) in zip(axes, (("repaired", "wrong"), ("broken", "right")), strict=True):
        series = {
            at: [100 * q[f"{did} {at}"] / max(1, q[f"{of} {at}"]) for q in found.values()]
            for at in ("near edges", "inside")
        }
        plots.bars(ax, list(found), series, f"of {of} pixels {did}, %")
    axes[-1].legend(fontsize=7)
    return fig
