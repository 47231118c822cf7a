"""Small tables and figures of notebook 05 that look at one question, and the published numbers that stand beside them.

Nothing here says what came out: every verdict is computed from records.
"""

import itertools

import numpy as np

from . import plots, report_05, trust
from .evaluate import Records
from .report import accuracy, distinct, pick

FAMILIES = {  # of the 15 corruptions
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg"),
}
NAMES = {"resnet": "ResNet-50", "swin": "Swin-T", "convnext": "ConvNeXt-T"}  # in the papers, of our families
NAMES |= {"swin-wide": "Swin-B", "convnext-wide": "ConvNeXt-B"}

# Percent right, from Guo et al. (CVPR 2025), Tables 1, 2, 4, 5, 6. Columns in the order of PAPER_MODELS.
PAPER_MODELS = ("resnet", "swin", "convnext", "swin-wide", "convnext-wide")
PAPER = {
    "sda_corruptions": {
        "source/full": (18.7, 33.1, 39.3, 40.5, 45.6),
        "memo": (24.7, 29.5, 37.8, 37.0, 45.8),
        "diffpure": (16.8, 24.8, 28.8, 28.9, 32.7),
        "gda-like": (31.8, 42.2, 44.8),
        "dda, sum": (29.7, 40.0, 44.2, 44.5, 49.4),
        "sda, sum": (32.5, 42.5, 47.0, 47.4, 51.9),
    },
    "sda_watermark": {
        "source/full": (37.7, 66.5, 67.6, 69.1, 70.1),
        "diffpure": (29.1, 52.7, 55.8, 55.5, 57.7),
        "dda, sum": (52.8, 65.9, 67.9, 68.3, 70.3),
        "sda, sum": (54.7, 67.3, 69.4, 70.6, 72.3),
    },
    "sda_parts": {
        "dda, sum": (29.7, 40.0, 44.2),
        "+ synthetic": (30.4, 39.2, 44.2),
        "+ synthetic, aligned (sda)": (32.5, 42.5, 47.0),
    },
    "sda_number": {
        "sda, 0 a class": (29.7, 40.0, 44.2),
        "sda, 1 a class": (31.9, 42.3, 45.5),
        "sda, 10 a class": (31.9, 42.5, 46.6),
        "sda, 50 a class": (32.5, 42.5, 47.0),
    },
    "sda_cfg": {
        "sda, cfg 1": (32.5, 42.5, 47.0),
        "sda, cfg 1.5": (32.0, 41.6, 46.0),
        "sda, cfg 4": (30.1, 38.5, 42.4),
    },
}


def beside(runs: list[Records], name: str) -> list[dict]:
    """One row a label of the table `name`: accuracy here, over its shifts, and as published for the same family.

    The watermark's table is read on the watermark, all others under corruptions; columns are "here / paper",
    with "-" where the row was not measured on all of its shifts."""
    kind = "watermark" if name == "sda_watermark" else "corruptions"
    here, rows = report_05.by_kind(runs)[kind], []
    for label, numbers in PAPER[name].items():
        row = {"row": label}
        for model, number in itertools.zip_longest(PAPER_MODELS[: len(_widest(name))], numbers):
            mine, whole = (pick(here, k, f"classifier/{model}") for k in (label, "source/full"))
            ours = f"{accuracy(mine):.1f}" if mine and len(mine) == len(whole) else "-"
            row[f"{model} / {NAMES[model]}"] = f"{ours} / {'-' if number is None else number}"
        rows.append(row)
    return rows


def _widest(name: str) -> tuple:
    return max(PAPER[name].values(), key=len)


def by_family(runs: list[Records], labels: tuple[str, ...]) -> list[dict]:
    """For each family of corruptions: accuracy of the source and of the low-passed source, all classifiers pooled, and
    the paired difference of each label to the source."""
    rows = []
    for family, shifts in FAMILIES.items():
        mine = pick(runs, shifts=shifts)
        if not mine:
            continue
        row = {"corruptions": family}
        row |= {head: f"{accuracy(pick(mine, k)):.1f}" for k, head in report_05.NAMES.items()}
        rows.append(
            row | {f"{label}, minus source": str(report_05.minus(mine, label, "source/full")) for label in labels}
        )
    return rows


def against_control(runs: list[Records], labels: tuple[str, ...]) -> list[str]:
    """A sentence for each family of corruptions: which row is best, how each label stands to the low-passed source."""
    lines = []
    for family, shifts in FAMILIES.items():
        mine = pick(runs, shifts=shifts)
        if not mine:
            continue
        each = {label: accuracy(pick(mine, label)) for label in ("source/full", "source/low", *labels)}
        best = max(each, key=each.get)
        said = []
        for label in labels:
            d = report_05.minus(mine, label, "source/low")
            how = "above" if d.mean > 0 else "below" if d.mean < 0 else "level with"
            said.append(f"{label} {d}, {how} it{'' if report_05.clear(d) else ', within the interval'}")
        lines.append(
            f"{family}: best of all is {report_05.NAMES.get(best, best)} ({each[best]:.1f}); against the low-passed "
            f"source: {'; '.join(said)}."
        )
    return lines


