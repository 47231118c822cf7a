"""Notebook 02: Diffusion-TTA with a DiT, and its rivals. `TABLES` says how each table is measured and shown."""

from ..display import plain
from ..side_by_side import compared
from . import (  # noqa: F401
    choose,
    exercises,
    experiments,
    figures,
    frontier,
    one_by_one,
    photographs,
    report,
    rivals,
    seeds,
    streams,
    trust,
    when_it_helps,
)

TABLES = {  # name -> (measure it, show its records)
    "select": (choose.select, plain),
    "reading": (experiments.reading, report.reading),
    "heldout": (experiments.heldout, report.effect),
    "test": (experiments.test_corruptions, report.effect),
    "clean": (experiments.clean, report.effect),
    "why": (experiments.from_published, plain),
    "backbones": (experiments.backbones, report.backbones),
    "select_rivals": (choose.select_rivals, plain),
    "natural": (rivals.natural, compared),
    "online": (rivals.online, compared),
    "select_streams": (streams.select_streams, plain),
    "streams": (streams.streams, streams.contributions),
    "select_one_by_one": (one_by_one.select_one_by_one, plain),
    "one_by_one": (one_by_one.one_by_one, one_by_one.online_rows),
    "rivals": (rivals.rivals, compared),
    "select_dit": (experiments.select_dit, plain),
    "frontier": (frontier.frontier, frontier.by_cost),
    "seeds": (seeds.seeds, seeds.by_seed),
    "information": (rivals.information, rivals.same_labels),
    "ablations": (experiments.ablations, report.ablations),
    "severity": (experiments.severity, report.severities),
    "common_draws": (experiments.common_draws, plain),
    "trust": (experiments.trust, report.of_trust),
    "phase": (experiments.phase, when_it_helps.phase),
    "phase_output": (experiments.phase_output, when_it_helps.phase),
    "soft": (experiments.soft, report.soft),
    "photographs": (photographs.photographs, photographs.show),
}
