"""What `candidates` leave out: what the diffusion model that teaches most costs clean scenes, beside the shipped one,
with all updates and the judge."""

from dataclasses import replace
from itertools import pairwise, product

from ...common.text import as_table
from ...evaluation.chosen import tuned_maps
from ...evaluation.map_rows import METRICS, minus
from ...evaluation.records import Records
from ...evaluation.rows import is_clean, pick
from ...evaluation.statistics import Interval
from ...evaluation.tables import table
from ...streams.maps import MapSpec
from ..side_by_side import verdict
from . import rows
from .candidates import AVERAGED, CANDIDATES, NETWORK, SHIPPED, label_of
from .choose import SCENES, selection
from .report import header
from .rows import map_job, source_job, validation_specs

RATES = (0.3, 1.0, 3.0)  # times the chosen one


def specs() -> list[MapSpec]:
    """Twice the corrupted scenes that settings were chosen on, and two and a half times the clean ones."""
    return selection("classes", 2, 30) + validation_specs("classes", 2, SCENES["tuned"] + 2)


def costs() -> list[Records]:
    """All updates and the judge, with the shipped model and the one on averages, at each of `RATES`."""
    now, jobs = tuned_maps(NETWORK), []
    for spec in specs():
        jobs.append(source_job(NETWORK, spec))
        for times, row in product(RATES, (SHIPPED, AVERAGED)):
            settings, label = replace(now, lr=now.lr * times), label_of(row, times)
            jobs.append(map_job("diffusion_tta", settings, NETWORK, spec, label, denoiser=CANDIDATES[row]))
    return table("maps_clean", jobs)


def parts_of(runs: list[Records]) -> dict[str, list[Records]]:
    """ "corrupted" and "clean" -> the runs on such scenes."""
    return {head: [r for r in runs if is_clean(r) == clean] for head, clean in (("corrupted", False), ("clean", True))}


def differences(runs: list[Records], one: str, other: str) -> dict[str, Interval]:
    """Row `one` minus row `other` in points, paired, in each score under corruptions and on clean scenes."""
    return {
        f"{metric}, {head}": minus(pick(part, one), pick(part, other), metric)
        for metric, (head, part) in product(METRICS["classes"], parts_of(runs).items())
    }


def gains(runs: list[Records]) -> list[dict]:
    """A row for each rate and model: what it gains over the segmentor."""
    over = lambda label: {k: str(v) for k, v in differences(runs, label, rows.SOURCE).items()}  # noqa: E731
    asked = product(RATES, (SHIPPED, AVERAGED))
    return [{"rate": f"x {v:g}", "diffusion model": row} | over(label_of(row, v)) for v, row in asked]


def ahead(runs: list[Records]) -> list[dict]:
    """By what the model on averages is ahead of the shipped one at the same rate, and at the next higher one."""
    apart = lambda a, b: differences(runs, label_of(AVERAGED, a), label_of(SHIPPED, b)).items()  # noqa: E731
    return [
        {AVERAGED: f"x {a:g}", "minus shipped": f"x {b:g}"} | {k: f"{v}, {verdict(v)}" for k, v in apart(a, b)}
        for a, b in [*zip(RATES, RATES, strict=True), *pairwise(RATES)]
    ]


def show(runs: list[Records]) -> str:
    """On how many images, what each model gains at each rate, and how far the two are apart."""
    met = ", ".join(f"{sum(map(len, pick(v, rows.SOURCE)))} {head}" for head, v in parts_of(runs).items())
    return f"{header(runs)}\nimages: {met}; minus source\n{as_table(gains(runs))}\n\n{as_table(ahead(runs))}"
