"""Many runs: several notebooks, or one over a grid of parameters; on this machine or on a dask cluster.

Every run is a process of its own that leaves an executed notebook and, last, its record. A run whose record was made
from the same notebook, parameters, package, models and libraries is finished and never repeated, so that the same
command, given again after any accident, does what is missing.
"""

import csv
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from .batch import CELL_TIMEOUT, as_table, check_parameters, family, made_from, parameters_of, read_value
from .files import atomic_write
from .paths import ROOT
from .progress import progress

RUN_TIMEOUT = 4 * 3600  # seconds
PATIENCE = 30  # seconds until a scheduler must have answered
LOCK = ".lock"


@dataclass(frozen=True)
class Job:
    """One run: a notebook, the parameters that it gets, the file for its result, its limits in seconds."""

    notebook: Path
    parameters: dict
    output: Path
    cell_timeout: int = CELL_TIMEOUT
    run_timeout: int = RUN_TIMEOUT


def grid(notebook: Path, axes: list[str], parameters: dict | None = None) -> list[tuple[Path, dict]]:
    """Every combination of the axes ("severity=1,3,5" each) as settings for `run`, beside the fixed parameters.

    Raises ValueError for an axis of another form, and for a name that is given twice."""
    kinds, fixed, values = parameters_of(notebook), parameters or {}, {}
    for axis in axes:
        name, _, text = axis.partition("=")
        if not name or not text:
            raise ValueError(f"--grid {axis!r} is not of the form name=a,b,c")
        if name in values or name in fixed:
            raise ValueError(f"{name} is given twice: a parameter is either in the grid, once, or fixed")
        values[name] = text.split(",")
        if kinds.get(name, "").partition("[")[0] in ("list", "dict"):  # their values have commas of their own
            values[name] = read_value(f"[{text}]")
            if isinstance(values[name], str):
                raise ValueError(f'{name} is {kinds[name]}: write its values as --grid \'{name}=["a", "b"],["c"]\'')
    combinations = itertools.product(*values.values())
    return [(notebook, fixed | dict(zip(values, combination, strict=True))) for combination in combinations]


def run(
    settings: list[tuple[Path, dict]],
    folder: Path,
    workers: int = 1,
    scheduler: str | None = None,
    force: bool = False,
    cell_timeout: int = CELL_TIMEOUT,
    run_timeout: int = RUN_TIMEOUT,
) -> list[dict]:
    """Do the runs (notebook, parameters) that are not finished, say before what they cost, write `folder`/summary.csv
    and .md; returns the records of all, in order. A failed run stops no other.

    Args:
        workers: runs at a time on this machine.
        scheduler: address of a dask scheduler, or its scheduler file (.json): its workers do the runs instead.
        force: repeat finished runs.

    Raises, before anything starts: ValueError for wrong settings, RuntimeError while another runner is at work in the
    folder, OSError if it cannot be written or no scheduler answers."""
    if min(workers, cell_timeout, run_timeout) < 1:
        raise ValueError("workers and time limits are whole numbers from 1 on")
    folder = folder.resolve()
    jobs = [
        Job(path.resolve(), checked, folder / f"{_name(path, checked)}.ipynb", cell_timeout, run_timeout)
        for path, checked in [(path, check_parameters(path, parameters)) for path, parameters in settings]
    ]
    if len({job.output for job in jobs}) < len(jobs):
        raise ValueError("two of these runs are the same: name each notebook and each value once")
    with ExitStack() as stack:
        stack.enter_context(_locked(folder))
        client = stack.enter_context(_connect(scheduler)) if scheduler else None
        sources = {path: made_from(path) for path in {job.notebook for job in jobs}}
        records = {} if force else {j.output: r for j in jobs if (r := finished(j, sources[j.notebook]))}
        todo = [job for job in jobs if job.output not in records]
        slots = sum(client.nthreads().values()) if client else workers
        print(cost(jobs, todo, slots, folder), flush=True)
        if todo and not slots:
            print(f"{scheduler} has no worker yet: the runs begin when the first one comes", flush=True)
        done = stack.enter_context(closing(_on_cluster(todo, client) if client else _here(todo, workers)))
        with progress(total=len(todo), desc=folder.name, unit="run") as bar:
            for job, record in done:
                if record["status"] == "ok" and record["made_from"] != sources[job.notebook]:
                    record |= {
                        "status": "failed",
                        "error": "it was made from other code, models or libraries than here",
                    }
                records[job.output] = record
                bar.set_postfix_str(f"{sum(r['status'] != 'ok' for r in records.values())} failed", refresh=False)
                bar.update()
        ordered = [records[job.output] for job in jobs]
        write_summary(ordered, folder)
    return ordered


