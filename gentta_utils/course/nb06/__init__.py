"""Notebook 06: prompts tuned at test time, with generated views. `TABLES`: how each table is measured and shown."""

from ..display import plain
from . import calibration, choose, exercises, experiments, figures, report, rows, starts  # noqa: F401

TABLES = {  # name -> (measure it, show its records)
    "select_prompt": (choose.select_prompt, plain),
    "prompt_s1": (experiments.natural, report.every_row),
    "prompt_t1": (experiments.claim, report.claimed),
    "prompt_s2": (experiments.label_sets, report.label_sets),
    "prompt_t1_sets": (experiments.claim_of_sets, report.claimed_of_sets),
    "prompt_test": (experiments.corruptions, report.corruptions),
    "prompt_views": (experiments.views, report.precision),
    "prompt_filters": (experiments.filters, report.filters),
    "prompt_budget": (experiments.budget, report.budget),
    "prompt_init": (starts.initial, report.initial),
    "prompt_calibration": (experiments.calibration, report.every_row),
    "prompt_order": (experiments.orders, report.orders),
}
