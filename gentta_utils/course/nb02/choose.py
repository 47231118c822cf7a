"""What notebook 02 chooses on the validation corruptions: window, step, temperature, rates of the rivals."""

from dataclasses import asdict, replace

from ...common.cache import fingerprint
from ...common.files import read_json, write_json
from ...common.paths import RESULTS
from ...evaluation.chosen import DIFFUSION_TTA, RIVALS, choice, method_of, tuned
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import cotta, diffusion_tta, dusa, memo, tea, tent, ttt_mae
from ...methods.base import Models, stated
from ...models import zoo
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ...world.severities import VALIDATION
from ..trials import (
    CLASSIFIERS,
    DIT,
    errors_of,
    job,
    method_job,
    models,
    right,
    source_jobs,
    validation_images,
    validation_specs,
)

# Nine settings on the full view, each the start with one change, all at 96 evaluations per image; the best of them is
# the tenth on the low view.
START = dict(updates=12, pairs=8, window=(150, 600), temperature=3.0)
CANDIDATES = {
    "start": {},
    "6 x 16": dict(updates=6, pairs=16),
    "24 x 4": dict(updates=24, pairs=4),
    "T 2": dict(temperature=2.0),
    "T 5": dict(temperature=5.0),
    "t 100..450": dict(window=(100, 450)),
    "t 250..750": dict(window=(250, 750)),
    "delta 1.4": dict(delta=1.4),
    "delta 2.8": dict(delta=2.8),
}
DELTA = 0.7  # logits per step
WINDOWS = [(0, 1000), (40, 150), (100, 300), (100, 450), (150, 600), (250, 750), (300, 600), (600, 1000)]


GIVEN = RESULTS / "rates.json"  # by the rule


# --- choosing --------------------------------------------------------------------------------------------------------


def with_rate(classifier: str, settings: dict, delta: float = DELTA, denoiser: str = DIT) -> diffusion_tta.Settings:
    """Settings with the learning rate of the rule for this classifier.

    A row is known by its settings, and the last digit of a rate may be a matter of rounding: another machine would make
    rows again that are there. So an answer is written down in `GIVEN`, and stands for these models and settings."""
    trial = diffusion_tta.Settings(lr=1.0, **settings)
    asked = {
        "models": {name: zoo.fingerprint(name) for name in (classifier, denoiser)},
        "settings": {name: value for name, value in stated(trial).items() if name != "lr"},
        "delta": delta,
    }
    given = read_json(GIVEN, "run `git checkout -- data/results`") if GIVEN.is_file() else {}
    key = f"{classifier}, {denoiser}, {trial.param_set}: {fingerprint(asked)}"
    if key not in given:
        rate = diffusion_tta.learning_rate(models(classifier, denoiser), *validation_images(), trial, delta)
        given[key] = float(f"{rate:.3g}")
        write_json(GIVEN, given)
    return replace(trial, lr=given[key])


def select_specs(start: int = 3000) -> list[SceneSpec]:
    """4 x 25 selection scenes, 25 under each validation corruption at severity 5."""
    return validation_specs(start)


def rate_of(models: Models, settings: diffusion_tta.Settings) -> float:
    """The learning rate of the rule for these models and settings, at the step that was chosen."""
    return diffusion_tta.learning_rate(models, *validation_images(), settings, choice()["delta"])


def split(label: str) -> tuple[dict, float]:
    """What a candidate changes in `START`, and the logits that its first step moves the margin by."""
    change = dict(CANDIDATES[label])
    delta = change.pop("delta", DELTA)
    return change, delta


def chosen_rate(classifier: str, changes: dict, denoiser: str = DIT) -> diffusion_tta.Settings:
    """The chosen candidate with these changes, and the learning rate of its rule; raises as `choice`."""
    content = choice()
    return with_rate(classifier, START | split(content["candidate"])[0] | changes, content["delta"], denoiser)


