"""The tables of notebook 06. Settings are those that `nb06.choose.select_prompt` chose.

Rows of a table stand on the same scenes and, where they look at views, on the same views.
"""

from dataclasses import replace

import torch

from ...common.validate import frozen
from ...evaluation.chosen import prompt_choice, prompted, tuned_text
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import METHODS, dota, mta, tda, tpt, zero
from ...streams.scenes import SceneSpec
from ...streams.stream import Stream, correlated, iid, mixed, stream
from ...world.severities import TEST
from ...world.words import LABEL_SETS
from .. import trials
from ..drawn import GENERATORS, Drawn
from ..trials import ONLINE, TEXT, Wording, job
from . import rows
from .choose import CLIPS, GENERATED, RATES, RATES_BEYOND, SCALES, VIEWS, prompt_job, zero_shot_job
from .looking import counted_job, looked_job, purified_jobs, truth_job

NATURAL = ("clean", "v2", "a", "r", "sketch", "far")
SCENES = dict(natural=60_000, test=64_000, order=66_000)  # first scene of each
CALIBRATED = 70_000  # first scene of the predictions that are made for their calibration alone
SMALL = CLIPS[0]


def spec_of(shift: str, n: int, labels: str = "category", table: str = "natural") -> SceneSpec:
    """n scenes of a natural shift; the first ones are the same for any n."""
    return SceneSpec(n, shift, 0, "test", SCENES[table] + 200 * NATURAL.index(shift), labels=labels)


def parts_of(spec: SceneSpec, *sizes: int) -> list[SceneSpec]:
    """A spec from its first scene on, in runs of these sizes: more scenes leave the records of the first ones alone."""
    starts = [spec.start + sum(sizes[:i]) for i in range(len(sizes))]
    return [replace(spec, n=n, start=start) for n, start in zip(sizes, starts, strict=True)]


def drawn_by(generator: str, alike: bool = False) -> Drawn:
    """A generator's views at the chosen level."""
    return Drawn(generator, start=prompt_choice()["levels"].get(generator), alike=alike)


def untuned(clip: str, spec: SceneSpec) -> list[Job]:
    """The mean of the confident views, ZERO, MTA on the views of the stream's label set."""
    s = prompted("zero", clip, spec.labels)
    return [
        prompt_job("zero", replace(s, rho_h=0.1, temperature=1.0), clip, spec, rows.MEAN),
        prompt_job("zero", s, clip, spec, rows.ZERO),
        prompt_job("mta", prompted("mta", clip, spec.labels), clip, spec, rows.MTA),
    ]


def tuned(clip: str, spec: SceneSpec) -> list[Job]:
    """TPT with one and four steps, and with as many views that count as DiffTPT has; C-TPT."""
    many = difftpt_count(clip) / VIEWS + 1e-6
    usual = prompted("tpt", clip, spec.labels)
    settings = {
        rows.TPT1: replace(usual, updates=1),
        rows.TPT4: usual,
        rows.TPT_MANY: replace(usual, rho_h=many),
        rows.CTPT: replace(usual, dispersion=50.0),
    }
    return [prompt_job("tpt", s, clip, spec, label) for label, s in settings.items()]


def difftpt_count(clip: str) -> int:
    """How many views count in DiffTPT."""
    s = prompted("difftpt", clip)
    return int((1 + int((VIEWS - 1) * s.rho_c)) * s.rho_h)


def generative(clip: str, spec: SceneSpec, generators: tuple[str, ...] = GENERATORS) -> list[Job]:
    """DiffTPT by these generators."""
    s = prompted("difftpt", clip, spec.labels)
    return [prompt_job("difftpt", s, clip, spec, rows.DIFFTPT[g], drawn_by(g)) for g in generators]


def on_theirs(clip: str, spec: SceneSpec) -> list[Job]:
    """The untuned methods on the views and the filters of DiffTPT with variations."""
    s, drawn = prompted("difftpt", clip, spec.labels), drawn_by("variation")
    same = {k: getattr(s, k) for k in ("views", "kind", "lowest", "generated", "rho_c", "rho_h")}
    by = dict(same, filter="sequential_logits")
    return [
        prompt_job("zero", zero.Settings(temperature=1.0, **by), clip, spec, rows.ON_THEIRS["mean"], drawn),
        prompt_job("zero", zero.Settings(**by), clip, spec, rows.ON_THEIRS["zero"], drawn),
        prompt_job("mta", mta.Settings(**same), clip, spec, rows.ON_THEIRS["mta"], drawn),
    ]


