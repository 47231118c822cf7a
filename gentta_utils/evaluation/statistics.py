"""Paired intervals over scenes, summaries, and the protocol line of a table."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
from scipy.special import softmax

from ..common.files import DAMAGE, atomic_write
from ..common.paths import CACHE
from ..common.validate import Count, Natural, Rule, checked
from .records import Records

# --- statistics ------------------------------------------------------------------------------------------------------


DRAWS = 10_000  # of the bootstrap
FEWER_DRAWS = 2_000  # on pages that show hundreds of intervals
LEAST = 10  # scenes below which an interval decides nothing: of three changes, all in one direction, it has no width

Runs = Annotated[list[Records], Rule("one record or more", bool)]
KEPT = 500_000  # draws times scenes from which a file is written: drawing them takes 20 milliseconds


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% bootstrap interval, in points (hundredths)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@checked
def paired_interval(
    after: np.ndarray, before: np.ndarray, scene: np.ndarray, draws: Count = DRAWS, seed: Natural = 0
) -> Interval:
    """Mean of after - before (N,) in points, with a percentile bootstrap over scenes.

    Rows of one scene (several classifiers, severities, seeds) are resampled together, or the interval is too narrow."""
    sizes = {np.shape(v) for v in (after, before, scene)}
    if len(sizes) > 1 or len(np.shape(scene)) != 1 or not len(scene):
        raise ValueError(f"after, before and scene hold one number for each of one image or more, these are {sizes}")
    difference = 100 * (np.asarray(after, float) - np.asarray(before, float))
    if not (np.isfinite(difference).all() and np.isfinite(scene).all()):
        raise ValueError("after, before or scene hold NaN or infinity: look at what was measured")
    _, index = np.unique(scene, return_inverse=True)
    total, count = np.bincount(index, difference), np.bincount(index)
    weights = _resampled(len(total), draws, seed)
    rows = weights @ count if np.ptp(count) else len(total) * count[0]  # as a rule all scenes have as many
    means = (weights @ total) / rows
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high))


@lru_cache(maxsize=3)  # a report asks for the same dozens of times
def _resampled(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of n scenes is drawn: (draws, n) float64."""
    return _drawn(n, draws, seed).astype(float)


@lru_cache(maxsize=64)  # tables mix many n, and to draw takes ten times as long as to convert
def _drawn(n: int, draws: int, seed: int) -> np.ndarray:
    """The same in an eighth of the memory; that a scene is drawn more than 255 times does not happen.

    Kept in files too: what all tables of a notebook draw takes two seconds, and every notebook draws the same."""
    path = CACHE / "draws" / f"{n}-{draws}-{seed}-numpy-{np.__version__}.npy"
    with suppress(*DAMAGE):
        kept = np.load(path)
        if kept.dtype == np.uint8 and kept.shape == (draws, n) and (kept.sum(1) == n).all():
            return kept
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.uint8)
    if drawn.size >= KEPT:
        with suppress(OSError):  # a disk that is full, or for reading alone
            atomic_write(path, lambda temporary: np.save(temporary, drawn))
    return drawn


@checked
def gain(runs: Runs) -> Interval:
    """Paired gain of after over before, over all rows of these runs."""
    return paired_interval(
        *(np.concatenate([getattr(r, k) for r in runs]) for k in ("right_after", "right_before", "id"))
    )


@checked
def accuracy_interval(runs: Runs) -> Interval:
    """Percent right after adaptation, over all rows of these runs."""
    right, scene = (np.concatenate([getattr(r, k) for r in runs]) for k in ("right_after", "id"))
    return paired_interval(right, np.zeros(len(right)), scene)


@checked
def summary(runs: Runs) -> dict:
    """Accuracies in percent, counts of fixed and broken predictions, the paired gain, cost per image."""
    before, after = (np.concatenate([getattr(r, k) for r in runs]) for k in ("right_before", "right_after"))
    return {
        "n": len(before),
        "before": float(100 * before.mean()),
        "after": float(100 * after.mean()),
        "fixed": int((after & ~before).sum()),
        "broken": int((before & ~after).sum()),
        "gain": gain(runs),
        "seconds": float(np.concatenate([r.seconds for r in runs]).mean()),
    }


@checked
def calibration_bins(runs: Runs, bins: Count = 15) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, predictions) of each bin of equal width that holds any, after adaptation."""
    sure = np.concatenate([softmax(r.after, axis=1).max(1) for r in runs])  # run by run: they may differ in classes
    right = np.concatenate([r.right_after for r in runs])
    index = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        (float(sure[index == b].mean()), float(right[index == b].mean()), int((index == b).sum()))
        for b in np.unique(index)
    ]


@checked
def calibration_error(runs: Runs, bins: Count = 15) -> float:
    """Expected calibration error in points: the gap between confidence and share right, averaged over predictions
    (Guo et al., 2017).

    Few predictions make it large by themselves: a perfectly calibrated model shows several points at n = 200."""
    found = calibration_bins(runs, bins)
    n = sum(count for *_, count in found)
    return 100 * sum(abs(sure - right) * count for sure, right, count in found) / n


ON_VALIDATION = "validation"  # what records say of settings that were chosen on the four validation corruptions


@checked
def protocol_line(runs: Runs) -> str:
    """The line under the title of every results table (docs/methods/protocol.md), made from the records, never typed.

    n counts scenes, whatever number of methods and classifiers met them."""

    def all_of(values: Iterable) -> str:
        return "|".join(sorted({str(v) for v in values}))

    scenes = len(np.unique(np.concatenate([r.id for r in runs])))
    splits = {r.about["stream"].get("split") for r in runs}
    select = all_of(r.about.get("select", "none") for r in runs)
    seeds = len({(r.about.get("settings") or {}).get("seed", 0) for r in runs})
    nfe = {f"{k.replace(' ', ':')}:{v:g}" for r in runs for k, v in r.nfe.items()}
    seconds = np.concatenate([r.seconds for r in runs]).mean()
    resizes = {str(r.about["stream"]["resize"]) for r in runs if "resize" in r.about["stream"]}
    geometry = f" resize={'|'.join(sorted(resizes))}" if resizes else ""  # of photographs, before their centre crop
    if len(resizes) > 1:
        geometry += " (two geometries: clean images and stored corruptions are not the same crops)"
    get = lambda key: all_of(r.about["protocol"][key] for r in runs)  # noqa: E731
    return (
        f"protocol: stream={get('order')} reset={get('reset')} predict={get('predict')} batch={get('batch')} "
        f"n={scenes} split={all_of(splits)}{geometry} seeds={seeds} select={select} nfe={','.join(sorted(nfe))} "
        f"time={seconds:.2f} s/img, {get('device')}"
    )
