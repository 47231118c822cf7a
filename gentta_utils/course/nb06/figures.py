"""Figures of notebook 06: gains by set, precision of views beside the gain, fidelity and diversity, reliability."""

import numpy as np
from matplotlib.figure import Figure

from ...evaluation.records import Records
from ...evaluation.rows import distinct, pick
from ...evaluation.statistics import calibration_bins, gain
from .. import plots
from .report import shift_name, short
from .rows import QUANTITIES, TPT4, VIEWS

MARKS = "osD^vPX*<>h"


def gains(runs: list[Records], labels: tuple[str, ...], clip: str) -> Figure:
    """Paired gain over zero-shot with its interval: a group for each set, a bar for each of these rows, one CLIP."""
    sets = list(dict.fromkeys(map(shift_name, runs)))
    series = {
        label: [gain([r for r in pick(runs, label, clip) if shift_name(r) == name]) for name in sets]
        for label in labels
        if pick(runs, label, clip)
    }
    fig, ax = plots.figure(width=8, height=0.9 + 0.13 * len(sets) * len(series))
    plots.bars(ax, sets, series, f"gain over zero-shot in points, CLIP {short(clip)}")
    ax.axvline(0, color="0.6", lw=0.8)
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def precision(runs: list[Records]) -> Figure:
    """Against how much more often the confident views are right than the image: the gain of their mean, and of TPT."""
    fig, axes = plots.figure(1, 2, height=3.2, sharey=True)
    sets = list(dict.fromkeys(map(shift_name, runs)))
    kinds = [label.removeprefix(VIEWS) for label in distinct(runs, "label") if label.startswith(VIEWS)]
    at = QUANTITIES.index("right, kept")
    for i, name in enumerate(sets):
        for j, kind in enumerate(kinds):
            (r,) = pick(runs, VIEWS + kind, shifts=[name.replace(" ", "_")])
            x = 100 * (r.loss[:, at].mean() - r.right_before.mean())
            tuned = pick(runs, f"{TPT4}, {kind}", shifts=[name.replace(" ", "_")])
            for ax, mine in zip(axes, ([r], tuned), strict=True):
                if mine:
                    style = dict(color=plots.PALETTE[i % len(plots.PALETTE)], marker=MARKS[j % len(MARKS)], ms=6, ls="")
                    ax.plot(x, gain(mine).mean, **style)
    for ax, title in zip(axes, ("mean of the confident views", "TPT, 4 steps"), strict=True):
        ax.axhline(0, color="0.6", lw=0.8)
        ax.axvline(0, color="0.6", lw=0.8)
        ax.set(xlabel="confident views minus image, % right", title=title)
    axes[0].set_ylabel("gain in points")
    for i, name in enumerate(sets):
        axes[1].plot([], [], color=plots.PALETTE[i % len(plots.PALETTE)], marker="o", ls="", label=name)
    for j, kind in enumerate(kinds):
        axes[1].plot([], [], color="0.5", marker=MARKS[j % len(MARKS)], ls="", label=kind)
    axes[1].legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def fidelity(runs: list[Records]) -> Figure:
    """Mean cosine of the views to the image against their mean distance to each other, a panel for each set: hollow
    before the entropy filter, filled behind it."""
    sets = list(dict.fromkeys(map(shift_name, runs)))
    fig, axes = plots.figure(1, len(sets), height=3.0, squeeze=False)
    kinds = [label for label in distinct(runs, "label") if label.startswith(VIEWS)]
    mean = lambda r, what: float(r.loss[:, QUANTITIES.index(what)].mean())  # noqa: E731
    for ax, name in zip(axes[0], sets, strict=True):
        for j, label in enumerate(kinds):
            (r,) = pick(runs, label, shifts=[name.replace(" ", "_")])
            ends = [(mean(r, f"spread, {which}"), mean(r, f"cosine, {which}")) for which in ("all", "kept")]
            style = dict(color=plots.PALETTE[j % len(plots.PALETTE)], marker=MARKS[j % len(MARKS)])
            ax.plot(*zip(*ends, strict=True), color=style["color"], lw=0.8)
            ax.plot(*ends[0], **style, mfc="white", ls="")
            ax.plot(*ends[1], **style, ls="", label=label.removeprefix(VIEWS))
        ax.set(xlabel="distance to each other", title=name)
    axes[0, 0].set_ylabel("cosine to the image")
    axes[0, -1].legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def reliability(rows: dict[str, list[Records]], bins: int = 10) -> Figure:
    """Share right against confidence in bins of equal width, a line for each row; dots as large as the bin."""
    fig, ax = plots.figure(width=4.6, height=3.4)
    ax.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls="--")
    for i, (label, runs) in enumerate(rows.items()):
        sure, right, n = np.array(calibration_bins(runs, bins)).T
        ax.plot(sure, right, color=plots.PALETTE[i], lw=1, label=label)
        ax.scatter(sure, right, 4 + 120 * n / n.sum(), color=plots.PALETTE[i])
    ax.set(xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    ax.legend(fontsize=7)
    return fig
