"""What the loss says in each window of t, before any update: is it lower under the true map than under the network's,
and do wrong pixels have a gradient that points to the truth? From the network's own answer, and from the better start.

Kept with each run's scores, in the place of the loss, as `where` keeps its counts.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...common.devices import precision_on
from ...common.text import as_table
from ...evaluation import dense
from ...evaluation.chosen import tuned_maps
from ...evaluation.evaluate import run
from ...evaluation.map_rows import gain_of, metrics_of, per_image, shared
from ...evaluation.records import Records
from ...evaluation.rows import distinct, is_clean, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import Job
from ...methods import METHODS, diffusion_tta
from ...methods.feedback import told
from ...models import zoo
from ...models.map_unet import at_map
from ...streams.maps import MapSpec
from ...streams.stream import stream
from ..trials import models
from . import report, rows
from .rows import MAP_MODEL, map_job
from .where import QUANTITIES, near_edges, towards_truth

LOWER = "how far the true map's loss is lower"  # as a share of it, as dense.reading gives it
ASKED = (LOWER, *QUANTITIES[:4])  # of each window


def window_job(
    network: str,
    spec: MapSpec,
    method: str,
    settings,
    label: str,
    how: diffusion_tta.Settings,
    windows: tuple,
    at_once: int = 12,
) -> Job:
    """One run of a method, whose records hold `ASKED` of its answer for each window (B, windows * 5) in the place of
    the loss; pairs and temperature are those of `how`."""
    about, _ = map_job(method, settings, network, spec, label, batch=at_once)
    name = MAP_MODEL[spec.target]
    asked = {"windows": [list(w) for w in windows], "pairs": how.pairs, "temperature": how.temperature}
    about |= {"looked": asked, "denoiser": name, "precision": precision_on("cpu")}
    about["models"] = about["models"] | {"denoiser": zoo.fingerprint(name)}

    def work() -> Records:
        used, s, seen = models(network, name), stream(spec), []
        r = run(METHODS[method].configure(used, settings), s, about=about, batch=at_once, seen=seen)
        found = []
        for i, out in zip(torch.arange(len(s)).split(at_once), seen, strict=True):
            part, truth = s.rows(i), s.labels[i]
            true = at_map(spec.target, truth, out.logits.shape[1])
            given = (used.denoiser, part.images, part.ids, true, {"": told(used.classifier, out.logits, 1.0)})
            gap = dense.reading(*given, pairs=how.pairs, windows=windows, seed=how.seed)[""]
            each = [towards_truth(used, replace(how, window=w), part, out.logits, near_edges(truth)) for w in windows]
            found.append(together(gap, each))
        return replace(r, loss=torch.cat(found).float().numpy())

    return about, work


def together(gap: Tensor, each: list[list[Tensor]]) -> Tensor:
    """`ASKED` (B, windows * 5) of gaps (windows, B) and the first four of `QUANTITIES` (B,) in each window."""
    return torch.cat([torch.stack([g, *(v.float() for v in q)], 1) for g, q in zip(gap, each, strict=True)], 1)


def jobs(network: str, specs: list[MapSpec], windows: tuple) -> list[Job]:
    """The network's own answer, and where it is another one the start of the row that gains most; in these windows and
    the chosen one."""
    now, bold, target = tuned_maps(network), tuned_maps(network, "bold"), rows.target_of(network)
    starts = {rows.SOURCE: ("source", METHODS["source"].Settings())}
    if target == "classes" and (bold.view != "full" or bold.statistics):
        starts[rows.START] = ("diffusion_tta", replace(bold, **rows.PARTS[rows.START]))
    every = dict(how=now, windows=(*windows, now.window))
    return [window_job(network, spec, m, s, label, **every) for label, (m, s) in starts.items() for spec in specs]


def rows_of(runs: list[Records], altered: list[Records] | None = None) -> list[dict]:
    """A row for each network, start, kind of scenes and window; with the gains that updates in that window bring, of
    the weights and of a free map, where `altered` (the ablations) holds them."""
    found = []
    for network in distinct(runs, "classifier"):
        for label in distinct(pick(runs, classifier=network), "label"):
            for head, clean in (("corrupted", False), ("clean", True)):
                part = [r for r in pick(runs, label, network) if is_clean(r) == clean]
                known = pick(altered or [], classifier=network) if label == rows.SOURCE else []
                same = [r for r in known if is_clean(r) == clean]
                for i, window in enumerate(part[0].about["looked"]["windows"] if part else ()):
                    row = {"network": report.short(network), "answer": label, "scenes": head}
                    row |= {"window": "{}..{}".format(*window)} | _asked(part, i) | _gains(same, window)
                    found.append(row)
    return report.aligned_rows(found)


def _asked(part: list[Records], i: int) -> dict[str, str]:
    values = np.concatenate([r.loss for r in part]).astype(float)[:, i * len(ASKED) :]
    lower, wrong, points, energy, edge = values[:, : len(ASKED)].T
    return {
        "true map has the lower loss, %": f"{100 * (lower > 0).mean():.0f}",
        "by, %": f"{100 * lower.mean():+.1f}",
        "wrong pixels pointing to the truth, %": report.share(points.sum(), wrong.sum()),
        "gradient's energy near edges, %": f"{energy.mean() / 100:.0f}",
        "pixels near edges, %": f"{edge.mean() / 100:.0f}",
    }


def by_shift(runs: list[Records], label: str = rows.SOURCE) -> list[dict]:
    """A row for each network and shift: by window the share of scenes whose true map has the lower loss than the row's,
    and in brackets by how much, in percent."""
    found = []
    for network in distinct(runs, "classifier"):
        mine = pick(runs, label, network)
        for shift in dict.fromkeys(r.about["stream"]["shift"] for r in mine):
            part = pick(mine, shifts=[shift])
            row = {"network": report.short(network), "shift": shift.replace("_", " "), "n": sum(map(len, part))}
            for i, window in enumerate(part[0].about["looked"]["windows"]):
                asked = _asked(part, i)
                row["t {}..{}".format(*window)] = f"{asked['true map has the lower loss, %']}% ({asked['by, %']}%)"
            found.append(row)
    return report.aligned_rows(found)


def _gains(altered: list[Records], window: list[int]) -> dict[str, str]:
    name, found = "t {}..{}".format(*window), {}
    for what, labels in (("weights", (name, rows.OURS)), ("a free map", (f"free map, {name}", "free map"))):
        label, usual = labels
        mine = pick(altered, label) or [
            r for r in pick(altered, usual) if list(r.about["settings"]["window"]) == list(window)
        ]
        for metric in metrics_of(mine) if mine else ():
            found[f"gain of {what}, {metric}"] = report.shown(gain_of(mine, metric), mine)
    return found


def judged(runs: list[Records], network: str, pair: tuple[str, str], metric: str = "mean IoU") -> list[dict]:
    """A row for corrupted and clean scenes of a network, by a pair of rows, one whose map the judge may refuse for the
    source's and the same without judge: in how many scenes the two maps differ in score, in how many of these the
    second is better, and how often the judge takes the better one."""
    found = []
    for head, clean in (("corrupted", False), ("clean", True)):
        part = [r for r in pick(runs, classifier=network) if is_clean(r) == clean]
        ours, free = (pick(part, label) for label in pair)
        if not free:
            continue
        ours, free = shared(ours, free)
        before, taken, adapted = (per_image(*v)[0] for v in ((ours, metric, "before"), (ours, metric), (free, metric)))
        changed = adapted != before
        right = (taken == np.maximum(before, adapted)) & changed
        row = {"scenes": head, "map": pair[1], "n": len(changed), "better than the source's": (adapted > before).sum()}
        row |= {"judge takes it": (taken != before).sum()}
        found.append(row | {"judge takes the better of the two": f"{right.sum()} of {changed.sum()}"})
    return found


def show(runs: list[Records]) -> str:
    """The whole table, then by shift."""
    return protocol_line(runs) + "\n" + as_table(rows_of(runs)) + "\n\n" + as_table(by_shift(runs))
