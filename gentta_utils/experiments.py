"""The tables of the course: which method meets which stream. `python -m gentta_utils measure NAME` makes one.

Everything is chosen on the four held-out corruptions, on scenes of the "select" split, by `select`, and written to
data/results/diffusion_tta.json; the 15 test corruptions are looked at only by `fifteen`, on other scenes, afterwards.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache

import torch

from . import zoo
from .classifier import Classifier
from .corruptions import HELD_OUT, TEST
from .datasets import SceneSpec, Stream, correlated, mixed, stream
from .devices import precision_on
from .errors import ErrorTable, error_table
from .evaluate import Job, Records, fingerprint, run, table
from .files import write_json
from .methods import METHODS, diffusion_classifier, diffusion_tta, source
from .methods.base import Models, stated
from .paths import CACHE, RESULTS
from .recipes.classifiers import MEAN, RECIPES, STD
from .scenes import CLASSES

CLASSIFIERS = ("classifier/resnet", "classifier/vit")
DIT = "denoiser/dit"
CHOSEN = RESULTS / "diffusion_tta.json"
UNTOUCHED = ("shot_noise", "glass_blur", "motion_blur", "snow", "frost", "elastic")  # not even seen by the trial

# Nine settings on the full view, each the start with one change, all at 96 evaluations an image; the best of them is
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
DELTA = 0.7  # logits a step
WINDOWS = [(0, 1000), (40, 150), (100, 300), (100, 450), (150, 600), (250, 750), (300, 600), (600, 1000)]


def models(classifier: str, denoiser: str | None = DIT, precision: str = "auto") -> Models:
    """Shipped models by name, loaded once a process."""
    return Models(zoo.cached(classifier), zoo.cached(denoiser, precision) if denoiser else None)


def untrained(classifier: str) -> Classifier:
    """The network of a shipped classifier as it is before any training, the same each time."""
    with torch.random.fork_rng():
        network = RECIPES[classifier].build()
    return Classifier(network, MEAN, STD, zoo.IMAGE_SIZE, len(CLASSES), f"{classifier} untrained")


def ordered(spec: SceneSpec | tuple[SceneSpec, ...], order: str = "iid") -> Stream:
    """The stream of one shift as it is or "correlated", or several of one length "mixed" or "mixed correlated"."""
    if order == "mixed correlated":  # sorted by class, the shifts of each class mixed
        return replace(correlated(mixed([stream(s) for s in spec])), order=order)
    if order == "mixed":
        return mixed([stream(s) for s in spec])
    return correlated(stream(spec)) if order == "correlated" else stream(spec)


def _describe(spec: SceneSpec | tuple[SceneSpec, ...], order: str) -> dict:
    if order.startswith("mixed"):
        parts = [s.describe() for s in spec]
        return {**parts[0], "shift": "mixed", "n": sum(s.n for s in spec), "order": order, "parts": parts}
    return spec.describe() | ({} if order == "iid" else {"order": order})


def job(
    method: str,
    settings,
    classifier: str,
    spec: SceneSpec | tuple[SceneSpec, ...],
    label: str,
    denoiser: str | None = DIT,
    precision: str = "auto",
    order: str = "iid",
    **how,
) -> Job:
    """One run: all that its numbers depend on, and the call.

    Args:
        label: names its row. how: goes to `evaluate.run`.
        precision: of the denoiser, as in `zoo.load`. order: as in `ordered`, which says what `spec` may be."""
    version = getattr(METHODS[method], "VERSION", 1)  # of the method's numbers: rows of an older one are made anew
    used = {"classifier": classifier, **({"denoiser": denoiser} if denoiser else {})}
    about = {
        "method": method,
        "label": label,
        "settings": stated(settings),
        "classifier": classifier,
        "models": {role: zoo.fingerprint(name) for role, name in used.items()},
        "precision": precision_on("cpu", precision) if denoiser else "fp32",
        "stream": _describe(spec, order),
        "how": how,
        "select": "none" if method == "source" else "held-out",
        **({"denoiser": denoiser} if denoiser not in (None, DIT) else {}),
        **({"method_version": version} if version > 1 else {}),
    }

    def work() -> Records:
        configured = METHODS[method].configure(models(classifier, denoiser, precision), settings)
        return run(configured, ordered(spec, order), about=about, **how)

    return about, work


def source_jobs(specs: list[SceneSpec], classifiers: tuple = CLASSIFIERS) -> list[Job]:
    """The frozen classifiers on both views: the low-pass control belongs to every table."""
    return [
        job("source", source.Settings(view), c, spec, f"source/{view}", denoiser=None, batch=100)
        for spec in specs
        for c in classifiers
        for view in ("full", "low")
    ]


def reader_jobs(
    specs: list[SceneSpec], pairs: int, window: tuple[int, int], remark: str = "", denoiser: str = DIT
) -> list[Job]:
    """The Diffusion Classifier with so many stratified pairs inside the window; `remark` ends the row's label."""
    settings = diffusion_classifier.Settings(pairs=pairs, window=window)
    label = f"reader/{pairs} pairs/{window[0]}..{window[1]}{remark}"
    return [job("diffusion_classifier", settings, CLASSIFIERS[0], spec, label, denoiser, batch=10) for spec in specs]


