"""What the papers claim, and what the records say of it: `python -m gentta_utils claims` writes docs/claims.md.

A claim is decided by paired differences between rows of committed records, by one of a few rules, never by hand:
*holds*, *reversed*, *undecided*, or *out of reach here*, with the reason, where nothing at this scale can decide it.
The claims themselves stand in `claimed`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..common.paths import RESULTS, ROOT
from ..evaluation.records import Records
from ..evaluation.rows import distinct, paired, pick
from ..evaluation.statistics import DRAWS, LEAST, Interval, paired_interval
from ..evaluation.tables import results
from .nb03.report import on_shared
from .side_by_side import verdict

PAGE = ROOT / "docs" / "claims.md"
VERDICTS = ("holds", "reversed", "undecided", "out of reach here")
NOTHING = 1.0  # points that still count as no gain
Differences = dict[str, Interval]  # what is compared -> points


# --- rules: differences -> a verdict ---------------------------------------------------------------------------------


def above(differences: Differences) -> str:
    """Every difference is above 0; reversed where one is below 0 and none above."""
    return _all([verdict(d) for d in differences.values()])


def below(differences: Differences) -> str:
    """Every difference is below 0; reversed where one is above 0 and none below."""
    return _all([verdict(d, negative=True) for d in differences.values()])


def no_gain(differences: Differences) -> str:
    """No difference is above 0, to within a point: its interval ends below 1; reversed where one is above 0 and reaches
    1, and none ends below 1."""
    said = ["holds" if d.high < NOTHING else "reversed" if d.low > 0 else "undecided" for d in differences.values()]
    return _all(said)


def no_change(differences: Differences) -> str:
    """No difference is a point away from 0: its interval lies within (-1, 1); reversed where one is not 0 and reaches
    beyond, and none lies within."""
    said = [
        "holds" if max(-d.low, d.high) < NOTHING else "reversed" if d.low > 0 or d.high < 0 else "undecided"
        for d in differences.values()
    ]
    return _all(said)


def all_but_one(differences: Differences) -> str:
    """At most one difference is not above 0; reversed where more are below 0 than above it."""
    said = Counter(verdict(d) for d in differences.values())
    if said["holds"] >= len(differences) - 1:
        return "holds"
    return "reversed" if said["reversed"] > said["holds"] else "undecided"


def _all(said: list[str]) -> str:
    if set(said) == {"holds"}:
        return "holds"
    return "reversed" if "reversed" in said and "holds" not in said else "undecided"


def how_many(finding: "Finding") -> str:
    """How many differences of a claim hold, are reversed, are undecided, each by the claim's rule for one difference;
    empty where all are the same."""
    alone = above if finding.claim.rule is all_but_one else finding.claim.rule
    said = Counter(alone({what: d}) for what, d in finding.differences.items())
    words = {"holds": "hold"} | {word: word for word in VERDICTS[1:3]}
    return ", ".join(f"{said[word]} {words[word]}" for word in words if said[word]) if len(said) > 1 else ""


# --- claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        where: table, figure or text of the paper. says: the claim. published: its numbers, empty without any.
        notebook: of the course, two digits. table: whose records decide, empty where none can.
        compare: its records -> differences, each with what it is. rule: of those above.
        reason: why nothing decides it here, or what limits the answer.
    """

    where: str
    says: str
    published: str
    notebook: str
    table: str = ""
    compare: Callable[[list[Records]], Differences] | None = None
    rule: Callable[[Differences], str] = above
    reason: str = ""

    def __post_init__(self):
        if bool(self.table) != bool(self.compare) or not (self.table or self.reason):
            raise ValueError(f"the claim {self.says!r}: give a table with what it compares, or a reason")


@dataclass(frozen=True)
class Finding:
    """What the records say of a claim: one of `VERDICTS`, the differences, and a remark."""

    claim: Claim
    verdict: str
    differences: Differences
    remark: str


def find(claim: Claim) -> Finding:
    """Decide a claim from its committed records; undecided while there are none."""
    if claim.compare is None:
        return Finding(claim, "out of reach here", {}, claim.reason)
    if not (RESULTS / f"{claim.table}.npz").is_file():
        return Finding(claim, "undecided", {}, f"no records of `{claim.table}` yet")
    differences = claim.compare(results(claim.table))
    return Finding(claim, claim.rule(differences), differences, claim.reason)


