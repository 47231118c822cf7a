"""What notebook 06 chooses on selection scenes: views for each label set, the rate, levels, online weights."""

from dataclasses import replace

from ...common.files import write_json
from ...evaluation.chosen import PROMPT
from ...evaluation.records import Records
from ...evaluation.rows import pick, versus
from ...evaluation.tables import Job, table
from ...methods import dota, source, tda, tpt, zero
from ...methods.base import stated
from ...models import zoo
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ...world.views import keeping
from ...world.words import LABEL_SETS, label_set
from ..drawn import GENERATORS, Drawn
from ..trials import ONLINE, Wording, job, right
from .rows import ZERO_SHOT

CLIPS = ("clip/small", "clip/large")
VIEWS, GENERATED = 64, 31  # in all, and drawn by a generator
SCALES = (0.08, 0.3, 0.6)  # of the smallest crop, as a share of the image
RATES = (0.25, 1.0, 4.0)  # in units of the embedding's standard deviation; the first is the published one
RATES_BEYOND = (0.0625, 16.0)  # past both ends of these
SHARES = (0.1, 0.3)  # of confident views
ALPHAS = (0.5, 2.0, 8.0)  # weight of TDA's positive cache
ETAS = (0.05, 0.2, 0.8)  # largest weight of DOTA's Gaussians
LEVELS = (199, 399, 599)  # timesteps from which the generators begin that begin with the image
LEVEL_BEYOND = 99
START = 12_000


def prompt_job(method: str, settings, clip: str, spec, label: str, drawn: Drawn | None = None, **how) -> Job:
    """`trials.job` with a CLIP asked in the one prompt of the stream's label set; `drawn` are its generated views."""
    labels = (spec[0] if isinstance(spec, tuple) else spec).labels
    how = dict(batch=20) | how
    return job(
        method, settings, clip, spec, label, None, wording=how.pop("wording", Wording(labels)), drawn=drawn, **how
    )


def zero_shot_job(clip: str, spec, view: str = "full", prompts: str = "one", label: str = ZERO_SHOT, **how) -> Job:
    """The frozen zero-shot classifier."""
    wording = Wording(spec.labels if isinstance(spec, SceneSpec) else "category", prompts)
    return prompt_job("source", source.Settings(view), clip, spec, label, wording=wording, **dict(batch=100) | how)


def candidates(labels: str) -> dict[str, dict]:
    """Views that may be chosen for a label set: crops of three scales, and what keeps the label where crops do not."""
    kinds = {f"crops {s:g}": dict(kind="crops", lowest=s) for s in SCALES}
    keep = keeping(label_set(labels).asks)
    return kinds if keep == "crops" else kinds | {keep: dict(kind=keep)}


