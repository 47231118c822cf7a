"""Notebook 02: its tables, how they are measured and how they are shown."""

from collections.abc import Callable

from ...evaluation.records import Records
from .choose import select, select_rivals
from .experiments import clean, fifteen, heldout, reading, why
from .rivals import natural, online, rivals

SETTLED: dict[str, Callable[[], list[Records]]] = {
    "select": select,
    "reading": reading,
    "heldout": heldout,
    "test": fifteen,
    "clean": clean,
    "why": why,
}

RIVAL_TABLES = {"select_rivals": select_rivals, "natural": natural, "online": online, "rivals": rivals}