def _name(notebook: Path, parameters: dict) -> str:
    """Readable, and different for different parameters."""
    if not parameters:
        return notebook.stem
    text = json.dumps(parameters, sort_keys=True)
    readable = re.sub(r"[^\w.=+-]+", "_", "-".join(f"{name}={value}" for name, value in parameters.items()))
    return f"{notebook.stem}-{readable[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# --- what is there ---------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for one runner alone; the system takes the lock back when the runner dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise OSError(
            f"cannot write to {folder} ({error.strerror}): choose another folder with --out; nothing was run"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another runner is at work in {folder}: wait for it, or choose another folder with --out"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # some cluster file systems
                raise
            print(f"{folder} is on a file system without locks: see that no other runner uses it", file=sys.stderr)
        yield


def read_record(path: Path) -> dict | None:
    """A run's record; None where there is none, or only something else or half of one."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"notebook", "status", "parameters", "made_from"} <= set(record)
    return record if whole else None


def finished(job: Job, source: dict) -> dict | None:
    """The record of a good earlier run with the same parameters, made from the same `source`; else None."""
    path = job.output.with_suffix(".json")
    record = read_record(path)
    if record is None:
        if path.exists():
            print(f"{path} is not a whole record: this run is done again")
        return None
    wanted = {"status": "ok", "parameters": job.parameters, "made_from": source}
    same = json.dumps({key: record[key] for key in wanted}, sort_keys=True) == json.dumps(wanted, sort_keys=True)
    return record if same and job.output.is_file() else None


def cost(jobs: list[Job], todo: list[Job], slots: int, folder: Path) -> str:
    """One line: how many runs, how many are finished, how long the others take and what memory.

    A run is expected to take as long as the runs of its notebook that the folder holds, else as its line **Cost**."""
    found = [read_record(p) for p in folder.glob("*.json") if not p.name.startswith(".")]
    earlier = [r for r in found if r and r["status"] == "ok"]
    seconds, memory, unknown = 0.0, 0, set()
    for job in todo:
        kind = (job.notebook.stem, job.parameters.get("fast"))
        like = [r for r in earlier if (r["notebook"], r["parameters"].get("fast")) == kind]
        stated = re.search(r"\*\*Cost\*\*: (\d+) seconds.*?(\d+) MB", job.notebook.read_text())
        if like:
            seconds += statistics.median(r["seconds"] for r in like)
            memory = max(memory, *(r["peak_memory_mb"] for r in like))
        elif stated:
            seconds, memory = seconds + int(stated[1]), max(memory, int(stated[2]))
        else:
            unknown.add(job.notebook.stem)
    text = f"Runs in {folder}: {len(jobs)} wanted, {len(jobs) - len(todo)} finished before, {len(todo)} to do"
    if seconds:
        seconds /= max(slots, 1)
        length = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
        text += f", about {length} with {slots} at a time, up to {memory} MB each"
    return text + (f"; not known yet how long {', '.join(sorted(unknown))} takes" if unknown else "")


# --- doing it --------------------------------------------------------------------------------------------------------


def _here(jobs: list[Job], workers: int) -> Iterator[tuple[Job, dict]]:
    """Do the runs on this machine; whoever stops listening ends those under way."""
    environment = dict(os.environ)
    if workers > 1:  # or every run would start as many threads as there are cores
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    waiting, live = list(jobs), []
    try:
        while waiting or live:
            while waiting and len(live) < workers:
                live.append(_Run(waiting.pop(0), environment))
            time.sleep(0.05)
            for one in list(live):
                record = one.outcome()
                if record is not None:
                    live.remove(one)
                    yield one.job, record
    finally:
        for one in live:
            one.end()


class _Run:
    """The process of one run, from start to record."""

    def __init__(self, job: Job, environment: dict[str, str]):
        self.job, self.start = job, time.monotonic()
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in `end`)
        text = json.dumps({**vars(job), "notebook": str(job.notebook), "output": str(job.output)})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gentta_utils.batch", text],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,  # nothing is written: its end tells the run that the runner is gone
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the runner
        )

    def outcome(self) -> dict | None:
        """The record once the run has ended or is over its time, else None."""
        code = self.process.poll()
        if code is None and time.monotonic() - self.start < self.job.run_timeout:
            return None
        log = self.end()
        if code is None:
            return failed(self.job, f"it took longer than {self.job.run_timeout} seconds (--run-timeout)")
        if code < 0:
            return failed(self.job, f"its process was killed by {signal.Signals(-code).name}")
        record = read_record(self.job.output.with_suffix(".json")) if code == 0 else None
        return record or failed(self.job, (log.strip().splitlines() or [f"its process ended with status {code}"])[-1])

    def end(self) -> str:
        """End the process, its kernel and what the kernel started, if they live; returns what they printed."""
        if self.process.poll() is None:  # else its number may be another's by now
            for process in [*family(self.process.pid), self.process]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
        self.process.stdin.close()
        with self.log:
            self.log.seek(0)
            return self.log.read()


def failed(job: Job, error: str) -> dict:
    """The record of a run that could not write its own."""
    return {
        "notebook": job.notebook.stem,
        "status": "failed",
        "error": error,
        "parameters": job.parameters,
        "output": str(job.output),
    }


def _connect(address: str):
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("--scheduler needs dask: pip install -c constraints.txt -e '.[cluster]'") from error
    try:
        if not address.endswith(".json"):
            return Client(address, timeout=PATIENCE)
        for _ in range(10 * PATIENCE):  # a scheduler that was started just before has not written its file yet
            if Path(address).is_file():
                return Client(scheduler_file=address, timeout=PATIENCE)
            time.sleep(0.1)
        raise FileNotFoundError("no such file")
    except (OSError, ValueError) as error:
        raise OSError(f"no dask scheduler answers at {address} ({error}): start one with `dask scheduler`") from error


def _on_cluster(jobs: list[Job], client) -> Iterator[tuple[Job, dict]]:
    """Do the runs on the workers of a cluster, as many at a time as they have threads; one that dies is replaced."""
    from distributed import as_completed

    futures = client.map(run_job, jobs, pure=False, retries=1)
    job_of = dict(zip(futures, jobs, strict=True))
    for future in as_completed(futures):
        try:
            record = future.result()
        except Exception as error:  # its worker died again and again, or the scheduler did
            record = failed(job_of[future], f"the cluster lost it ({type(error).__name__}: {str(error)[:300]})")
        yield job_of[future], record


def run_job(job: Job) -> dict:
    """One run on a worker of a cluster; returns its record, also of a failure."""
    for path in (job.notebook, job.output.parent / LOCK):
        if not path.is_file():
            return failed(job, f"{socket.gethostname()} does not see {path}: work in folders that all machines share")
    return next(_here([job], 1))[1]


# --- the table -------------------------------------------------------------------------------------------------------


def write_summary(records: list[dict], folder: Path) -> None:
    """summary.csv and summary.md: notebook, parameters, status, seconds, peak memory, headline numbers, what failed.

    The numbers have a column each where all runs are of one notebook."""
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
                "problem": ((r.get("error") or "").strip().splitlines() or [""])[-1][-200:],
            }
        )

    def to_csv(path: Path) -> None:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(folder / "summary.csv", to_csv)
    linked = [
        row | {"notebook": f"[{row['notebook']}]({Path(r['output']).name})"}
        for row, r in zip(rows, records, strict=True)
    ]
    bad = sum(r["status"] != "ok" for r in records)
    page = f"# {folder.name}\n\nRuns: {len(records)}, failed: {bad}.\n\n{as_table(linked)}\n"
    atomic_write(folder / "summary.md", lambda path: path.write_text(page))
