"""How claims are decided: functions of records that give differences, each under its own words. See `claims`."""

import numpy as np

from ..evaluation.records import Records
from ..evaluation.rows import accuracy, distinct, pick, shift_of
from ..evaluation.statistics import DRAWS, Interval, paired_interval
from .claims import Differences, enough, gained, minus
from .nb03.composition import scores_of
from .nb03.report import labels_of
from .nb06.report import by_question, shift_name
from .nb06.rows import QUANTITIES, VIEWS
from .side_by_side import averaged, ensemble_temperature

RESNET, VIT = "classifier/resnet", "classifier/vit"
SOURCE, ADAPTED = "source/full", "diffusion_tta/full"
READER = "reader/48 pairs/150..600"


def each(rows: list[tuple[str, str]], names: dict[str, str] | None = None, **where):
    """For `Claim.compare`: each row minus the other one, under its words."""

    def compare(runs: list[Records]) -> Differences:
        said = names or {}
        return {f"{said.get(a, a)} minus {said.get(b, b)}": minus(runs, a, b, **where) for a, b in rows}

    return compare


def by_shift(label: str, other: str, shifts, **where):
    """For `Claim.compare`: row `label` minus row `other`, under each shift."""
    return lambda runs: {s.replace("_", " "): minus(runs, label, other, shifts=[s], **where) for s in shifts}


def by_classifier(label: str, other: str, shifts=None):
    """For `Claim.compare`: row `label` minus row `other`, for each classifier."""
    return lambda runs: {
        c.split("/")[-1]: minus(runs, label, other, c, shifts) for c in distinct(pick(runs, label), "classifier")
    }


def of_gain(label: str, **where):
    """For `Claim.compare`: after minus before of a row, for each classifier."""
    return lambda runs: {
        c.split("/")[-1]: gained(pick(runs, label, c, **where)) for c in distinct(pick(runs, label), "classifier")
    }


def gains_of(rows: dict[str, str], classifier: str, order: str | None = None):
    """For `Claim.compare`: after minus before of a classifier's rows, each under its words; also of mixed streams,
    whose scenes stand under no shift of their own; in one `order` of the stream where a label stands for several."""

    def compare(runs: list[Records]) -> Differences:
        met = [r for r in runs if order in (None, r.about["stream"].get("order"))]
        return {said: gained(pick(met, label, classifier)) for said, label in rows.items()}

    return compare


def of_maps(network: str, metric: str, shifts):
    """For `Claim.compare`: after minus before of Diffusion-TTA, in a score of one network's maps (percent), under each
    shift."""

    def compare(runs: list[Records]) -> Differences:
        from ..evaluation.map_rows import gain_of  # only where there are such records

        found = {s: pick(runs, "Diffusion-TTA", network, shifts=[s]) for s in shifts}
        return {
            s.replace("_", " "): enough(gain_of(mine, metric), np.concatenate([r.id for r in mine]))
            for s, mine in found.items()
        }

    return compare


def difference_of_gains(runs: list[Records], one: str, other: str, label: str = ADAPTED) -> Interval:
    """The gain of classifier `one` minus that of classifier `other`, on the same scenes, shifts and labels."""
    parts = []
    for classifier in (one, other):
        mine = sorted(pick(runs, label, classifier), key=lambda r: (labels_of(r), shift_of(r)))
        gain = np.concatenate([r.right_after.astype(int) - r.right_before.astype(int) for r in mine])
        parts.append((gain, np.concatenate([r.id for r in mine])))
    (a, ids), (b, same) = parts
    if not np.array_equal(ids, same):
        raise ValueError(f"{one} and {other} did not meet the same scenes: their gains cannot be paired")
    return paired_interval(a, b, ids)


def weaker_gains_more(runs: list[Records]) -> Differences:
    """The gain of the classifier that is weaker before, minus that of the stronger."""
    weak, strong = sorted((RESNET, VIT), key=lambda c: accuracy(pick(runs, SOURCE, c)))
    said = " minus ".join(f"gain of {c.split('/')[-1]}" for c in (weak, strong))
    return {said: difference_of_gains(runs, weak, strong)}


