"""The pictures at the top of the README and of notebooks 02 to 07, from the records and the chosen settings.

python bench/overview.py        -> data/scenes/overview.png, when_it_helps.png, clip_text.png, maps.png,
                                   dda_sda.png, prompt_sets.png and compare.png there
"""

import random

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from gentta_utils import Models
from gentta_utils.common.paths import DATA
from gentta_utils.course import nb04, nb06, nb07, plots, profiles
from gentta_utils.course.nb02 import when_it_helps as nb02_when_it_helps
from gentta_utils.course.nb03 import figures as nb03_figures
from gentta_utils.course.nb05 import experiments
from gentta_utils.evaluation import rows, tables
from gentta_utils.methods import dda, diffpure, diffusion_tta
from gentta_utils.models import zoo
from gentta_utils.models.dense import enlarged
from gentta_utils.recipes import aligned
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import labels


def example(runs: list, wanted: str, seed: int = 0) -> tuple[torch.Tensor, str]:
    """A random image that was "fixed" or "broken", with its story."""
    changed = [
        (r, i)
        for r in runs
        for i in np.flatnonzero(r.right_before != r.right_after)
        if bool(r.right_after[i]) == (wanted == "fixed")
    ]
    record, i = random.Random(seed).choice(changed)
    place = {k: record.about["stream"][k] for k in ("shift", "severity", "split")}
    image = stream(SceneSpec(1, start=record.about["stream"]["start"] + int(i), **place)).images[0]
    before, after = (torch.from_numpy(v[i]).softmax(0) for v in (record.before, record.after))
    story = f"{labels.CLASSES[before.argmax()]} {before.max():.2f} → {labels.CLASSES[after.argmax()]} {after.max():.2f}"
    return image, f"{place['shift'].replace('_', ' ')}\n{story}"


def main() -> None:
    runs = rows.pick(tables.results("test"), "diffusion_tta/full")
    with plt.rc_context(plots.STYLE):
        fig = plt.figure(figsize=(9, 3.6), layout="constrained")
        left, right = fig.subfigures(1, 2, width_ratios=[1, 1.5])
        axes = left.subplots(2, 2)
        stories = [("fixed", 0), ("fixed", 1), ("fixed", 2), ("broken", 0)]
        for ax, (kind, seed) in zip(axes.flat, stories, strict=True):
            image, title = example(runs, kind, seed)
            plots.picture(ax, image, frame=plots.GREEN if kind == "fixed" else plots.RED)
            ax.set_title(title, fontsize=8)
        ax = right.subplots()
        names = [r.about["stream"]["shift"] for r in rows.pick(runs, classifier="classifier/resnet")]
        before, after = (
            [100 * np.mean([getattr(r, f"right_{when}").mean() for r in rows.pick(runs, shifts=(n,))]) for n in names]
            for when in ("before", "after")
        )
        order = np.argsort([b - a for a, b in zip(after, before, strict=True)])
        for row, i in enumerate(order):
            ax.plot([before[i], after[i]], [row, row], color="0.75", lw=3, zorder=1)
        ax.scatter([before[i] for i in order], range(15), color=plots.ORANGE, label="source", zorder=2)
        ax.scatter([after[i] for i in order], range(15), color=plots.BLUE, label="Diffusion-TTA", zorder=2)
        ax.set_yticks(range(15), [names[i].replace("_", " ") for i in order])
        ax.invert_yaxis()
        ax.set(xlabel="% right at severity 5, mean of ResNet and ViT, 40 scenes each", xlim=(0, 100))
        ax.legend(loc="lower right")
        fig.savefig(DATA / "scenes" / "overview.png", dpi=110)
    when_it_helps()
    clip_text()
    maps()
    dda_sda()
    prompt_sets()
    compare()


