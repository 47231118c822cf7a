"""Figures of notebook 07: cost against gain, gains by corruption, ranks, what rows say of the same images, streams."""

import random

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ...evaluation.records import Records
from ...evaluation.statistics import accuracy_interval
from ...streams.scenes import SceneSpec
from ...streams.stream import Stream, stream
from ...world.scenes import scene_ids
from .. import plots
from .board import Board, frontier
from .board import heat as heat_of
from .experiments import ORDERS
from .plan import plan
from .report import by_order, of_streams

FREE = 0.5  # where on a logarithmic axis what costs nothing stands
NEAR = 1.5  # published costs within this factor share a tick
FAR = 10  # times the most expensive row: what the papers spend beyond that is not drawn
LIMIT = 40.0  # points of gain where the colours of the heat map end


def cost(b: Board, published: dict[str, float], rows: tuple[str, ...] | None = None) -> Figure:
    """Paired gain over the source against forward equivalents on a logarithmic axis: each row a number with its name
    beside the picture, those that none beats at no more cost joined by a line.

    Args:
        published: name of a method -> forward equivalents of the paper's own settings, marked above on the same axis.
        rows: those that are drawn; None: all."""
    gains = {row: b.versus(row) for row in rows or b.rows}
    at = {row: max(b.facts[row].forwards, FREE) for row in gains}
    best = frontier(b, gains)
    fig, (ax, names) = plots.figure(1, 2, height=5.2, width_ratios=[2.3, 1])
    names.axis("off")
    for k, row in enumerate(sorted(gains, key=lambda row: (at[row], -gains[row].mean))):
        g, on = gains[row], row in best
        colour = plots.BLUE if on else "0.55"
        ax.plot([at[row]] * 2, [g.low, g.high], color=colour, lw=0.8, alpha=0.6)
        disc = dict(boxstyle="circle,pad=0.18", facecolor=colour, edgecolor="white", linewidth=0.6)
        ax.text(at[row], g.mean, k + 1, color="white", fontsize=6.5, ha="center", va="center", bbox=disc)
        style = dict(color=plots.BLUE, weight="bold") if on else dict(color="0.25")
        y = 1 - (k + 0.5) / len(gains)
        names.text(0, y, f"{k + 1:>2}  {row}", fontsize=7, va="center", transform=names.transAxes, **style)
    ax.step([at[row] for row in best], [gains[row].mean for row in best], where="post", color=plots.BLUE, lw=1.2)
    ax.axhline(0, color="0.7", lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="forward equivalents per image", ylabel="gain over the source in points")
    _mark(ax, {name: spent for name, spent in published.items() if spent <= FAR * max(at.values())})
    return fig


def _mark(ax: Axes, published: dict[str, float]) -> None:
    """Ticks at the top with the names of methods, those of nearly the same cost at one tick."""
    at: dict[float, list[str]] = {}
    for name, spent in sorted(published.items(), key=lambda item: item[1]):
        near = next((other for other in at if spent <= NEAR * other), spent)
        at.setdefault(near, []).append(name)
    top = ax.secondary_xaxis("top")
    top.set_xscale("log")
    top.set_xticks(list(at), [", ".join(names) for names in at.values()], rotation=40, ha="left", fontsize=6.5)
    top.minorticks_off()
    top.set_xlabel("what the papers' own settings cost", fontsize=7)
    for spent in at:
        ax.axvline(spent, color=plots.ORANGE, lw=0.5, alpha=0.6, zorder=0)


def heat(b: Board) -> Figure:
    """Paired gains over the source in points: a line for each row, a column for each shift and one for all; bold where
    the interval leaves 0 out."""
    rows, shifts, gains, clear = heat_of(b)
    all_of = [b.versus(row) for row in rows]
    gains = np.column_stack([gains, [g.mean for g in all_of]])
    clear = np.column_stack([clear, [g.low > 0 or g.high < 0 for g in all_of]])
    fig, ax = plots.figure(width=8, height=1.3 + 0.2 * len(rows))
    ax.imshow(np.ma.masked_invalid(gains), cmap="PuOr_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
    for i, j in zip(*np.nonzero(np.isfinite(gains)), strict=True):
        sure = dict(weight="bold") if clear[i, j] else dict(alpha=0.5)
        colour = "white" if abs(gains[i, j]) > 0.7 * LIMIT else "black"
        ax.text(j, i, f"{gains[i, j]:+.0f}", ha="center", va="center", fontsize=6.5, color=colour, **sure)
    _grid(ax, rows, [*(short(s) for s in shifts), "all"], rotation=45, ha="left")
    ax.axvline(len(shifts) - 0.5, color="white", lw=3)
    return fig


def short(shift: str) -> str:
    """A shift as it stands in figures: without its severity where that is 5, as everywhere here."""
    return shift.removesuffix(" 5").replace("_", " ")


def _grid(ax: Axes, rows: list[str], heads: list[str], size: float = 7, **how) -> None:
    """Names of rows and columns around a picture of cells."""
    ax.set_xticks(range(len(heads)), heads, fontsize=size, **how)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(rows)), rows, fontsize=7)
    ax.tick_params(length=0, which="both")
    for spine in ax.spines.values():
        spine.set_visible(False)


