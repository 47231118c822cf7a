"""Small tables and figures of notebook 05 that look at one question, and the published numbers that stand beside them.

Nothing here says what came out: every verdict is computed from records.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy.special import softmax

from ...diffusion.guidance import structure_energy
from ...diffusion.process import add_noise
from ...diffusion.reverse import noise_for
from ...diffusion.sampling import predicted_x0
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick, shift_of
from ...evaluation.statistics import paired_interval
from ...methods import dda
from .. import gradcam, plots
from . import gap, gap_report, report

FAMILIES = {  # of the 15 corruptions
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg"),
}
PAPER_NETWORKS = {"resnet": "ResNet-50", "swin": "Swin-T", "convnext": "ConvNeXt-T"}  # in the papers, of our families
PAPER_NETWORKS |= {"swin-wide": "Swin-B", "convnext-wide": "ConvNeXt-B"}


def by_family(runs: list[Records], labels: tuple[str, ...]) -> list[dict]:
    """For each family of corruptions: accuracy of the source on both views, all classifiers pooled, and the
    paired difference of each label to the source, and of SDA to DDA. The last row holds all families but noise."""
    rows = []
    rest = {"all but noise": sum((shifts for name, shifts in FAMILIES.items() if name != "noise"), ())}
    for family, shifts in (FAMILIES | rest).items():
        mine = pick(runs, shifts=shifts)
        if not mine:
            continue
        row = {"corruptions": family}
        row |= {head: f"{accuracy(pick(mine, k)):.1f}" for k, head in report.ROW_NAMES.items()}
        row |= {f"{label}, minus source": str(report.minus(mine, label, "source/full")) for label in labels}
        rows.append(row | {"SDA - DDA, sum": str(report.minus(mine, "sda, sum", "dda, sum"))})
    return rows


def against_control(runs: list[Records], labels: tuple[str, ...]) -> list[str]:
    """A sentence for each family of corruptions: which row is best, where each label stands to the low view."""
    lines = []
    for family, shifts in FAMILIES.items():
        mine = pick(runs, shifts=shifts)
        if not mine:
            continue
        each = {label: accuracy(pick(mine, label)) for label in ("source/full", "source/low", *labels)}
        best = max(each, key=each.get)
        said = []
        for label in labels:
            d = report.minus(mine, label, "source/low")
            how = "above" if d.mean > 0 else "below" if d.mean < 0 else "level with"
            said.append(f"{label} {d}, {how if report.clear(d) else 'undecided'}{' it' if report.clear(d) else ''}")
        lines.append(
            f"{family}: best of all is {report.ROW_NAMES.get(best, best)} ({each[best]:.1f}); against the source "
            f"on the low view: {'; '.join(said)}."
        )
    return lines


def drowned_votes(runs: list[Records], edges: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 1.0)) -> list[dict]:
    """Where the source is wrong and the purified image is read rightly, and the other way round: how often their sum is
    right, with intervals over scenes, by the confidence of the source.

    From `sda_faults`, which holds "ours" with both readings of the same scenes; its logits are coarse
    (`course.purified.coarse`), so a confidence is good to some hundredths."""
    both = {}
    for name in ("sum", "purified"):
        mine = pick(runs, f"ours, {name}")
        both[name] = {(r.about["classifier"], r.about["stream"]["shift"]): r for r in mine}
    columns: dict[str, list] = {k: [] for k in ("sure", "source", "purified", "followed", "id")}
    for key, r in both["purified"].items():
        each = (softmax(r.before, axis=1).max(1), r.right_before, r.right_after, both["sum"][key].right_after, r.id)
        for k, v in zip(columns, each, strict=True):
            columns[k].append(v)
    sure, source, purified, followed, scene = map(np.concatenate, columns.values())
    kinds = {"source wrong, purified right": purified & ~source, "source right, purified wrong": source & ~purified}
    rows = []
    for low, high in zip(edges, edges[1:], strict=False):
        at = (sure >= low) & ((sure < high) | (high == edges[-1]))
        row = {"confidence of the source": f"{low:.2f} to {high:.2f}", "predictions": int(at.sum())}
        for (kind, where), share in zip(kinds.items(), ("sum right", "sum still right"), strict=True):
            here = at & where
            row |= {kind: int(here.sum()), f"{share}, percent": ""}
            if here.any():
                d = paired_interval(followed[here], np.zeros(here.sum()), scene[here])
                row[f"{share}, percent"] = report.percent(d, 0)
        rows.append(row)
    return rows


def draw_by_corruption(ax, runs: list[Records], labels: tuple[str, ...]) -> list[str]:
    """Mean gain over the classifiers, with its interval, of each label under each corruption, on an axes; returns the
    corruptions that the first label worsens, on average, worst first."""
    shifts: dict[str, list[Records]] = {shift_of(r): [] for r in pick(runs, labels[0])}
    for r in runs:
        if shift_of(r) in shifts:
            shifts[shift_of(r)].append(r)
    means = {label: {s: report.minus(here, label, report.SOURCE) for s, here in shifts.items()} for label in labels}
    first = means[labels[0]]
    order = sorted(first, key=lambda s: -first[s].mean)
    shown = [s.removesuffix(" 5").replace("_", " ") for s in order]
    plots.bars(
        ax, shown, {k: [v[s] for s in order] for k, v in means.items()}, "gain in points, mean of the classifiers"
    )
    ax.axvline(0, color="0.3", lw=0.8)
    ax.legend(loc="lower right")
    return [f"{s.removesuffix(' 5')} {first[s].mean:+.1f}" for s in reversed(order) if first[s].mean < 0]


def draw_steps(ax, runs: list[Records]) -> None:
    """Accuracy against evaluations of the denoiser, all classifiers pooled: a line for each method and eta."""
    rows = report.few_steps(runs)
    for method, colour in (("dda", plots.BLUE), ("sda", plots.RED)):
        for eta, style in (("1", "o-"), ("0", "s--")):
            mine = [r for r in rows if r["method"] == method and r["levels"].endswith(f"eta {eta}")]
            mine.sort(key=lambda r: r["evaluations"])
            at = [r["evaluations"] for r in mine], [r["accuracy"] for r in mine]
            ax.plot(*at, style, color=colour, mfc="none", label=f"{method.upper()}, eta {eta}")
    for label, style in (("source/full", ":"), ("source/low", "-.")):
        ax.axhline(accuracy(pick(runs, label)), color="0.4", ls=style, lw=1, label=report.ROW_NAMES[label])
    ax.set(xlabel="evaluations of the denoiser per image", ylabel="percent right", xscale="log")
    ticks = sorted({round(r["evaluations"]) for r in rows})
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.legend(fontsize=7)


def draw_number(ax, runs: list[Records], kind: str = "corruptions") -> None:
    """Difference to DDA against the number of synthetic images per class, a line for each classifier."""
    here = report.by_kind(runs)[kind]
    labels = [label for label in distinct(here, "label") if label.endswith("a class")]
    counts = [int(label.split(", ")[1].split(" ")[0]) for label in labels]
    for c in distinct(here, "classifier"):
        points = [report.minus(here, label, "dda, sum", c) for label in labels]
        errors = np.array([[d.mean - d.low, d.high - d.mean] for d in points]).T
        ax.errorbar(range(len(counts)), [d.mean for d in points], errors, marker="o", capsize=2, label=c.split("/")[1])
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set(xlabel="synthetic images per class", ylabel="points above DDA", title=kind)
    ax.set_xticks(range(len(counts)), counts)
    ax.legend(fontsize=7)


def turned(before: list[Records], after: list[Records], streams: list, ready: list, seed: int, n: int = 3) -> list:
    """(image, title) before and after the change, of up to n images whose reading became right and n whose reading
    became wrong, drawn by the seed, from one run a stream and the changed images (B, 3, S, S) of each."""
    found, rng = {"repaired": [], "broken": []}, np.random.default_rng(seed)
    for a, b, s, images in zip(before, after, streams, ready, strict=True):
        for kind, rows in (("repaired", ~a.right_after & b.right_after), ("broken", a.right_after & ~b.right_after)):
            found[kind] += [(s.images[i], images[i]) for i in rows.nonzero()[0].tolist()]
    shown = []
    for kind, pairs in found.items():
        for i in rng.permutation(len(pairs))[:n]:
            shown += [(pairs[i][0], f"{kind}, image"), (pairs[i][1], f"{kind}, projected")]
    return shown


def at_dial(names: tuple[str, ...], denoisers: dict, images, ids, **changes) -> list:
    """(image, title) row by row: each image as it is, then projected at each setting of the dial; `denoisers` holds one
    for the "control" and one for the "A" of the dial, `changes` go to the settings."""
    columns = [images.cpu()]
    for name in names:
        setting = gap.dials()[name]
        how = replace(setting.alignment, **changes)
        columns.append(dda.align(denoisers[setting.kind], images, ids, how).cpu())
    titles = ["clean", *names, *[""] * (len(images) - 1) * len(columns)]
    return list(zip([v[i] for i in range(len(images)) for v in columns], titles, strict=True))


def push_lengths(denoiser, images, ids, levels: tuple[int, ...], s) -> list[list[float]]:
    """For each level, of each image (B, 3, S, S) noised to it, the length of a push in units of w: of the gradient of
    |Phi(x0) - Phi(x0_hat(x_t))| by x_t."""
    x0, abar, found = denoiser.encode(images), denoiser.alphas_cumprod, []
    energy = structure_energy(x0, 1.0, s.factor)
    for t in levels:
        at = torch.full((len(x0),), t, device=x0.device)
        x_t = add_noise(x0, at, noise_for(ids, x0.shape[1:], s, "push", t).to(x0), abar).requires_grad_()
        with torch.enable_grad():
            x0_hat = predicted_x0(x_t, denoiser(x_t, at, None), abar[t].to(x_t), s.clip)
            (gradient,) = torch.autograd.grad(energy(x0_hat, t).sum(), x_t)
        found.append(gradient.flatten(1).norm(dim=1).tolist())
    return found


def push_rows(levels: tuple[int, ...], found: list[list[float]]) -> list[dict]:
    """What `push_lengths` found as a table: a row for each level, over the images."""
    ends = {"shortest": min, "mean": np.mean, "longest": max}
    return [{"t": t} | {k: f"{f(v):.2f} w" for k, f in ends.items()} for t, v in zip(levels, found, strict=True)]


def draw_gap(axes, runs: list[Records]) -> None:
    """SDA - DDA on the projected image alone against the whole gap, and against what is recoverable: two axes, a pale
    mark for each setting and network, a dark one with its start for all networks together, with both 95% intervals; the
    control hollow, dial B as triangles, the paper's range as a band."""
    names = distinct(runs, "classifier")
    slope, colours = gap_report.slopes(runs), {n: f"C{i}" for i, n in enumerate(names)} | {None: plots.BLACK}
    for ax, head in zip(axes, ("source - DDA", "recoverable"), strict=True):
        ax.axhspan(*gap_report.PAPER_GAINS, color="0.85", label="the paper")
        ax.axhline(0, color="0.3", lw=0.8)
        for p in gap_report.points(runs):
            x, y = p[head], p["gain"]
            sides = [[[v.mean - v.low], [v.high - v.mean]] for v in (y, x)]
            style = {"control": dict(marker="s", mfc="none"), "B": dict(marker="^")}.get(p["kind"], dict(marker="o"))
            if p["classifier"]:  # thirty intervals across each other would hide the marks
                ax.plot(x.mean, y.mean, color=colours[p["classifier"]], ms=3, alpha=0.6, ls="", **style)
                continue
            ax.errorbar(x.mean, y.mean, *sides, color=plots.BLACK, lw=0.8, **style)
            at = p["setting"].removeprefix("control, ").removeprefix("t ").removesuffix(" steps")
            ax.annotate(at, (x.mean, y.mean), (3, 3), textcoords="offset points", fontsize=6)
        ax.set(xlabel=f"{head}, points", ylabel="SDA - DDA, projected image alone")
    ends, (x, y) = np.array(axes[1].get_xlim()), slope["middle"]
    for name, style, label in (("slope", "-", "dial A"), ("null", ":", "null")):
        axes[1].plot(ends, y + slope[name].mean * (ends - x), style, color="0.3", lw=1, label=label)
    for name, colour in colours.items():
        axes[0].plot([], [], "o", ms=6 if name is None else 3, color=colour, label=report.short(name))
    axes[0].plot([], [], "s", mfc="none", color="0.3", label="control")
    if any(p["kind"] == "B" for p in gap_report.points(runs)):
        axes[0].plot([], [], "^", color=plots.BLACK, label="dial B, steps")
    for ax in axes:
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.35 * (high - low))  # room for the legend above the marks
        ax.legend(fontsize=5.5, ncol=3, loc="upper center", columnspacing=0.6, handlelength=1.2, handletextpad=0.4)


