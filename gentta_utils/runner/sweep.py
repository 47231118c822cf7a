"""Many runs: several notebooks, or one over a grid of parameters; on this machine or on a dask cluster.

Every run is a process of its own that leaves an executed notebook and, last, its record. A run whose record was made
from the same notebook, parameters, package, models and libraries is finished and never repeated, so that the same
command, given again after any accident, does what is missing.
"""

import csv
import errno
import hashlib
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from ..common.files import atomic_write
from ..common.text import as_table
from . import costs, probe
from .notebook import CELL_TIMEOUT, check_parameters, made_from, parameters_of, read_value
from .processes import (
    LOCK,
    RUN_TIMEOUT,
    NotebookJob,
    connect,
    environment,
    here,
    on_cluster,
    open_addresses,
    read_record,
)
from .watch import Watch


def grid(
    notebook: Path, axes: list[str], parameters: dict | None = None, preset: dict | None = None
) -> list[tuple[Path, dict]]:
    """Every combination of the axes ("severity=1,3,5" each) as settings for `run`, beside the fixed parameters; both
    win over the values of a preset.

    Raises ValueError for an axis of another form, and for a name that is given twice."""
    kinds, fixed, values = parameters_of(notebook), parameters or {}, {}
    for axis in axes:
        name, _, text = axis.partition("=")
        if not name or not text:
            raise ValueError(f"--grid {axis!r} is not of the form name=a,b,c")
        if not text.strip():
            raise ValueError(f"--grid {axis!r} gives {name} no value: write name=a,b,c")
        if name in values or name in fixed:
            raise ValueError(f"{name} is given twice: a parameter is either in the grid, once, or fixed")
        values[name] = text.split(",")
        if kinds.get(name, "").partition("[")[0] in ("list", "dict"):  # their values have commas of their own
            values[name] = read_value(f"[{text}]")
            if isinstance(values[name], str):
                raise ValueError(f'{name} is {kinds[name]}: write its values as --grid \'{name}=["a", "b"],["c"]\'')
    combinations = itertools.product(*values.values())
    rest = {name: value for name, value in ((preset or {}) | fixed).items() if name not in values}
    return [(notebook, dict(zip(values, c, strict=True)) | rest) for c in combinations]  # names of files begin with it


def run(
    settings: list[tuple[Path, dict]],
    folder: Path,
    workers: int = 1,
    scheduler: str | None = None,
    force: bool = False,
    cell_timeout: int = CELL_TIMEOUT,
    run_timeout: int = RUN_TIMEOUT,
    dry: bool = False,
) -> list[dict]:
    """Do the runs (notebook, parameters) that are not finished, say before what they cost, write `folder`/summary.csv
    and .md; returns the records of all, in order. A failed run stops no other.

    Args:
        workers: runs at a time on this machine.
        scheduler: address of a dask scheduler, or its scheduler file (.json): its workers do the runs instead.
        force: repeat finished runs.
        dry: only list the runs, those finished before and what the others will cost: nothing starts, nothing is
            written, and the records of the finished ones are returned.

    Raises, before anything starts: ValueError for wrong settings, RuntimeError while another runner is at work in the
    folder, OSError if it cannot be written or no scheduler answers."""
    if min(workers, cell_timeout, run_timeout) < 1:
        raise ValueError("workers and time limits are whole numbers from 1 on")
    if not settings:
        raise ValueError("no run is asked for: name a notebook, and for each axis of a grid a value")
    folder, known = folder.resolve(), {path: parameters_of(path) for path in dict.fromkeys(p for p, _ in settings)}
    jobs = [
        NotebookJob(path.resolve(), checked, folder / f"{_name(path, checked)}.ipynb", cell_timeout, run_timeout)
        for path, checked in [(path, check_parameters(path, parameters, known[path])) for path, parameters in settings]
    ]
    if len({job.output for job in jobs}) < len(jobs):
        raise ValueError("two of these runs are the same: name each notebook and each value once")
    with ExitStack() as stack:
        if not dry:
            stack.enter_context(_locked(folder))
        client = stack.enter_context(connect(scheduler)) if scheduler else None
        for address in open_addresses(client) if client else ():
            print(
                f"warning: the scheduler listens at {address} without TLS: whoever reaches it can run code as you; "
                "bind it to 127.0.0.1 or give it a certificate, as the README shows",
                file=sys.stderr,
            )
        sources = {path: made_from(path) for path in {job.notebook for job in jobs}}
        records = {} if force else {j.output: r for j in jobs if (r := finished(j, sources[j.notebook]))}
        todo = [job for job in jobs if job.output not in records]
        slots = sum(client.nthreads().values()) if client else workers
        expected = predicted(todo, folder, lambda: probed(client, workers))
        if dry:
            for job in jobs:
                print(f"{job.name}: {'finished before' if job.output in records else _about(expected[job.output])}")
        print(cost(jobs, todo, slots, folder, expected), flush=True)
        if dry:
            return [records[job.output] for job in jobs if job.output in records]
        if todo and not slots:
            print(f"{scheduler} has no worker yet: the runs begin when the first one comes", flush=True)
        each = [seconds for seconds, _ in expected.values()]
        watch = stack.enter_context(Watch(len(todo), sum(each) / slots if slots and None not in each else None))
        runs = on_cluster(todo, client, watch.told) if client else here(todo, workers, watch.told)
        for job, record in stack.enter_context(closing(runs)):
            if record["status"] == "ok" and record["made_from"] != sources[job.notebook]:
                record |= {"status": "failed", "error": "it was made from other code, models or libraries than here"}
            records[job.output] = record
            watch.ended(job.name, record["status"])
        ordered = [records[job.output] for job in jobs]
        try:
            write_summary(ordered, folder)
        except OSError as error:  # the runs themselves are there
            print(f"{error}; the same command writes the summary, no run is lost", file=sys.stderr)
    return ordered


