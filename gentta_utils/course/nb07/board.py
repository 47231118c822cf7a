"""Who answered what: the records of one block of the grid as arrays, rows by scenes, and what follows from them.

All rows of a block have one family of classifier, so no rank is taken across families. Two rows are compared on the
scenes that both met, in pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import binom, rankdata

from ...common.evaluations import forwards
from ...common.files import read_json
from ...common.paths import DATA
from ...common.types import Number
from ...evaluation.records import Records
from ...evaluation.rows import shift_of
from ...evaluation.statistics import FEWER_DRAWS, LEAST, Interval, paired_interval
from ...methods import METHODS
from ..side_by_side import ensemble_temperature
from .plan import Row, plan

BLOCKS = {"resnet": "ResNet", "vit": "ViT", "clip": "larger CLIP", "mae": "masked autoencoder's ViT"}
COSTS = DATA / "row_costs.json"  # by block and row, measured by bench/rows.py, each row in a process of its own
SOURCE, CEILING, ENSEMBLE, READER = "source", "ceiling", "ensemble", "reader"


@dataclass(frozen=True)
class Facts:
    """What a row costs and needs, as its records and its method state it.

    Attributes:
        forwards: evaluations of all networks per image, one with a backward pass counted as three.
        seconds: of one CPU thread, per image. memory: MB above the source's, with 8 images at once. Both are None where
            they were not measured.
        batch, order, source, denoiser, classes: whether it needs a batch of test images, a state carried through a
            stream, something trained on the source or its generator before, a diffusion model, and of it that it was
            trained with the classes.
        labels: whether it needs labelled images, for a temperature of its votes.
        together: images in its largest batch, of a row whose answers depend on its batches; None of others.
    """

    forwards: float
    seconds: float | None = None
    memory: int | None = None
    batch: bool = False
    order: bool = False
    source: bool = False
    denoiser: bool = False
    classes: bool = False
    labels: bool = False
    together: int | None = None


@dataclass(frozen=True)
class Board:
    """R rows of one block and N scenes under shifts.

    Attributes:
        shift, scene, label: (N,). logits: (R, N, K), NaN where a row did not meet a scene. facts: by row.
    """

    block: str
    rows: tuple[str, ...]
    shift: np.ndarray
    scene: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    facts: dict[str, Facts]

    def index(self, row: str) -> int:
        """Where a row stands. Raises ValueError, with the choices, for one that is not there."""
        if row not in self.rows:
            raise ValueError(f"no row {row!r} of {self.block}: choose one of {', '.join(self.rows)}")
        return self.rows.index(row)

    @cached_property
    def _met(self) -> np.ndarray:
        return ~np.isnan(self.logits[:, :, 0])  # (R, N)

    @cached_property
    def _right(self) -> np.ndarray:
        best = np.where(self._met[:, :, None], self.logits, -np.inf).argmax(2)
        return (best == self.label) & self._met  # (R, N)

    def met(self, *rows: str) -> np.ndarray:
        """The scenes (N,) that all of these rows met."""
        return self._met[[self.index(row) for row in rows]].all(0)

    def enough(self, row: str, least: int = LEAST) -> bool:
        """Whether it met so many scenes of every shift."""
        return all(self.met(row)[self.shift == shift].sum() >= least for shift in set(self.shift))

    def right(self, row: str) -> np.ndarray:
        """Right predictions (N,) bool, False where it met none."""
        return self._right[self.index(row)]

    def p(self, row: str) -> np.ndarray:
        """Probabilities (n, K) of the scenes that it met."""
        return softmax(self.logits[self.index(row)][self.met(row)], axis=1)

    def at(self, shifts) -> "Board":
        """The scenes of these shifts alone."""
        keep = np.isin(self.shift, list(shifts))
        return Board(
            self.block, self.rows, *(v[keep] for v in (self.shift, self.scene, self.label)), self.logits[:, keep],
            self.facts,
        )  # fmt: skip

    def accuracy(self, row: str) -> float:
        """Percent right of the scenes that it met."""
        return 100 * float(self.right(row)[self.met(row)].mean())

    def versus(self, row: str, other: str = SOURCE) -> Interval:
        """Paired difference in points, `row` minus `other`, on the scenes that both met."""
        both = self.met(row, other)
        return paired_interval(self.right(row)[both], self.right(other)[both], self.scene[both], FEWER_DRAWS)

    def changed(self, row: str) -> tuple[int, int]:
        """How many predictions of the source it fixed, and how many it broke."""
        both, new, old = self.met(row, SOURCE), self.right(row), self.right(SOURCE)
        return int((new & ~old & both).sum()), int((old & ~new & both).sum())

    def calibration_error(self, row: str, bins: int = 15) -> float:
        """Expected calibration error in points (Guo et al., 2017); 15 bins of equal width."""
        p, right = self.p(row).max(1), self.right(row)[self.met(row)]
        index = np.minimum((p * bins).astype(int), bins - 1)
        gap = np.bincount(index, p - right, minlength=bins)
        return 100 * float(np.abs(gap).sum() / len(p))

    def brier(self, row: str) -> float:
        """Mean squared distance of the probabilities to the true class, 0 to 2 (Brier, 1950)."""
        p, label = self.p(row), self.label[self.met(row)]
        return float(((p - np.eye(p.shape[1])[label]) ** 2).sum(1).mean())


@lru_cache
def row_costs() -> dict[str, dict[str, dict]]:
    """Block -> row -> {"seconds", "memory_mb", "job"}, as bench/rows.py measured them."""
    return read_json(COSTS, "run `git checkout -- data/row_costs.json`") if COSTS.is_file() else {}


def facts_of(row: Row, runs: list[Records], block: str) -> Facts:
    """What the records of a row and the needs that its method declares say of it."""
    about, needs = runs[0].about, METHODS[row.method].NEEDS
    n = np.array([len(r) for r in runs])
    mean = lambda values: float((np.array(values) * n).sum() / n.sum())  # noqa: E731
    purifier = "unconditional/" in str(about.get("denoiser", "")) or "denoiser" in about.get("purified", {})
    own = "denoiser" in about["models"]
    usual = {b: m for r in plan() if r.row == SOURCE for b, m in r.networks.items()}.get(block)
    spent = row_costs().get(block, {}).get(row.row, {})
    trained = row.networks[block] != usual and row.method != "diffusion_classifier"
    batch = needs.batch_statistics or (row.method == "tent" and block != "vit")
    return Facts(
        mean([forwards(r.nfe) for r in runs]),
        spent.get("seconds"),
        spent.get("memory_mb"),
        batch=batch,
        order=row.online,
        source=trained or "aligned" in about or row.method == "ttt_mae",
        denoiser=own or purifier or "drawn" in about,
        classes=own and "unconditional/" not in str(about.get("denoiser", "")),
        labels=about.get("settings", {}).get("ensemble") == "calibrated",
        together=max(min(r.about["how"]["batch"], len(r)) for r in runs) if batch or row.online else None,
    )


def board(runs: list[Records], block: str, rows: tuple[Row, ...] | None = None) -> Board:
    """The rows of a block of the grid, those of `rows` or of the plan, in its order; with the naive ensemble of source
    and reader where both are there. Scenes of clean or of roughness records do not count.

    Raises ValueError if the block has no row here."""
    found, by_row = {}, {}
    for r in runs:
        found.setdefault((r.about["label"], r.about["classifier"]), []).append(r)
    for row in rows or plan():
        mine = found.get((row.label, row.networks.get(block)), [])
        if mine:
            by_row[row.row] = row, mine
    if not by_row:
        raise ValueError(f"no row of {block!r} among these records: choose one of {', '.join(BLOCKS)}")
    scenes = {}
    for _, mine in by_row.values():
        for r in mine:
            scenes |= {(shift_of(r), int(i)): int(k) for i, k in zip(r.id, r.label, strict=True)}
    places = {key: n for n, key in enumerate(scenes)}
    K = next(iter(by_row.values()))[1][0].after.shape[1]
    logits = np.full((len(by_row), len(places), K), np.nan, np.float32)
    for values, (_, mine) in zip(logits, by_row.values(), strict=True):
        for r in mine:
            values[[places[shift_of(r), int(i)] for i in r.id]] = r.after
    names, facts = list(by_row), {name: facts_of(row, mine, block) for name, (row, mine) in by_row.items()}
    if {SOURCE, READER} <= set(names):
        i, j, reader = names.index(SOURCE), names.index(READER), by_row[READER]
        tau = ensemble_temperature(reader[0].label) / reader[1][0].about["settings"]["temperature"]
        both = np.stack([log_softmax(logits[i], 1), log_softmax(logits[j] / tau, 1)])
        logits = np.concatenate([logits, logsumexp(both, 0)[None]])
        names, facts[ENSEMBLE] = [*names, ENSEMBLE], replace(facts[READER], labels=True)
    shift, scene = (np.array(v) for v in zip(*places, strict=True))
    return Board(block, tuple(names), shift, scene, np.array(list(scenes.values())), logits, facts)


def ranks(b: Board, rows: tuple[str, ...] | None = None, draws: int = 1000, seed: int = 0) -> list[dict]:
    """The mean rank of each row over the shifts, 1 the best, with a 95% bootstrap interval that resamples the scenes of
    each shift; on the scenes that all of them met, ties shared. Sorted, with their accuracy there and "behind": the
    interval of a row's rank minus that of the first, in the same draws."""
    rows = rows or b.rows
    common, rng = b.met(*rows), np.random.default_rng(seed)
    right = np.stack([b.right(row)[common] for row in rows]).astype(float)
    groups = [np.flatnonzero(b.shift[common] == s) for s in np.unique(b.shift[common])]
    again = [[rng.choice(g, len(g)) for g in groups] for _ in range(draws)]
    of = lambda indices: np.mean([rankdata(-right[:, g].mean(2), axis=0) for g in indices], 0)  # noqa: E731
    drawn = of([np.stack(g) for g in zip(*again, strict=True)])  # (R, draws)
    here = of([g[None] for g in groups])[:, 0]
    low, high = np.percentile(drawn, [2.5, 97.5], 1)
    behind = np.percentile(drawn - drawn[here.argmin()], [2.5, 97.5], 1).T
    found = [
        {
            "row": row,
            "rank": float(r),
            "low": float(lo),
            "high": float(hi),
            "behind": tuple(by.tolist()),
            "accuracy": 100 * float(a),
            "scenes": right.shape[1],
        }
        for row, r, lo, hi, by, a in zip(rows, here, low, high, behind, right.mean(1), strict=True)
    ]
    return sorted(found, key=lambda row: row["rank"])


