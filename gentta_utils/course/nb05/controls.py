"""What the tables of the paper leave open (`measure sda_controls`): other projections, each with its SDA.

DiffPure from its published start, and in the sum; DDA without guidance; GDA-like on every corruption; one norm over a
batch. Is SDA tied to DDA? Copies are fine-tuned on DiffPure's images, on GDA-like ones, and on those of a norm over ten
too. The last of these also meets images of a norm over five, as in the public code (four; ten scenes divide by five).
"""

from dataclasses import asdict, replace

from ...common.text import as_table
from ...evaluation.chosen import purifier, selection
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...methods import diffpure, sda
from ...streams.scenes import SceneSpec
from ...world.severities import TEST
from ..purified import input_job, ours, small_table
from ..trials import decided, source_jobs
from .experiments import THREE, input_jobs, set_of, table_specs, watermark_specs
from .gap import READINGS, SEEDS, Dial, how_at, read_jobs, set_at, tuned_jobs
from .gap_report import apart, seeds_of
from .report import LOW, SOURCE, by_kind, header, short, shown, verdict

NETWORKS = THREE[:2]
OTHER = "one norm for 10, then for 5"
SEEDS_OF = {"dda": SEEDS, "diffpure, t 149": SEEDS, "gda-like": SEEDS[:1], "one norm for 10": SEEDS[:1]}


def projections() -> dict[str, Dial]:
    """Name in the table -> how images are projected. DDA without guidance, from DiffPure's start, is DiffPure.

    One norm over a batch has twice w, as in `experiments.faults`: that makes up for four images (sqrt 4), so with five
    and with ten the guidance of each is weaker than DDA's."""
    base, pure, w = purifier("sda"), ours("diffpure"), ours("dda").scale
    free = {k: getattr(pure, k) for k in ("steps", "eta")} | dict(scale=0.0)
    changes = {
        "dda": {},
        "no guidance": dict(scale=0.0),
        f"diffpure, t {pure.start}": free | dict(start=pure.start),
        "diffpure, t 149": free | dict(start=diffpure.PUBLISHED_IMAGENET["start"]),
        "gda-like": dict(entropy_scale=selection()["entropy_scale"]),
    }
    changes |= {f"one norm for {n}": dict(norm="batch", scale=2 * w, images_at_once=n) for n in (10, 5)}
    return {name: Dial(replace(base, **change)) for name, change in changes.items()}


def control_specs(each: int = 10) -> list[SceneSpec]:
    """Scenes under each of the 15 corruptions at severity 5, of no other table."""
    return [SceneSpec(each, name, 5, "test", 35_200 + each * i) for i, name in enumerate(TEST)]


def controls() -> list[Records]:
    """Every projection read by the source, and those of `SEEDS_OF` by copies that were fine-tuned on them."""
    specs, found = control_specs(), projections()
    jobs = source_jobs(specs, NETWORKS)
    for name, dial in found.items():
        jobs += read_jobs(name, dial, specs, NETWORKS)
        for seed in SEEDS_OF.get(name, ()):
            jobs += tuned_jobs(name, dial, specs, seed, {"sda": {}}, NETWORKS)
    for c in NETWORKS:
        tuned, met = (set_at(found["one norm for 10"]), how_at(c)), found["one norm for 5"].alignment
        for k, change in READINGS.items():
            how, label = sda.Settings(**asdict(met) | change), f"{OTHER}, sda, {k}, seed 0"
            jobs += [input_job("sda", how, c, spec, label, tuned, elsewhere=True) for spec in specs]
    return small_table("sda_controls", jobs, decided)


def sets() -> list[Records]:
    """Training sets of one fine-tuning, the one of `gap`, with as many updates whatever the set: how many images per
    class, and those alone in which the source reads what was asked for. 32 updates of 25 see 800 images: of 100 per
    class each at most once."""
    specs = [replace(spec, n=6) for spec in table_specs()] + [replace(spec, n=20) for spec in watermark_specs()]
    jobs = source_jobs(specs, THREE)
    found = {f"{n} a class": dict(per_class=n) for n in (1, 10, 30, 100)}
    found["30 a class, agreed"] = dict(per_class=30, labels="agreed")
    for k, change in READINGS.items():
        rows = {f"dda, {k}": ("dda", replace(ours("dda"), **change))}
        jobs += input_jobs(rows, THREE, specs)
        for label, changes in found.items():
            how = replace(ours("sda"), **change)
            tuned = {c: (set_of(**changes), how_at(c)) for c in THREE}
            jobs += [input_job("sda", how, c, spec, f"{label}, {k}", tuned[c]) for c in THREE for spec in specs]
    return small_table("sda_sets", jobs, decided)


def rows_of(runs: list[Records], classifier: str | None = None) -> list[dict]:
    """A row for each projection: the source on the projected image alone and in the sum, and what the copy that was
    fine-tuned on it adds to both; without a classifier all are pooled."""
    rows = []
    for name in [*projections(), OTHER]:
        read = "one norm for 5" if name == OTHER else name
        alone = pick(runs, f"{read}, dda, alone", classifier)
        row = {"projection": name, "classifier": short(classifier), "alone": accuracy(alone)}
        columns = {
            "alone, minus source": (f"{read}, dda, alone", SOURCE),
            "alone, minus low view": (f"{read}, dda, alone", LOW),
            "alone, minus DDA": (f"{read}, dda, alone", "dda, dda, alone"),
            "sum, minus source": (f"{read}, dda, sum", SOURCE),
            "SDA adds, alone": (f"{name}, sda, alone", f"{read}, dda, alone"),
            "SDA adds, sum": (f"{name}, sda, sum", f"{read}, dda, sum"),
        }
        for head, (one, other) in columns.items():
            there = one != other and seeds_of(runs, one) and not (name == OTHER and "SDA" not in head)
            row[head] = apart(runs, one, other, classifier) if there else None
        rows.append(row)
    return rows


def report(runs: list[Records], each: bool = True) -> str:
    """The table; without `each` of both networks together."""
    names = [*(distinct(runs, "classifier") if each else ()), None]
    return f"{header(runs)}\n{as_table([shown(row) for c in names for row in rows_of(runs, c)])}"


def set_rows(runs: list[Records], classifier: str | None = None) -> list[dict]:
    """A row for each training set, under corruptions and under the watermark: what the copy adds to DDA."""
    rows = []
    for kind, here in by_kind(runs).items():
        names = [label.removesuffix(", alone") for label in distinct(here, "label") if label.endswith(" alone")]
        for name in names:
            row = {"scenes": kind, "set": name, "classifier": short(classifier)}
            for k in READINGS:
                row[f"{k}, percent"] = accuracy(pick(here, f"{name}, {k}", classifier))
                other = None if name == "dda" else apart(here, f"{name}, {k}", f"dda, {k}", classifier)
                row[f"{k}, minus DDA"] = other
            rows.append(row)
    return rows


def set_report(runs: list[Records], each: bool = True) -> str:
    """The table, without `each` of all networks together; then what the filter of the synthesis does."""
    names = [*(distinct(runs, "classifier") if each else ()), None]
    parts = [header(runs), as_table([shown(row) for c in names for row in set_rows(runs, c)]), ""]
    for kind, here in by_kind(runs).items():
        d = apart(here, "30 a class, agreed, alone", "30 a class, alone")
        parts.append(f"{kind}: the filter, projected image alone: {d}, {verdict(d)}.")
    return "\n".join(parts)
