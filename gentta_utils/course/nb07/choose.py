"""The rates that no other notebook chose: those of the image methods on the larger CLIP, on the validation corruptions.

`measure select_grid` writes them to data/results/grid.json.
"""

from dataclasses import asdict, replace
from functools import lru_cache

from ...common.files import write_json
from ...common.paths import RESULTS
from ...common.validate import frozen
from ...evaluation.chosen import read_choice, tuned
from ...evaluation.records import Records
from ...evaluation.tables import table
from ...methods import METHODS, cotta, dusa, memo, tea
from ...models import zoo
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..trials import CLASSIFIERS, DIT, Wording, how_of, job, right

CHOSEN = RESULTS / "grid.json"
CLIP = "clip/large"
SCENES = {"cotta": 5, "memo": 2, "tea": 3, "dusa": 10, "diffusion_tta": 3}  # under each validation corruption


@lru_cache
def options() -> dict[str, dict]:
    """Method -> label -> settings, what is chosen from: as notebook 02 did, or around what it chose."""
    ours = tuned(CLASSIFIERS[0])
    rates = {
        "cotta": [cotta.Settings(lr=lr) for lr in (1e-4, 1e-3, 1e-2)],
        "memo": [memo.Settings(lr=lr) for lr in (5e-4, 5e-3, 2e-2)],
        "tea": [tea.Settings(lr=lr) for lr in (1e-3, 1e-2)],
        "dusa": [dusa.Settings(lr=lr) for lr in (1e-5, 1e-4, 1e-3)],
        # logits of a CLIP are some ten times as steep in its weights: rates far below the ResNet's
        "diffusion_tta": [replace(ours, lr=lr) for lr in (1e-3, 1e-2, 1e-1, 1.0)],
    }
    return {method: {f"{method} lr {s.lr:g}": s for s in found} for method, found in rates.items()}


def clip_rival(method: str, clip: str):
    """The settings chosen for a method on a CLIP; its defaults where nothing was to choose.

    Raises FileNotFoundError before `measure select_grid` was run, ValueError if the models changed since."""
    if method not in options():
        return METHODS[method].Settings()
    return METHODS[method].Settings(**frozen(read_choice(CHOSEN, "select_grid")["settings"][clip][method]))


def select_grid() -> list[Records]:
    """Choose the rates by right predictions; write them down."""
    jobs = []
    for method, found in options().items():
        n = SCENES[method]
        for i, shift in enumerate(VALIDATION):
            spec = SceneSpec(n, shift, 5, "select", 15_000 + 20 * i)
            for label, s in found.items():
                how = how_of(method, s)
                jobs.append(job(method, s, CLIP, spec, label, DIT, wording=Wording(), **how))
    runs = table("select_grid", jobs)
    best = {m: found[max(found, key=lambda label: right(runs, label))] for m, found in options().items()}
    content = {"settings": {CLIP: {m: asdict(s) for m, s in best.items()}}, "models": {CLIP: zoo.fingerprint(CLIP)}}
    write_json(CHOSEN, content)
    return runs
