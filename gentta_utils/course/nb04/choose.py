"""What notebook 04 chooses on the validation corruptions and on clean selection scenes, which must not be lost: the
settings of Diffusion-TTA for each network, stage by stage, and on the same scenes those of every control.

One rule chooses all of them (`merit`): who loses more than half a point on clean scenes comes behind who does not;
among these the largest gain under the corruptions counts, the mean of both scores.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ...common.files import write_json
from ...common.paths import CACHE
from ...evaluation.chosen import MAPS, purifier
from ...evaluation.dense import mean_class_accuracy, mean_iou
from ...evaluation.map_rows import METRICS, gained, per_image, place, sign
from ...evaluation.records import Records
from ...evaluation.rows import is_clean, pick
from ...evaluation.tables import table
from ...methods import bn_adapt, consistency, diffusion_tta, map_filters, tent
from ...methods.base import stated
from ...models import zoo
from ...models.batchnorm import MixedBatchNorm, with_test_statistics
from ...streams.maps import MapSpec
from ...streams.stream import stream
from . import rows
from .rows import MAP_MODEL, here, map_job, source_job, target_of, validation_specs

SCENES = dict(tuned=3000, fitted=3400)  # first selection scene of each
CLEAN = -0.5  # points that may be lost on clean scenes, in each score
START = {
    "classes": dict(lr=1.0, updates=6, pairs=12, window=(250, 600), temperature=3.0, noise="antithetic", trust=24),
    "depth": dict(lr=1.0, updates=6, pairs=12, window=(250, 600), noise="antithetic"),
}
RATES = {"classes": (0.3, 1.0), "depth": (0.01, 0.03, 0.1, 0.3)}
BOTH = dict(view="low", statistics=0.3, times=0.3)
STAGES: dict[str, list[list[dict]]] = {  # each changes what the one before it left; "times" is of the rate
    "classes": [
        [dict(trust=0)],
        [dict(view="low"), dict(view="low", statistics=0.3), BOTH]
        + [BOTH | dict(margin=margin) for margin in (0.02, 0.05)],
    ],
    "depth": [
        [dict(window=(300, 700))],
        [dict(view="low")],
    ],
}
LESS = {"segmentor/segformer": (1, 6)}  # scenes under each corruption and severity, and clean, of a network met later
FREE_RATES = {"classes": (30_000.0, 100_000.0, 300_000.0), "depth": (300.0, 1000.0, 3000.0)}  # of a free map


def selection(
    target: str, n: int = 3, clean: int = 6, severities: tuple[int, ...] = (3, 5), block: int = 6
) -> list[MapSpec]:
    """The scenes on which the controls are chosen: under each validation corruption, and clean ones in blocks."""
    first, shifted = SCENES["tuned"], validation_specs(target, n, SCENES["tuned"], severities)
    starts = range(0, clean, block)
    return shifted + [
        MapSpec(min(block, clean - k), split="select", start=first + 100 + k, target=target) for k in starts
    ]


def few(target: str) -> list[MapSpec]:
    """The scenes on which what asks the diffusion model is chosen, at a hundred times the cost of a control; of classes
    more clean ones, which the rule asks first."""
    return selection(target, 2, 12) if target == "classes" else selection(target, 2, 4, (3,))


def scenes_for(network: str) -> tuple[list[MapSpec], list[MapSpec]]:
    """Those on which the controls of a network are chosen, and those for what asks the diffusion model."""
    target = target_of(network)
    if network in LESS:
        return (selection(target, *LESS[network]),) * 2
    return selection(target), few(target)


def described(s: diffusion_tta.Settings) -> str:
    """A row's label from what the stages change, so that settings that two stages meet are one row."""
    parts = [f"lr {s.lr:g}", f"t {s.window[0]}..{s.window[1]}", f"T {s.temperature:g}", s.param_set]
    parts += [f"{s.updates} x {s.pairs}", s.view]
    more = dict(BN=s.statistics, tail=s.tail, trust=s.trust, margin=s.margin)
    return ", ".join([*parts, *(f"{what} {v:g}" for what, v in more.items() if v)])


def merit(runs: list[Records], source: list[Records]) -> tuple[float, float]:
    """Points kept on clean scenes, in the score that lost more, those above `CLEAN` all alike; then points gained
    under the corruptions, mean of both scores over images. Both over the source on the same scenes."""
    metrics, clean = METRICS[runs[0].target], [r for r in runs if is_clean(r)]
    shifted = [r for r in runs if not is_clean(r)]
    kept = min(CLEAN, *(gained(clean, source, m) for m in metrics))
    return kept, float(np.mean([gained(shifted, source, m) for m in metrics]))