def purified(clip: str, spec: SceneSpec) -> list[Job]:
    """The mean over the image and all views of the generator that takes noise away: nothing filtered, nothing tuned.
    With the smaller CLIP also over one such view, and DiffTPT whose drawn views are this one: they purify alike."""
    drawn, s = drawn_by("image_to_image"), zero.Settings(views=1, generated=GENERATED, filter="none", temperature=1.0)
    jobs = [prompt_job("zero", s, clip, spec, rows.PURIFIED, drawn)]
    if clip == SMALL:
        alike, of_all = drawn_by("image_to_image", alike=True), prompted("difftpt", clip, spec.labels)
        jobs.append(prompt_job("zero", replace(s, generated=1), clip, spec, rows.ONE_PURIFIED, drawn))
        jobs.append(prompt_job("difftpt", of_all, clip, spec, rows.ALIKE, alike))
    return jobs


def controls(clip: str, spec: SceneSpec) -> list[Job]:
    """What was published for crops of 8% and more, crops of the low view, the paper's filter, the ceiling."""
    return [
        prompt_job("tpt", tpt.Settings(**tpt.PUBLISHED), clip, spec, rows.PUBLISHED),
        prompt_job("zero", zero.Settings(**zero.PUBLISHED), clip, spec, rows.ZERO_PUBLISHED),
        prompt_job("mta", mta.Settings(**mta.PUBLISHED), clip, spec, rows.MTA_PUBLISHED),
        prompt_job("tpt", prompted("tpt", clip, kind="low"), clip, spec, rows.LOW_CROPS),
        prompt_job(
            "difftpt",
            prompted("difftpt", clip, filter="parallel_features"),
            clip,
            spec,
            rows.PARALLEL,
            drawn_by("variation"),
        ),
        truth_job(prompted("tpt", clip, spec.labels), clip, spec, rows.TRUE),
    ]


def online(clip: str, spec, **how) -> list[Job]:
    """TDA and DOTA through the whole stream."""
    content, how = frozen(prompt_choice()["online"]), ONLINE | how
    jobs = [("tda", tda.Settings(**content["tda"]), rows.TDA), ("dota", dota.Settings(**content["dota"]), rows.DOTA)]
    jobs.insert(1, ("tda", tda.Settings(**tda.PUBLISHED_IMAGENET), rows.TDA_PUBLISHED))
    return [prompt_job(method, s, clip, spec, label, **how) for method, s, label in jobs]


def natural(n: int = 20) -> list[Records]:
    """Natural shifts: all rows. The larger CLIP's own predictions are not drawn after."""
    jobs = []
    for shift in NATURAL:
        for clip in CLIPS:
            spec = spec_of(shift, n)
            jobs += [zero_shot_job(clip, spec), zero_shot_job(clip, spec, prompts="templates", label=rows.TEMPLATES)]
            jobs += untuned(clip, spec) + tuned(clip, spec) + controls(clip, spec)
            jobs += generative(clip, spec, GENERATORS if clip == SMALL else GENERATORS[:3])
            jobs += purified(clip, spec) + on_theirs(clip, spec) + online(clip, spec)
    return table("prompt_s1", jobs)


def claimed(clip: str, spec: SceneSpec) -> list[Job]:
    """What the claim compares: DiffTPT as published, and TPT with as many views and steps."""
    wanted = [job_ for job_ in tuned(clip, spec) if job_[0]["label"] in (rows.TPT4, rows.TPT_MANY)]
    return [zero_shot_job(clip, spec), *wanted, *generative(clip, spec, GENERATORS[:1])]


def claim(sizes: tuple[int, ...] = (20, 10, 10, 20, 20)) -> list[Records]:
    """The claim on more scenes of the natural shifts, both CLIPs (T1)."""
    parts = zip(*(parts_of(spec_of(shift, sum(sizes)), *sizes) for shift in NATURAL), strict=True)
    jobs = [job_ for each in parts for part in each for clip in CLIPS for job_ in claimed(clip, part)]
    return table("prompt_t1", jobs)