def specs(labels: str = "category", n: int = 16) -> list[SceneSpec]:
    """Selection scenes: n clean, n far away where one can be, and n / 4 under each validation corruption."""
    shifts = {"clean": (0, n), **dict.fromkeys(VALIDATION, (3, n // 4)), "far": (0, n)}
    if labels == "count":
        shifts.pop("far")
    return [
        SceneSpec(count, name, severity, "select", START + 100 * i, labels=labels)
        for i, (name, (severity, count)) in enumerate(shifts.items())
    ]


def few() -> list[SceneSpec]:
    """Those for which views are drawn."""
    return [replace(spec, n=8 if spec.n > 4 else 2) for spec in specs()]


def views_jobs(labels: str) -> list[Job]:
    """The mean of the confident views for each candidate."""
    jobs = []
    for name, views in candidates(labels).items():
        settings = zero.Settings(views=VIEWS, rho_h=0.1, temperature=1.0, **views)
        jobs += [prompt_job("zero", settings, CLIPS[0], spec, f"{labels}: {name}") for spec in specs(labels)]
    return jobs


def level_jobs(generator: str) -> list[Job]:
    """The mean of the confident ones among views of a generator from each level; the image is among them."""
    settings = zero.Settings(views=1, generated=15, rho_h=0.3, temperature=1.0)
    return [
        prompt_job("zero", settings, CLIPS[0], spec, f"{generator} from {level}", Drawn(generator, start=level))
        for level in (*LEVELS, LEVEL_BEYOND)
        for spec in few()
    ]


def best_of(runs: list[Records], labels) -> str:
    """The label with most right predictions; ties go to the earlier one."""
    return max(labels, key=lambda label: right(runs, label))


def or_beyond(runs: list[Records], chosen: str, beyond: list[str]) -> str:
    """The chosen label, or one past the ends of its grid that is clearly ahead of it: in pairs on the same scenes, with
    an interval above 0. What is as good is not worth another rate for every table."""
    for label in beyond:
        if versus(pick(runs, label), pick(runs, chosen)).low > 0:
            chosen = label
    return chosen


def select_prompt() -> list[Records]:
    """Choose views for each label set, then the rate, the share that votes, the generators' levels, the weights of the
    online methods; write all down. The shares of DiffTPT's filters stay as published."""
    jobs, options = [], {labels: candidates(labels) for labels in LABEL_SETS}
    for labels in LABEL_SETS:
        jobs += views_jobs(labels)
    runs = table("select_prompt", jobs)
    views = {k: options[k][best_of(runs, [f"{k}: {name}" for name in options[k]]).split(": ")[1]] for k in options}
    usual = views["category"]
    rates = {f"rate {r:g}": tpt.Settings(views=VIEWS, updates=4, lr=r, **usual) for r in (*RATES, *RATES_BEYOND)}
    votes = {f"vote of {share:g}": zero.Settings(views=VIEWS, rho_h=share, **usual) for share in SHARES}
    for spec in specs(n=40):
        jobs += [prompt_job("tpt", s, clip, spec, f"{name}, {clip}") for name, s in rates.items() for clip in CLIPS]
        jobs += [prompt_job("zero", s, CLIPS[0], spec, name) for name, s in votes.items()]
    for generator in GENERATORS:
        jobs += level_jobs(generator) if generator != "variation" else []
    stream = SceneSpec(100, "far", 0, "select", START + 2000)
    caches = {f"alpha {a:g}": tda.Settings(alpha=a) for a in ALPHAS}
    gaussians = {f"eta {e:g}": dota.Settings(eta=e) for e in ETAS}
    jobs += [prompt_job("tda", s, CLIPS[0], stream, name, **ONLINE) for name, s in caches.items()]
    jobs += [prompt_job("dota", s, CLIPS[0], stream, name, **ONLINE) for name, s in gaussians.items()]
    runs = table("select_prompt", jobs)
    rate, levels = {}, {}
    for clip in CLIPS:
        grid, beyond = ([f"rate {r:g}, {clip}" for r in these] for these in (RATES, RATES_BEYOND))
        rate[clip] = rates[or_beyond(runs, best_of(runs, grid), beyond).split(", ")[0]].lr
    for g in GENERATORS:
        if g != "variation":
            best = best_of(runs, [f"{g} from {level}" for level in LEVELS])
            levels[g] = int(or_beyond(runs, best, [f"{g} from {LEVEL_BEYOND}"]).split()[-1])
    content = {
        "views": views,
        "settings": {
            clip: {
                "tpt": dict(views=VIEWS, updates=4, lr=rate[clip]),
                "difftpt": dict(views=VIEWS - GENERATED, generated=GENERATED, updates=4, lr=rate[clip]),
                "zero": dict(views=VIEWS, rho_h=votes[best_of(runs, votes)].rho_h),
                "mta": dict(views=VIEWS),
            }
            for clip in CLIPS
        },
        "levels": levels,
        "online": {"tda": stated(caches[best_of(runs, caches)]), "dota": stated(gaussians[best_of(runs, gaussians)])},
        "models": {name: zoo.fingerprint(name) for name in CLIPS},
    }
    write_json(PROMPT, content)
    return runs