def draw_panels(axes, images: list, found: list, row: int, names: tuple[str, ...]) -> None:
    """Row `row` of the four panels of Grad-CAM on four axes: image, map over it, the panel's own prediction."""
    for ax, image, panel in zip(axes, images, found, strict=True):
        plots.picture(ax, image[row].cpu(), f"{panel.title}\n{names[int(panel.predicted[row])]}")
        ax.imshow(panel.maps[row].cpu().numpy(), cmap="inferno", alpha=0.5)
        ax.title.set_fontsize(7)


def closest_panel(looked: dict[str, list]) -> list[str]:
    """For each classifier a sentence: whether SDA's panel is closer to the first than that of the source on the
    projected image, as the paper shows."""
    lines = []
    for name, found in looked.items():
        source, tuned = (p.correlation.numpy() for p in found[2:])
        d = paired_interval(tuned, source, np.arange(len(source)))
        what = "correlation of SDA's panel with panel 1, minus that of the source's, in hundredths"
        lines.append(f"{name.split('/')[-1]}: {what}: {d}, {report.verdict(d)}")
    return lines


def panel_agreement(looked: dict[str, list]) -> list[dict]:
    """Of classifier -> `gradcam.panels`: agreement of each panel with the first, with standard errors; in the last row
    by chance: of the first panel with that of another image."""
    rows, heads = [], ("correlation with panel 1", "overlap of the top fifth")
    for name, found in looked.items():
        first = found[0]
        each = [(p.title, p.predicted, p.correlation, p.overlap) for p in found[1:]]
        other = first.maps.roll(1, 0)
        chance = gradcam.correlation(first.maps, other), gradcam.overlap(first.maps, other)
        for title, predicted, *values in [*each, ("another image: chance", first.predicted.roll(1), *chance)]:
            row = {"classifier": name.split("/")[-1], "panel": title, "n": len(predicted)}
            said = [f"{v.mean():.2f} +- {v.std() / len(v) ** 0.5:.2f}" for v in values]
            row |= dict(zip(heads, said, strict=True))
            rows.append(row | {"same prediction": f"{(predicted == first.predicted).float().mean():.0%}"})
    return rows