class Chooser:
    """Runs candidates on the selection scenes and keeps their jobs, which are one table in the end."""

    def __init__(self):
        self.jobs, self.runs = [], []

    def best(self, network: str, options: dict[str, tuple], specs: list[MapSpec] | None = None):
        """The (method, settings) of the option, by its label, with most merit; ties go to the earlier one."""
        specs = specs or scenes_for(network)[0]
        known = {self._key(about) for about, _ in self.jobs}
        made = [map_job(m, s, network, spec, label) for label, (m, s) in options.items() for spec in specs]
        self.jobs += [j for j in made if self._key(j[0]) not in known]
        self.runs = table("select_maps", self.jobs, CACHE / "selection")
        source = pick(self.runs, rows.SOURCE, network)
        return options[max(options, key=lambda label: merit(pick(self.runs, label, network), source))]

    @staticmethod
    def _key(about: dict) -> tuple:
        return about["label"], about["classifier"], *place(about)


def staged(choose: Chooser, network: str, start: diffusion_tta.Settings, stages: list[list[dict]]):
    """Settings of Diffusion-TTA after the rates and these stages; and those of all tried that gain most under the
    corruptions, whatever clean scenes lose."""
    specs, tried = scenes_for(network)[1], {}
    options = [replace(start, lr=lr) for lr in RATES[target_of(network)]]
    for stage in [*stages, []]:
        found = {described(s): ("diffusion_tta", s) for s in options}
        tried |= found
        _, now = choose.best(network, found, specs)
        options = [now, *(changed(now, **change) for change in stage)]
    source = pick(choose.runs, rows.SOURCE, network)
    bold = max(tried, key=lambda label: merit(pick(choose.runs, label, network), source)[1])
    return now, tried[bold][1]


def changed(s: diffusion_tta.Settings, times: float = 1.0, **change) -> diffusion_tta.Settings:
    """Settings with these changes, and so many times the rate."""
    return replace(s, lr=s.lr * times, **change)


# --- controls ---------------------------------------------------------------------------------------------------------


def grids(network: str) -> dict[str, dict[str, tuple]]:
    """Control -> label -> (method, settings), all that is tried for a network. In none does every option do nothing."""
    filters = lambda **values: ("map_filters", map_filters.Settings(**values))  # noqa: E731
    found = {
        rows.LOW: {"low view": filters(view="low")},
        rows.MEDIAN: {f"median {r}": filters(median=r) for r in (1, 2, 3)},
        rows.GUIDED: {
            f"guided {r}, {eps:g}": filters(guided=r, eps=eps)
            for r, eps in ((2, 1e-3), (4, 1e-3), (4, 1e-2), (8, 1e-2))
        },
        rows.BLEND: {f"blend {w:g}": filters(blend=w) for w in (0.1, 0.3, 0.5)},
        rows.VIEWS: {
            f"views {sizes}": ("consistency", consistency.Settings(updates=0, sizes=sizes, predict="views"))
            for sizes in sizes_for(network)
        },
        rows.CONSISTENCY: {
            f"consistency {lr:g}, {predict}": (
                "consistency",
                consistency.Settings(lr=lr, updates=3, sizes=sizes_for(network)[-1], predict=predict),
            )
            for lr in (1e-4, 1e-3, 1e-2)
            for predict in ("image", "views")
        },
        rows.DDA: {f"DDA {e}": ("dda", purifier("dda", ensemble=e)) for e in ("sum", "purified")},
    }
    if target_of(network) == "classes":
        fitted = fitted_bias(network)
        found[rows.BIAS] = {
            f"bias x {by:g}": filters(bias=tuple(round(by * b, 3) for b in fitted)) for by in (0.5, 1.0)
        }
        found[rows.DILATE] = {f"dilation {by}": filters(dilate=by) for by in (1, 2)}
        found[rows.TENT] = {
            f"TENT {lr:g}": ("tent", tent.Settings(lr=lr, updates=3, predict="after", online=False))
            for lr in (1e-4, 1e-3, 1e-2)
        }
    if has_batch_norm(network):
        found[rows.BN] = {
            f"BN {a:g}": ("bn_adapt", bn_adapt.Settings(alpha=a, statistics="image")) for a in (0.03, 0.1, 0.3)
        }
    return {row: found[row] for row in (*rows.CONTROLS, *rows.RIVALS) if row in found}


def sizes_for(network: str) -> list[tuple[float, ...]]:
    """Sizes of views that are tried: a zoom changes how far things seem to be, so a depth network gets flips alone."""
    return [(1.0,)] if target_of(network) == "depth" else [(1.0,), (0.75, 1.0, 1.25)]


def has_batch_norm(network: str) -> bool:
    """Whether there are statistics to replace."""
    return any(isinstance(m, MixedBatchNorm) for m in with_test_statistics(zoo.cached(network)).modules())