def larger_gains_less(runs: list[Records]) -> Differences:
    """The gain of the larger CLIP minus that of the smaller, over all label sets and shifts."""
    return {"gain of the larger minus gain of the smaller": difference_of_gains(runs, "clip/large", "clip/small")}


def naive_ensemble(runs: list[Records]) -> Differences:
    """The mean of both posteriors, at the temperature chosen on validation corruptions, minus the better of the two."""
    readers, sources = pick(runs, READER, RESNET), pick(runs, SOURCE, RESNET)
    better = max((readers, sources), key=accuracy)
    right = {(r.about["stream"]["shift"], i): ok for r in better for i, ok in zip(r.id, r.right_after, strict=True)}
    mean = [averaged(r, ensemble_temperature(READER)) for r in readers]
    other = [[right[r.about["stream"]["shift"], i] for i in r.id] for r in readers]
    ids = np.concatenate([r.id for r in readers])
    difference = paired_interval(np.concatenate(mean), np.concatenate(other), ids)
    return {f"their mean minus the {'reader' if better is readers else 'classifier'}": difference}


def loss_falls(runs: list[Records]) -> Differences:
    """Share of images whose loss is lower in the last update than in the first, minus the share where it is higher."""
    mine = pick(runs, ADAPTED)
    first, last = (np.concatenate([r.loss[:, k] for r in mine]) for k in (0, -1))
    ids = np.concatenate([r.id for r in mine])
    return {"images whose loss falls, minus those where it rises": paired_interval(last < first, last > first, ids)}


def at_chance(runs: list[Records]) -> Differences:
    """Percent right of the adapted untrained network minus the 10 of a guess."""
    mine = pick(runs, "K11: untrained network (20 scenes)")
    right, ids = (np.concatenate([getattr(r, k) for r in mine]) for k in ("right_after", "id"))
    return {"untrained network minus chance": paired_interval(right, np.full(len(right), 0.1), ids)}


def captions_told_apart(runs: list[Records]) -> Differences:
    """Text score after adaptation minus before, on the same pairs."""
    found = {}
    for clip in distinct(pick(runs, ADAPTED), "classifier"):
        mine = pick(runs, ADAPTED, clip)
        after, before = (np.concatenate([scores_of(r, k)["text"] for r in mine]) for k in ("after", "before"))
        ids = np.concatenate([r.id[::2] for r in mine])
        found[f"text score of {clip.split('/')[-1]}, after minus before"] = paired_interval(after, before, ids)
    return found


def on_questions(rows: list[tuple[str, str]]):
    """`each`, where one scene is asked about several label sets."""
    return lambda runs: each(rows)(by_question(runs))


def gains_over_clean(label: str, sets: tuple[str, ...]):
    """For `Claim.compare`: the gain of a row on some sets minus its gain on clean scenes."""

    def compare(runs: list[Records]) -> Differences:
        clean = _gains(runs, label, "clean")
        return {f"gain on {s} minus gain on clean": _unpaired(_gains(runs, label, s), clean) for s in sets}

    return compare


def _gains(runs: list[Records], label: str, shift: str) -> np.ndarray:
    mine = [r for r in pick(runs, label) if shift_name(r) == shift]
    return np.concatenate([r.right_after.astype(int) - r.right_before.astype(int) for r in mine])


def _unpaired(one: np.ndarray, other: np.ndarray, seed: int = 0) -> Interval:
    """Mean of one (N,) minus mean of other (M,) in points: other scenes, so each is resampled alone."""
    rng = np.random.default_rng(seed)
    a, b = (rng.choice(v, (DRAWS, len(v))).mean(1) for v in (one, other))
    low, high = np.percentile(100 * (a - b), [2.5, 97.5])
    return Interval(100 * float(one.mean() - other.mean()), float(low), float(high))


def more_spread(runs: list[Records]) -> Differences:
    """How far the features of the views of an image lie apart (hundredths): generated views minus random crops."""
    column, found = QUANTITIES.index("spread, all"), {}
    for shift in dict.fromkeys(map(shift_name, runs)):
        (one,), (other,) = (
            [r for r in pick(runs, f"{VIEWS}{kind}") if shift_name(r) == shift] for kind in ("variations", "crops 0.08")
        )
        found[shift] = paired_interval(one.loss[:, column], other.loss[:, column], one.id)
    return found