def ranks(found: list[dict], others: dict[str, list[dict]] | None = None) -> Figure:
    """Mean ranks of rows over the shifts, 1 the best, with their intervals, as `board.ranks` gives them, best on top;
    `others` are those of other classifiers or seeds, as marks without intervals."""
    fig, ax = plots.figure(width=8, height=0.8 + 0.19 * len(found))
    places = {row["row"]: i for i, row in enumerate(found)}
    for i, row in enumerate(found):
        ax.plot([row["low"], row["high"]], [i, i], color="0.75", lw=5, solid_capstyle="round", zorder=1)
        ax.plot(row["rank"], i, color=plots.BLUE, marker="o", ms=5, zorder=3)
    for colour, marker, (name, ranked) in zip(plots.OTHERS[1:], "xs^v+", (others or {}).items(), strict=False):
        here = [(row["rank"], places[row["row"]]) for row in ranked if row["row"] in places]
        ax.plot(*zip(*here, strict=True), color=colour, marker=marker, ls="", ms=5, label=name, zorder=2)
    ax.set_yticks(range(len(found)), list(places), fontsize=7)
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set(xlabel="mean rank over the corruptions, 1 is the best; grey: 95% interval", xlim=(0.5, len(found) + 0.5))
    if others:
        ax.legend(fontsize=7, loc="upper right")
    return fig


def same_scenes(b: Board, n: int = 12, seed: int = 0) -> list[int]:
    """Places in a board of n scenes that all of its rows met, each under another shift as far as there are so many;
    drawn, not picked."""
    draw, met = random.Random(seed), np.flatnonzero(b.met(*b.rows))
    by_shift: dict[str, list[int]] = {}
    for i in met.tolist():
        by_shift.setdefault(b.shift[i], []).append(i)
    turns = draw.sample(sorted(by_shift), len(by_shift))
    found: list[int] = []
    while len(found) < min(n, len(met)):
        shift = turns[len(found) % len(turns)] if len(found) < len(turns) else draw.choice(turns)
        left = [i for i in by_shift[shift] if i not in found]
        found += [draw.choice(left)] if left else []
    return found


def images_of(b: Board, places: list[int]) -> list[Stream]:
    """The images of these places in a board of corrupted scenes, a stream of one each, rendered again."""
    first, found = int(scene_ids(1, "test")[0]), []
    for i in places:
        name, severity = b.shift[i].rsplit(" ", 1)
        found.append(stream(SceneSpec(1, name, int(severity), "test", int(b.scene[i]) - first)))
    return found


def said(b: Board, places: list[int], names: list[str]) -> Figure:
    """What rows say of the same images: a line for each row, a column for each image, green where it is right, else the
    class that it says instead; the true class and the shift stand above."""
    answers = np.nan_to_num(b.logits[:, places], nan=-np.inf).argmax(2)  # (R, n)
    right = answers == b.label[places]
    fig, ax = plots.figure(width=8, height=1.0 + 0.24 * len(b.rows))
    ax.imshow(right, cmap=ListedColormap(["0.92", plots.TRUE]), vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(~right), strict=True):
        ax.text(j, i, names[answers[i, j]][:9], ha="center", va="center", fontsize=6)
    heads = ["\n".join([str(j + 1), names[b.label[i]], *short(b.shift[i]).split(" ")]) for j, i in enumerate(places)]
    _grid(ax, list(b.rows), heads, size=5.8)
    ax.set_xticks(np.arange(len(places) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(b.rows) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    return fig


def streams(runs: list[Records], model: str) -> Figure:
    """Percent right of a classifier's rows with a state by order: a panel for each order, a line for each row; dashed
    the frozen source on the same images."""
    labels = {row.row: row.label for row in plan()}
    rows = {row: by_order(mine, labels[row]) for row, of, mine in of_streams(runs) if of == model}
    panels = [order for order in ORDERS if any(by[order] for by in rows.values())]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    fig, axes = plots.figure(lines, columns, height=0.8 + 0.2 * len(rows), sharex=True, sharey=True, squeeze=False)
    for ax, order in zip(axes.flat, panels, strict=False):
        for i, by in enumerate(rows.values()):
            if by[order]:
                v = accuracy_interval(by[order])
                ax.plot([v.low, v.high], [i, i], color="0.75", lw=3, solid_capstyle="round")
                ax.plot(v.mean, i, color=plots.BLUE, marker="o", ms=4)
                before = 100 * np.concatenate([r.right_before for r in by[order]]).mean()
                ax.plot([before] * 2, [i - 0.45, i + 0.45], color=plots.RED, ls="--", lw=1)
        ax.set_title(order, fontsize=8)
        ax.set_yticks(range(len(rows)), list(rows), fontsize=6.5)
        ax.set_ylim(len(rows) - 0.5, -0.5)
    for ax in axes[-1]:
        ax.set_xlabel("% right", fontsize=8)
    for ax in list(axes.flat)[len(panels) :]:
        ax.axis("off")
    return fig
