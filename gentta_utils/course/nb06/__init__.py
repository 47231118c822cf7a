"""Notebook 06: prompts tuned at test time, with generated views. `TABLES`: how each table is measured and shown."""

from ..display import plain
from . import choose, exercises, experiments, figures, report, rows  # noqa: F401

TABLES = {  # name -> (measure it, show its records)
    "select_prompt": (choose.select_prompt, plain),
    "prompt_s1": (experiments.natural, report.natural),
    "prompt_s2": (experiments.label_sets, report.label_sets),
    "prompt_test": (experiments.corruptions, report.corruptions),
    "prompt_views": (experiments.views, report.precision),
    "prompt_filters": (experiments.filters, report.filters),
    "prompt_budget": (experiments.budget, report.budget),
    "prompt_init": (experiments.initial, report.initial),
    "prompt_order": (experiments.orders, report.orders),
}
