"""Is anything lost when a process is killed at a random moment? Kernel, runner, worker, scheduler, training, download.

    python bench/chaos.py [--times 50] [--begin 0] [--seed 0] [--only KIND]

Each trial starts something small, kills one of its processes by SIGKILL at a moment drawn from the seed and the number
of the trial, looks whether what was finished is still there, gives the same command again, which must complete, and
counts the processes that are left. Trials take turns through the kinds; `--begin 30` goes on with number 30. The exit
status is 1 if anything was lost. Linux; some ten seconds a trial, most of them waiting.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import psutil

from gentta_utils.common.text import as_table

ROOT = Path(__file__).parents[1]
MARK = "GENTTA_CHAOS"  # a variable that all processes of a trial inherit
LIMIT = 180  # seconds after which a command counts as hanging
GRACE = 20  # seconds in which processes may still be on their way out
SWEEP = 6.0  # seconds: about what the sweep takes; later moments find it finished
CELLS = (
    "n: int = 1  # which",
    "import time\ntime.sleep(0.3)\nwith open('ended', 'a') as file:\n    print(n, file=file)",
    'display({"application/vnd.gentta.headline+json": {"square": n * n}, "text/plain": ""}, raw=True)',
)
RUNS = (1, 2)
STEPS = 20
CONTENT = random.Random(0).randbytes(300_000)


@dataclass
class Trial:
    """One trial: its folder, its moments, and what went wrong, a line each."""

    folder: Path
    draw: random.Random
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    wrong: list[str] = field(default_factory=list)
    late: bool = False  # there was nothing left to kill

    def start(self, *command: str, name: str = "main") -> psutil.Popen:
        """A marked process; what it prints goes to a file."""
        with open(self.folder / f"{name}.log", "ab") as log:
            variables = os.environ | {MARK: self.mark, "PYTHONPATH": str(ROOT), "GENTTA_PROGRESS": "0"}
            return psutil.Popen([sys.executable, *command], cwd=ROOT, env=variables, stdout=log, stderr=log)

    def said(self, name: str, letters: int = 200) -> str:
        """The end of what a process printed."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-letters:]

    def living(self) -> list[psutil.Process]:
        """All marked processes that live."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(
        self,
        within: float,
        process: psutil.Popen,
        find: Callable[[], psutil.Process | None],
        begun: Callable[[], bool] = lambda: True,
    ) -> None:
        """At a random moment of so many seconds after it has begun kill what `find` finds, once it does, unless
        `process` has ended by then."""
        after, since = self.draw.uniform(0, within), None
        while process.poll() is None:
            since = time.monotonic() if since is None and begun() else since
            victim = find() if since is not None and time.monotonic() >= since + after else None
            if victim is not None:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    return
            time.sleep(0.02)
        self.late = True

    def wait(self, process: psutil.Popen, what: str) -> int:
        """Its exit status; a process that hangs is killed and written down."""
        try:
            return process.wait(LIMIT)
        except psutil.TimeoutExpired:
            self.wrong.append(f"{what} hangs")
            process.kill()
            return process.wait()

    def check_orphans(self) -> None:
        """Write down who is left after a grace, and end them."""
        end = time.monotonic() + GRACE
        while (left := self.living()) and time.monotonic() < end:
            time.sleep(0.1)
        for process in left:
            with suppress(psutil.Error):
                self.wrong.append(f"left alive: {' '.join(process.cmdline())[:120]}")
                process.kill()


# --- a sweep, alone or on a cluster ----------------------------------------------------------------------------------


def notebook_in(folder: Path) -> Path:
    """A notebook of three cells that takes a second and says which n it has done."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata["language_info"] = {"name": "python"}
    nbformat.write(nb, folder / "10_chaos.ipynb")
    return folder / "10_chaos.ipynb"


def records(folder: Path) -> dict[str, bytes]:
    """Records of good runs, as they stand."""
    found = {}
    for path in (folder / "out").glob("*.json"):
        with suppress(OSError, ValueError):
            text = path.read_bytes()
            if json.loads(text).get("status") == "ok":
                found[path.name] = text
    return found


def swept(trial: Trial, *more: str) -> psutil.Popen:
    """The command: a sweep of two runs."""
    path = str(trial.folder / "10_chaos.ipynb")
    grid = "n=" + ",".join(map(str, RUNS))
    return trial.start(
        "-m", "gentta_utils", "sweep", path, "--grid", grid, "--out", str(trial.folder / "out"), *more, name="sweep"
    )