def drowned_votes(runs: list[Records], edges: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)) -> list[dict]:
    """Where the source is wrong and the purified image is read rightly: how often their sum follows, by the confidence
    of the source.

    From `sda_faults`, which holds "ours" with both readings of the same scenes; its logits are `experiments_05.coarse`,
    so a confidence is good to some hundredths."""
    both = {}
    for name in ("sum", "purified"):
        mine = pick(runs, f"ours, {name}")
        both[name] = {(r.about["classifier"], r.about["stream"]["shift"]): r for r in mine}
    sure, rescued, followed = [], [], []
    for key, r in both["purified"].items():
        sure.append(trust.softmax(r.before).max(1))
        rescued.append(r.right_after & ~r.right_before)
        followed.append(both["sum"][key].right_after)
    sure, rescued, followed = (np.concatenate(v) for v in (sure, rescued, followed))
    rows = []
    for low, high in zip(edges, edges[1:], strict=False):
        at = (sure >= low) & ((sure < high) | (high == edges[-1]))
        n = int((at & rescued).sum())
        row = {"confidence of the source": f"{low:.2f} to {high:.2f}", "predictions": int(at.sum())}
        row |= {"source wrong, purified right": n}
        rows.append(row | {"of these, the sum is right": f"{100 * followed[at & rescued].mean():.0f}%" if n else ""})
    return rows


def draw_by_corruption(ax, runs: list[Records], labels: tuple[str, ...]) -> list[str]:
    """Mean gain over the classifiers of each label under each corruption, on an axes; returns the corruptions that the
    first label worsens, on average, worst first."""
    means = {}
    for label in labels:
        _, shifts, points = report_05.gains(runs, label)
        means[label] = dict(zip(shifts, points.mean(0), strict=True))
    first = means[labels[0]]
    order = sorted(first, key=lambda s: -first[s])
    shown = [s.removesuffix(" 5").replace("_", " ") for s in order]
    plots.bars(
        ax, shown, {k: [v[s] for s in order] for k, v in means.items()}, "gain in points, mean of the classifiers"
    )
    ax.axvline(0, color="0.3", lw=0.8)
    ax.legend(loc="lower right")
    return [f"{s.removesuffix(' 5')} {first[s]:+.1f}" for s in reversed(order) if first[s] < 0]


def draw_steps(ax, runs: list[Records]) -> None:
    """Accuracy against evaluations of the denoiser, all classifiers pooled: a line for each method and eta."""
    rows = report_05.few_steps(runs)
    for method, colour in (("dda", plots.BLUE), ("sda", plots.RED)):
        for eta, style in (("1", "o-"), ("0", "s--")):
            mine = [r for r in rows if r["method"] == method and r["levels"].endswith(f"eta {eta}")]
            mine.sort(key=lambda r: r["evaluations"])
            at = [r["evaluations"] for r in mine], [r["accuracy"] for r in mine]
            ax.plot(*at, style, color=colour, mfc="none", label=f"{method.upper()}, eta {eta}")
    for label, style in (("source/full", ":"), ("source/low", "-.")):
        ax.axhline(accuracy(pick(runs, label)), color="0.4", ls=style, lw=1, label=report_05.NAMES[label])
    ax.set(xlabel="evaluations of the denoiser an image", ylabel="percent right", xscale="log")
    ticks = sorted({round(r["evaluations"]) for r in rows})
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=7)


def draw_number(ax, runs: list[Records], kind: str = "corruptions") -> None:
    """Difference to DDA against the number of synthetic images a class, a line for each classifier."""
    here = report_05.by_kind(runs)[kind]
    labels = [label for label in distinct(here, "label") if label.endswith("a class")]
    counts = [int(label.split(", ")[1].split(" ")[0]) for label in labels]
    for c in distinct(here, "classifier"):
        points = [report_05.minus(here, label, "dda, sum", c) for label in labels]
        errors = np.array([[d.mean - d.low, d.high - d.mean] for d in points]).T
        ax.errorbar(range(len(counts)), [d.mean for d in points], errors, marker="o", capsize=2, label=c.split("/")[1])
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set(xlabel="synthetic images a class", ylabel="points above DDA", title=kind)
    ax.set_xticks(range(len(counts)), counts)
    ax.legend(fontsize=7)


def draw_panels(axes, images: list, found: list, row: int, names: tuple[str, ...]) -> None:
    """Row `row` of the four panels of Grad-CAM on four axes: image, map over it, the panel's own prediction."""
    for ax, image, panel in zip(axes, images, found, strict=True):
        plots.picture(ax, image[row].cpu(), f"{panel.title}\n{names[int(panel.predicted[row])]}")
        ax.imshow(panel.maps[row].cpu().numpy(), cmap="inferno", alpha=0.5)
        ax.title.set_fontsize(7)


def panel_agreement(looked: dict[str, list]) -> list[dict]:
    """Of classifier -> `gradcam.panels`: agreement of each panel with the first, with standard errors."""
    rows = []
    for name, found in looked.items():
        for p in found[1:]:
            row = {"classifier": name.split("/")[-1], "panel": p.title, "n": len(p.predicted)}
            values = {"correlation with panel 1": p.correlation, "overlap of the top fifth": p.overlap}
            row |= {k: f"{v.mean():.2f} +- {v.std() / len(v) ** 0.5:.2f}" for k, v in values.items()}
            rows.append(row | {"same prediction": f"{(p.predicted == found[0].predicted).float().mean():.0%}"})
    return rows
