"""Tables from records: the only way from a file in data/results to a number that somebody reads."""

from collections.abc import Callable

from ..common.text import as_table
from ..evaluation.records import Records
from ..evaluation.stale import note
from ..evaluation.tables import results
from . import side_by_side
from .display import plain
from .nb02 import SETTLED, experiments, when_it_helps
from .nb02 import report as nb02_report
from .nb02.report import effect, reading, soft
from .nb05 import choose
from .nb05 import experiments as nb05_experiments
from .nb05 import report as nb05_report

TABLES: dict[str, Callable[[list[Records]], str]] = {
    "select": plain,
    "reading": reading,
    "heldout": effect,
    "test": effect,
    "clean": effect,
    "why": plain,
    **dict.fromkeys(experiments.EXPERIMENTS, plain),
    "backbones": lambda runs: f"{effect(runs)}\n\n{as_table(nb02_report.signs(runs))}",
    "ablations": nb02_report.ablations,
    "trust": nb02_report.of_trust,
    "phase": when_it_helps.phase,
    "phase_output": when_it_helps.phase,
    "soft": soft,
    **dict.fromkeys(("natural", "online", "rivals", "select_sda"), side_by_side.compared),
    **nb05_report.TABLES,
}
ALL_EXPERIMENTS = SETTLED | experiments.EXPERIMENTS | choose.EXPERIMENTS | nb05_experiments.EXPERIMENTS
assert set(TABLES) == set(ALL_EXPERIMENTS)


def report(name: str) -> str:
    """A table of the course from its committed records; below it, which of them are older than the code.

    Raises ValueError for an unknown name."""
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}: choose one of {', '.join(TABLES)}")
    runs = results(name)
    old = note(runs)
    return TABLES[name](runs) + (f"\n\n{old}" if old else "")