def heat(b: Board) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Rows, shifts, the paired gain (R, S) over the source in points, and whether its interval leaves 0 out (R, S); the
    gain is NaN where a row did not meet the shift. Of fewer than `LEAST` scenes no interval counts: of three changes,
    all in one direction, it would have no width."""
    shifts, rows = list(dict.fromkeys(b.shift)), [row for row in b.rows if row != SOURCE]
    gains, clear = np.full((len(rows), len(shifts)), np.nan), np.zeros((len(rows), len(shifts)), bool)
    for j, shift in enumerate(shifts):
        here = b.at([shift])
        for i, row in enumerate(rows):
            if n := here.met(row, SOURCE).sum():
                d = here.versus(row)
                gains[i, j], clear[i, j] = d.mean, n >= LEAST and (d.low > 0 or d.high < 0)
    return rows, shifts, gains, clear


def family(boards: list[Board]) -> dict[str, Number]:
    """Of all intervals of one row under one shift, of `LEAST` scenes or more: how many there are, how many leave 0 out,
    and how many would by chance if no row helped or harmed: each changed prediction as likely a loss as a gain."""
    sizes: list[tuple[int, int]] = []
    for b in boards:
        for here in map(b.at, ([shift] for shift in dict.fromkeys(b.shift))):
            for row in b.rows:
                both = here.met(row, SOURCE)
                if row != SOURCE and both.sum() >= LEAST:
                    sizes.append((int(both.sum()), int((here.right(row) != here.right(SOURCE))[both].sum())))
    clear = sum(int(c.sum()) for _, _, _, c in map(heat, boards))
    return {"intervals": len(sizes), "leave 0 out": clear, "by chance": sum(by_chance(*size) for size in sizes)}


@lru_cache(maxsize=4096)
def by_chance(n: int, changed: int, draws: int = FEWER_DRAWS) -> float:
    """The chance that a 95% bootstrap interval of n scenes leaves 0 out, `changed` of which went from right to wrong or
    back, either way equally likely."""
    rng, found = np.random.default_rng(0), 0.0
    for up in range(changed // 2 + 1, changed + 1):  # the other half mirrors it
        drawn = rng.multinomial(n, [up / n, (changed - up) / n, 1 - changed / n], draws)
        if np.percentile(drawn[:, 0] - drawn[:, 1], 2.5) > 0:
            found += 2 * float(binom.pmf(up, changed, 0.5))
    return found


def frontier(b: Board, rows: Iterable[str] | None = None, where: np.ndarray | None = None) -> list[str]:
    """By rising cost those of the rows that are right more often than the one before, on the scenes that both met; of
    `where` (N,) alone, if given. The last one is the best; rows that met other scenes are never compared by them."""
    by_cost = sorted(rows or b.rows, key=lambda row: b.facts[row].forwards)
    found, where = by_cost[:1], np.ones(len(b.shift), bool) if where is None else where
    for row in by_cost[1:]:
        both = where & b.met(row, found[-1])
        if b.right(row)[both].sum() > b.right(found[-1])[both].sum():
            found.append(row)
    return found