def fitted_bias(network: str, n: int = 15) -> list[float]:
    """A number for each class, by coordinate ascent from 0 on n selection scenes under each validation corruption at
    both severities and 4 n clean ones: the mean of both scores over images, clean and corrupted at equal weight, at
    the resolution of the answer."""
    first, parts = SCENES["fitted"], []
    clean, shifted = [MapSpec(4 * n, split="select", start=first + 200)], validation_specs("classes", n, first)
    for specs in (clean, shifted):
        streams = [stream(spec) for spec in specs]
        with torch.no_grad():
            z = torch.cat([zoo.cached(network)(s.images).log_softmax(1) for s in streams])
        truth = torch.cat([s.labels for s in streams])[:, None].float()
        parts.append((z, F.interpolate(truth, z.shape[-2:], mode="nearest")[:, 0].long()))
    bias = torch.zeros(z.shape[1])

    def value(b: torch.Tensor) -> float:
        return sum(float(_scores((z + b.view(-1, 1, 1)).argmax(1), y, len(b))) for z, y in parts)

    best = value(bias)
    for step in (1.0, 0.5):
        for k in range(len(bias)):
            for by in (-step, step):
                tried = bias.clone()
                tried[k] += by
                if (found := value(tried)) > best:
                    bias, best = tried, found
    return bias.tolist()


def _scores(labels: torch.Tensor, truth: torch.Tensor, K: int) -> torch.Tensor:
    """The mean of both scores over images, from labels and truth (B, h, w)."""
    each = torch.arange(len(truth)).view(-1, 1, 1)
    counts = torch.bincount(((each * K + truth) * K + labels).flatten(), minlength=len(truth) * K * K)
    counts = counts.view(-1, K, K)
    return (mean_class_accuracy(counts).mean() + mean_iou(counts).mean()) / 2


# --- all of it --------------------------------------------------------------------------------------------------------


def select_maps() -> list[Records]:
    """Choose and write down: settings for each network that is here, of a free map, of output mixing, of each control
    and rival, and which of these is best in each score. The second network takes the first one's settings at a rate of
    its own."""
    choose, content = Chooser(), {k: {} for k in ("settings", "bold", "free", "mixing", "controls", "best", "rival")}
    for target in METRICS:
        if MAP_MODEL[target] not in zoo.names():
            continue
        base, stages = diffusion_tta.Settings(**START[target]), STAGES[target]
        for network in here(target):
            met = [source_job(network, spec) for part in scenes_for(network) for spec in part]
            choose.jobs += {place(job[0]): job for job in met}.values()  # the same clean scenes are in both
            now, bold = staged(choose, network, base, stages)
            content["settings"][network], content["bold"][network] = stated(now), stated(bold)
            if network == here(target)[0]:
                base, stages = now, []
                content["free"][network] = stated(_free(choose, network, now))
                if target == "classes":
                    content["mixing"][network] = stated(replace(now, mixing="output", map_classes=3, trust=0))
            controls = {row: choose.best(network, options) for row, options in grids(network).items()}
            content["controls"][network] = {
                row: {"method": m, "settings": stated(s)} for row, (m, s) in controls.items()
            }
            content["best"][network] = best_rows(choose.runs, network, controls, rows.CONTROLS)
            content["rival"][network] = best_rows(choose.runs, network, controls, rows.RIVALS)
    used = [*content["settings"], *(MAP_MODEL[t] for t in METRICS if any(map(content["settings"].get, here(t))))]
    write_json(MAPS, content | {"models": {name: zoo.fingerprint(name) for name in used}})
    return table("select_maps", choose.jobs)


def _free(choose: Chooser, network: str, now: diffusion_tta.Settings):
    tried = [replace(now, param_set="logits", lr=lr) for lr in FREE_RATES[target_of(network)]]
    return choose.best(network, {described(s): ("diffusion_tta", s) for s in tried}, few(target_of(network)))[1]


def best_rows(runs: list[Records], network: str, chosen: dict[str, tuple], among: tuple[str, ...]) -> dict[str, str]:
    """Score -> which of these rows, as chosen, has the highest mean under the corruptions, whatever it does to clean
    scenes."""
    mine, found = [r for r in pick(runs, classifier=network) if not is_clean(r)], {}
    for metric in METRICS[target_of(network)]:
        worth = {}
        for row, (_, settings) in ((row, s) for row, s in chosen.items() if row in among):
            taken = [r for r in mine if r.about["settings"] == as_recorded(settings)]
            worth[row] = float(np.mean(sign(metric) * per_image(taken, metric)[0]))
        found[metric] = max(worth, key=worth.get)
    return found


def as_recorded(settings) -> dict:
    """Settings as records hold them, tuples as lists."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in stated(settings).items()}
