"""Notebooks without a browser: papermill, one kernel a run in a process of its own, one record whatever happens."""

import csv
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from .files import atomic_write, write_json
from .paths import NOTEBOOKS, ROOT
from .progress import progress

CELL_TIMEOUT = 900  # seconds
HEADLINE = "application/vnd.gentta.headline+json"
_VERSIONED = ("torch", "torchvision", "diffusers", "timm", "papermill")


def headline(**numbers: float | str) -> None:
    """Called in a notebook: the numbers that its line in the summary table shall show."""
    from IPython.display import display

    text = "  ".join(f"{name} {value}" for name, value in numbers.items())
    display({HEADLINE: numbers, "text/plain": text}, raw=True)


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


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Raise ValueError for a parameter that the notebook does not have; papermill itself would only warn."""
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}: it has {', '.join(sorted(known))}")


def run_notebook(notebook: Path, output: Path, parameters: dict, cell_timeout: int = CELL_TIMEOUT) -> dict:
    """Execute one notebook into `output`; returns its record, also of a failure, and writes it beside as .json.

    Status comes from what was raised, never from the saved file, which says "completed" even of a dead kernel."""
    import papermill
    from traitlets.config import Config

    start, error = time.monotonic(), None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)  # of an earlier run, which must not speak for this one
    with tempfile.TemporaryDirectory(prefix="gentta-") as sockets:  # one socket folder a run: no port can collide
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/s"}}) if os.name != "nt" else None
        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                cwd=str(notebook.parent),
                kernel_name="python3",
                execution_timeout=cell_timeout,
                start_timeout=120,
                progress_bar=False,
                log_output=False,
                **({"config": config} if config else {}),
            )
        except Exception as caught:  # a record for every outcome
            error = f"{type(caught).__name__}: {str(caught).strip()[-2000:]}"
    content = json.loads(output.read_text()) if output.is_file() else {"cells": [], "metadata": {}}
    error = error or _widget_error(content)
    record = {
        "notebook": notebook.stem,
        "status": "failed" if error else "ok",
        "error": error,
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "parameters": parameters,
        "headline": _headlines(content),
        "versions": {name: version(name) for name in _VERSIONED},
        "commit": _commit(),
        "output": str(output),
    }
    write_json(output.with_suffix(".json"), record)
    return record


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
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def run(
    paths: list[Path], folder: Path, parameters: dict | None = None, cell_timeout: int = CELL_TIMEOUT
) -> list[dict]:
    """Execute notebooks one after the other, each in a fresh process, and write `folder`/summary.csv and .md.

    Raises ValueError, before anything starts, for an unknown parameter."""
    parameters = parameters or {}
    for path in paths:
        check_parameters(path, parameters)
    records = []
    bar = progress(paths, desc="course", unit="notebook")
    for path in bar:
        bar.set_postfix_str(path.stem)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # cwd and memory are per process
            task = pool.submit(run_notebook, path.resolve(), folder.resolve() / path.name, parameters, cell_timeout)
            try:
                records.append(task.result())
            except BrokenProcessPool:
                records.append({"notebook": path.stem, "status": "failed", "error": "the runner's process was killed"})
    write_summary(records, folder)
    return records


def write_summary(records: list[dict], folder: Path) -> None:
    """summary.csv and summary.md: notebook, status, seconds, peak memory, headline numbers."""
    rows = [
        {
            "notebook": r["notebook"],
            "status": r["status"],
            "seconds": r.get("seconds", ""),
            "peak memory MB": r.get("peak_memory_mb", ""),
            "headline": "; ".join(f"{k} {v}" for k, v in r.get("headline", {}).items())
            or (r.get("error") or "")[-200:],
        }
        for r in records
    ]

    def to_csv(path: Path) -> None:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(folder / "summary.csv", to_csv)
    atomic_write(folder / "summary.md", lambda path: path.write_text(as_table(rows) + "\n"))


def as_table(rows: list[dict]) -> str:
    """Rows of equal keys as a plain-text (Markdown) table."""
    cells = [list(rows[0]), *[[str(v).replace("\n", " ").replace("|", "/") for v in row.values()] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def publish(notebook: Path) -> dict:
    """Execute a notebook at its defaults and put the result in its place, without run metadata and widget state.

    Its line "**Cost**: ..." is rewritten with what was measured.

    Raises RuntimeError, leaving the notebook as it was, if it fails."""
    os.environ["GENTTA_PROGRESS"] = "0"  # no bars in what is committed
    with tempfile.TemporaryDirectory() as folder:
        record = run([notebook], Path(folder))[0]
        if record["status"] != "ok":
            raise RuntimeError(f"{notebook.name} failed and was left as it was: {record['error']}")
        content = json.loads((Path(folder) / notebook.name).read_text())
    cost = f"**Cost**: {record['seconds']:.0f} seconds on two CPU cores, {record['peak_memory_mb']} MB of memory."
    for cell in content["cells"]:
        cell["source"] = re.sub(r"\*\*Cost\*\*: .*", cost, "".join(cell["source"]))
    for key in ("widgets", "papermill"):
        content["metadata"].pop(key, None)
    for cell in content["cells"]:
        keep = {k: v for k, v in cell["metadata"].items() if k in ("tags", "jupyter")}
        cell["metadata"] = keep
    write_text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    atomic_write(notebook, lambda path: path.write_text(write_text))
    return record
