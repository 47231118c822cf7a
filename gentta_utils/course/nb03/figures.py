"""Figures and small tables of notebook 03: gains by corruption, predictions that changed, where prompts and the method
itself do harm."""

import torch
from matplotlib.figure import Figure

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import distinct, pick
from ...evaluation.statistics import Interval, gain
from ...streams.scenes import SceneSpec
from .. import plots
from ..side_by_side import gains_by_shift
from .report import OURS, READER, labels_of, minus

MOVES = {  # what each kind of adaptation changes
    "clip_lora": "A and B beside each weight of the image tower",
    "clip_full": "every weight of the image tower",
    "clip_norm": "scale and shift of its normalisation",
    "clip_text": "the K x D prompt features, not the text tower",
    "logits": "one number added to each of the K logits",
    "clip_lora+sd_lora": "A and B of clip_lora, and others in the diffusion model's attention",
}
# Diffusion-TTA (Prabhudesai et al., 2023), table 3: percent right of single images, before and after
PUBLISHED = {
    "Food101": ("82.6 → 86.2", "88.1 → 88.8", "93.1 → 93.1"),
    "CIFAR-100": ("61.2 → 62.8", "69.4 → 69.0", "79.6 → 80.6"),
    "Aircraft": ("17.8 → 21.0", "22.8 → 24.6", "32.0 → 33.4"),
    "Pets": ("82.2 → 84.9", "85.5 → 86.1", "91.9 → 92.3"),
    "Flowers": ("66.7 → 67.7", "69.3 → 71.5", "78.8 → 79.2"),
    "ImageNet": ("57.5 → 60.8", "62.3 → 63.8", "70.0 → 71.2"),
}


def published() -> str:
    """The paper's own table of data sets, for the shape: a row for each CLIP."""
    rows = [
        {"CLIP": clip} | {name: cells[i] for name, cells in PUBLISHED.items()}
        for i, clip in enumerate(("ViT-B/32", "ViT-B/16", "ViT-L/14"))
    ]
    return "the paper, single images, percent right before → after:\n" + as_table(rows)


def headline(runs: list[Records]) -> dict[str, Interval]:
    """Mean gain of each CLIP over the corruptions of these runs."""
    return {f"gain on 15 corruptions, {clip}": gain(pick(runs, OURS, clip)) for clip in distinct(runs, "classifier")}


def gains(runs: list[Records]) -> Figure:
    """Paired gain of Diffusion-TTA with its interval on each corruption, every CLIP, the largest mean gain on top."""
    found = gains_by_shift(runs)
    first = next(iter(found.values()))
    order = sorted(first, key=lambda shift: -sum(by[shift].mean for by in found.values()))
    fig, ax = plots.figure(width=7, height=4.6)
    series = {f"CLIP {name}": [by[shift] for shift in order] for name, by in found.items()}
    plots.bars(ax, order, series, "gain in points, severity 5")
    ax.axvline(0, color="0.6", lw=0.8)
    ax.legend(loc="lower right")
    return fig


def changed(runs: list[Records], seed: int, each: int = 4) -> tuple[list, list]:
    """Predictions that became right, and that became wrong: (record, row) of up to `each`, drawn from `seed`."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for after in ("right_after", "right_before"):  # right in this one alone
        other = "right_before" if after == "right_after" else "right_after"
        places = [(r, int(i)) for r in runs for i in (getattr(r, after) & ~getattr(r, other)).nonzero()[0]]
        found.append([places[k] for k in torch.randperm(len(places), generator=g)[:each].tolist()])
    return found[0], found[1]


def image_of(r: Records, i: int) -> torch.Tensor:
    """The image (3, 64, 64) of row i of a run on scenes, rendered again."""
    at = {k: r.about["stream"][k] for k in ("shift", "severity", "split", "seed")}
    spec = SceneSpec(1, start=r.about["stream"]["start"] + i, labels=labels_of(r), **at)
    return spec.load().images[0]


def gallery(picks: list[tuple[Records, int]], names: tuple[str, ...]) -> Figure:
    """Images with true label, shift and both answers, each beside its loss over the updates; green where the last
    answer is right, red where it is wrong."""
    rows = -(-len(picks) // 2)
    fig, axes = plots.figure(rows, 4, height=1.9, width_ratios=[1, 1.2] * 2, squeeze=False)
    panels = axes.reshape(-1, 2)
    for left, right in panels[len(picks) :]:
        left.axis("off"), right.axis("off")
    for (r, i), (left, right) in zip(picks, panels, strict=False):
        said = [names[int(v[i].argmax())] for v in (r.before, r.after)]
        plots.picture(left, image_of(r, i), " →\n".join(said), plots.GREEN if r.right_after[i] else plots.RED)
        right.plot(r.loss[i], color=plots.BLACK, lw=1)
        right.set(xticks=[], yticks=[])
        shift = r.about["stream"]["shift"].replace("_", " ")
        right.set_title(f"{shift}\ntrue: {names[int(r.label[i])]}", fontsize=7)
        left.title.set_fontsize(7)
    return fig


def by_corruption(runs: list[Records], label: str, other: str) -> list[dict]:
    """Row `label` minus row `other` on each shift, worst first."""
    rows = []
    for shift in dict.fromkeys(r.about["stream"]["shift"] for r in pick(runs, label)):
        difference = minus(pick(runs, label, shifts=[shift]), pick(runs, other, shifts=[shift]))
        rows.append((difference.mean, {"shift": shift, f"{label} minus {other}": str(difference)}))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def least(runs: list[Records], n: int = 4) -> list[dict]:
    """For each CLIP the n corruptions with the smallest gain: zero-shot, adapted, gain, low view, the reader."""
    rows = []
    for clip in distinct(runs, "classifier"):
        mine = pick(runs, OURS, clip)
        for r in sorted(mine, key=lambda r: gain([r]).mean)[:n]:
            shift = r.about["stream"]["shift"]
            row = {"CLIP": clip.split("/")[-1], "shift": shift, "zero-shot": f"{100 * r.right_before.mean():.0f}"}
            row |= {"adapted": f"{100 * r.right_after.mean():.0f}", "gain": str(gain([r]))}
            for head, label in (("low view", "source/low"), ("reader", READER)):
                (here,) = pick(runs, label, None if head == "reader" else clip, [shift])
                row[head] = f"{100 * here.right_after.mean():.0f}"
            rows.append(row)
    return rows
