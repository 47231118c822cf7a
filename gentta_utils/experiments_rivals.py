"""Diffusion-TTA and its rivals: natural shifts, streams, and all of them at equal compute.

Every rate and what else a rival leaves open at this size is chosen by `select_rivals` on the held-out corruptions.
"""

import json
from dataclasses import asdict, replace

from .corruptions import HELD_OUT
from .datasets import SceneSpec
from .evaluate import Job, Records, table
from .experiments import (
    CANDIDATES,
    CLASSIFIERS,
    DELTA,
    choose_rates,
    chosen,
    chosen_window,
    clean_spec,
    effect_jobs,
    job,
    reader_jobs,
    right,
    source_jobs,
    tuned,
    with_rate,
)
from .files import write_json
from .methods import bn_adapt, cotta, diffusion_tta, dusa, memo, tea, tent, tta_averaging, ttt_mae
from .paths import RESULTS

SMALL = ("gaussian_noise", "fog", "pixelate", "snow", "contrast")  # the corruptions of Diffusion-TTA's online table
RIVALS = RESULTS / "rivals.json"
MAE = "classifier/mae"
MODULES = {m.__name__.split(".")[-1]: m for m in (cotta, diffusion_tta, dusa, memo, tea, tent, ttt_mae)}

ONLINE = dict(reset="per_shift", batch=10)
# rates a third of a decade to a decade around the published ones
RATES = (1e-4, 1e-3, 3e-3, 1e-2)
OPTIONS = {
    "tent": [tent.Settings(lr=lr) for lr in RATES],
    "cotta": [cotta.Settings(lr=lr) for lr in RATES],
    "memo": [memo.Settings(lr=lr) for lr in (5e-4, 5e-3, 2e-2)],
    "tea": [tea.Settings(lr=lr) for lr in RATES],
    # the published form, with an update at every batch: its 64 images an update are more than a stream here
    "dusa": [dusa.Settings(lr=lr) for lr in (1e-5, 1e-4, 1e-3)],
}


def small_grid(n: int = 50, severity: int = 5, start: int = 22_000, seed: int = 0) -> list[SceneSpec]:
    """n scenes under each of the five corruptions of `SMALL`."""
    return [SceneSpec(n, name, severity, "test", start + n * i, seed) for i, name in enumerate(SMALL)]


def how_of(row: str) -> dict:
    """How `evaluate.run` meets a row: in a stream that is reset at each shift, or image by image."""
    if row in ("tea", "bn_adapt"):  # their statistics are those of the batch
        return ONLINE | dict(batch=50)
    return ONLINE if row in ("tent", "cotta", "dusa", "diffusion_tta online") else dict(batch=25)


def method_of(row: str) -> str:
    """The method of a row, whose name may go on after it."""
    return row.split(" ")[0]


def _job(row: str, settings, classifier: str, spec, label: str, **how) -> Job:
    """A job without a diffusion model unless the method needs one."""
    method = method_of(row)
    denoiser = {} if method in ("diffusion_tta", "dusa") else {"denoiser": None}
    return job(method, settings, classifier, spec, label, **denoiser, **how_of(row), **how)


def online_settings(classifier: str, share: float, param_set: str = "all") -> diffusion_tta.Settings:
    """The chosen settings with their state carried on, at a share of the rate: steps add up over a stream.

    For other parameters than all the rate is the rule's for them."""
    settings = tuned(classifier)
    if param_set != settings.param_set:
        values = {k: v for k, v in asdict(settings).items() if k != "lr"} | {"param_set": param_set}
        settings = with_rate(classifier, values, CANDIDATES[chosen()["candidate"]].get("delta", DELTA))
    return replace(settings, online=True, lr=float(f"{share * settings.lr:.3g}"))


def online_options(classifier: str) -> dict[str, diffusion_tta.Settings]:
    """All parameters or the norm layers alone, which a stream moves less far from the source."""
    grid = [("all", share) for share in (0.3, 1.0, 3.0, 10.0)] + [("norm", share) for share in (0.1, 0.3, 1.0)]
    made = {at: online_settings(classifier, at[1], at[0]) for at in grid}
    named = lambda part, s: f"diffusion_tta lr {s.lr:g}" + ("" if part == "all" else f", {part}")  # noqa: E731
    return {named(part, s): s for (part, _), s in made.items()}


def dusa_one_by_one(classifier: str, t: int, share: float) -> dusa.Settings:
    """DUSA's loss image by image with the chosen step and temperature: 16 x 6 evaluations, as Diffusion-TTA's 96."""
    ours = tuned(classifier)
    return dusa.Settings(
        lr=float(f"{share * ours.lr:.3g}"),
        t=t,
        updates=16,
        logit_norm=False,
        temperature=ours.temperature,
        optimizer="sgd",
        momentum=ours.momentum,
        predict="after",
        online=False,
    )


def options_of(classifier: str) -> dict[str, dict[str, object]]:
    """Row -> label -> settings, the candidates of `select_rivals` for a classifier."""
    if classifier == MAE:
        return {"ttt_mae": {f"ttt_mae lr {lr:g}": ttt_mae.Settings(lr=lr) for lr in (5e-4, 5e-3, 2e-2)}}
    named = {row: {f"{method_of(row)} lr {s.lr:g}": s for s in candidates} for row, candidates in OPTIONS.items()}
    named["diffusion_tta online"] = online_options(classifier)
    if classifier == CLASSIFIERS[0]:
        named["dusa one by one"] = {
            f"dusa one by one, t {t}, {share:g} x lr": dusa_one_by_one(classifier, t, share)
            for t in (100, 250, 400)
            for share in (0.3, 1.0)
        }
    return named


