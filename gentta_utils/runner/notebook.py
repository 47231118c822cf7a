"""One notebook without a browser: papermill in a process of its own, one record whatever happens.

`python -m gentta_utils.runner.notebook JOB` is that process; `sweep` starts it.
"""

import ast
import errno
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
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil

from ..common.files import atomic_write, write_json
from ..common.paths import MODELS, NOTEBOOKS, RESULTS, ROOT, SCENES
from ..common.versions import versions
from . import executed

CELL_TIMEOUT = 900  # seconds
_GRAMMAR = "rfc3987_syntax"
MARK = "GENTTA_RUN"  # a variable of a run's process, which all that it starts inherits: so they are found again
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
        found = [p for cell in tagged for p in papermill.translators.PythonTranslator.inspect(cell)]
    except Exception as error:  # each of their readers has its own classes
        raise ValueError(f"{notebook} cannot be read as a notebook of the course: {error!r}") from error
    if len(tagged) != 1:
        raise ValueError(f"{notebook.name} has {len(tagged)} cells tagged `parameters`: give it exactly one")
    optional = {True: " | None", False: ""}
    return {p.name: f"{p.inferred_type_name}{optional[p.default == 'None']}" for p in found}


def check_parameters(notebook: Path, parameters: dict, known: dict[str, str] | None = None) -> dict:
    """The parameters with the types that the notebook states; text, as a command line gives it, is read as that type.
    A parameter whose default is None also takes None.

    Args:
        known: what `parameters_of` says of the notebook, where that was asked already.

    Raises ValueError for a parameter that the notebook does not have (papermill itself would only warn), for a value
    of another type, and for one that a record, which is JSON, would not give back as it was."""
    known, checked = known or parameters_of(notebook), {}
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}: it has {', '.join(sorted(known))}")
    for name, value in parameters.items():
        if known[name].endswith("| None") and value in (None, "None", "null"):
            checked[name] = None
            continue
        kind, _, inner = known[name].removesuffix(" | None").rstrip("]").partition("[")
        kind, inner = _KINDS.get(kind), _KINDS.get(inner)
        typed = read_value(value) if isinstance(value, str) and kind is not str else value
        if kind is float and type(typed) is int:
            typed = float(typed)
        right = kind is None or type(typed) is kind  # not isinstance: True is no int
        if not right or (kind is list and inner is not None and any(type(one) is not inner for one in typed)):
            raise ValueError(f"{notebook.name}: {name} is {known[name]}, which {value!r} is not")
        if not _survives_json(typed):
            raise ValueError(
                f"{notebook.name}: {name}={typed!r} cannot be kept in a record: use text, finite numbers, True, False, "
                "None, lists of them, and dictionaries with text as keys"
            )
        checked[name] = typed
    return checked


def _survives_json(value) -> bool:
    """Whether a JSON file gives it back as it was, the types too: 1 is not True, a tuple is no list."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError):  # of which the error of an encoding is one
        return False
    return repr(json.loads(text)) == repr(value)


def read_value(text: str):
    """Text as JSON or as a Python literal (5, true, True, [1, 2]) where it is one, else as it is."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two of a thousand brackets
            continue
    return text


def read_preset(path: Path) -> dict:
    """Parameters from a YAML file, as `papermill -f` takes them. Raises ValueError if it holds something else."""
    _libraries()  # which ignores what a library of papermill's warns of as it is loaded
    from papermill.iorw import read_yaml_file

    try:
        content = read_yaml_file(str(path))
    except Exception as error:  # the classes of the YAML reader are its own
        raise ValueError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no parameters: write one `name: value` per line")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise ValueError(f"{path}: {strange[0]!r} is no name of a parameter: write one `name: value` per line")
    return content


# --- one run ---------------------------------------------------------------------------------------------------------


def made_from(notebook: Path) -> dict:
    """What a run's numbers depend on, beside its parameters: hashes of the notebook's code, of the package, of all in
    data/ that is read (models, chosen settings, tables, scenes), the versions of the libraries, and the precision that
    was asked for (GENTTA_PRECISION; not which processor it then was)."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\0".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")  # prose and outputs do not count
    return {
        "notebook": hashlib.sha256(code.encode()).hexdigest()[:16],
        "package": _digest((ROOT / "gentta_utils").rglob("*.py")),
        "data": _digest(
            [*MODELS.glob("checksums.json"), *RESULTS.glob("*.npz"), *RESULTS.glob("*.json")]
            + [*SCENES.glob("*.npz"), *SCENES.glob("*.json")]
        ),
        "versions": versions(),
        "precision": os.environ.get("GENTTA_PRECISION") or "auto",
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
                language="python",  # of notebooks that do not say it
                execution_timeout=cell_timeout,
                start_timeout=120,
                progress_bar=False,
                log_output=False,
                on_cell_start=_numbered(notebook, told),
                **({"config": config} if config else {}),
            )
        except Exception as caught:  # a record for every outcome
            error, problem = f"{type(caught).__name__}: {_end(caught)}", _problem(caught, cell_timeout)
            if problem and not hasattr(caught, "ename"):
                error = f"{problem} ({error})"
        content = executed.read(draft)
        if content:
            atomic_write(output, lambda path: (shutil.copyfile(draft, path), record_path.unlink(missing_ok=True)))
        else:  # half of one, where the disk is full
            record_path.unlink(missing_ok=True)
            output.unlink(missing_ok=True)
            content, error = {"cells": [], "metadata": {}}, error or "no executed notebook was left"
    headline, error = executed.headline(content), error or executed.wrong(content)
    record = {
        "notebook": notebook.stem,
        "status": "failed" if error else "ok",
        "error": error,
        **({"problem": problem} if problem else {}),
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_mb": _peak_memory(),
        "parameters": parameters,
        "headline": headline,
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


def _problem(caught: Exception, cell_timeout: int = CELL_TIMEOUT) -> str | None:
    """What a cell raised, whole, without the traceback before it, or what happened in words; None for all else."""
    if isinstance(caught, OSError) and caught.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk of temporary files is full: free some space in {tempfile.gettempdir()}, or set TMPDIR"
    words = {
        "CellTimeoutError": f"timed out: a cell took longer than {cell_timeout} seconds (--cell-timeout)",
        "DeadKernelError": "the kernel was killed, perhaps for lack of memory",
    }
    return f"{caught.ename}: {caught.evalue}" if hasattr(caught, "ename") else words.get(type(caught).__name__)


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


def kill_all(mark: str) -> None:
    """End every process that carries this mark, but this one: all that a run started, whoever its parent is by now."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is somebody else's
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()


def _die_with_the_runner() -> None:
    """Standard input is a pipe that nobody writes to: it ends when the runner does, even by kill -9."""
    os.read(0, 1)
    for process in family():
        process.kill()
    if MARK in os.environ:
        kill_all(os.environ[MARK])
    os._exit(1)


def _main(text: str) -> None:
    threading.Thread(target=_die_with_the_runner, daemon=True).start()
    job = json.loads(text)

    def told(cell: int, cells: int) -> None:
        print(json.dumps({"cell": cell, "cells": cells}), flush=True)  # for `processes`, which listens

    run_notebook(Path(job["notebook"]), Path(job["output"]), job["parameters"], job["cell_timeout"], told)


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    _main(sys.argv[1])
