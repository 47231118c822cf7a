"""What notebook 04 runs while it is read: a few rows on one stream, scenes of the records again, readings of a card."""

import random

import torch
from torch import Tensor

from ...evaluation.map_rows import gain_of, mean_score, metrics_of, minus, score
from ...evaluation.records import Records
from ...evaluation.rows import pick
from ...methods import METHODS, diffusion_tta, source
from ...methods.base import Method, Models
from ...streams.maps import MapSpec
from ..side_by_side import denoiser_cost
from ..trials import spec_of
from . import rows

CHEAP = (rows.LOW, rows.DILATE, rows.BIAS, rows.MEDIAN, rows.GUIDED, rows.BLEND, rows.VIEWS)  # without any update
LEAST = 1.0  # points of mean IoU from which a scene counts as changed


def methods(models: Models, settings: diffusion_tta.Settings, controls: dict[str, tuple]) -> dict[str, Method]:
    """Row -> method: the source, those of the controls (row -> method, settings) that cost next to nothing, and ours
    where there is a diffusion model that is told such maps."""
    found = {rows.SOURCE: source.configure(models, source.Settings())}
    found |= {row: METHODS[m].configure(models, s) for row, (m, s) in controls.items() if row in CHEAP}
    return found | ({} if models.denoiser is None else {rows.OURS: diffusion_tta.configure(models, settings)})


def table(runs: dict[str, list[Records]]) -> list[dict]:
    """A row for each method of name -> records of one stream: both scores, and in each the difference to the source
    and, where ours is among them, of ours to it, paired."""
    found, us, base = [], runs.get(rows.OURS), runs[rows.SOURCE]
    for name, mine in runs.items():
        row = {"method": name}
        for metric in metrics_of(mine):
            row[metric] = f"{mean_score(mine, metric):.1f}"
            row[f"{metric}, minus source"] = "" if name == rows.SOURCE else str(minus(mine, base, metric))
            row[f"{metric}, ours minus it"] = "" if name == rows.OURS or us is None else str(minus(us, mine, metric))
        found.append(row | {"diffusion model": denoiser_cost(mine[0])})
    return found


def drawn_scenes(runs: list[Records], network: str, n: int, seed: int) -> list[tuple[MapSpec, bool]]:
    """n scenes whose mean IoU rose under Diffusion-TTA and n whose mean IoU fell, by the seed, each as its stream of
    one, and whether it rose; fewer where there are not so many."""
    found: dict[bool, list[MapSpec]] = {True: [], False: []}
    for r in pick(runs, rows.OURS, network):
        change = score(r.after, "mean IoU") - score(r.before, "mean IoU")
        for i in (abs(change) > LEAST).nonzero()[0].tolist():
            at = r.about["stream"]
            found[bool(change[i] > 0)].append(spec_of(at, n=1, start=at["start"] + i))
    draw = random.Random(seed)
    return [(spec, rose) for rose, specs in found.items() for spec in draw.sample(specs, min(n, len(specs)))]


def reading_of_card(card: dict) -> list[dict]:
    """The quality of a map-conditioned model by its card: for each shift and wrong map the share of scenes whose true
    map has the lower loss, by window of t, and in brackets by how much the loss under the wrong map is higher."""
    quality, found = card["quality"], []
    heads = [f"t {a}..{b}" for a, b in quality["windows"]]
    for shift, maps in ((k, v) for k, v in quality.items() if isinstance(v, dict)):
        for name, of in maps.items():
            cells = [f"{read}% ({gap:+.1f}%)" for read, gap in zip(of["read"], of["gap"], strict=True)]
            found.append({"shift": shift.replace("_", " "), "wrong map": name, **dict(zip(heads, cells, strict=True))})
    return found


def gains(runs: list[Records]) -> dict[str, str]:
    """Gain over the source in each of the two scores, with its interval."""
    return {metric: str(gain_of(runs, metric)) for metric in metrics_of(runs)}


def still_right(before: Tensor, after: Tensor, truth: Tensor) -> dict[str, str]:
    """Of two class maps (B, S, S): wrong pixels before, the share of them that is repaired, and of the right ones that
    is broken, in percent."""
    was, now = before == truth, after == truth
    repaired = 100 * now[~was].float().mean() if bool((~was).any()) else torch.tensor(0.0)
    broken = 100 * (~now[was]).float().mean() if bool(was.any()) else torch.tensor(0.0)
    return {
        "wrong pixels": str(int((~was).sum())),
        "repaired, %": f"{repaired:.0f}",
        "others broken, %": f"{broken:.1f}",
    }
