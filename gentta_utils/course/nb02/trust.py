"""When to trust an adaptation: keep the adapted prediction or go back to the source's, without looking at labels.

A rule is a score of each image and a threshold; it matters only where adaptation changed the prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from ...evaluation.records import Records
from ...evaluation.statistics import Interval, paired_interval


@dataclass(frozen=True)
class Evidence:
    """What is known of N adapted images, as arrays (N,); labels are in `right_before` and `right_after` alone.

    Attributes:
        drop: by how much less the diffusion loss is for the adapted prediction than for the source's, on the same
            pairs, as a share of the latter.
        sure: confidence of the adapted prediction, 0 to 1. doubt: one minus that of the source.
        agrees: whether the Diffusion Classifier names the adapted class (1), the source's (-1), or neither (0).
    """

    id: np.ndarray
    right_before: np.ndarray
    right_after: np.ndarray
    drop: np.ndarray
    sure: np.ndarray
    doubt: np.ndarray
    agrees: np.ndarray


def evidence(runs: list[Records], readers: list[Records]) -> Evidence:
    """Of Diffusion-TTA's records, with losses (N, 2) of source and adapted prediction on common draws, and the
    Diffusion Classifier's on the same images.

    Raises ValueError where the reader did not see an image."""
    key = lambda r, i: (r.about["stream"]["shift"], r.about["stream"]["severity"], int(i))  # noqa: E731
    read = {key(r, i): z.argmax() for r in readers for i, z in zip(r.id, r.after, strict=True)}
    missing = [key(r, i) for r in runs for i in r.id if key(r, i) not in read]
    if missing:
        raise ValueError(f"the Diffusion Classifier has no record of {len(missing)} images, e.g. {missing[0]}")
    reader = np.array([read[key(r, i)] for r in runs for i in r.id])
    join = lambda name: np.concatenate([getattr(r, name) for r in runs])  # noqa: E731
    before, after, loss = join("before"), join("after"), join("loss")
    chosen = after.argmax(1)
    return Evidence(
        id=join("id"),
        right_before=join("right_before"),
        right_after=join("right_after"),
        drop=(loss[:, 0] - loss[:, 1]) / loss[:, 0],
        sure=softmax(after, axis=1).max(1),
        doubt=1 - softmax(before, axis=1).max(1),
        agrees=(reader == chosen).astype(int) - ((reader == before.argmax(1)) & (reader != chosen)),
    )


SCORES: dict[str, Callable[[Evidence], np.ndarray]] = {
    "loss fell": lambda e: e.drop,
    "adapted is sure": lambda e: e.sure,
    "source is unsure": lambda e: e.doubt,
    "reader agrees": lambda e: e.agrees,
    "sure, more so where the reader agrees": lambda e: e.sure + 0.5 * e.agrees,
}


def accepted(e: Evidence, rule: str, threshold: float) -> np.ndarray:
    """Right predictions (N,) when the adapted one is kept where the rule's score reaches the threshold."""
    return np.where(SCORES[rule](e) >= threshold, e.right_after, e.right_before)


def choose(e: Evidence) -> tuple[str, float]:
    """The rule and threshold with most right predictions here: call it on validation corruptions."""
    options = []
    for rule, score in SCORES.items():
        values = score(e)
        grid = np.unique(np.quantile(values, np.linspace(0, 1, 41)))
        best = max(grid, key=lambda threshold: accepted(e, rule, threshold).sum())
        options.append((accepted(e, rule, best).sum(), rule, float(best)))
    _, rule, threshold = max(options, key=lambda o: o[0])
    return rule, threshold


def judge(e: Evidence, rule: str, threshold: float) -> dict[str, Interval]:
    """Gain of accept-or-reject over always adapting and over never adapting, in points."""
    kept = accepted(e, rule, threshold)
    return {
        "over always": paired_interval(kept, e.right_after, e.id),
        "over never": paired_interval(kept, e.right_before, e.id),
    }


def fell(common: list[Records], classifier: str) -> str:
    """For how many corrected and how many broken predictions of the test corruptions the loss is lower for the adapted
    prediction than for the source's, of the records of `common_draws`, in words."""
    mine = [r for r in common if (r.about["label"], r.about["classifier"]) == ("test", classifier)]
    lower, before, after = (
        np.concatenate(v)
        for v in zip(*((r.loss[:, 1] < r.loss[:, 0], r.right_before, r.right_after) for r in mine), strict=True)
    )
    corrected, broken = (100 * lower[at].mean() for at in (after & ~before, before & ~after))
    return f"{corrected:.0f}% of the corrected and {broken:.0f}% of the broken"
