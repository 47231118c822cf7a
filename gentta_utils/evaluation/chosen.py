"""The settings that were chosen on the validation corruptions, read from data/results."""

from pathlib import Path

from ..common.files import read_json
from ..common.paths import RESULTS
from ..common.validate import frozen
from ..methods import METHODS, diffusion_tta
from ..models import zoo

DIFFUSION_TTA = RESULTS / "diffusion_tta.json"


def read_choice(path: Path, job: str) -> dict:
    """What `measure JOB` wrote down.

    Raises FileNotFoundError before it was run, ValueError if it is damaged or the models changed."""
    again = f"run `python -m gentta_utils measure {job}`"
    if not path.is_file():
        raise FileNotFoundError(f"no settings at {path}: {again}")
    fix = f"run `git checkout -- data/results`, or make it with `python -m gentta_utils measure {job}`"
    content = read_json(path, fix)
    if not isinstance(content, dict) or not {"models", "settings"} & set(content):
        raise ValueError(f"{path} is damaged (it holds no chosen settings): {fix}")
    changed = [name for name, checksum in content.get("models", {}).items() if zoo.fingerprint(name) != checksum]
    if changed:
        raise ValueError(f"the settings at {path} were chosen for another {', '.join(changed)}: {again}")
    return content


def _one(choices: dict, key: str, what: str):
    """An entry of what was chosen. Raises ValueError, with the choices, for one that is not among it."""
    if key not in choices:
        raise ValueError(f"no settings were chosen for {what} {key!r}: choose one of {', '.join(choices)}")
    return choices[key]


def choice() -> dict:
    """What `select` wrote down. Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return read_choice(DIFFUSION_TTA, "select")


def tuned(classifier: str, view: str = "full", **changes) -> diffusion_tta.Settings:
    """The chosen settings of Diffusion-TTA for a classifier and view; raises as `choice`."""
    settings = _one(_one(choice()["settings"], view, "the view"), classifier, "classifier")
    return diffusion_tta.Settings(**{**settings, "window": tuple(settings["window"]), **changes})


def chosen_window() -> tuple[int, int]:
    """The chosen window of the Diffusion Classifier; raises as `choice`."""
    return tuple(choice()["window"])


# stages of the pruned reader: 3 pairs of all classes, 6 more of the best 3; 48 evaluations of ten
PRUNED = ((3, 3), (9, 1))
RIVALS = RESULTS / "rivals.json"


def method_of(row: str) -> str:
    """The method of a row, whose name may go on after it."""
    return row.split(" ")[0]


def chosen_rows(classifier: str) -> list[str]:
    """The rows whose settings `select_rivals` chose for a classifier, none for one that it did not meet."""
    return list(read_choice(RIVALS, "select_rivals")["settings"].get(classifier, {})) if RIVALS.is_file() else []


def rival(row: str, classifier: str):
    """The settings that `select_rivals` wrote down.

    Raises FileNotFoundError before it was run, ValueError for a row or a classifier that it did not meet."""
    chosen = _one(read_choice(RIVALS, "select_rivals")["settings"], classifier, "classifier")
    values = _one(chosen, row, "the row")
    if "window" in values:
        values["window"] = tuple(values["window"])
    return METHODS[method_of(row)].Settings(**values)


DIFFUSION_TTA_TEXT = RESULTS / "diffusion_tta_text.json"


def text_choice() -> dict:
    """What `measure select_text` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return read_choice(DIFFUSION_TTA_TEXT, "select_text")


def tuned_text(clip: str, view: str = "full", kind: str | None = None, **changes) -> diffusion_tta.Settings:
    """The chosen settings of Diffusion-TTA for a CLIP on a view, or for a kind of adaptation on the full view;
    raises as `text_choice`, ValueError for a CLIP, a view or a kind that nothing was chosen for."""
    content = text_choice()
    if kind is None:
        values = _one(_one(content["settings"], view, "the view"), clip, "the CLIP")
    else:
        values = _one(_one(content["kinds"], clip, "the CLIP"), kind, "the kind")
    return diffusion_tta.Settings(**frozen(values) | changes)


def text_rival(clip: str, row: str):
    """The chosen settings of "tent" for a CLIP, or of "sd_lora" for the smaller one; raises as `tuned_text`."""
    values = _one(_one(text_choice()["rivals"], clip, "the CLIP"), row, "the row")
    return METHODS[{"sd_lora": "adapted_reader"}.get(row, row)].Settings(**frozen(values))


PROMPT = RESULTS / "prompt.json"


def prompt_choice() -> dict:
    """What `measure select_prompt` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return read_choice(PROMPT, "select_prompt")


def prompted(method: str, clip: str, labels: str = "category", **changes):
    """The chosen settings of "tpt", "difftpt", "zero" or "mta" for a CLIP, on the views chosen for a label set, with
    changes; raises as `prompt_choice`, KeyError for what it did not choose."""
    content = prompt_choice()
    values = content["settings"][clip][method] | content["views"][labels] | changes
    return METHODS[method].Settings(**values)


MAPS = RESULTS / "diffusion_tta_maps.json"


def maps_choice() -> dict:
    """What `measure select_maps` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return read_choice(MAPS, "select_maps")


def tuned_maps(network: str, row: str = "settings", **changes) -> diffusion_tta.Settings:
    """The chosen settings of Diffusion-TTA for a network that answers with maps, or those of another "row" of it, with
    changes; raises as `maps_choice`, ValueError for a network that nothing was chosen for."""
    return diffusion_tta.Settings(**frozen(_one(maps_choice()[row], network, "the network")) | changes)


def map_controls(network: str) -> dict[str, tuple]:
    """Row -> (method, settings) of every control that was chosen for a network; raises as `tuned_maps`."""
    rows = _one(maps_choice()["controls"], network, "the network")
    made = lambda c: METHODS[c["method"]].Settings(**frozen(c["settings"]))  # noqa: E731
    return {row: (c["method"], made(c)) for row, c in rows.items()}


SDA = RESULTS / "sda.json"


def selection() -> dict:
    """What `measure select_sda` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return read_choice(SDA, "select_sda")


def purifier(method: str, **changes):
    """The chosen settings of "diffpure", "dda" or "sda", with changes; raises as `selection`."""
    content = selection()
    return METHODS[method].Settings(**content["diffpure" if method == "diffpure" else "alignment"] | changes)