def check_sweep(trial: Trial, before: dict[str, bytes], *more: str) -> None:
    """The same command again completes, keeps the records of `before` to the byte, and repeats none of their runs."""
    if trial.wait(swept(trial, *more), "the rerun"):
        trial.wrong.append(f"the rerun failed: {trial.said('sweep')}")
    after = records(trial.folder)
    if len(after) != len(RUNS):
        trial.wrong.append(f"{len(after)} of {len(RUNS)} runs are there")
    trial.wrong += [f"{name} was lost" for name, text in before.items() if after.get(name) != text]
    squares = sorted(json.loads(text)["headline"]["square"] for text in after.values())
    if squares != [n * n for n in RUNS]:
        trial.wrong.append(f"wrong numbers: {squares}")


def below(process: psutil.Process, words: str) -> psutil.Process | None:
    """The first descendant whose command line holds these words."""
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                if words in " ".join(child.cmdline()):
                    return child
    return None


def kill_in_sweep(trial: Trial, find: Callable[[psutil.Popen], psutil.Process | None]) -> None:
    """A sweep on this machine."""
    notebook_in(trial.folder)
    process = swept(trial)
    trial.kill(SWEEP, process, lambda: find(process))
    trial.wait(process, "the sweep")
    check_sweep(trial, records(trial.folder))


def kernel(trial: Trial) -> None:
    """The kernel of a run."""
    kill_in_sweep(trial, lambda process: below(process, "ipykernel_launcher"))


def runner(trial: Trial) -> None:
    """Who started the runs."""
    kill_in_sweep(trial, lambda process: process)


def family(process: psutil.Popen) -> list[psutil.Process]:
    """Its children: of a nanny its worker, and no run, which ends by itself when the worker does."""
    with suppress(psutil.Error):
        return process.children()
    return []


@contextmanager
def cluster(trial: Trial, name: str):
    """A scheduler and a worker under its nanny; yields both and the scheduler's file."""
    file = trial.folder / f"{name}.json"
    dask, quiet = ("-m", "distributed.cli.dask_scheduler"), ("--no-dashboard",)
    scheduler = trial.start(
        *dask, "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), *quiet, name=name
    )
    while not file.is_file():
        if scheduler.poll() is not None:
            raise RuntimeError(trial.said(name))
        time.sleep(0.05)
    worker = trial.start(
        "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", *quiet, name="worker"
    )
    while "Registered to" not in trial.said("worker", 10_000):  # before that a nanny gives up with its worker
        if worker.poll() is not None:
            raise RuntimeError(trial.said("worker"))
        time.sleep(0.05)
    try:
        yield scheduler, worker, file
    finally:  # the worker first; one that looks for a scheduler that is gone would look for ever
        for process in (worker, scheduler):
            for end in (process.terminate, *(p.kill for p in (*family(process), process))):
                with suppress(psutil.Error):
                    end()
                    process.wait(10)


def worker(trial: Trial) -> None:
    """The worker that does the runs; its nanny starts another one. The sweep must end well by itself."""
    notebook_in(trial.folder)
    with cluster(trial, "scheduler") as (_, nanny, file):
        process = swept(trial, "--scheduler", str(file))
        trial.kill(SWEEP, process, lambda: below(nanny, "spawn_main"))
        if trial.wait(process, "the sweep"):
            trial.wrong.append(f"the sweep failed: {trial.said('sweep')}")
        check_sweep(trial, records(trial.folder), "--scheduler", str(file))


def scheduler(trial: Trial) -> None:
    """The scheduler of the cluster: the sweep must end, and go on with another one."""
    notebook_in(trial.folder)
    with cluster(trial, "scheduler") as (process_of_scheduler, _, file):
        process = swept(trial, "--scheduler", str(file))
        trial.kill(SWEEP, process, lambda: process_of_scheduler)
        trial.wait(process, "the sweep")
    before = records(trial.folder)
    with cluster(trial, "another") as (_, _, file):
        check_sweep(trial, before, "--scheduler", str(file))


# --- a training, a download ------------------------------------------------------------------------------------------


def train_child(folder: Path) -> None:
    """What a trial runs: twenty steps of a tiny model, with a checkpoint after every fifth of a second."""
    import torch

    from gentta_utils.recipes import training

    def loss_of(model: torch.nn.Module, generator: torch.Generator, step: int) -> torch.Tensor:
        with open(folder / "steps", "a", encoding="utf-8") as file:
            print(step, file=file)
        time.sleep(0.05)
        return model(torch.randn(8, 16, generator=generator)).square().mean()

    torch.manual_seed(0)
    schedule = training.Schedule(STEPS, 8, 1e-2, warmup=2, ema=0.9)
    run = training.train(torch.nn.Linear(16, 4), loss_of, schedule, folder / "run", save_every=0.2)
    whole = hashlib.sha256(b"".join(v.numpy().tobytes() for _, v in sorted(run.tensors().items())))
    (folder / "weights").write_text(whole.hexdigest(), encoding="utf-8")


