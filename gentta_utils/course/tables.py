"""Every table of the course: how it is measured, and the only way from its records to a number that somebody reads."""

from collections.abc import Callable

from ..evaluation.records import Records
from ..evaluation.stale import note
from ..evaluation.tables import results
from . import nb02, nb03, nb04, nb05, nb06, nb07

TABLES: dict[str, tuple[Callable[[], list[Records]], Callable[[list[Records]], str]]] = (
    nb02.TABLES | nb03.TABLES | nb04.TABLES | nb05.TABLES | nb06.TABLES | nb07.TABLES
)


def check_table(name: str) -> str:
    """The name. Raises ValueError for an unknown one."""
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}: choose one of {', '.join(TABLES)}")
    return name


def measure(name: str) -> str:
    """Measure a table, going on where it stopped, and show it. Raises ValueError for an unknown name."""
    make, show = TABLES[check_table(name)]
    return show(make())


def report(name: str) -> str:
    """A table from its committed records; below it, which of them are older than the code.

    Raises ValueError for an unknown name."""
    show, runs = TABLES[check_table(name)][1], results(name)
    old = note(runs)
    return show(runs) + (f"\n\n{old}" if old else "")