def minus(
    runs: list[Records], label: str, other: str, classifier: str | None = None, shifts: object = None
) -> Interval:
    """Row `label` minus row `other` in points, after adaptation, on the scenes that both met, pair by pair.

    Classifiers are pooled where none is named. Raises ValueError where the two rows share no scene."""
    parts = []
    for name in distinct(pick(runs, label, classifier, shifts), "classifier"):
        one, there = on_shared(*(pick(runs, row, name, shifts) for row in (label, other)))
        parts += [paired(one, there)] if one else []
    if not parts:
        raise ValueError(f"the rows {label!r} and {other!r} share no scene: nothing can be compared")
    right, other_right, ids = map(np.concatenate, zip(*parts, strict=True))
    return enough(paired_interval(right, other_right, ids), ids)


def enough(difference: Interval, ids: np.ndarray) -> Interval:
    """The difference, without bounds where fewer than `LEAST` scenes (N,) stand behind it: resampling one scene gives
    an interval without width, which would decide anything."""
    few = len(np.unique(ids)) < LEAST
    return Interval(difference.mean, -np.inf, np.inf) if few else difference


def gained(runs: list[Records]) -> Interval:
    """After minus before, over all rows of these runs."""
    after, before, ids = (np.concatenate([getattr(r, k) for r in runs]) for k in ("right_after", "right_before", "id"))
    return enough(paired_interval(after, before, ids), ids)


# --- the page --------------------------------------------------------------------------------------------------------

HEAD = """# What the papers claim, and what holds here

Made from the committed records by `python -m gentta_utils claims`; do not edit it by hand. The four documents on which
the course rests make the claims below. Here their methods run on small networks and rendered scenes, so no number is
expected to match: what is compared is the *sign* of a difference. Each claim is decided by paired differences in points
with 95% intervals over scenes (bootstrap, {draws} draws):

- **above**: {above}
- **below**: {below}
- **no gain**: {no_gain}
- **no change**: {no_change}
- **all but one**: {all_but_one}

Otherwise it is *undecided*: too few scenes, or its parts disagree; the last column then says how many hold. Fewer
than {fewest} scenes decide nothing: their interval is written as [-inf, +inf]. A claim that needs data or machines that
are not here is *out of reach here*, with the reason.

Of {n} claims {tally}.

Of all differences that are truly 0, one in forty would be called *holds* by chance, and one in forty *reversed*. Here
are {differences} differences, so single verdicts at the edge of their interval are not to be leaned on.
"""


def page(findings: dict[str, list[Finding]]) -> str:
    """The page as Markdown: a table for each document, a row for each claim."""
    count = Counter(f.verdict for group in findings.values() for f in group)
    tally = ", ".join(f"{count[word]} {'are ' if word != 'holds' else ''}{word}" for word in VERDICTS)
    tally = tally.replace("holds", "hold", 1)
    rules = {rule.__name__: _sentence(rule.__doc__) for rule in (above, below, no_gain, no_change, all_but_one)}
    n = sum(len(f.differences) for group in findings.values() for f in group)
    lines = [HEAD.format(draws=f"{DRAWS:,}", fewest=LEAST, n=count.total(), tally=tally, differences=n, **rules)]
    for document, group in findings.items():
        lines += [
            f"\n## {document}\n",
            "| where | claim | published | here | rule | verdict |",
            "|---|---|---|---|---|---|",
        ]
        for f in group:
            c = f.claim
            here = "<br>".join([f"{what}: {d}" for what, d in f.differences.items()] + [f.remark] * bool(f.remark))
            source = f"`{c.table}`, notebook {c.notebook}" if c.table else f"notebook {c.notebook}"
            said = f"**{f.verdict}**" + (f": {how_many(f)}" if how_many(f) else "")
            rule = c.rule.__name__.replace("_", " ") if c.compare else ""
            lines.append(f"| {c.where} | {c.says} | {c.published} | {here} ({source}) | {rule} | {said} |")
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[0].lower() + text[1:]
