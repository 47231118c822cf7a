"""What the tables of notebook 07 say, in sentences made from them: of other records they would say something else."""

import numpy as np
from scipy import stats

from ...evaluation.records import Records
from ...evaluation.statistics import LEAST, Interval, gain
from . import guide
from .board import BLOCKS, SOURCE, Board, frontier, heat
from .plan import plan
from .report import by_order
from .report import of_streams as streams_of

LOW, LITTLE = "low view", 5.0  # points


def listed(names: list[str]) -> str:
    """ "a, b and c", or "none"; semicolons where a name has a comma."""
    if any("," in name for name in names):
        return "; ".join(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"


def methods(b: Board) -> list[str]:
    """The rows that are methods, without the source: no other training."""
    return [row for row in guide.candidates(b, least=LEAST) if row != SOURCE]


def named(gains: dict[str, Interval], most: int = 3) -> str:
    """The first few rows with their gains."""
    return listed([f"{row} {g}" for row, g in list(gains.items())[:most]])


def answer(b: Board) -> list[dict]:
    """What to use of one classifier whatever the shift: for single images and for batches, by what may be spent; how
    many scenes it met, its gain over all corruptions, and the one where it does worst."""
    rows, shifts, gains, _ = heat(b)
    lines = []
    for batch in (False, True):
        for budget in guide.BUDGETS:
            row = guide.always(b, guide.candidates(b), guide.Situation(batch, guide.KINDS[0], budget))
            line = {"images come": "in batches" if batch else "one by one", "forward equivalents": budget, "use": row}
            line["scenes"] = int(b.met(row, SOURCE).sum())
            gain_of, worst_on = "", ""
            if row != SOURCE:
                by_shift = gains[rows.index(row)]
                worst = int(np.nanargmin(by_shift))
                gain_of = str(b.versus(row))
                worst_on = f"{shifts[worst].rpartition(' ')[0].replace('_', ' ')} {by_shift[worst]:+.0f}"
            lines.append(line | {"gain": gain_of, "it costs": f"{b.facts[row].forwards:.0f}", "worst on": worst_on})
    return lines


def of_grid(b: Board) -> str:
    """Who gains, who loses, who is behind the low view."""
    found = {row: b.versus(row) for row in methods(b)}
    gains = dict(sorted(found.items(), key=lambda item: -item[1].mean))
    up, down = ({row: g for row, g in gains.items() if side(g)} for side in (lambda g: g.low > 0, lambda g: g.high < 0))
    behind = [row for row in gains if row != LOW and b.versus(row, LOW).high < 0] if LOW in b.rows else []
    return (
        f"**{BLOCKS[b.block]}**: of {len(gains)} methods {len(up)} clearly gain over all corruptions, {len(down)} "
        f"clearly lose. Most: {named(up)}. Lose: {named(down)}. "
        f"Clearly behind the low view, which costs no more than the source: {listed(behind)}."
    )


def of_heat(b: Board) -> str:
    """What share of the variance of gains by row and corruption lies between rows, and what between corruptions."""
    rows, _, gains, _ = heat(b)
    gains = gains[[i for i, row in enumerate(rows) if row in methods(b) and np.isfinite(gains[i]).all()]]
    between = [100 * gains.mean(axis).var() / gains.var() for axis in (1, 0)]
    return (
        f"**{BLOCKS[b.block]}**, {len(gains)} rows: of the variance of their gains {between[0]:.0f}% lies "
        f"between rows, {between[1]:.0f}% between corruptions; the rest is which row suits which corruption, and noise."
    )


def combinations(b: Board) -> list[dict]:
    """Rows made of two, each against both of its parts on the scenes that they share."""
    lines = []
    for row in plan():
        second = row.row.partition(", then ")[2]
        if row.after and {row.row, row.after, second} <= set(b.rows):
            line = {"row": row.row, "gain": str(b.versus(row.row))}
            lines.append(
                line
                | {f"minus {n}": str(b.versus(row.row, of)) for n, of in (("first", row.after), ("second", second))}
            )
    return lines


def of_cost(b: Board) -> str:
    """The frontier, and the cheapest row that is known to lose little to the best."""
    rows, spent = methods(b), {row: f"{b.facts[row].forwards:.0f}" for row in b.rows}
    on = frontier(b, [SOURCE, *rows])
    best = on[-1]
    line = f"**{BLOCKS[b.block]}**, on the frontier: {listed([f'{row} ({spent[row]})' for row in on])}. "
    by_cost = sorted((row for row in rows if row != best), key=lambda row: b.facts[row].forwards)
    near = next((row for row in by_cost if b.versus(row, best).low > -LITTLE), None)
    if near is None or b.facts[near].forwards >= b.facts[best].forwards:
        return line + f"Of no cheaper row is it known that it loses less than {LITTLE:.0f} points to the best, {best}."
    return line + (
        f"The cheapest row of which it is known that it loses less than {LITTLE:.0f} points to the best, {best}: "
        f"{near}, {b.versus(near, best)} at {spent[near]} instead of {spent[best]} forwards."
    )


def of_ranks(first: list[dict], second: list[dict]) -> str:
    """How many rows cannot be told from the first, by the interval of the difference of their ranks, and how well the
    order of another classifier agrees."""
    level = [row["row"] for row in first[1:] if row["behind"][0] <= 0]
    others = {row["row"]: row["rank"] for row in second}
    tau = stats.kendalltau([row["rank"] for row in first], [others[row["row"]] for row in first]).statistic
    return (
        f"First: {first[0]['row']}. Of the other {len(first) - 1} rows {len(level)} cannot be told from it (the "
        f"interval of the difference of their ranks reaches 0): {listed(level)}. Kendall's tau between the orders "
        f"of the two classifiers: {tau:.2f}."
    )


def of_streams(runs: list[Records]) -> str:
    """For each row with a state, in which orders it clearly gains and in which it clearly loses."""
    labels, lines = {row.row: row.label for row in plan()}, []
    for row, model, mine in streams_of(runs):
        gains = {order: gain(found) for order, found in by_order(mine, labels[row]).items() if found}
        up, down = [o for o, g in gains.items() if g.low > 0], [o for o, g in gains.items() if g.high < 0]
        lines.append(f"- {row}, {model.split('/')[-1]}: clearly gains in {listed(up)}; clearly loses in {listed(down)}")
    return "\n".join(lines)


def of_regret(pairs: list[tuple[Board, Board]], kind_of: dict[str, str]) -> str:
    """Whether following the guide beats always taking the overall best row, on shifts that nothing was chosen on, for
    each classifier (its boards of the grid and of those shifts); and how many of these intervals chance would move."""
    paragraphs, all_of = [], []
    for known, new in pairs:
        rows, lines = guide.candidates(known, new), []
        for s in guide.SITUATIONS:
            if s.kind == guide.KINDS[0]:
                d = guide.regret(known, new, rows, kind_of, s)["guide gains"]
                said = "better" if d.low > 0 else "worse" if d.high < 0 else "undecided"
                said = "no difference" if d.low == d.high == 0 else f"{said}, {d}"
                lines.append(f"{'batches' if s.batch else 'single images'}, {s.budget} forwards: {said}")
                all_of.append(d)
        paragraphs.append(f"**{BLOCKS[known.block]}**, the guide minus always the same row: {'; '.join(lines)}.")
    differ = [d for d in all_of if d.low != d.high]
    better, worse = sum(d.low > 0 for d in differ), sum(d.high < 0 for d in differ)
    paragraphs.append(
        f"In {len(differ)} of {len(all_of)} situations the guide and the overall best row differ: {better} clearly "
        f"better, {worse} clearly worse; about {0.05 * len(differ):.1f} intervals would leave 0 out by chance."
    )
    return "\n\n".join(paragraphs)
