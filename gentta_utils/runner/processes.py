"""A run as a process: started, watched and ended, on this machine or on the workers of a dask cluster.

Threads would not do: papermill changes the working directory of its whole process. The process lives no longer than
whoever started it (see `batch`), so neither a killed runner nor a killed worker leaves a kernel behind.
"""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..common.paths import ROOT
from .notebook import CELL_TIMEOUT, MARK, family, kill_all

RUN_TIMEOUT = 4 * 3600  # seconds
BUSY = 30.0  # percent of all cores, before any run was started here
PATIENCE = 30  # seconds until a scheduler must have answered
Told = Callable[[str, int, int], None]  # the name of a run, the cell that it begins (from 1 on), how many there are
LOCK = ".lock"
RECORD = {  # what each record holds, beside its peak memory
    "notebook": str,
    "status": str,
    "parameters": dict,
    "headline": dict,
    "made_from": dict,
    "output": str,
    "seconds": int | float,
}
TOPIC = "gentta cells"  # of what the workers of a cluster say while they run


@dataclass(frozen=True)
class NotebookJob:
    """One run: a notebook, the parameters that it gets, the file for its result, its limits in seconds."""

    notebook: Path
    parameters: dict
    output: Path
    cell_timeout: int = CELL_TIMEOUT
    run_timeout: int = RUN_TIMEOUT

    @property
    def name(self) -> str:
        """Of its notebook and its parameters: no other run in the folder has it."""
        return self.output.stem


def read_record(path: Path) -> dict | None:
    """A run's record; None where there is none, or only something else or half of one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in RECORD.items())
    return record if whole else None


def environment(workers: int) -> dict[str, str]:
    """The variables of a run that shares this machine with `workers` - 1 others.

    Threads that wait for each other spin, which is fastest on an idle machine. Beside a busy process they hold up the
    very thread that they wait for: then they sleep instead (bench/threads.py measures both)."""
    # files and pipes are UTF-8 whatever the locale; under -X warn_default_encoding the mode itself warns in libraries
    utf8 = {} if sys.flags.warn_default_encoding else {"PYTHONUTF8": "1"}
    variables = dict(os.environ) | utf8
    if psutil.cpu_percent(0.3) > BUSY:
        variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if workers > 1:  # or every run would start as many threads as there are cores
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    return variables


def here(jobs: list[NotebookJob], workers: int, told: Told = lambda *_: None) -> Iterator[tuple[NotebookJob, dict]]:
    """Do the runs on this machine; whoever stops listening ends those under way. `told` is called from threads."""
    variables, waiting, live = environment(workers), list(jobs), []
    try:
        while waiting or live:
            while waiting and len(live) < workers:
                live.append(_Run(waiting.pop(0), variables, told))
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

    def __init__(self, job: NotebookJob, environment: dict[str, str], told: Told = lambda *_: None):
        self.job, self.start, self.mark = job, time.monotonic(), uuid.uuid4().hex
        self.log = tempfile.TemporaryFile("w+", errors="replace", encoding="utf-8")  # noqa: SIM115 (closed in `end`)
        text = json.dumps({**vars(job), "notebook": str(job.notebook), "output": str(job.output)})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gentta_utils.runner.notebook", text],
            cwd=ROOT,
            env=environment | {MARK: self.mark},
            stdin=subprocess.PIPE,  # nothing is written: its end tells the run that the runner is gone
            stdout=subprocess.PIPE,  # which cell it is at
            stderr=self.log,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the runner
        )
        threading.Thread(target=self._listen, args=(self.process.stdout, told), daemon=True).start()

    def _listen(self, lines: Iterator[str], told: Told) -> None:
        with lines:
            for line in lines:
                with suppress(ValueError, TypeError, KeyError):  # libraries print there too
                    at = json.loads(line)
                    told(self.job.name, at["cell"], at["cells"])

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
        kill_all(self.mark)  # what a killed run left
        with self.log:
            self.log.seek(0)
            return self.log.read()


def failed(job: NotebookJob, error: str) -> dict:
    """The record of a run that could not write its own."""
    return {
        "notebook": job.notebook.stem,
        "status": "failed",
        "error": error,
        "parameters": job.parameters,
        "output": str(job.output),
    }


def connect(address: str):
    """A client of the dask scheduler at this address, or of the one that wrote this file (.json).

    Raises ValueError without dask, OSError if no scheduler answers."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("--scheduler needs dask: pip install -c constraints.txt -e '.[cluster]'") from error
    try:
        if not address.endswith(".json"):
            return Client(address, timeout=PATIENCE)
        for _ in range(10 * PATIENCE):  # a scheduler that was started just before has not written its file yet
            if Path(address).is_file():
                _check_scheduler_file(Path(address))
                return Client(scheduler_file=address, timeout=PATIENCE)
            time.sleep(0.1)
        raise FileNotFoundError("no such file")
    except (OSError, ValueError) as error:
        raise OSError(f"no dask scheduler answers at {address} ({error}): start one with `dask scheduler`") from error


