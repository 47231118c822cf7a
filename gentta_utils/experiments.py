"""The tables of the course: which method meets which stream. `python -m gentta_utils measure NAME` makes one.

Everything is chosen on the four held-out corruptions, on scenes of the "select" split (`select`), and written to
data/results/diffusion_tta.json; the 15 test corruptions are looked at only by `test`, on other scenes, afterwards.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from . import zoo
from .corruptions import HELD_OUT, TEST
from .datasets import SceneSpec, Stream, stream
from .errors import ErrorTable, error_table
from .evaluate import Job, Records, fingerprint, run, table
from .files import write_json
from .methods import METHODS, diffusion_classifier, diffusion_tta, source
from .methods.base import Models
from .paths import CACHE, RESULTS

CLASSIFIERS = ("classifier/resnet", "classifier/vit")
DIT = "denoiser/dit"
CHOSEN = RESULTS / "diffusion_tta.json"
UNTOUCHED = ("shot_noise", "glass_blur", "motion_blur", "snow", "frost", "elastic")  # not even seen by the trial

# 10 settings around one start, each the start with one change; evaluations an image are equal
START = dict(updates=12, pairs=16, window=(150, 600), temperature=3.0, noise="fresh")
CANDIDATES = {
    "start": {},
    "6 x 32": dict(updates=6, pairs=32),
    "24 x 8": dict(updates=24, pairs=8),
    "T 2": dict(temperature=2.0),
    "T 5": dict(temperature=5.0),
    "t 100..450": dict(window=(100, 450)),
    "t 250..750": dict(window=(250, 750)),
    "delta .35": dict(delta=0.35),
    "delta 1.4": dict(delta=1.4),
    "antithetic": dict(noise="antithetic"),
}
DELTA = 0.7
WINDOWS = [(0, 1000), (40, 150), (100, 450), (150, 450), (150, 600), (200, 700), (250, 750), (300, 800), (600, 1000)]


def models(classifier: str, denoiser: str | None = DIT, precision: str = "auto") -> Models:
    """Shipped models by name, loaded once a process."""
    return Models(zoo.cached(classifier), zoo.cached(denoiser, precision) if denoiser else None)


def job(
    method: str, settings, classifier: str, spec: SceneSpec, denoiser: str | None = DIT, label: str = "", **how
) -> Job:
    """One run: what it depends on, and the call. `how` goes to `evaluate.run`; `label` names the row in a table."""
    used = {"classifier": classifier, **({"denoiser": denoiser} if denoiser else {})}
    about = {
        "method": method,
        "label": label or method,
        "settings": asdict(settings),
        "classifier": classifier,
        "models": {role: zoo.fingerprint(name) for role, name in used.items()},
        "stream": spec.describe(),
        "select": "none" if method == "source" else "held-out",
    }

    def work() -> Records:
        configured = METHODS[method].configure(models(classifier, denoiser), settings)
        return run(configured, stream(spec), about=about, **how)

    return about, work


def source_jobs(specs: list[SceneSpec], classifiers: tuple = CLASSIFIERS) -> list[Job]:
    """The frozen classifiers on both views: the low-pass control belongs to every table."""
    return [
        job("source", source.Settings(view), c, spec, denoiser=None, label=f"source/{view}", batch=100)
        for spec in specs
        for c in classifiers
        for view in ("full", "low")
    ]


# --- choosing --------------------------------------------------------------------------------------------------------


def held_out_images(n: int = 8, start: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """n selection scenes under each held-out corruption at severity 5, for the learning rate: images and ids."""
    parts = [stream(SceneSpec(n, name, 5, "select", start + i * n)) for i, name in enumerate(HELD_OUT)]
    return torch.cat([p.images for p in parts]), torch.cat([p.ids for p in parts])


def with_rate(classifier: str, settings: dict, delta: float = DELTA, denoiser: str = DIT) -> diffusion_tta.Settings:
    """Settings with the learning rate of the rule for this classifier."""
    trial = diffusion_tta.Settings(lr=1.0, **settings)
    rate = diffusion_tta.learning_rate(models(classifier, denoiser), *held_out_images(), trial, delta)
    return replace(trial, lr=float(f"{rate:.3g}"))


def select_specs(severity: int = 5) -> list[SceneSpec]:
    """4 x 25 selection scenes, 25 under each held-out corruption."""
    return [SceneSpec(25, name, severity, "select", 3000 + 25 * i) for i, name in enumerate(HELD_OUT)]


def select() -> list[Records]:
    """Choose window, temperature, updates x pairs, step and view on held-out corruptions; write them down."""
    jobs = source_jobs(select_specs())
    for view in ("full", "low"):
        for label, change in CANDIDATES.items():
            change = dict(change)
            delta = change.pop("delta", DELTA)
            for classifier in CLASSIFIERS:
                settings = with_rate(classifier, {**START, **change, "view": view}, delta)
                jobs += [
                    job("diffusion_tta", settings, classifier, spec, label=f"{label}/{view}", batch=25)
                    for spec in select_specs()
                ]
    runs = table("select", jobs)
    write_json(CHOSEN, choose(runs))
    return runs


def choose(runs: list[Records]) -> dict:
    """The settings with the largest mean gain over both classifiers, for each view; ties go to the earlier one."""
    chosen: dict = {"window": list(best_window()), "views": {}}
    for view in ("full", "low"):
        gains = {}
        for label in CANDIDATES:
            mine = [r for r in runs if r.about["label"] == f"{label}/{view}"]
            gains[label] = sum(float(r.right_after.sum()) - float(r.right_before.sum()) for r in mine)
        best = max(gains, key=lambda label: gains[label])
        settings = {r.about["classifier"]: r.about["settings"] for r in runs if r.about["label"] == f"{best}/{view}"}
        chosen["views"][view] = {"candidate": best, "settings": settings}
    return chosen


def tuned(classifier: str, view: str = "full", **changes) -> diffusion_tta.Settings:
    """The chosen settings for a classifier and view. Raises FileNotFoundError before `measure select` was run."""
    if not CHOSEN.is_file():
        raise FileNotFoundError(f"no settings at {CHOSEN}: run `python -m gentta_utils measure select`")
    settings = json.loads(CHOSEN.read_text())["views"][view]["settings"][classifier]
    return diffusion_tta.Settings(**{**settings, "window": tuple(settings["window"]), **changes})


# --- the Diffusion Classifier ----------------------------------------------------------------------------------------


def errors_of(
    spec: SceneSpec, pairs: int, window: tuple[int, int], denoiser: str = DIT, precision: str = "auto"
) -> ErrorTable:
    """The error table of a stream, resumable, from the cache where it is there."""
    s: Stream = stream(spec)
    network = zoo.cached(denoiser, precision)
    key = {"spec": spec.describe(), "pairs": pairs, "window": window, "denoiser": zoo.fingerprint(denoiser)}
    folder = CACHE / "errors" / fingerprint({**key, "precision": network.precision})
    return error_table(network, s.images, s.ids, pairs, window, cache=folder)


def best_window(pairs: int = 96) -> tuple[int, int]:
    """The window in which the Diffusion Classifier reads 4 x 25 selection scenes best."""
    right = dict.fromkeys(WINDOWS, 0)
    for spec in select_specs():
        errors, labels = errors_of(spec, pairs, (0, 1000)), stream(spec).labels
        for window in WINDOWS:
            right[window] += int((errors.scores(window).argmin(1) == labels).sum())
    return max(WINDOWS, key=lambda window: right[window])


def chosen_window() -> tuple[int, int]:
    """What `select` wrote down."""
    return tuple(json.loads(CHOSEN.read_text())["window"]) if CHOSEN.is_file() else (150, 600)


def reader_job(spec: SceneSpec, pairs: int, window: tuple[int, int], of: int, drawn: tuple[int, int]) -> Job:
    """The Diffusion Classifier with `pairs` pairs inside `window`, from a table of `of` pairs drawn in `drawn`."""
    about = {
        "method": "diffusion_classifier",
        "label": f"reader/{pairs}/{window[0]}..{window[1]}",
        "settings": asdict(diffusion_classifier.Settings(pairs=pairs, window=window)),
        "classifier": CLASSIFIERS[0],
        "models": {"denoiser": zoo.fingerprint(DIT)},
        "stream": spec.describe(),
        "drawn": [of, *drawn],
        "select": "held-out",
    }

    def work() -> Records:
        s = stream(spec)
        scores = -errors_of(spec, of, drawn).thin(pairs).scores(window)
        with torch.no_grad():
            before = models(CLASSIFIERS[0], None).classifier(s.images)
        zeros = torch.zeros(len(s))
        protocol = {"order": s.order, "reset": "per_image", "batch": 10, "device": f"cpu {zoo.cached(DIT).precision}"}
        nfe = {"denoiser fwd": float(pairs * scores.shape[1])}
        columns = (s.ids, s.labels, before, scores, zeros[:, None], zeros)
        return Records(*(c.numpy() for c in columns), nfe, {**about, "protocol": protocol})

    return about, work


def reading() -> list[Records]:
    """Does the diffusion model read shifted scenes? Held-out corruptions and clean, by number of pairs and window."""
    specs = [SceneSpec(100, name, 5, "test", 5000 + 100 * i) for i, name in enumerate(HELD_OUT)]
    specs.append(SceneSpec(500, split="test", start=6000))
    window = chosen_window()
    jobs = source_jobs(specs)
    for spec in specs:
        jobs += [reader_job(spec, pairs, window, 48, window) for pairs in (6, 12, 24, 48)]
        jobs += [reader_job(spec, 48, w, 48, (0, 1000)) for w in WINDOWS]
    return table("reading", jobs)


# --- Diffusion-TTA ---------------------------------------------------------------------------------------------------


def effect_jobs(specs: list[SceneSpec]) -> list[Job]:
    """Source and episodic Diffusion-TTA, both classifiers, both views."""
    return source_jobs(specs) + [
        job("diffusion_tta", tuned(c, view), c, spec, label=f"diffusion_tta/{view}")
        for spec in specs
        for c in CLASSIFIERS
        for view in ("full", "low")
    ]


def heldout() -> list[Records]:
    """The effect where the settings were chosen: held-out corruptions, severities 3 and 5, other scenes."""
    specs = [
        SceneSpec(75, name, severity, "test", 8000 + 75 * (2 * i + (severity == 5)))
        for i, name in enumerate(HELD_OUT)
        for severity in (3, 5)
    ]
    return table("heldout", effect_jobs(specs))


def test() -> list[Records]:
    """The effect where nothing was chosen: the 15 test corruptions at severity 5, everything frozen."""
    specs = [SceneSpec(40, name, 5, "test", 40 * i) for i, name in enumerate(TEST)]
    window = chosen_window()
    return table("test", effect_jobs(specs) + [reader_job(spec, 48, window, 48, window) for spec in specs])


def clean() -> list[Records]:
    """What it does to clean scenes."""
    return table("clean", effect_jobs([SceneSpec(500, split="test", start=6000)]))


def why() -> list[Records]:
    """From the published settings to ours on the ResNet, each change alone and all together."""
    resnet, specs = CLASSIFIERS[0], [*select_why(), SceneSpec(100, split="select", start=4000)]
    ours = tuned(resnet)
    published = diffusion_tta.Settings(**diffusion_tta.PUBLISHED)
    rows = {
        "published, Adam 1e-5": published,
        "Adam 1e-3": replace(published, lr=1e-3),
        "SGD 5e-3": replace(published, optimizer="sgd", lr=5e-3),
        "SGD, lr by the rule": by_rule(resnet, published, optimizer="sgd"),
        "+ temperature": by_rule(resnet, published, optimizer="sgd", temperature=ours.temperature),
        "+ window": by_rule(resnet, published, optimizer="sgd", window=ours.window),
        "+ stratified t": by_rule(resnet, published, optimizer="sgd", timesteps="stratified"),
        "+ updates x pairs": by_rule(resnet, published, optimizer="sgd", updates=ours.updates, pairs=ours.pairs),
        "all together": ours,
        "all, but Adam 1e-3": replace(ours, optimizer="adamw", lr=1e-3),
        "all, but Adam 1e-4": replace(ours, optimizer="adamw", lr=1e-4),
    }
    jobs = source_jobs(specs, (resnet,))
    for label, settings in rows.items():
        jobs += [job("diffusion_tta", settings, resnet, spec, label=label, batch=25) for spec in specs]
    return table("why", jobs)


def select_why() -> list[SceneSpec]:
    """4 x 25 other selection scenes under the held-out corruptions."""
    return [SceneSpec(25, name, 5, "select", 3500 + 25 * i) for i, name in enumerate(HELD_OUT)]


def by_rule(classifier: str, settings: diffusion_tta.Settings, **changes) -> diffusion_tta.Settings:
    """`settings` with changes, and the learning rate that the rule gives for the result."""
    return with_rate(classifier, {k: v for k, v in asdict(replace(settings, **changes)).items() if k != "lr"})


EXPERIMENTS: dict[str, Callable[[], list[Records]]] = {
    "select": select,
    "reading": reading,
    "heldout": heldout,
    "test": test,
    "clean": clean,
    "why": why,
}