def _name(notebook: Path, parameters: dict) -> str:
    """Readable, and different for different parameters."""
    if not parameters:
        return notebook.stem
    text = json.dumps(parameters, sort_keys=True)
    readable = re.sub(r"[^\w.=+-]+", "_", "-".join(f"{name}={value}" for name, value in parameters.items()))
    readable = readable.encode()[:80].decode(errors="ignore")  # a file system counts bytes
    return f"{notebook.stem}-{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# --- what is there ---------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for one runner alone; the system takes the lock back when the runner dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another runner is at work in {folder}: wait for it, or choose another folder with --out"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK):  # some cluster file systems
            raise OSError(
                f"cannot write to {folder} ({error.strerror}): choose another folder with --out; nothing was run"
            ) from error
        print(f"{folder} is on a file system without locks: see that no other runner uses it", file=sys.stderr)
        lock = nullcontext()
    with lock:
        yield


def finished(job: NotebookJob, source: dict) -> dict | None:
    """The record of a good earlier run with the same parameters, made from the same `source`; else None."""
    path = job.output.with_suffix(".json")
    record = read_record(path)
    if record is None:
        if path.exists():
            print(f"{path} is not a whole record: this run is done again")
        return None
    wanted = {"status": "ok", "parameters": job.parameters, "made_from": source}
    same = json.dumps({key: record[key] for key in wanted}, sort_keys=True) == json.dumps(wanted, sort_keys=True)
    return record if same and _is_whole(job.output) else None


def _is_whole(path: Path) -> bool:
    """Whether a notebook is there from its first brace to its last: not empty, not cut."""
    try:
        with open(path, "rb") as file:
            begun, size = file.read(1), file.seek(0, 2)
            file.seek(max(0, size - 8))
            return begun == b"{" and file.read().rstrip().endswith(b"}")
    except OSError:
        return False


Expected = tuple[float | None, int]  # seconds, None if not known, and MB of memory, of one run


def probed(client, workers: int) -> float | None:
    """Milliseconds of the probe where the runs will be: here among `workers`, or on the first worker of a cluster."""
    if client is None:
        return probe.speed(environment(workers))
    where = list(client.nthreads())[:1]
    return next(iter(client.run(probe.speed, workers=where).values())) if where else None


