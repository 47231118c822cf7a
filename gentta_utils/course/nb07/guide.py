"""What to use when: a decision table made from the grid, and what following it costs on shifts that nobody chose on.

A situation is what somebody knows before any label: whether images come in batches, how rough they are, how much may be
spent, and whether labelled images are there to calibrate on. The best row of a situation is found on one half of the
scenes and judged on the other, both ways round: the best of many noisy rows looks better than it is.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ...evaluation.records import Records
from ...evaluation.rows import shift_of
from ...evaluation.statistics import FEWER_DRAWS, Interval, paired_interval
from .board import SOURCE, Board, frontier
from .plan import plan

BUDGETS = {"up to 5": 5.0, "up to 100": 100.0, "any": math.inf}  # forward equivalents per image
KINDS = ("coarse", "noise")
TO_RECOMMEND = 20  # scenes of every shift: of the rows with ten, the luckiest would be picked


@dataclass(frozen=True)
class Situation:
    """What is known: whether images come in batches, the kind of shift, the budget in forward equivalents, and whether
    the classifier is calibrated, that is whether there are labelled images for the temperature of a vote."""

    batch: bool
    kind: str
    budget: str
    calibrated: bool = True


SITUATIONS = [Situation(batch, kind, budget) for batch in (False, True) for kind in KINDS for budget in BUDGETS]


def roughness(runs: list[Records]) -> dict[str, float]:
    """Shift -> mean |x - low view of x| of its images, of the records that hold it."""
    return {shift_of(r): float(r.loss.mean()) for r in runs if r.about["label"] == "roughness"}


def threshold(rough: dict[str, float], shifts) -> float:
    """In the middle of the widest relative gap between neighbours among these shifts that has two or more on each side:
    a kind of one shift would be that shift."""
    values = np.sort([rough[s] for s in shifts])
    k = 1 + int((values[2:-1] / values[1:-2]).argmax())
    return float(math.sqrt(values[k] * values[k + 1]))


def kinds(rough: dict[str, float], at: float) -> dict[str, str]:
    """Shift -> "noise" where its images are rougher than the threshold, else "coarse"."""
    return {shift: KINDS[value > at] for shift, value in rough.items()}


def candidates(grid: Board, unseen: Board | None = None, least: int = TO_RECOMMEND) -> tuple[str, ...]:
    """The rows that may be recommended: methods, not other classifiers, that met `least` scenes of every shift; where
    `unseen` is given, enough for a verdict of its shifts too."""
    other = {row.row for row in plan() if row.method == "source" and row.row not in (SOURCE, "low view")}
    rows = [row for row in grid.rows if row not in other and grid.enough(row, least)]
    return tuple(row for row in rows if unseen is None or (row in unseen.rows and unseen.enough(row)))


def allowed(b: Board, rows: tuple[str, ...], s: Situation) -> tuple[str, ...]:
    """Those of the rows that a situation leaves: a row that needs a batch or a stream needs images in batches, a vote
    with a temperature a calibrated classifier, and none may cost more than the budget."""
    facts = {row: b.facts[row] for row in rows if b.facts[row].forwards <= BUDGETS[s.budget]}
    return tuple(
        row for row, f in facts.items() if (s.batch or not (f.batch or f.order)) and (s.calibrated or not f.labels)
    )


def best(b: Board, rows: tuple[str, ...], where: np.ndarray) -> str:
    """The best row on the scenes `where` (N,), as `frontier` finds it: the cheaper of two that are as good."""
    return frontier(b, rows, where)[-1]


def recommended(
    b: Board, rows: tuple[str, ...], kind_of: dict[str, str], calibrated: bool = True
) -> dict[Situation, str]:
    """Situation -> the best row of the shifts of its kind; `calibrated` or not."""
    kind = np.array([kind_of[s] for s in b.shift])
    asked = [replace(s, calibrated=calibrated) for s in SITUATIONS if (kind == s.kind).any()]
    return {s: best(b, allowed(b, rows, s), kind == s.kind) for s in asked}


def always(b: Board, rows: tuple[str, ...], s: Situation) -> str:
    """The row that is best over all shifts, of those that the batch and the budget of a situation leave."""
    return best(b, allowed(b, rows, s), np.ones(len(b.shift), bool))


def cross_fitted(b: Board, rows: tuple[str, ...], s: Situation, kind_of: dict[str, str]) -> Interval:
    """The gain over the source of the row that a situation's choice picks, on the half that it was not picked on."""
    here, left = np.array([kind_of[k] == s.kind for k in b.shift]), allowed(b, rows, s)
    after, before, scenes = [], [], []
    for fold in (0, 1):
        row = best(b, left, here & (b.scene % 2 != fold))
        both = here & (b.scene % 2 == fold) & b.met(row, SOURCE)
        for values, of in ((after, b.right(row)), (before, b.right(SOURCE)), (scenes, b.scene)):
            values.append(of[both])
    return paired_interval(*map(np.concatenate, (after, before, scenes)), FEWER_DRAWS)