# --- choosing --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def held_out_images(n: int = 8, start: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """n selection scenes under each held-out corruption at severity 5, for the learning rate: images and ids."""
    parts = [stream(SceneSpec(n, name, 5, "select", start + i * n)) for i, name in enumerate(HELD_OUT)]
    return torch.cat([p.images for p in parts]), torch.cat([p.ids for p in parts])


def with_rate(classifier: str, settings: dict, delta: float = DELTA, denoiser: str = DIT) -> diffusion_tta.Settings:
    """Settings with the learning rate of the rule for this classifier."""
    trial = diffusion_tta.Settings(lr=1.0, **settings)
    rate = diffusion_tta.learning_rate(models(classifier, denoiser), *held_out_images(), trial, delta)
    return replace(trial, lr=float(f"{rate:.3g}"))


def select_specs(start: int = 3000) -> list[SceneSpec]:
    """4 x 25 selection scenes, 25 under each held-out corruption at severity 5."""
    return [SceneSpec(25, name, 5, "select", start + 25 * i) for i, name in enumerate(HELD_OUT)]


def candidate_jobs(label: str, view: str) -> list[Job]:
    """One candidate of `select` on a view, both classifiers, each with its own learning rate."""
    change = {"view": view, **CANDIDATES[label]}
    delta = change.pop("delta", DELTA)
    jobs = []
    for classifier in CLASSIFIERS:
        settings = with_rate(classifier, START | change, delta)
        jobs += [job("diffusion_tta", settings, classifier, s, f"{label}/{view}", batch=25) for s in select_specs()]
    return jobs


def right(runs: list[Records], label: str, when: str = "after") -> int:
    """Right predictions over the runs with this label."""
    return sum(int(getattr(r, f"right_{when}").sum()) for r in runs if r.about["label"] == label)


def select() -> list[Records]:
    """Choose window, temperature, updates x pairs, step and view on held-out corruptions; write them down."""
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
        "view": max(views, key=lambda view: right(runs, f"{best}/{view}")),
        "window": list(best_window()),
        "settings": views,
        "models": {name: zoo.fingerprint(name) for name in (*CLASSIFIERS, DIT)},
    }
    write_json(CHOSEN, chosen)
    return runs


