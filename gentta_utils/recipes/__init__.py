"""How every model in data/models was made: one command per model, resumable, on a CPU or a GPU.

`train` leaves a candidate in data/models/candidates (ignored by git); `promote` makes it the shipped model. A model
that a committed table rests on changes only together with that table.
"""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..common.cache import fingerprint
from ..common.devices import check_device
from ..common.files import write_json
from ..common.paths import MODELS, RESULTS
from ..evaluation.records import load
from ..models import zoo
from ..world import scenes
from . import (
    aligned,
    autoencoder,
    classifiers,
    clip,
    dense,
    dit,
    mae,
    maps,
    quality,
    text_model,
    unconditional,
    variation,
)
from .training import Run, Schedule, training_speed
from .training import train as run_training

LONGEST = 10_000  # minutes, a week
CANDIDATES_FOLDER = MODELS / "candidates"
RECIPES = classifiers.RECIPES | mae.RECIPES  # of classifiers

# recipes that say themselves how their model is built, trained, written and measured
OWN = unconditional.RECIPES | clip.RECIPES | autoencoder.RECIPES | text_model.RECIPES | maps.RECIPES | dense.RECIPES
OWN |= variation.RECIPES


def names() -> list[str]:
    """Everything that `train` can make."""
    return [*dit.VARIANTS, *RECIPES, *OWN, *aligned.ALIGNED]


def train(name: str, device: str = "cpu", minutes: float | None = None, scratch: bool = False) -> Path:
    """Train a model to the end and write it, with its card, as a candidate; returns its folder.

    Args:
        minutes: shorten or lengthen the schedule to about so long on this machine; None keeps the recipe's steps.
        scratch: start from the beginning instead of going on from the checkpoint.

    Raises ValueError, before anything is rendered, for an unknown name or device or a length that is none, and for a
    checkpoint that was begun with another recipe or length."""
    if name not in names():
        raise ValueError(f"no recipe for {name!r}: choose one of {', '.join(names())}")
    check_device(device)
    if minutes is not None and not (type(minutes) in (int, float) and 0 < minutes <= LONGEST):
        raise ValueError(f"--minutes {minutes!r}: choose a number above 0, up to {LONGEST:,}")
    folder = CANDIDATES_FOLDER / name
    if name in aligned.ALIGNED:  # its images are kept in parts, the rest takes seconds
        aligned.train(name, folder, *aligned.chosen(name))
        return folder
    seed = dit.VARIANTS[name].seed if name in dit.VARIANTS else 0  # of what the steps draw
    if name in dit.VARIANTS:
        network, loss_of = dit.build(seed, start=dit.VARIANTS[name].start), dit.make_loss(name, device)
        schedule, recipe = dit.VARIANTS[name].schedule, dit.description(name)
    elif name in OWN:
        spec = OWN[name]
        network, loss_of, schedule, recipe = spec.build(), spec.make_loss(device), spec.schedule, spec.describe()
    else:
        spec = RECIPES[name]
        make_loss = mae.make_loss if isinstance(spec, mae.MaeRecipe) else classifiers.make_loss
        network, loss_of, schedule, recipe = spec.build(), make_loss(spec, device), spec.schedule, asdict(spec)
    if minutes is not None:
        schedule = _fitted(schedule, minutes, network, loss_of, folder, device, scratch)
        if name in mae.RECIPES:  # whose loss changes on the way
            loss_of = make_loss(replace(spec, schedule=schedule), device)
    identity = fingerprint({"recipe": recipe, "schedule": asdict(schedule), "world": scenes.VERSION})
    run = run_training(network, loss_of, schedule, folder, device, scratch, seed, identity=identity)
    speed = training_speed(network, loss_of, schedule, device)  # undisturbed: a run may have shared the machine
    if name in dit.VARIANTS:
        _finish_dit(run, folder, name, speed)
    elif name in OWN:
        _finish_own(run, spec, folder, name, speed)
    else:
        _finish_classifier(run, spec, folder, name, speed)
    return folder


def _fitted(schedule: Schedule, minutes: float, network, loss_of, folder: Path, device: str, scratch: bool) -> Schedule:
    """The schedule with as many steps as take about `minutes` here, or as many as the checkpoint was begun with."""
    begun = None if scratch else Run.steps_of(folder)
    if begun is None:
        begun = max(10, round(minutes * 60 * training_speed(network, loss_of, schedule, device)))
    return replace(schedule, steps=begun)


def promote(name: str) -> list[str]:
    """Make a candidate the shipped model; returns the committed tables that rest on the model it replaces.

    Raises FileNotFoundError where there is no finished candidate."""
    candidate, shipped = CANDIDATES_FOLDER / name, MODELS / name
    if not (candidate / "card.json").is_file():
        raise FileNotFoundError(
            f"no finished candidate at {candidate}: run `python -m gentta_utils train {name}` first"
        )
    stale = _tables_with(zoo.fingerprint(name)) if name in zoo.names() else []
    fresh, old = shipped.with_name(f".{shipped.name}-new"), shipped.with_name(f".{shipped.name}-old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(candidate, fresh, ignore=shutil.ignore_patterns("checkpoint.safetensors"))
    if shipped.is_dir():  # two renames, so that there is a whole model at any time
        shipped.rename(old)
    fresh.rename(shipped)
    zoo.register(name)
    shutil.rmtree(old, ignore_errors=True)
    return stale


def _tables_with(fingerprint: str) -> list[str]:
    rests = lambda path: any(fingerprint in (r.about.get("models") or {}).values() for r in load(path))  # noqa: E731
    return [path.stem for path in sorted(RESULTS.glob("*.npz")) if rests(path)]


def _finish(name: str, run: Run, speed: float, folder: Path, write: Callable[[], dict], measure: Callable) -> None:
    """Write the weights, measure them as they were written, then the card; without a card it is no candidate."""
    (folder / "card.json").unlink(missing_ok=True)
    recipe = write()
    card = {
        "name": name,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "world": scenes.VERSION,
        "recipe": recipe,
        "schedule": asdict(run.schedule),
        "steps": run.step,
        "minutes": round(run.step / speed / 60, 1),  # undisturbed
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {run.device}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "training_loss": round(run.loss, 5),
        "quality": measure(),
        "licence": "MIT, as the repository; trained on rendered scenes alone",
    }
    write_json(folder / "card.json", card)


def _finish_dit(run: Run, folder: Path, name: str, speed: float) -> None:
    def write() -> dict:
        dit.save(run.use_average().cpu(), folder)
        return dit.description(name)

    _finish(name, run, speed, folder, write, lambda: quality.of_denoiser(zoo.load(name, folder=CANDIDATES_FOLDER)))


def _finish_classifier(run: Run, spec: classifiers.ClassifierRecipe, folder: Path, name: str, speed: float) -> None:
    def write() -> dict:
        network = run.use_average().cpu().eval()
        temperature = classifiers.calibrate(network)
        classifiers.save(network, spec, folder)
        described = {name: value for name, value in asdict(spec).items() if name != "schedule"}
        return described | {"temperature": temperature}

    _finish(name, run, speed, folder, write, lambda: quality.of_classifier(zoo.load(name, folder=CANDIDATES_FOLDER)))


def _finish_own(run: Run, spec, folder: Path, name: str, speed: float) -> None:
    def write() -> dict:
        spec.save(run.use_average().cpu().eval(), folder)
        return spec.describe()

    _finish(name, run, speed, folder, write, lambda: spec.measure(zoo.load(name, folder=CANDIDATES_FOLDER)))
