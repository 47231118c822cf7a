"""What `candidates` leave out: what the diffusion model that teaches most costs clean scenes, beside the shipped one,
with all updates and the judge."""

from dataclasses import replace

from ...common.text import as_table
from ...evaluation.chosen import tuned_maps
from ...evaluation.map_rows import METRICS, minus
from ...evaluation.records import Records
from ...evaluation.rows import is_clean, pick
from ...evaluation.tables import table
from ...streams.maps import MapSpec
from ..side_by_side import verdict
from . import rows
from .candidates import AVERAGED, CANDIDATES, NETWORK, RATES, SHIPPED, label_of
from .choose import SCENES, few
from .report import aligned_rows, header
from .rows import map_job, source_job, validation_specs


def specs() -> list[MapSpec]:
    """Twice the corrupted scenes that settings were chosen on, and two and a half times the clean ones."""
    found = few("classes")
    first, more = SCENES["tuned"], validation_specs("classes", 2, SCENES["tuned"] + 2)
    return found + more + [MapSpec(6, split="select", start=first + 100 + k) for k in (12, 18, 24)]


def costs() -> list[Records]:
    """All updates and the judge, with the shipped model and the one on averages, at each of `RATES` but the last."""
    now, jobs = tuned_maps(NETWORK), []
    for spec in specs():
        jobs.append(source_job(NETWORK, spec))
        for row in (SHIPPED, AVERAGED):
            for times in RATES[:-1]:
                asked = (replace(now, lr=now.lr * times), NETWORK, spec, label_of(row, times))
                jobs.append(map_job("diffusion_tta", *asked, denoiser=CANDIDATES[row]))
    return table("maps_clean", jobs)


def cost_of_gain(runs: list[Records]) -> list[dict]:
    """A row for each rate and model: its gain over the segmentor under corruptions and on clean scenes, and by what the
    one on averages is ahead of the shipped one, paired."""
    found = []
    for times in RATES[:-1]:
        for row in (SHIPPED, AVERAGED):
            line = {"rate": f"x {times:g}", "diffusion model": row}
            for metric in METRICS["classes"]:
                for head, is_it in (("corrupted", False), ("clean", True)):
                    at = lambda label: [r for r in pick(runs, label) if is_clean(r) == is_it]  # noqa: E731
                    mine, shipped = at(label_of(row, times)), at(label_of(SHIPPED, times))
                    line[f"{metric}, {head}, minus source"] = str(minus(mine, at(rows.SOURCE), metric))
                    if row != SHIPPED:
                        ahead = minus(mine, shipped, metric)
                        line[f"{metric}, {head}, minus shipped"] = f"{ahead}, {verdict(ahead)}"
            found.append(line)
    return aligned_rows(found)


def show(runs: list[Records]) -> str:
    """What gains cost clean scenes."""
    return header(runs) + "\n" + as_table(cost_of_gain(runs))