def _check_scheduler_file(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("address"), str):
        raise ValueError("no scheduler wrote this file")


def open_addresses(client) -> list[str]:
    """Where the client's scheduler listens to other machines without TLS: whoever reaches it can run code."""
    listens = client.run_on_scheduler(lambda dask_scheduler: [one.listen_address for one in dask_scheduler.listeners])
    return [address for address in listens if _is_open(address)]


def _is_open(address: str) -> bool:
    protocol, _, rest = address.rpartition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if protocol in ("tls", "wss", "inproc") or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or nothing: every interface
        return True


def on_cluster(jobs: list[NotebookJob], client, told: Told = lambda *_: None) -> Iterator[tuple[NotebookJob, dict]]:
    """Do the runs on the workers of a cluster, as many at a time as they have threads; one that dies is replaced."""
    from distributed import as_completed

    tell_when_alone(client)
    mine = {job.name for job in jobs}
    client.subscribe_topic(TOPIC, lambda event: told(*event[1]) if event[1][0] in mine else None)
    futures = client.map(run_job, jobs, pure=False, retries=1)
    job_of = dict(zip(futures, jobs, strict=True))
    for future in as_completed(futures):
        try:
            record = future.result()
        except Exception as error:  # its worker died again and again, or the scheduler did
            record = failed(job_of[future], f"the cluster lost it ({type(error).__name__}: {str(error)[:300]})")
        yield job_of[future], record


def tell_when_alone(client) -> None:
    """From now on say on standard error when the last worker of a cluster has gone, and when one comes after that.

    Without a worker the scheduler keeps the runs and waits, however long, and nobody would know why."""
    workers: set[str] = set()

    def heard(event: tuple) -> None:
        action, worker = event[1].get("action"), event[1].get("worker")
        if action == "add-worker":
            if not workers:
                print("a worker has come: the runs go on", file=sys.stderr, flush=True)
            workers.add(worker)
        elif action == "remove-worker" and worker in workers:
            workers.remove(worker)
            if not workers:
                address = client.scheduler.address
                print(
                    f"all workers are gone, the runs wait for one: start it with `dask worker {address}`, or stop here "
                    "with Ctrl-C, and the same command goes on later",
                    file=sys.stderr,
                    flush=True,
                )

    client.subscribe_topic("all", heard)
    workers.update(client.nthreads())


def run_job(job: NotebookJob) -> dict:
    """One run on a worker of a cluster; returns its record, also of a failure."""
    for path in (job.notebook, job.output.parent / LOCK):
        if not path.is_file():
            return failed(job, f"{socket.gethostname()} does not see {path}: work in folders that all machines share")
    return next(here([job], 1, _to_whoever_waits()))[1]


def _to_whoever_waits() -> Told:
    """On a worker of a cluster: word to its clients about the cell that a run is at."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # called outside a cluster
        return lambda *_: None
    return lambda *at: worker.log_event(TOPIC, at)
