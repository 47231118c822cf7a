"""Notebook 04: segmentation and depth by generative feedback. `TABLES`: how each table is measured and shown."""

from . import (  # noqa: F401
    by_window,
    candidates,
    choose,
    clean_costs,
    exercises,
    experiments,
    figures,
    live,
    pictures,
    report,
    rows,
    where,
)

TABLES = {  # name -> (measure it, show its records)
    "select_maps": (choose.select_maps, report.selection),
    "maps_classes": (experiments.classes, report.k8),
    "maps_depth": (experiments.depth, report.k8),
    "maps_all": (experiments.all_corruptions, report.all_corruptions),
    "maps_mixing": (experiments.mixing, report.mixing),
    "maps_candidates": (candidates.candidates, candidates.show),
    "maps_clean": (clean_costs.costs, clean_costs.show),
    "maps_ablations": (experiments.ablations, report.ablations),
    "maps_windows": (experiments.windows, by_window.show),
    "maps_where": (experiments.where, report.where),
}
