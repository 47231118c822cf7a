"""Notebook 05: DDA and SDA. `TABLES` says how each table is measured and shown."""

from ..side_by_side import compared
from . import (
    adversarial,
    choose,
    controls,
    domain,
    exercises,  # noqa: F401
    experiments,
    figures,  # noqa: F401
    gap,  # noqa: F401
    gap_report,
    orders,
    paper,  # noqa: F401
    report,
    unmarked,
    wider,
)

TABLES = {  # name -> (measure it, show its records)
    "select_sda": (choose.select_sda, compared),
    "select_sda_wider": (wider.wider, wider.report),
    "sda_gap": (domain.gap_and_domain, gap_report.main),
    "sda_adversarial": (adversarial.adversarial, adversarial.report),
    "sda_controls": (controls.controls, controls.report),
    "sda_sets": (controls.sets, controls.set_report),
    "sda_corruptions": (experiments.corruptions, report.main),
    "sda_clean": (experiments.clean, report.main),
    "sda_watermark": (experiments.watermark, report.main),
    "sda_unmarked": (unmarked.unmarked, unmarked.report),
    "sda_parts": (experiments.components, report.training_sets),
    "sda_number": (experiments.number, report.training_sets),
    "sda_cfg": (experiments.guided, report.training_sets),
    "sda_order": (experiments.order, orders.order),
    "sda_faults": (experiments.faults, report.faults),
    "sda_steps": (experiments.steps, report.steps),
    "sda_batches": (experiments.batches, orders.batches),
}