def select_rivals() -> list[Records]:
    """Choose the rates of the rivals and of online Diffusion-TTA on held-out corruptions; write them down."""
    specs = [SceneSpec(50, name, 5, "select", 6000 + 50 * i) for i, name in enumerate(HELD_OUT)]
    classifiers = (*CLASSIFIERS, MAE)
    options = {c: options_of(c) for c in classifiers}
    jobs = [
        _job(row, settings, c, spec, label)
        for c in classifiers
        for row, candidates in options[c].items()
        for label, settings in candidates.items()
        for spec in specs
    ]
    runs = table("select_rivals", jobs)
    best: dict[str, dict] = {}
    for c in classifiers:
        mine = [r for r in runs if r.about["classifier"] == c]
        best[c] = {
            row: asdict(candidates[max(candidates, key=lambda label: right(mine, label))])
            for row, candidates in options[c].items()
        }
    write_json(RIVALS, {"settings": best, "models": chosen()["models"]})
    return runs


def chosen_rows(classifier: str) -> list[str]:
    """The rows whose settings `select_rivals` chose for a classifier, none for one that it did not meet."""
    return (
        list(json.loads(RIVALS.read_text(encoding="utf-8"))["settings"].get(classifier, {})) if RIVALS.is_file() else []
    )


def rival(row: str, classifier: str):
    """The settings that `select_rivals` wrote down. Raises FileNotFoundError before it was run."""
    if not RIVALS.is_file():
        raise FileNotFoundError(f"no settings at {RIVALS}: run `python -m gentta_utils measure select_rivals`")
    values = json.loads(RIVALS.read_text(encoding="utf-8"))["settings"][classifier][row]
    if "window" in values:
        values["window"] = tuple(values["window"])
    return MODULES[method_of(row)].Settings(**values)


def natural() -> list[Records]:
    """The paper's single-sample table: clean scenes and the five natural shifts, beside TENT and CoTTA."""
    shifts = ("v2", "a", "r", "sketch", "stylized")
    specs = [clean_spec(), *(SceneSpec(100, name, 0, "test", 23_000 + 100 * i) for i, name in enumerate(shifts))]
    jobs = effect_jobs(specs)
    for row in ("tent", "cotta"):
        jobs += [_job(row, rival(row, c), c, s, row) for c in CLASSIFIERS for s in specs]
    return table("natural", jobs)


def online() -> list[Records]:
    """The paper's online table: state carried on, in three orders; episodic method and entropy baselines beside it."""
    specs = small_grid()
    jobs = source_jobs(specs) + effect_jobs(specs, views=("full",))[len(source_jobs(specs)) :]
    for c in CLASSIFIERS:
        rows = {"bn_adapt": bn_adapt.Settings()} if c == "classifier/resnet" else {}
        rows |= {row: rival(row, c) for row in ("tent", "cotta", "diffusion_tta online")}
        for row, settings in rows.items():
            how = {} if row != "bn_adapt" else ONLINE
            jobs += [_stream_job(row, settings, c, s, order, how) for s in specs for order in ("iid", "correlated")]
            jobs.append(_stream_job(row, settings, c, tuple(specs), "mixed", how))
    return table("online", jobs)


def _stream_job(row: str, settings, classifier: str, spec, order: str, how: dict) -> Job:
    method = method_of(row)
    denoiser = {} if method == "diffusion_tta" else {"denoiser": None}
    return job(method, settings, classifier, spec, f"{row}/{order}", order=order, **denoiser, **ONLINE | how)


def rivals() -> list[Records]:
    """Everything that one would try on a ResNet, on the small grid: at most 96 evaluations of the diffusion model an
    image, the Diffusion Classifier at five times as many beside it; TTT-MAE on its own network."""
    specs, resnet = small_grid(), CLASSIFIERS[0]
    choose_rates((MAE,))
    prepared = ("classifier/resnet-augmix", "classifier/resnet-ceiling")
    jobs = source_jobs(specs, (resnet, *prepared, MAE))
    jobs += [j for pairs in (9, 48) for j in reader_jobs(specs, pairs, chosen_window())]
    jobs += effect_jobs(specs, (resnet,))[len(source_jobs(specs, (resnet,))) :]
    jobs += [_job("bn_adapt", bn_adapt.Settings(), resnet, s, "bn_adapt") for s in specs]
    jobs += [_job("tta_averaging", tta_averaging.Settings(), resnet, s, "tta_averaging") for s in specs]
    rows = ("tent", "cotta", "memo", "tea", "dusa", "dusa one by one", "diffusion_tta online")
    jobs += [_job(row, rival(row, resnet), resnet, s, row) for row in rows for s in specs]
    for row, settings in {"ttt_mae": rival("ttt_mae", MAE), "diffusion_tta": tuned(MAE)}.items():
        jobs += [_job(row, settings, MAE, s, f"{row} (mae)") for s in specs]
    return table("rivals", jobs)


RIVAL_TABLES = {"select_rivals": select_rivals, "natural": natural, "online": online, "rivals": rivals}