def predicted(todo: list[NotebookJob], folder: Path, probe_ms: Callable[[], float | None]) -> dict[Path, Expected]:
    """What each run will probably cost, by its output.

    It takes as long as the runs of its notebook that the folder holds; else as it did where it was measured (`costs`),
    scaled by the probe, which is run only if it is needed; else as the notebook's own line **Cost** says. Nobody
    measured it on a GPU, or with pretrained models."""
    found = [read_record(p) for p in folder.glob("*.json") if not p.name.startswith(".")]
    earlier = [r for r in found if r and r["status"] == "ok"]
    measured, speed = costs.read(), lru_cache(probe_ms)

    @lru_cache  # thousands of runs are of a few kinds
    def of_kind(notebook: Path, fast: bool, ours: bool) -> Expected:
        like = [r for r in earlier if (r["notebook"], r["parameters"].get("fast", False)) == (notebook.stem, fast)]
        if like:
            seconds = float(statistics.median(r["seconds"] for r in like))
            return seconds, max(r.get("peak_memory_mb") or 0 for r in like)
        known = measured.get(notebook.stem, {}).get("fast" if fast else "default")
        stated = re.search(r"\*\*Cost\*\*: (\d+) seconds.*?(\d+) MB", notebook.read_text(encoding="utf-8"))
        if known and ours:
            memory = int(max(c["peak_memory_mb"] for c in known.values()))
            return (costs.predict(known, speed()), memory) if speed() else (None, 0)
        return (float(stated[1]), int(stated[2])) if stated and ours and not fast else (None, 0)

    def kind(job: NotebookJob) -> tuple[Path, bool, bool]:
        where = job.parameters.get("profile", "scenes"), job.parameters.get("device", "cpu")
        return job.notebook, job.parameters.get("fast", False), where == ("scenes", "cpu")

    return {job.output: of_kind(*kind(job)) for job in todo}


def cost(
    jobs: list[NotebookJob], todo: list[NotebookJob], slots: int, folder: Path, expected: dict[Path, Expected]
) -> str:
    """One line: how many runs, how many are finished, how long the others take and what memory."""
    slots = max(slots, 1)  # none on a cluster whose workers are still to come
    seconds = sum(s or 0 for s, _ in expected.values()) / slots
    unknown = {job.notebook.stem for job in todo if expected[job.output][0] is None}
    text = f"Runs in {folder}: {len(jobs)} wanted, {len(jobs) - len(todo)} finished before, {len(todo)} to do"
    if seconds:
        length = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
        text += f", about {length} with {slots} at a time, up to {max(m for _, m in expected.values())} MB each"
    return text + (f"; not known yet how long {', '.join(sorted(unknown))} takes" if unknown else "")


def _about(expected: Expected) -> str:
    return "to do" if expected[0] is None else f"to do, about {expected[0]:.0f} s"


# --- the table -------------------------------------------------------------------------------------------------------


def write_summary(records: list[dict], folder: Path) -> None:
    """summary.csv and summary.md, a row for each run, as `page` shows them."""
    rows = _rows(records)

    def to_csv(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(folder / "summary.csv", to_csv)
    text = page(records, folder)
    atomic_write(folder / "summary.md", lambda path: path.write_text(text, encoding="utf-8"))


def page(records: list[dict], folder: Path) -> str:
    """The summary in Markdown: notebook, parameters, status, seconds, peak memory, headline numbers, what failed.

    The numbers have a column each where all runs are of one notebook."""
    linked = [
        row | {"notebook": f"[{row['notebook']}]({Path(r['output']).name})"}
        for row, r in zip(_rows(records), records, strict=True)
    ]
    bad = sum(r["status"] != "ok" for r in records)
    return f"# {folder.name}\n\nRuns: {len(records)}, failed: {bad}.\n\n{as_table(linked)}\n"


def _rows(records: list[dict]) -> list[dict]:
    one = len({r["notebook"] for r in records}) == 1
    parameters = dict.fromkeys(name for r in records for name in r["parameters"])
    numbers = dict.fromkeys(name for r in records for name in r.get("headline", {}))
    rows = []
    for r in records:
        shown = r.get("headline", {})
        rows.append(
            {
                "notebook": r["notebook"],
                **{name: r["parameters"].get(name, "") for name in parameters},
                "status": r["status"],
                "seconds": r.get("seconds", ""),
                "peak memory MB": r.get("peak_memory_mb", ""),
                **(
                    {name: shown.get(name, "") for name in numbers}
                    if one
                    else {"headline": "; ".join(f"{name} {value}" for name, value in shown.items())}
                ),
                "problem": r.get("problem") or ((r.get("error") or "").strip().splitlines() or [""])[-1],
            }
        )
    return rows