def chosen() -> dict:
    """What `select` wrote down. Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    again = "run `python -m gentta_utils measure select`"
    if not CHOSEN.is_file():
        raise FileNotFoundError(f"no settings at {CHOSEN}: {again}")
    content = json.loads(CHOSEN.read_text(encoding="utf-8"))
    changed = [name for name, checksum in content["models"].items() if zoo.fingerprint(name) != checksum]
    if changed:
        raise ValueError(f"the settings at {CHOSEN} were chosen for another {', '.join(changed)}: {again}")
    return content


def tuned(classifier: str, view: str = "full", **changes) -> diffusion_tta.Settings:
    """The chosen settings of Diffusion-TTA for a classifier and view; raises as `chosen`."""
    settings = chosen()["settings"][view][classifier]
    return diffusion_tta.Settings(**{**settings, "window": tuple(settings["window"]), **changes})


def choose_rates(classifiers: tuple) -> None:
    """Add what `select` would choose to its file for these classifiers: its candidate, with their learning rates."""
    content = chosen()
    change = dict(CANDIDATES[content["candidate"]])
    delta = change.pop("delta", DELTA)
    for name in classifiers:
        if name not in content["models"]:
            for view in ("full", "low"):
                content["settings"][view][name] = asdict(with_rate(name, START | change | {"view": view}, delta))
            content["models"][name] = zoo.fingerprint(name)
    write_json(CHOSEN, content)


def chosen_window() -> tuple[int, int]:
    """The chosen window of the Diffusion Classifier; raises as `chosen`."""
    return tuple(chosen()["window"])


def errors_of(spec: SceneSpec, pairs: int, window: tuple[int, int], denoiser: str = DIT) -> ErrorTable:
    """The error table of a stream, resumable, from the cache where it is there."""
    s, network = stream(spec), zoo.cached(denoiser)
    depends = {"pairs": pairs, "window": window, "denoiser": zoo.fingerprint(denoiser), "precision": network.precision}
    folder = CACHE / "errors" / fingerprint({"spec": spec.describe(), **depends})
    return error_table(network, s.images, s.ids, pairs, window, cache=folder)


def best_window(pairs: int = 24) -> tuple[int, int]:
    """The window in which the Diffusion Classifier reads 4 x 25 selection scenes best, all with as many pairs."""

    def read(window: tuple[int, int]) -> int:
        scores = {spec: errors_of(spec, pairs, window).scores(window) for spec in select_specs()}
        return sum(int((s.argmin(1) == stream(spec).labels).sum()) for spec, s in scores.items())

    return max(WINDOWS, key=read)


# --- measuring -------------------------------------------------------------------------------------------------------


def clean_spec() -> SceneSpec:
    """The 500 clean test scenes of `reading` and `clean`."""
    return SceneSpec(500, split="test", start=6000)


def reading() -> list[Records]:
    """Does the diffusion model read shifted scenes? Held-out corruptions and clean, by number of pairs and window."""
    shifted = [SceneSpec(100, name, 5, "test", 5000 + 100 * i) for i, name in enumerate(HELD_OUT)]
    window = chosen_window()
    jobs = source_jobs([*shifted, clean_spec()])
    for pairs in (6, 12, 24):
        jobs += reader_jobs(shifted, pairs, window)
    jobs += reader_jobs([*shifted, clean_spec()], 48, window)
    few = [replace(spec, n=25) for spec in shifted]
    for other in WINDOWS:
        jobs += reader_jobs(few, 12, other, " (25 scenes)")
    return table("reading", jobs)


def effect_jobs(specs: list[SceneSpec], classifiers: tuple = CLASSIFIERS, views: tuple = ("full", "low")) -> list[Job]:
    """Source on both views and episodic Diffusion-TTA on these, every classifier."""
    return source_jobs(specs, classifiers) + [
        job("diffusion_tta", tuned(c, view), c, spec, f"diffusion_tta/{view}", batch=25)
        for spec in specs
        for c in classifiers
        for view in views
    ]


def heldout() -> list[Records]:
    """The effect where the settings were chosen: held-out corruptions, severities 3 and 5, other scenes."""
    grid = [(name, severity) for name in HELD_OUT for severity in (3, 5)]
    return table("heldout", effect_jobs([SceneSpec(75, *at, "test", 8000 + 75 * i) for i, at in enumerate(grid)]))


def fifteen() -> list[Records]:
    """The effect where nothing was chosen: the 15 test corruptions at severity 5, everything frozen."""
    specs = [SceneSpec(40, name, 5, "test", 40 * i) for i, name in enumerate(TEST)]
    return table("test", effect_jobs(specs) + reader_jobs(specs, 48, chosen_window()))


def clean() -> list[Records]:
    """What it does to clean scenes."""
    return table("clean", effect_jobs([clean_spec()]))


def why() -> list[Records]:
    """From the published settings to ours on the ResNet: each change alone, all together, all with Adam's step.

    The DiT stays frozen. The published rows cost 900 evaluations an image and meet the held-out corruptions alone; all
    others stand at about 96, so that a change is not bought, and meet clean scenes too."""
    resnet, specs = CLASSIFIERS[0], [*select_specs(3500), SceneSpec(100, split="select", start=4000)]
    ours = tuned(resnet)
    published = diffusion_tta.Settings(**{**diffusion_tta.PUBLISHED, "adapt_denoiser": False})
    few = replace(published, pairs=round(ours.updates * ours.pairs / published.updates))

    def by_rule(settings: diffusion_tta.Settings) -> diffusion_tta.Settings:
        return with_rate(resnet, {k: v for k, v in asdict(settings).items() if k != "lr"})

    rows = {
        "few pairs": few,
        "few pairs, Adam 1e-3": replace(few, lr=1e-3),
        "alone: SGD, lr by the rule": by_rule(replace(few, optimizer="sgd")),
        "alone: temperature": replace(few, temperature=ours.temperature),
        "alone: window": replace(few, window=ours.window),
        "alone: stratified t": replace(few, timesteps="stratified"),
        "alone: updates x pairs": replace(few, updates=ours.updates, pairs=ours.pairs),
        "all together": ours,
        "all but SGD: Adam 1e-3": replace(ours, optimizer="adamw", lr=1e-3),
    }
    many = {"published (Adam 1e-5)": published, "published, Adam 1e-3": replace(published, lr=1e-3)}
    jobs = source_jobs(specs, (resnet,))
    for label, settings in (many | rows).items():
        seen = specs if label in rows else specs[:-1]  # ten times the cost: not on the clean scenes
        jobs += [job("diffusion_tta", settings, resnet, spec, label, batch=25) for spec in seen]
    return table("why", jobs)


EXPERIMENTS: dict[str, Callable[[], list[Records]]] = {
    "select": select,
    "reading": reading,
    "heldout": heldout,
    "test": fifteen,
    "clean": clean,
    "why": why,
}
