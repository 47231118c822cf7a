"""The numbers of the SDA paper, beside which notebook 05 puts its own."""

import itertools
from dataclasses import asdict

from ...diffusion.synthesis import Synthesis
from ...evaluation.chosen import selection
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, pick
from ...methods.dda import PUBLISHED
from ...methods.sda import published
from . import report
from .figures import PAPER_NETWORKS

# Percent right, from Guo et al. (CVPR 2025), Tables 1, 2, 4, 5, 6. Columns in the order of PAPER_MODELS.
PAPER_MODELS = ("resnet", "swin", "convnext", "swin-wide", "convnext-wide")
PAPER = {
    "sda_corruptions": {
        "source/full": (18.7, 33.1, 39.3, 40.5, 45.6),
        "memo": (24.7, 29.5, 37.8, 37.0, 45.8),
        "diffpure": (16.8, 24.8, 28.8, 28.9, 32.7),
        "gda-like": (31.8, 42.2, 44.8),
        "dda, sum": (29.7, 40.0, 44.2, 44.5, 49.4),
        "sda, sum": (32.5, 42.5, 47.0, 47.4, 51.9),
    },
    "sda_watermark": {
        "source/full": (37.7, 66.5, 67.6, 69.1, 70.1),
        "diffpure": (29.1, 52.7, 55.8, 55.5, 57.7),
        "dda, sum": (52.8, 65.9, 67.9, 68.3, 70.3),
        "sda, sum": (54.7, 67.3, 69.4, 70.6, 72.3),
    },
    "sda_parts": {
        "dda, sum": (29.7, 40.0, 44.2),
        "+ synthetic": (30.4, 39.2, 44.2),
        "+ synthetic, aligned (sda)": (32.5, 42.5, 47.0),
    },
    "sda_number": {
        "sda, 0 a class": (29.7, 40.0, 44.2),
        "sda, 1 a class": (31.9, 42.3, 45.5),
        "sda, 10 a class": (31.9, 42.5, 46.6),
        "sda, 50 a class": (32.5, 42.5, 47.0),
    },
    "sda_cfg": {
        "sda, cfg 1": (32.5, 42.5, 47.0),
        "sda, cfg 1.5": (32.0, 41.6, 46.0),
        "sda, cfg 4": (30.1, 38.5, 42.4),
    },
}


def settings() -> list[dict]:
    """Table 7 beside what was chosen here: a row for each network and each setting in which the two differ, and one for
    the synthetic images."""
    content = selection()
    rows = [{"of": "synthesis, levels", "paper": Synthesis().steps, "here": content["synthesis"]["steps"]}]
    rows.append({"of": "alignment, levels from t", "paper": f"{PUBLISHED['steps']} from {PUBLISHED['start']}",
                 "here": f"{content['alignment']['steps']} from {content['alignment']['start']}"})  # fmt: skip
    for name, how in content["fine_tune"].items():
        theirs = asdict(published(name, large=True))
        other = {k: v for k, v in how.items() if theirs[k] != v}
        rows += [{"of": f"{name.split('/')[1]}, {k}", "paper": theirs[k], "here": v} for k, v in other.items()]
    return rows


def beside(runs: list[Records], name: str) -> list[dict]:
    """One row a label of the table `name`: accuracy here, over its shifts, and as published for the same family.

    The watermark's table is read on the watermark, all others under corruptions; columns are "here / paper",
    with "-" where the row was not measured on all of its shifts."""
    kind = "watermark" if name == "sda_watermark" else "corruptions"
    here, rows = report.by_kind(runs)[kind], []
    for label, numbers in PAPER[name].items():
        row = {"row": label}
        for model, number in itertools.zip_longest(PAPER_MODELS[: len(_widest(name))], numbers):
            mine, whole = (pick(here, k, f"classifier/{model}") for k in (label, "source/full"))
            ours = f"{accuracy(mine):.1f}" if mine and len(mine) == len(whole) else "-"
            row[f"{model} / {PAPER_NETWORKS[model]}"] = f"{ours} / {'-' if number is None else number}"
        rows.append(row)
    return rows


def _widest(name: str) -> tuple:
    return max(PAPER[name].values(), key=len)