def candidate_jobs(label: str, view: str) -> list[Job]:
    """One candidate of `select` on a view, both classifiers, each with its own learning rate."""
    change, delta = split(label)
    jobs = []
    for classifier in CLASSIFIERS:
        settings = with_rate(classifier, START | {"view": view} | change, delta)
        jobs += [job("diffusion_tta", settings, classifier, s, f"{label}/{view}", batch=25) for s in select_specs()]
    return jobs


def select() -> list[Records]:
    """Choose window, temperature, updates x pairs, step and view on validation corruptions; write them down."""
    jobs = source_jobs(select_specs())
    for label in CANDIDATES:
        jobs += candidate_jobs(label, "full")
    runs = table("select", jobs)
    best = max(CANDIDATES, key=lambda label: right(runs, f"{label}/full"))  # ties go to the earlier one
    runs = table("select", jobs + candidate_jobs(best, "low"))
    views = {
        view: {r.about["classifier"]: r.about["settings"] for r in runs if r.about["label"] == f"{best}/{view}"}
        for view in ("full", "low")
    }
    chosen = {
        "candidate": best,
        "delta": split(best)[1],
        "view": max(views, key=lambda view: right(runs, f"{best}/{view}")),
        "window": list(best_window()),
        "settings": views,
        "models": {name: zoo.fingerprint(name) for name in (*CLASSIFIERS, DIT)},
    }
    write_json(DIFFUSION_TTA, chosen)
    return runs


def choose_rates(classifiers: tuple) -> None:
    """Add what `select` would choose to its file for these classifiers: its candidate, with their learning rates."""
    content = choice()
    for name in classifiers:
        if name not in content["models"]:
            for view in ("full", "low"):
                content["settings"][view][name] = asdict(chosen_rate(name, {"view": view}))
            content["models"][name] = zoo.fingerprint(name)
    write_json(DIFFUSION_TTA, content)


def best_window(pairs: int = 24) -> tuple[int, int]:
    """The window in which the Diffusion Classifier reads 4 x 25 selection scenes best, all with as many pairs."""

    def read(window: tuple[int, int]) -> int:
        scores = {spec: errors_of(spec, pairs, window).scores(window) for spec in select_specs()}
        return sum(int((s.argmin(1) == stream(spec).labels).sum()) for spec, s in scores.items())

    return max(WINDOWS, key=read)


MAE = "classifier/mae"

# rates a third of a decade to a decade around the published ones
RATES = (1e-4, 1e-3, 3e-3, 1e-2)
OPTIONS = {
    "tent": [tent.Settings(lr=lr) for lr in RATES],
    "cotta": [cotta.Settings(lr=lr) for lr in RATES],
    "memo": [memo.Settings(lr=lr) for lr in (5e-4, 5e-3, 2e-2, 2.5e-4)],  # published: the second and the last
    "tea": [tea.Settings(lr=lr) for lr in RATES],
    # the published form, with an update at every batch: its 64 images per update are more than a stream here
    "dusa": [dusa.Settings(lr=lr) for lr in (1e-5, 1e-4, 1e-3)],
}


def online_settings(classifier: str, share: float, param_set: str = "all") -> diffusion_tta.Settings:
    """The chosen settings with their state carried on, at a share of the rate: steps add up over a stream.

    For other parameters than all the rate is the rule's for them."""
    settings = tuned(classifier)
    if param_set != settings.param_set:
        values = {k: v for k, v in asdict(settings).items() if k != "lr"} | {"param_set": param_set}
        settings = with_rate(classifier, values, choice()["delta"])
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
    """Choose the rates of the rivals and of online Diffusion-TTA on validation corruptions; write them down."""
    specs = [SceneSpec(50, name, 5, "select", 6000 + 50 * i) for i, name in enumerate(VALIDATION)]
    classifiers = (*CLASSIFIERS, MAE)
    options = {c: options_of(c) for c in classifiers}
    jobs = [
        method_job(row, settings, c, spec, label)
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
    write_json(RIVALS, {"settings": best, "models": choice()["models"]})
    return runs
