"""Rows of records of maps: scores per image and over a set, and paired differences with intervals over scenes.

All scores are in percent (AbsRel too), and a difference is positive where it is better, also where a score should fall.
Of classes the mean over images and the score of the whole set are two numbers: rare classes weigh more in the second.
"""

import numpy as np
import torch

from .dense import DEPTH_SCORES, mean_class_accuracy, mean_iou
from .records import Records
from .rows import shift_of
from .statistics import FEWER_DRAWS, Interval, paired_interval

METRICS = {  # what is predicted -> its two headline scores
    "classes": ("mean class accuracy", "mean IoU"),
    "depth": ("SSIM", "AbsRel"),
}
OF_COUNTS = {"mean class accuracy": mean_class_accuracy, "mean IoU": mean_iou}
LOWER_IS_BETTER = ("AbsRel", "RMSE", "DEE")


def metrics_of(runs: list[Records]) -> tuple[str, str]:
    """The two headline scores of these runs. Raises ValueError for runs of several targets, or of no maps."""
    targets = {r.target for r in runs}
    if len(targets) != 1 or not targets <= set(METRICS):
        raise ValueError(f"these runs predict {', '.join(sorted(targets))}: take those of one kind of map")
    return METRICS[targets.pop()]


def score(values: np.ndarray, metric: str) -> np.ndarray:
    """A score (N,) in percent, of RMSE in hundredths of a metre, from what records keep of N images, `dense.scored`."""
    if metric in OF_COUNTS:
        return OF_COUNTS[metric](torch.from_numpy(values.astype(np.int64))).numpy()
    found = values[:, DEPTH_SCORES.index(metric.lower())]
    return found if metric == "SSIM" else 100 * found


def per_image(runs: list[Records], metric: str, when: str = "after") -> tuple[np.ndarray, np.ndarray]:
    """Scores and scenes (N,) over all images of these runs."""
    return np.concatenate([score(getattr(r, when), metric) for r in runs]), np.concatenate([r.id for r in runs])


def mean_score(runs: list[Records], metric: str, when: str = "after") -> float:
    """The mean over images, in percent."""
    return float(per_image(runs, metric, when)[0].mean())


def set_score(runs: list[Records], metric: str, when: str = "after") -> float:
    """The score of the set: of classes from all pixels of all images together; of depth it is the mean."""
    if metric not in OF_COUNTS:
        return mean_score(runs, metric, when)
    total = sum(getattr(r, when).astype(np.int64).sum(0) for r in runs)
    return float(score(total[None], metric)[0])


def sign(metric: str) -> int:
    """-1 for a score that should fall."""
    return -1 if metric in LOWER_IS_BETTER else 1


def gain_of(runs: list[Records], metric: str) -> Interval:
    """After against before, mean over images."""
    after, before = (per_image(runs, metric, when)[0] for when in ("after", "before"))
    return _points(after, before, per_image(runs, metric)[1], metric)


def place(about: dict) -> tuple:
    """The stream that a run met."""
    return tuple(about["stream"][k] for k in ("shift", "severity", "start", "n"))


def gained(runs: list[Records], source: list[Records], metric: str) -> float:
    """Points over the frozen network on the full view, mean over images."""
    base = {place(r.about): per_image([r], metric)[0] for r in source}
    each = [per_image([r], metric)[0] - base[place(r.about)] for r in runs]
    return float(np.mean(sign(metric) * np.concatenate(each)))


def minus(one: list[Records], other: list[Records], metric: str) -> Interval:
    """Row `one` against row `other` on the same images, mean over them; raises ValueError as `shared`."""
    a, b = shared(one, other)
    after, scene = per_image(a, metric)
    return _points(after, per_image(b, metric)[0], scene, metric)


def _points(after: np.ndarray, before: np.ndarray, scene: np.ndarray, metric: str) -> Interval:
    return paired_interval(sign(metric) * after / 100, sign(metric) * before / 100, scene)


def set_minus(one: list[Records], other: list[Records], metric: str, when: str = "after", seed: int = 0) -> Interval:
    """Row `one` against row `other` (after it, or "before": against its own source), scores of the set: a percentile
    bootstrap over scenes, whose pixels are added up again in each draw."""
    if metric not in OF_COUNTS:
        return minus(one, other, metric)
    a, b = shared(one, other)
    scene, index = np.unique(np.concatenate([r.id for r in a]), return_inverse=True)
    weights = np.random.default_rng(seed).multinomial(len(scene), np.full(len(scene), 1 / len(scene)), size=FEWER_DRAWS)

    def scores(runs: list[Records], of: str) -> np.ndarray:
        counts = np.concatenate([getattr(r, of) for r in runs]).astype(np.int64)  # (N, K, K)
        by_scene = np.zeros((len(scene), *counts.shape[1:]), np.int64)
        np.add.at(by_scene, index, counts)
        whole = np.ones((1, len(scene)), np.int64)  # the set itself first
        drawn = np.tensordot(np.concatenate([whole, weights]), by_scene, 1)
        return OF_COUNTS[metric](torch.from_numpy(drawn)).numpy()

    whole, *draws = scores(a, "after") - scores(b, when)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(whole), float(low), float(high))


def shared(one: list[Records], other: list[Records]) -> tuple[list[Records], list[Records]]:
    """Both rows in one order of streams. Raises ValueError unless they met the same shifts and scenes."""
    key = lambda r: (shift_of(r), r.about["stream"]["seed"], tuple(r.id.tolist()))  # noqa: E731
    a, b = sorted(one, key=key), sorted(other, key=key)
    if not a or list(map(key, a)) != list(map(key, b)):
        raise ValueError("the two rows did not meet the same scenes under the same shifts: they cannot be paired")
    return a, b


def map_apart(kept: np.ndarray, again: np.ndarray) -> float:
    """How far two results of one image are apart, both as `dense.scored` gives them: the share of pixels of which
    another class was predicted, at least; of depth the largest difference of SSIM (as a share), AbsRel, delta, DEE."""
    if kept.ndim == 2:
        return float(np.abs(kept.astype(float) - again).sum() / 2 / max(1, kept.sum()))
    names = [i for i, name in enumerate(DEPTH_SCORES) if name != "rmse"]
    scale = np.array([100.0 if DEPTH_SCORES[i] == "ssim" else 1.0 for i in names])
    return float((np.abs(kept - again)[names] / scale).max())