def when_it_helps() -> None:
    """The map: gain of Diffusion-TTA against how much better the diffusion model reads than the classifier."""
    fig, ax = plots.figure(width=7, height=4.4)
    nb02_when_it_helps.draw_phase(ax, nb02_when_it_helps.points_of_phase(tables.results("phase")))
    with plt.rc_context(plots.STYLE):
        fig.savefig(DATA / "scenes" / "when_it_helps.png", dpi=100)


def clip_text() -> None:
    """The gain of two CLIPs on each corruption, as notebook 03 shows it."""
    fig = nb03_figures.gains(tables.results("text_test"))
    with plt.rc_context(plots.STYLE):
        fig.savefig(DATA / "scenes" / "clip_text.png", dpi=80)


def maps(shift: str = "gaussian_noise", severity: int = 3, n: int = 6, start: int = 97_400) -> None:
    """Scenes under a corruption, their true class maps, and the segmentor's before and after; not selected."""
    kit, network = profiles.profile("scenes"), "segmentor/resnet"
    models = Models(kit.load(network), kit.load(kit.map_models["classes"]))
    s = kit.map_stream(n, "classes", shift, severity, start=start)
    out = diffusion_tta.configure(models, kit.map_settings(network)).adapt(s.images, s.ids)
    said = [enlarged(v, s.labels.shape[-1]).argmax(1) for v in (out.before, out.logits)]
    parts = [s.images, *(torch.stack([nb04.pictures.painted(y) for y in v]) for v in (s.labels, *said))]
    fig, axes = plots.figure(4, n, width=8, height=1.35)
    for row, images, name in zip(axes, parts, ("image", "truth", "before", "after"), strict=True):
        for ax, image in zip(row, images, strict=True):
            plots.picture(ax, image)
        row[0].set_ylabel(name)
    path = DATA / "scenes" / "maps.png"
    with plt.rc_context(plots.STYLE):
        fig.savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # noise does not compress


def prompt_sets() -> None:
    """Gains of six methods on six sets, as notebook 06 shows them."""
    fig = nb06.figures.gains(tables.results("prompt_s1"), nb06.rows.SHOWN, "clip/small")
    with plt.rc_context(plots.STYLE):
        fig.savefig(DATA / "scenes" / "prompt_sets.png", dpi=80)


def compare() -> None:
    """Gain against cost of every row of the ResNet, as notebook 07 shows it."""
    b = nb07.board.board(tables.results("grid"), "resnet")
    fig = nb07.figures.cost(b, nb07.cost.published(), nb07.guide.candidates(b))
    with plt.rc_context(plots.STYLE):
        fig.savefig(DATA / "scenes" / "compare.png", dpi=80)


def dda_sda(shifts: tuple[str, ...] = ("gaussian_noise", "pixelate", "fog"), each: int = 2) -> None:
    """Scenes, clean and under three corruptions, and what DiffPure and DDA make of them; not selected."""
    denoiser, columns = zoo.cached(aligned.ALIGNER), []
    for i, shift in enumerate(shifts):
        start = 33_000 + each * i
        clean, s = (stream(SceneSpec(each, *at, "test", start)) for at in (("clean", 0), (shift, 5)))
        made = [s.images, diffpure.purify(denoiser, s.images, s.ids, experiments.ours("diffpure"))]
        made.append(dda.align(denoiser, s.images, s.ids, experiments.ours("dda")))
        columns += [(shift.replace("_", " "), images) for images in zip(clean.images, *made, strict=True)]
    fig, axes = plots.figure(4, len(columns), width=8, height=1.35)
    for column, (shift, images) in zip(axes.T, columns, strict=True):
        for ax, image, title in zip(column, images, (shift, "", "", ""), strict=True):
            plots.picture(ax, image, title)
    for ax, name in zip(axes[:, 0], ("clean", "corrupted", "DiffPure", "DDA"), strict=True):
        ax.set_ylabel(name)
    path = DATA / "scenes" / "dda_sda.png"
    with plt.rc_context(plots.STYLE):
        fig.savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # noise does not compress


if __name__ == "__main__":
    main()
