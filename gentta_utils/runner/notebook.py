"""One notebook without a browser: papermill in a process of its own, one record whatever happens.

`python -m gentta_utils.runner.notebook JOB` is that process; `sweep` starts it.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import psutil

from ..common.files import atomic_write, write_json
from ..common.paths import MODELS, NOTEBOOKS, RESULTS, ROOT

CELL_TIMEOUT = 900  # seconds
HEADLINE = "application/vnd.gentta.headline+json"
_VERSIONED = ("torch", "torchvision", "diffusers", "timm", "papermill")
_GRAMMAR = "rfc3987_syntax"
_KINDS = {kind.__name__: kind for kind in (str, bool, int, float, list, dict)}


def notebooks() -> list[Path]:
    """The course in order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def find(name: str) -> Path:
    """A notebook by path or by the beginning of its name ("00", "02_diffusion"). Raises ValueError if there is none."""
    found = [Path(name)] if Path(name).is_file() else [n for n in notebooks() if n.name.startswith(name)]
    if len(found) != 1:
        choices = ", ".join(n.stem for n in notebooks())
        raise ValueError(f"{len(found)} notebooks match {name!r}: choose one of {choices}")
    return found[0]


def _libraries() -> tuple[ModuleType, ModuleType]:
    """nbformat and papermill, loaded when they are first needed.

    They load jsonschema, which spends most of a second on a grammar of addresses that no notebook is checked for. It
    does without where that grammar is not installed, so the name is held empty meanwhile."""
    unused = {} if _GRAMMAR in sys.modules else {_GRAMMAR: None}
    sys.modules.update(unused)
    try:
        with warnings.catch_warnings():  # an encoding that a library of theirs does not state is not ours
            warnings.simplefilter("ignore", EncodingWarning)
            import nbformat
            import papermill
    finally:
        for name in unused:
            del sys.modules[name]
    return nbformat, papermill


# --- parameters ------------------------------------------------------------------------------------------------------


def parameters_of(notebook: Path) -> dict[str, str]:
    """name -> type of its parameters cell, whose lines are `name: type = value  # help`; "None" without a type, and
    ending in "| None" where the default is None.

    Raises ValueError if it is no notebook, or has not just one such cell: papermill would run the defaults then."""
    nbformat, papermill = _libraries()
    try:
        cells = nbformat.read(notebook, as_version=4).cells
        tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        found = papermill.inspect_notebook(notebook)
    except Exception as error:  # each of their readers has its own classes
        raise ValueError(f"{notebook} cannot be read as a notebook of the course: {error!r}") from error
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged `parameters`: give it exactly one")
    optional = {True: " | None", False: ""}
    return {name: f"{p['inferred_type_name']}{optional[p['default'] == 'None']}" for name, p in found.items()}


def check_parameters(notebook: Path, parameters: dict) -> dict:
    """The parameters with the types that the notebook states; text, as a command line gives it, is read as that type.
    A parameter whose default is None also takes None.

    Raises ValueError for a parameter that the notebook does not have (papermill itself would only warn) and for a value
    of another type."""
    known, checked = parameters_of(notebook), {}
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}: it has {', '.join(sorted(known))}")
    for name, value in parameters.items():
        if known[name].endswith("| None") and value in (None, "None", "null"):
            checked[name] = None
            continue
        kind = _KINDS.get(known[name].removesuffix(" | None").partition("[")[0])
        typed = read_value(value) if isinstance(value, str) and kind is not str else value
        if kind is float and type(typed) is int:
            typed = float(typed)
        if kind is not None and type(typed) is not kind:  # not isinstance: True is no int
            raise ValueError(f"{notebook.name}: {name} is {known[name]}, which {value!r} is not")
        checked[name] = typed
    return checked


