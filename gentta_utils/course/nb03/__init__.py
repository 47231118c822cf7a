"""Notebook 03: CLIP adapted by a text-conditional diffusion model. `TABLES`: how each table is measured and shown."""

from ..display import plain
from . import choose, composition, exercises, experiments, figures, report  # noqa: F401

TABLES = {  # name -> (measure it, show its records)
    "select_text": (choose.select_text, plain),
    "text_test": (experiments.test_corruptions, report.corruptions),
    "text_clean": (experiments.clean, report.clean),
    "text_k7": (experiments.label_sets, report.label_sets),
    "text_k13": (experiments.grid, report.grid),
    "text_rank": (experiments.ranks, report.against_each_other),
    "text_topk": (experiments.top_k, report.top_k),
    "text_batch": (experiments.batches, report.against_each_other),
    "text_information": (experiments.information, report.information),
    "winoground": (experiments.winoground, composition.show),
}