def claim_of_sets(sizes: tuple[int, ...] = (20, 10, 10, 20, 20), of_large: int = 2) -> list[Records]:
    """The claim on more scenes of the ten label sets; the larger CLIP meets the first parts alone (T1)."""
    jobs = []
    for labels in LABEL_SETS:
        parts = parts_of(spec_of("clean", sum(sizes), labels), *sizes)
        jobs += [job_ for part in parts for job_ in claimed(SMALL, part)]
        jobs += [job_ for part in parts[:of_large] for job_ in claimed(CLIPS[1], part)]
    return table("prompt_t1_sets", jobs)


def calibration(sizes: tuple[int, ...] = (*(40,) * 6, *(60,) * 3)) -> list[Records]:
    """Zero-shot, TPT and C-TPT, which draw nothing, on many scenes of each natural shift: for the calibration error."""
    jobs, starts = [], [CALIBRATED + 1000 * i for i in range(len(NATURAL))]
    specs = [SceneSpec(sum(sizes), shift, 0, "test", at) for shift, at in zip(NATURAL, starts, strict=True)]
    for each in zip(*(parts_of(spec, *sizes) for spec in specs), strict=True):
        for part in each:
            wanted = [job_ for job_ in tuned(SMALL, part) if job_[0]["label"] in (rows.TPT4, rows.CTPT)]
            jobs += [zero_shot_job(SMALL, part), *wanted]
    return table("prompt_calibration", jobs)


def label_sets(n: int = 20) -> list[Records]:
    """Ten label sets over the clean scenes of the natural shifts, whose views are drawn already."""
    jobs = []
    for labels in LABEL_SETS:
        spec = spec_of("clean", n, labels)
        jobs += [zero_shot_job(SMALL, spec), zero_shot_job(SMALL, spec, prompts="templates", label=rows.TEMPLATES)]
        jobs += untuned(SMALL, spec) + tuned(SMALL, spec) + generative(SMALL, spec, GENERATORS[:1])
        jobs += on_theirs(SMALL, spec) + [truth_job(prompted("tpt", SMALL, labels), SMALL, spec, rows.TRUE)]
    return table("prompt_s2", jobs)


def corruptions(sizes: tuple[int, ...] = (5, 5, 10)) -> list[Records]:
    """The 15 test corruptions at severity 5: who repairs what."""
    wholes = [SceneSpec(sum(sizes), name, 5, "test", SCENES["test"] + 100 * i) for i, name in enumerate(TEST)]
    jobs, clip = [], SMALL
    for spec in (part for each in zip(*(parts_of(spec, *sizes) for spec in wholes), strict=True) for part in each):
        jobs += [zero_shot_job(clip, spec), zero_shot_job(clip, spec, "low", label=rows.LOW)]
        jobs += untuned(clip, spec) + tuned(clip, spec) + generative(clip, spec)
        jobs += purified(clip, spec) + purified_jobs(clip, spec, drawn_by("image_to_image"), GENERATED)
        jobs.append(prompt_job("tpt", prompted("tpt", clip, kind="low"), clip, spec, rows.LOW_CROPS))
        how = dict(wording=Wording(), batch=spec.n)
        jobs.append(job("diffusion_tta", tuned_text(clip), clip, spec, rows.DIFFUSION_TTA, TEXT, **how))
    return table("prompt_test", jobs)


def views(n: int = 20) -> list[Records]:
    """Which views help: many kinds on their own, with the gain of their mean and of TPT on them."""
    kinds = {f"crops {s:g}": dict(kind="crops", lowest=s) for s in SCALES}
    kinds |= {"crops, low view": dict(kind="low"), "AugMix": dict(kind="augmix"), "flips, light": dict(kind="flips")}
    jobs = []
    for shift in ("clean", "a", "far"):
        spec = spec_of(shift, n)
        for name, how in kinds.items():
            jobs.append(
                looked_job(zero.Settings(views=GENERATED + 1, rho_h=0.3, temperature=1.0, **how), SMALL, spec, name)
            )
            s = tpt.Settings(views=GENERATED + 1, rho_h=0.3, updates=4, lr=prompted("tpt", SMALL).lr, **how)
            jobs.append(prompt_job("tpt", s, SMALL, spec, f"{rows.TPT4}, {name}"))
        for g in GENERATORS:
            s = zero.Settings(views=1, generated=GENERATED, rho_h=0.3, temperature=1.0)
            jobs.append(looked_job(s, SMALL, spec, rows.DRAWN[g], drawn_by(g)))
            s = tpt.Settings(views=1, generated=GENERATED, rho_h=0.3, updates=4, lr=prompted("tpt", SMALL).lr)
            jobs.append(prompt_job("tpt", s, SMALL, spec, f"{rows.TPT4}, {rows.DRAWN[g]}", drawn_by(g)))
    return table("prompt_views", jobs)