def read_value(text: str):
    """Text as JSON or as a Python literal (5, true, True, [1, 2]) where it is one, else as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def read_preset(path: Path) -> dict:
    """Parameters from a YAML file, as `papermill -f` takes them. Raises ValueError if it holds something else."""
    from papermill.iorw import read_yaml_file

    try:
        content = read_yaml_file(str(path))
    except Exception as error:  # the classes of the YAML reader are its own
        raise ValueError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no parameters: write one `name: value` per line")
    return content


# --- one run ---------------------------------------------------------------------------------------------------------


def made_from(notebook: Path) -> dict:
    """What a run's numbers depend on, beside its parameters: hashes of the notebook's code, of the package, of the
    models and tables in data/, and the versions of the libraries."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\0".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")  # prose and outputs do not count
    return {
        "notebook": hashlib.sha256(code.encode()).hexdigest()[:16],
        "package": _digest((ROOT / "gentta_utils").rglob("*.py")),
        "data": _digest([*MODELS.glob("checksums.json"), *RESULTS.glob("*.npz")]),
        "versions": {name: version(name) for name in _VERSIONED},
    }


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.parent.name}/{path.name}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: dict,
    cell_timeout: int = CELL_TIMEOUT,
    told: Callable[[int, int], None] = lambda cell, cells: None,
) -> dict:
    """Execute one notebook into `output`; returns its record, also of a failure, and writes it beside as .json.

    `told` is called as each cell starts with its number from 1 on, and how many the notebook has.

    Status comes from what was raised, never from the saved file, which says "completed" even of a dead kernel. What an
    earlier run left stays until this one has ended. Raises OSError if the results cannot be written."""
    _, papermill = _libraries()
    from traitlets.config import Config

    start, error, problem, source = time.monotonic(), None, None, made_from(notebook)
    record_path = output.with_suffix(".json")  # goes first and comes last: it never speaks for another run's notebook
    with tempfile.TemporaryDirectory(prefix="gentta-") as scratch:
        # one socket folder per run: no port can collide; papermill saves after every cell, so not yet to `output`
        draft = Path(scratch) / "draft.ipynb"
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{scratch}/s"}}) if os.name != "nt" else None
        try:
            papermill.execute_notebook(
                str(notebook),
                str(draft),
                parameters=parameters,
                cwd=str(notebook.parent),
                kernel_name="python3",
                execution_timeout=cell_timeout,
                start_timeout=120,
                progress_bar=False,
                log_output=False,
                on_cell_start=_numbered(notebook, told),
                **({"config": config} if config else {}),
            )
        except Exception as caught:  # a record for every outcome
            error, problem = f"{type(caught).__name__}: {_end(caught)}", _problem(caught)
            if type(caught).__name__ == "DeadKernelError":
                error = f"the kernel was killed, perhaps for lack of memory ({error})"
        if draft.is_file():
            atomic_write(output, lambda path: (shutil.copyfile(draft, path), record_path.unlink(missing_ok=True)))
        else:
            record_path.unlink(missing_ok=True)
            output.unlink(missing_ok=True)
    content = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"cells": [], "metadata": {}}
    error = error or _widget_error(content)
    record = {
        "notebook": notebook.stem,
        "status": "failed" if error else "ok",
        "error": error,
        **({"problem": problem} if problem else {}),
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_mb": _peak_memory(),
        "parameters": parameters,
        "headline": _headlines(content),
        "made_from": source,
        "commit": _commit(),
        "output": str(output),
    }
    write_json(record_path, record)
    return record


def _numbered(notebook: Path, told: Callable[[int, int], None]) -> Callable:
    """A hook for nbclient that counts as the notebook does: papermill's own cell of parameters has no number."""
    cells, added = len(json.loads(notebook.read_text(encoding="utf-8"))["cells"]), []

    def started(cell: dict, cell_index: int) -> None:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            added.append(cell_index)
        told(cell_index + 1 - len(added), cells)

    return started


def _peak_memory() -> int | None:
    """Of the largest process that this one started and that has ended, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Unix
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // unit


def _problem(caught: Exception) -> str | None:
    """What a cell raised, whole, without the traceback before it; None for what no cell raised."""
    return f"{caught.ename}: {caught.evalue}" if hasattr(caught, "ename") else None


def _end(caught: Exception, size: int = 2000) -> str:
    """The end of a message, from the beginning of a line on: at least all that the cell's own error says."""
    text, size = str(caught).strip(), max(size, len(_problem(caught) or ""))
    return text if len(text) <= size else "...\n" + text[text.rfind("\n", 0, len(text) - size) + 1 :]


def family(pid: int | None = None) -> list[psutil.Process]:
    """All processes below this one, or below `pid`: a run's kernel, and what the kernel started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _die_with_the_runner() -> None:
    """Standard input is a pipe that nobody writes to: it ends when the runner does, even by kill -9."""
    os.read(0, 1)
    for process in family():
        process.kill()
    os._exit(1)


def _main(text: str) -> None:
    threading.Thread(target=_die_with_the_runner, daemon=True).start()
    job = json.loads(text)

    def told(cell: int, cells: int) -> None:
        print(json.dumps({"cell": cell, "cells": cells}), flush=True)  # for `jobs`, which listens

    run_notebook(Path(job["notebook"]), Path(job["output"]), job["parameters"], job["cell_timeout"], told)


def _headlines(content: dict) -> dict:
    outputs = [o for cell in content["cells"] for o in cell.get("outputs", [])]
    return {k: v for o in outputs for k, v in o.get("data", {}).get(HEADLINE, {}).items()}


def _widget_error(content: dict) -> str | None:
    """An exception inside a widget's output leaves the run green: it sits only in the widget state."""
    states = (
        content["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    )
    for state in states.values():
        for output in state.get("state", {}).get("outputs", []):
            if output.get("output_type") == "error":
                return f"in a widget: {output.get('ename')}: {output.get('evalue')}"
    return None


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    _main(sys.argv[1])
