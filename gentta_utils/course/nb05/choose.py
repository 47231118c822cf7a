"""How the settings of notebook 05 are chosen: on validation corruptions, one after the other.

`select_sda` writes them to data/results/sda.json; the tables of `experiments` read them there.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace

from ...common.files import write_json
from ...evaluation.chosen import SDA
from ...evaluation.records import Records
from ...evaluation.rows import pick
from ...evaluation.tables import Job
from ...methods import dda, diffpure, memo, sda
from ...methods.sda import published
from ...models import zoo
from ...recipes.aligned import ALIGNER, BACKBONES, GENERATOR, Data
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..purified import input_job, small_table
from ..trials import CLASSIFIERS, job, right, source_jobs
from .experiments import ENSEMBLES, SYNTHESIS, at_levels, input_jobs

BASE = dict(start=300, steps=50, eta=1.0, scale=0.75, factor=4)
LEVELS = [(50, 1.0), *((n, eta) for n in (20, 10) for eta in (1.0, 0.0))]
TOLERANCE = 1.0  # points that the fewest levels may lie behind the best
CANDIDATES = {  # nine, each the base with one change; scales in units of the base's
    "base": {},
    **{f"start {t}": dict(start=t) for t in (200, 400, 494)},
    **{f"scale x {w:g}": dict(scale=w) for w in (0.5, 2.0, 4.0)},
    **{f"factor {d}": dict(factor=d) for d in (2, 8)},
}
STARTS = (49, 99, 149, 249)  # of DiffPure
RATES = (1.0, 4.0, 16.0)  # times the published learning rate, which is for batches of 512 and more
MEMO_RATES = (5e-4, 5e-3, 2e-2)
ENTROPY_SCALES = (0.1, 0.3, 1.0)


def select_specs() -> list[SceneSpec]:
    """4 x 50 selection scenes under the validation corruptions at severity 5."""
    return [SceneSpec(50, name, 5, "select", 7000 + 50 * i) for i, name in enumerate(VALIDATION)]


def fewest(runs: list[Records], settings: dict[str, dda.Settings]) -> dda.Settings:
    """Of those that lie within `TOLERANCE` points of the best, the one with the fewest levels (the better of two)."""
    rights = {label: right(runs, label) for label in settings}  # all of equally many
    allowed = TOLERANCE / 100 * sum(map(len, pick(runs, next(iter(settings)))))
    near = [label for label, n in rights.items() if n >= max(rights.values()) - allowed]
    return settings[min(near, key=lambda label: (settings[label].steps, -rights[label]))]


def select_sda() -> list[Records]:
    """Choose, one after the other: number of levels, alignment, DiffPure's start, learning rates, ensembles, and what
    rivals leave open.

    An alignment is judged by what all backbones read on the aligned images alone; an ensemble as a whole."""
    name, specs = "select_sda", select_specs()
    base = dda.Settings(**BASE, ensemble="purified")
    levels = {f"dda {n} levels, eta {eta:g}": at_levels(base, n, eta) for n, eta in LEVELS}
    jobs = source_jobs(specs, BACKBONES) + input_jobs({k: ("dda", s) for k, s in levels.items()}, BACKBONES, specs)
    few = fewest(small_table(name, jobs), levels)

    changes = {k: c | ({"scale": c["scale"] * few.scale} if "scale" in c else {}) for k, c in CANDIDATES.items()}
    align = {f"dda {label}": replace(few, **change) for label, change in changes.items()}
    start = {
        f"diffpure start {t}, eta {eta:g}": diffpure.Settings(start=t, steps=20, eta=eta)
        for t in STARTS
        for eta in (1.0, 0.0)
    }
    memos = {f"memo lr {lr:g}": memo.Settings(lr=lr) for lr in MEMO_RATES}
    # the base is the same run as one of the levels: it is told by its label
    (known,) = (label for label, s in levels.items() if s == few)
    jobs += input_jobs({k: ("dda", s) for k, s in align.items() if s != few}, BACKBONES, specs)
    jobs += input_jobs({k: ("diffpure", s) for k, s in start.items()}, BACKBONES, specs)
    half = [replace(p, n=p.n // 2) for p in specs]
    jobs += [job("memo", s, c, p, m, None, batch=25) for m, s in memos.items() for c in BACKBONES for p in half]
    runs = small_table(name, jobs)
    labels = {label: known if s == few else label for label, s in align.items()}
    best = max(align, key=lambda label: right(runs, labels[label]))  # ties go to the earlier one
    ours = replace(align[best], ensemble="sum")

    mixed = {e: replace(ours, **change) for e, change in ENSEMBLES.items() if e != "purified"}
    jobs += input_jobs({f"{best}, {e}": ("dda", s) for e, s in mixed.items()}, BACKBONES, specs)
    labels_of = {e: f"{best}, {e}" for e in mixed} | {"purified": labels[best]}
    gda = {f"gda-like {v:g}": replace(ours, entropy_scale=v) for v in ENTROPY_SCALES}
    jobs += input_jobs({label: ("dda", s) for label, s in gda.items()}, CLASSIFIERS, specs)
    data = Data(alignment=sda.Settings(**asdict(ours)), synthesis=SYNTHESIS)
    rates = {c: {x: replace(published(c), lr=x * published(c).lr) for x in RATES} for c in BACKBONES}

    def sda_jobs(classifier: str, x: float, ensembles: Iterable[str]) -> list[Job]:
        tuned = data, rates[classifier][x]
        rows = {f"sda {x:g} x lr, {e}": replace(data.alignment, **ENSEMBLES[e]) for e in ensembles}
        return [input_job("sda", s, classifier, spec, k, tuned) for k, s in rows.items() for spec in specs]

    jobs += [j for c in BACKBONES for x in RATES for j in sda_jobs(c, x, ["sum"])]
    runs = small_table(name, jobs)

    rate = {c: max(RATES, key=lambda x: right(pick(runs, classifier=c), f"sda {x:g} x lr, sum")) for c in BACKBONES}
    jobs += [j for c in BACKBONES for j in sda_jobs(c, rate[c], [e for e in ENSEMBLES if e != "sum"])]
    runs = small_table(name, jobs)
    after_sda = {
        e: sum(right(pick(runs, classifier=c), f"sda {rate[c]:g} x lr, {e}") for c in BACKBONES) for e in ENSEMBLES
    }
    best_memo = {c: max(memos, key=lambda label: right(pick(runs, classifier=c), label)) for c in BACKBONES}
    content = {
        "candidate": best,
        "alignment": asdict(ours),
        "diffpure": asdict(start[max(start, key=lambda label: right(runs, label))]),
        "dda_ensemble": max(ENSEMBLES, key=lambda e: right(runs, labels_of[e])),
        "sda_ensemble": max(after_sda, key=after_sda.get),
        "entropy_scale": gda[max(gda, key=lambda label: right(runs, label))].entropy_scale,
        "synthesis": asdict(SYNTHESIS),
        "fine_tune": {c: asdict(rates[c][rate[c]]) for c in BACKBONES},
        "memo": {c: memos[best_memo[c]].lr for c in BACKBONES},
        "models": {m: zoo.fingerprint(m) for m in (*BACKBONES, ALIGNER, GENERATOR)},
    }
    write_json(SDA, content)
    return runs
