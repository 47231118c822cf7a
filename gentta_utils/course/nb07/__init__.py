"""Notebook 07: every method on one stream, at equal cost. `TABLES`: how each table is measured and shown."""

from ..display import plain
from . import board, choose, cost, digits, exercises, experiments, figures, guide, plan, report, says  # noqa: F401

TABLES = {  # name -> (measure it, show its records)
    "select_grid": (choose.select_grid, plain),
    "grid": (experiments.grid, report.grid),
    "grid_streams": (experiments.streams, report.streams),
    "digits": (digits.digits, digits.show),
    "unseen": (experiments.unseen, report.unseen),
}