def decision_table(b: Board, rows: tuple[str, ...], kind_of: dict[str, str]) -> list[dict]:
    """One line for each situation: what to use, its gain, and the gain on scenes that had no part in choosing it. Two
    lines where a classifier that is not calibrated needs another row; of one line for "either", the cross-fitted gain
    is that of a calibrated one, whose halves may pick a row that needs labels."""
    lines, plain = [], recommended(b, rows, kind_of, calibrated=False)
    for s, row in recommended(b, rows, kind_of).items():
        without = replace(s, calibrated=False)
        shifts = [shift for shift in dict.fromkeys(b.shift) if kind_of[shift] == s.kind]
        same = plain[without] == row
        for said, asked, use in [("either", s, row)] if same else [("yes", s, row), ("no", without, plain[without])]:
            lines.append(
                {"batches": "yes" if s.batch else "no", "shift": s.kind, "forward equivalents": s.budget}
                | {"calibrated": said, "use": use, "scenes": int(b.at(shifts).met(use).sum())}
                | {
                    "gain": str(b.at(shifts).versus(use)),
                    "cross-fitted": str(cross_fitted(b, rows, asked, kind_of)),
                }
            )
    return lines


def rule(b: Board, rows: tuple[str, ...], kind_of: dict[str, str], at: float) -> str:
    """The decision table in words, as a rule that somebody can follow without a label."""
    lines = [f"A shift is noise where the mean |x - low view of x| of its images is above {at:.3f}, else it is coarse."]
    chosen = recommended(b, rows, kind_of)
    for batch in (False, True):
        for kind in KINDS:
            steps = [f"{s.budget} forwards: {row}" for s, row in chosen.items() if (s.batch, s.kind) == (batch, kind)]
            lines.append(f"{'Batches' if batch else 'Single images'}, {kind}: " + "; ".join(steps) + ".")
    other = {s: r for s, r in recommended(b, rows, kind_of, False).items() if r != chosen[replace(s, calibrated=True)]}
    lines.append(
        f"Without labelled images to calibrate on, {len(other)} of {len(chosen)} situations need another row"
        + "".join(
            f"; {'batches' if s.batch else 'single images'}, {s.kind}, {s.budget} forwards: {row}"
            for s, row in other.items()
        )
        + "."
    )
    return "\n".join(lines)


def regret(grid: Board, unseen: Board, rows: tuple[str, ...], kind_of: dict[str, str], s: Situation) -> dict:
    """On shifts that took no part in any choice: how far the guide, and the overall best row, stay behind the best row
    of each shift. That one is found on one half of a shift's scenes and judged on the other; all on common scenes.

    Returns {"regret of the guide", "regret of the best row", "guide gains"} as intervals in points, and the scenes."""
    left = allowed(grid, rows, s)
    fixed = always(grid, rows, s)
    chosen = {k: recommended(grid, rows, kind_of).get(Situation(s.batch, k, s.budget), fixed) for k in KINDS}
    common, parts = unseen.met(*left), []
    for shift in dict.fromkeys(unseen.shift):
        here = common & (unseen.shift == shift)
        for fold in (0, 1):
            judged, found = here & (unseen.scene % 2 == fold), here & (unseen.scene % 2 != fold)
            if judged.any() and found.any():
                by = (best(unseen, left, found), chosen[kind_of[shift]], fixed)
                parts.append(np.stack([unseen.scene[judged], *(unseen.right(row)[judged] for row in by)]))
    scene, oracle, guide, usual = np.concatenate(parts, 1)
    return {
        "regret of the guide": paired_interval(oracle, guide, scene, FEWER_DRAWS),
        "regret of the best row": paired_interval(oracle, usual, scene, FEWER_DRAWS),
        "guide gains": paired_interval(guide, usual, scene, FEWER_DRAWS),
        "scenes": len(scene),
    }
