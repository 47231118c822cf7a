"""The rates that no other notebook chose: those of the image methods on the larger CLIP, on the validation corruptions.

`measure select_grid` writes them to data/results/grid.json.
"""

from dataclasses import asdict

from ...common.files import write_json
from ...common.paths import RESULTS
from ...common.validate import frozen
from ...evaluation.chosen import read_choice
from ...evaluation.records import Records
from ...evaluation.tables import table
from ...methods import METHODS, cotta, memo, tea
from ...models import zoo
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..trials import Wording, how_of, job, right

CHOSEN = RESULTS / "grid.json"
CLIP = "clip/large"
OPTIONS = {  # those that notebook 02 chose from, or around them
    "cotta": {f"cotta lr {lr:g}": cotta.Settings(lr=lr) for lr in (1e-4, 1e-3, 1e-2)},
    "memo": {f"memo lr {lr:g}": memo.Settings(lr=lr) for lr in (5e-4, 5e-3, 2e-2)},
    "tea": {f"tea lr {lr:g}": tea.Settings(lr=lr) for lr in (1e-3, 1e-2)},
}
SCENES = {"cotta": 5, "memo": 2, "tea": 3}  # under each of the four validation corruptions


def clip_rival(method: str, clip: str):
    """The settings chosen for a method on a CLIP; its defaults where nothing was to choose.

    Raises FileNotFoundError before `measure select_grid` was run, ValueError if the models changed since."""
    if method not in OPTIONS:
        return METHODS[method].Settings()
    return METHODS[method].Settings(**frozen(read_choice(CHOSEN, "select_grid")["settings"][clip][method]))


def select_grid() -> list[Records]:
    """Choose the rates by right predictions; write them down."""
    jobs = []
    for method, options in OPTIONS.items():
        n = SCENES[method]
        for i, shift in enumerate(VALIDATION):
            spec = SceneSpec(n, shift, 5, "select", 15_000 + 20 * i)
            for label, s in options.items():
                how = how_of(method, s)
                jobs.append(job(method, s, CLIP, spec, label, None, wording=Wording(), **how))
    runs = table("select_grid", jobs)
    best = {m: options[max(options, key=lambda label: right(runs, label))] for m, options in OPTIONS.items()}
    content = {"settings": {CLIP: {m: asdict(s) for m, s in best.items()}}, "models": {CLIP: zoo.fingerprint(CLIP)}}
    write_json(CHOSEN, content)
    return runs