def filters(n: int = 20) -> list[Records]:
    """Filters none, entropy, cosine and both, in the public code's order and in the paper's (T3); and what counts
    behind each: how many views, how many of them drawn, how often right."""
    jobs, drawn = [], drawn_by("variation")
    for shift in ("far", "a"):
        spec = spec_of(shift, n)
        for label, kind in rows.FILTERS.items():
            s = prompted("difftpt", SMALL, filter=kind)
            jobs.append(prompt_job("difftpt", s, SMALL, spec, label, drawn))
            jobs.append(counted_job(s, SMALL, spec, label, drawn))
        jobs.append(zero_shot_job(SMALL, spec))
    return table("prompt_filters", jobs)


def budget(n: int = 20, other: int = 10) -> list[Records]:
    """One change at a time, far away and on renditions: number of views, steps, rate, share of generated views, both
    shares (T6)."""
    usual, most = prompted("difftpt", SMALL), VIEWS - 1
    changes = {rows.DIFFTPT["variation"]: {}}
    changes |= {f"{v} views": dict(views=v - v // 2 + 1, generated=v // 2 - 1) for v in (8, 16, 32)}
    changes |= {"128 views": dict(views=VIEWS + 1, generated=most)}
    changes |= {f"{k} steps": dict(updates=k) for k in (1, 2, 8)}
    changes |= {f"rate {r:g}": dict(lr=r) for r in (*RATES, *RATES_BEYOND) if r != usual.lr}
    changes |= {f"{100 * g / most:.0f}% generated": dict(views=VIEWS - g, generated=g) for g in (0, 16, 47, most)}
    changes |= {f"rho_C {c:g}": dict(rho_c=c) for c in (0.3, 0.5, 0.8, 1.0) if c != usual.rho_c}
    changes |= {f"rho_H {h:g}": dict(rho_h=h) for h in (0.1, 0.3, 0.6, 1.0) if h != usual.rho_h}
    jobs = []
    for spec in (spec_of("far", n), spec_of("r", other)):
        for label, change in changes.items():
            s = replace(usual, **change)
            jobs.append(prompt_job("difftpt", s, SMALL, spec, label, drawn_by("variation") if s.generated else None))
    return table("prompt_budget", jobs)


# --- the order of a stream, other words to begin with -----------------------------------------------------------------

ORDERS = ("mixed", "shift by shift", "class by class")


def in_order(order: str, seed: int, n: int) -> tuple[dict, Stream]:
    """n scenes of each of four sets, shuffled by the seed: one of each set in turn, set by set, or sorted by class;
    with its description for records."""
    specs = [spec_of(shift, n, table="order") for shift in ("clean", "far", "r", "a")]
    s = mixed([iid(stream(spec), seed) for spec in specs])
    if order == "shift by shift":
        s = s.rows(torch.arange(len(s)).view(n, len(specs)).T.flatten())
    elif order == "class by class":
        s = correlated(s)
    parts = [spec.describe() for spec in specs]
    about = parts[0] | {"shift": "mixed", "n": len(s), "order": order, "order_seed": seed, "parts": parts}
    return about, replace(s, about=about, order=order)


def orders(n: int = 50, seeds: int = 3) -> list[Records]:
    """Online methods in three orders of the same images, three seeds each; nothing is reset in between."""
    jobs = []
    for order in ORDERS:
        for seed in range(seeds):
            described = in_order(order, seed, n)[0]
            for about, _ in [
                zero_shot_job(SMALL, spec_of("clean", n)),
                *online(SMALL, spec_of("clean", n), reset="never"),
            ]:
                about = about | {"stream": described}

                def work(about=about, order=order, seed=seed) -> Records:
                    module = METHODS[about["method"]]
                    method = module.configure(trials.models(SMALL, None, wording=Wording()), settings_of(about))
                    return run(method, in_order(order, seed, n)[1], about=about, **about["how"])

                jobs.append((about, work))
    return table("prompt_order", jobs)


def settings_of(about: dict):
    """The settings that a record states."""
    return METHODS[about["method"]].Settings(**frozen(about["settings"]))
