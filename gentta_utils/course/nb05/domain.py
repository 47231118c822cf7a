"""Two measures of the synthetic domain that ask no classifier of the tables, in the features of a CLIP's image tower.

Is a projected synthetic image told from a projected real one (a two-sample classifier)? And does guidance make the
synthesis less diverse? `measure sda_gap` writes both to data/results/sda_domain.json.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...common.files import read_json, write_json
from ...common.paths import RESULTS
from ...evaluation.records import Records
from ...evaluation.spread import diversity
from ...evaluation.statistics import Interval, paired_interval
from ...models import zoo
from ...recipes.aligned import ALIGNER, GENERATOR, Data, images_of
from ...world.labels import CLASSES
from .experiments import SYNTHESIS
from .gap import PER_CLASS, SEEDS, dials, gap, set_at
from .gap_report import settings_of

FILE, TOWER = RESULTS / "sda_domain.json", "clip/small"
FOLDS, RIDGE = 5, 0.1  # of the two-sample classifier
GUIDED = (1.0, 4.0)  # guidance of the synthesis: the ends of `measure sda_cfg`
SIDES = {"synthetic": {}, "own": dict(kind="own")}  # the two samples
EACH = len(SEEDS) * PER_CLASS  # images per class: all that the seeds of the dial are fine-tuned on
FEW = 5  # images per class of each guidance


@torch.no_grad()
def features(images: Tensor) -> np.ndarray:
    """Unit features (N, D) of images (N, 3, S, S) in [0, 1]."""
    clip = zoo.cached(TOWER)
    return torch.cat([clip.encode_images(part) for part in images.split(100)]).double().numpy()


def told_apart(one: np.ndarray, other: np.ndarray) -> Interval:
    """Percent of the features one (N, D) and other (N, D) that a linear two-sample classifier puts on the right side,
    each by a fit on the other folds; 50 is chance.

    Image j K + k is the j-th of class k, as in `aligned.images_of`: each fold has as many of every class and side.
    Least squares on standardised features with a ridge (Lopez-Paz and Oquab, 2017, take a network)."""
    x, side = np.concatenate([one, other]), np.repeat([1.0, -1.0], len(one))
    at = np.tile(np.arange(len(one)), 2)
    fold, right = at // len(CLASSES) % FOLDS, np.zeros(len(x), bool)
    for k in range(FOLDS):
        fit = fold != k
        mean, std = x[fit].mean(0), x[fit].std(0) + 1e-9
        z = (x - mean) / std
        w = np.linalg.solve(z[fit].T @ z[fit] / fit.sum() + RIDGE * np.eye(z.shape[1]), z[fit].T @ side[fit])
        right[~fit] = (z[~fit] @ w > 0) == (side[~fit] > 0)
    return paired_interval(right, np.zeros(len(right)), at)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of features (N, D) and (M, D), as of two Gaussians (Heusel et al.,
    2017). Few images make it large by themselves: compare rows of as many, and with two sets of real images."""
    (m, c), (m_, c_) = ((v.mean(0), np.cov(v.T)) for v in (one, other))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ c_).real, 0))
    return float(((m - m_) ** 2).sum() + np.trace(c) + np.trace(c_) - 2 * roots.sum())


def spread(found: np.ndarray) -> float:
    """Mean distance between two images of one class, by their features (N, D), image j K + k the j-th of class k."""
    return float(diversity(torch.from_numpy(found).unflatten(0, (-1, len(CLASSES))).transpose(0, 1)).mean())


def sets_at(settings: list[str]) -> dict[str, dict[str, Data]]:
    """Setting of the dial -> side -> the set that is told apart there."""
    return {name: {k: set_at(dials()[name], per_class=EACH, **c) for k, c in SIDES.items()} for name in settings}


def measure(settings: list[str]) -> dict:
    """Synthetic and real images as they are and at each of these settings of the dial, told apart; then the synthesis
    at each guidance beside real images, `FEW` of each class."""
    sets = sets_at(settings)
    bare = {k: replace(data, aligned=False) for k, data in sets[settings[0]].items()}
    real = Data(kind="real", per_class=EACH, aligned=False)
    known = {k: features(images_of(data)[0]) for k, data in (bare | {"real": real}).items()}
    apart = {"as they are": told_apart(known["synthetic"], known["own"])}
    apart["real and other real ones"] = told_apart(known["real"], known["own"])
    apart |= {name: _told(pair) for name, pair in sets.items()}
    few = FEW * len(CLASSES)
    rows = {"real": known["real"][:few]}
    for cfg in GUIDED:
        data = Data(per_class=FEW, aligned=False, synthesis=replace(SYNTHESIS, cfg=cfg))
        rows[f"synthetic, cfg {cfg:g}"] = features(images_of(data)[0])
    content = {
        "told apart": {k: _plain(v) for k, v in apart.items()},
        "diversity": {k: [frechet(v, known["own"][:few]), spread(v)] for k, v in rows.items()},
        "models": _models(),
    }
    write_json(FILE, content)
    return content


def extend(settings: list[str]) -> dict:
    """`measure`, where it was made with these models, with the settings that it lacks; else all of it."""
    content = read_json(FILE, "run `git checkout -- data/results`") if FILE.is_file() else {}
    if content.get("models") != _models():
        return measure(settings)
    for name, pair in sets_at([s for s in settings if s not in content["told apart"]]).items():
        content["told apart"][name] = _plain(_told(pair))
    write_json(FILE, content)
    return content


def _models() -> dict[str, str]:
    return {m: zoo.fingerprint(m) for m in (TOWER, ALIGNER, GENERATOR)}


def _told(pair: dict[str, Data]) -> Interval:
    return told_apart(*(features(images_of(data)[0]) for data in pair.values()))


def _plain(d: Interval) -> list[float]:
    return [d.mean, d.low, d.high]


def gap_and_domain() -> list[Records]:
    """The table of the dial, and with its images both measures of their domain."""
    runs = gap()
    extend(settings_of(runs))
    return runs


def tables() -> tuple[list[dict], list[dict]]:
    """What `measure` wrote down: a row for each projection, and one for each guidance."""
    content = read_json(FILE, "run `git checkout -- data/results`, or `python -m gentta_utils measure sda_gap`")
    apart = [
        {"images": k, "told apart, percent": f"{mean:.1f} [{low:.1f}, {high:.1f}]"}
        for k, (mean, low, high) in content["told apart"].items()
    ]
    heads = ("Frechet distance to real", "spread within a class")
    return apart, [
        {"images": k} | {head: f"{v:.3f}" for head, v in zip(heads, values, strict=True)}
        for k, values in content["diversity"].items()
    ]
