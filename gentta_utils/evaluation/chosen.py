"""The settings that were chosen on the validation corruptions, read from data/results."""

import json
from pathlib import Path

from ..common.paths import RESULTS
from ..common.validate import frozen
from ..methods import METHODS, diffusion_tta
from ..models import zoo

DIFFUSION_TTA = RESULTS / "diffusion_tta.json"


def _read(path: Path, job: str) -> dict:
    """What `measure JOB` wrote down. Raises FileNotFoundError before it was run, ValueError if the models changed."""
    again = f"run `python -m gentta_utils measure {job}`"
    if not path.is_file():
        raise FileNotFoundError(f"no settings at {path}: {again}")
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, checksum in content["models"].items() if zoo.fingerprint(name) != checksum]
    if changed:
        raise ValueError(f"the settings at {path} were chosen for another {', '.join(changed)}: {again}")
    return content


def choice() -> dict:
    """What `select` wrote down. Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return _read(DIFFUSION_TTA, "select")


def tuned(classifier: str, view: str = "full", **changes) -> diffusion_tta.Settings:
    """The chosen settings of Diffusion-TTA for a classifier and view; raises as `choice`."""
    settings = choice()["settings"][view][classifier]
    return diffusion_tta.Settings(**{**settings, "window": tuple(settings["window"]), **changes})


def chosen_window() -> tuple[int, int]:
    """The chosen window of the Diffusion Classifier; raises as `choice`."""
    return tuple(choice()["window"])


RIVALS = RESULTS / "rivals.json"


def method_of(row: str) -> str:
    """The method of a row, whose name may go on after it."""
    return row.split(" ")[0]


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
    return METHODS[method_of(row)].Settings(**values)


DIFFUSION_TTA_TEXT = RESULTS / "diffusion_tta_text.json"


def text_choice() -> dict:
    """What `measure select_text` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return _read(DIFFUSION_TTA_TEXT, "select_text")


def tuned_text(clip: str, view: str = "full", kind: str = "clip_full", **changes) -> diffusion_tta.Settings:
    """The chosen settings of Diffusion-TTA for a CLIP on a view, or for another kind of adaptation on the full view;
    raises as `text_choice`, KeyError for an unknown kind."""
    content = text_choice()
    values = content["settings"][view][clip] if kind == "clip_full" else content["kinds"][clip][kind]
    return diffusion_tta.Settings(**frozen(values) | changes)


def text_rival(clip: str, row: str):
    """The chosen settings of "tent" for a CLIP, or of "sd_lora" for the smaller one; raises as `text_choice`."""
    return METHODS[{"sd_lora": "adapted_reader"}.get(row, row)].Settings(**frozen(text_choice()["rivals"][clip][row]))


PROMPT = RESULTS / "prompt.json"


def prompt_choice() -> dict:
    """What `measure select_prompt` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return _read(PROMPT, "select_prompt")


def prompted(method: str, clip: str, labels: str = "category", **changes):
    """The chosen settings of "tpt", "difftpt", "zero" or "mta" for a CLIP, on the views chosen for a label set, with
    changes; raises as `prompt_choice`, KeyError for what it did not choose."""
    content = prompt_choice()
    values = content["settings"][clip][method] | content["views"][labels] | changes
    return METHODS[method].Settings(**values)


SDA = RESULTS / "sda.json"


def selection() -> dict:
    """What `measure select_sda` wrote down.

    Raises FileNotFoundError before it was run, ValueError if the models changed since."""
    return _read(SDA, "select_sda")


def purifier(method: str, **changes):
    """The chosen settings of "diffpure", "dda" or "sda", with changes; raises as `selection`."""
    content = selection()
    return METHODS[method].Settings(**content["diffpure" if method == "diffpure" else "alignment"] | changes)