def step_of(folder: Path) -> int:
    """At which step the checkpoint stands; 0 without one."""
    from safetensors import safe_open

    path = folder / "run" / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["run"])["step"]


def training(trial: Trial) -> None:
    """A training: the rerun goes on from the checkpoint and ends at the weights of an undisturbed one."""
    command = (__file__, "--child", "training", str(trial.folder))
    process = trial.start(*command)
    steps = trial.folder / "steps"
    trial.kill(1.5, process, lambda: process, steps.is_file)
    trial.wait(process, "the training")
    begun = step_of(trial.folder)
    steps.unlink(missing_ok=True)
    if trial.wait(trial.start(*command), "the rerun"):
        trial.wrong.append(f"the rerun failed: {trial.said('main')}")
        return
    again = steps.read_text(encoding="utf-8").split() if steps.is_file() else []
    if again != [str(k) for k in range(begun, STEPS)]:
        trial.wrong.append(f"the checkpoint stood at step {begun}, the rerun made {again[:2]} to {again[-1:]}")
    whole = trial.folder / "whole"
    whole.mkdir()
    trial.wait(trial.start(__file__, "--child", "training", str(whole)), "the undisturbed training")
    if (whole / "weights").read_text(encoding="utf-8") != (trial.folder / "weights").read_text(encoding="utf-8"):
        trial.wrong.append("the weights differ from an undisturbed training's")


class Slow(BaseHTTPRequestHandler):
    """Sends `CONTENT`, or its end where that is asked for, in small pieces."""

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer, and remember from which byte on."""
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.asked.append(first)
        if first >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        with suppress(OSError):  # the other side was killed
            for at in range(first, len(CONTENT), 10_000):
                self.wfile.write(CONTENT[at : at + 10_000])
                time.sleep(0.03)


def download_child(url: str, path: Path) -> None:
    """What a trial runs: a download as `python -m gentta_utils data` does it."""
    from gentta_utils.streams.downloads import fetch

    fetch(url, path, hashlib.md5(CONTENT).hexdigest())


def download(trial: Trial) -> None:
    """A download: the rerun asks for what is missing, and the file is whole."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        path = trial.folder / "file.tar"
        command = (__file__, "--child", "download", f"http://127.0.0.1:{server.server_address[1]}/", str(path))
        process = trial.start(*command)
        trial.kill(1.2, process, lambda: process, lambda: bool(server.asked))
        trial.wait(process, "the download")
        part = path.with_name("file.tar.part")
        kept, whole = part.stat().st_size if part.is_file() else 0, path.is_file()
        server.asked.clear()
        if trial.wait(trial.start(*command), "the rerun"):
            trial.wrong.append(f"the rerun failed: {trial.said('main')}")
        server.shutdown()
        if not path.is_file() or path.read_bytes() != CONTENT:
            trial.wrong.append("the file is not whole")
        if server.asked != ([] if whole else [kept]):
            trial.wrong.append(f"{kept} bytes were there, the rerun asked from {server.asked}")


# --- all of them -----------------------------------------------------------------------------------------------------

KINDS = {f.__name__: f for f in (kernel, runner, worker, scheduler, training, download)}


def main() -> int:
    """Run the trials, print a table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=50, help="trials, through all kinds in turn")
    parser.add_argument("--begin", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        train_child(Path(*rest)) if kind == "training" else download_child(rest[0], Path(rest[1]))
        return 0
    kinds, rows = [args.only] if args.only else list(KINDS), {}
    for number in range(args.begin, args.begin + args.times):
        name = kinds[number % len(kinds)]
        row = rows.setdefault(name, {"killed": name, "times": 0, "came too late": 0, "trials with a fault": 0})
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            trial, start = Trial(Path(folder), random.Random(f"{args.seed} {number}")), time.monotonic()
            KINDS[name](trial)
            trial.check_orphans()
        row["times"] += 1
        row["came too late"] += trial.late
        row["trials with a fault"] += bool(trial.wrong)
        said = "; ".join(trial.wrong) or ("too late, all well" if trial.late else "all well")
        print(f"{number} {name}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
    print(as_table(list(rows.values())))
    return int(any(row["trials with a fault"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
