"""What the runner says before and while it runs: costs of this machine, which cell, a list of a dry run."""

import io
import json
import os
import subprocess
import sys
import threading

import nbformat
import pytest

from gentta_utils.__main__ import main
from gentta_utils.runner import costs, probe, processes, sweep
from gentta_utils.runner.watch import Watch

PARAMETERS = "n: int = 1  # which\nfast: bool = False  # small\ndevice: str = 'cpu'  # or cuda"


@pytest.fixture
def make(tmp_path):
    """make(*cells, name) -> a notebook: prose, parameters, these cells."""

    def make(*cells, name="10_test"):
        code = [nbformat.v4.new_code_cell(c) for c in (PARAMETERS, *cells)]
        code[0].metadata["tags"] = ["parameters"]
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("**Cost**: unknown"), *code])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nb.metadata["language_info"] = {"name": "python"}
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return make


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """This code in a fresh interpreter without the variables of the threads, beside these."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=clean | variables, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    return done


# --- start-up --------------------------------------------------------------------------------------------------------


def test_what_starts_runs_loads_no_heavy_library():
    python("""
import gentta_utils.__main__, gentta_utils.runner.publish, gentta_utils.runner.sweep, sys
heavy = {"torch", "numpy", "diffusers", "timm", "papermill", "matplotlib", "distributed"} & set(sys.modules)
assert not heavy, heavy
from gentta_utils.runner.notebook import find, parameters_of
assert "severity" in parameters_of(find("00"))
assert "papermill" in sys.modules and "lark" not in sys.modules  # a second for a grammar that nothing is held against
assert "rfc3987_syntax" not in sys.modules  # whoever wants it can have it
""")


def test_a_notebook_loads_only_libraries_that_it_uses():
    python("""
import gentta_utils
from gentta_utils import Models, SceneSpec, evaluation, hub, load, plots, run, stream, zoo
from gentta_utils.course import display, environment, exercises, explore, nb02, profile, recheck, tables
from gentta_utils.methods import diffusion_tta
import sys
heavy = {"open_clip", "sklearn", "captum", "papermill", "distributed", "jupyterlab"} & set(sys.modules)
assert not heavy, heavy
""")


@pytest.mark.parametrize("busy, given, kept", [(5, None, None), (55, None, "PASSIVE"), (55, "ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_beside_a_busy_process(monkeypatch, busy, given, kept):
    monkeypatch.setattr(processes.psutil, "cpu_percent", lambda interval: busy)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert processes.environment(1).get("OMP_WAIT_POLICY") == kept


# --- what it costs ---------------------------------------------------------------------------------------------------

MEASURED = {
    "bf16": {"seconds": 100.0, "peak_memory_mb": 900, "probe_ms": 10.0},
    "fp32": {"seconds": 340.0, "peak_memory_mb": 1000, "probe_ms": 40.0},
}


def test_costs_are_predicted_by_the_probe():
    assert costs.predict(MEASURED, 10.0) == 100
    assert costs.predict(MEASURED, 40.0) == 340
    assert costs.predict(MEASURED, 25.0) == pytest.approx(220)  # half-way
    assert costs.predict(MEASURED, 5.0) == pytest.approx(50)  # twice as fast as the faster one
    assert costs.predict(MEASURED, 80.0) == pytest.approx(680)  # half as fast as the slower one
    assert costs.predict({"fp32": MEASURED["fp32"]}, 20.0) == pytest.approx(170)


def test_cost_lines_state_both_kinds(make, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "COSTS", tmp_path / "costs.json")
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n**Cost**: unknown\nAfter.\n", encoding="utf-8")
    paths = [make(name="10_a"), make(name="11_b")]
    costs.COSTS.write_text(json.dumps({"10_a": {"default": MEASURED}}), encoding="utf-8")
    costs.write_lines(paths, readme)
    said = [json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"] for path in paths]
    line = "**Cost**: 100 seconds on two CPU cores with fast bf16, 340 without, 1000 MB of memory."
    assert ["".join(s) for s in said] == [line, "**Cost**: unknown"]
    assert "**Cost**: unknown" in readme.read_text(encoding="utf-8")  # not all are measured
    costs.COSTS.write_text(json.dumps({"10_a": {"default": MEASURED}, "11_b": {"default": MEASURED}}), encoding="utf-8")
    costs.write_lines(paths, readme)
    together = (
        "**Cost**: `make course` takes 200 seconds on two CPU cores with fast bf16, 680 without, 1000 MB of memory."
    )
    assert readme.read_text(encoding="utf-8") == f"Before.\n{together}\nAfter.\n"
    assert costs.line({"fp32": MEASURED["fp32"]}).startswith(
        "**Cost**: 340 seconds on two CPU cores without fast bf16,"
    )


def test_the_probe_says_how_long_a_pass_takes():
    taken = probe.passes(0.0)
    assert len(taken) == 1
    assert taken[0] > 0
    assert probe.speed(dict(os.environ) | {"GENTTA_PRECISION": "none"}) is None  # refused: nothing is known then


def job(path, folder, **parameters):
    return processes.NotebookJob(path, parameters, folder / f"{path.stem}-{len(parameters)}.ipynb")


def test_the_probe_runs_once_and_only_for_what_it_can_tell(make, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "COSTS", tmp_path / "costs.json")
    costs.COSTS.write_text(json.dumps({"10_test": {"default": MEASURED}}), encoding="utf-8")
    asked, path, out = [], make(), tmp_path / "out"
    out.mkdir()
    ask = lambda: asked.append(1) or 20.0  # noqa: E731
    two = [job(path, out), job(path, out, n=2)]
    assert list(sweep.predicted(two, out, ask).values()) == [(pytest.approx(180), 1000)] * 2
    assert len(asked) == 1
    fast, cuda = job(path, out, fast=True), job(path, out, device="cuda")  # nobody measured these
    assert [*sweep.predicted([fast], out, ask).values(), *sweep.predicted([cuda], out, ask).values()] == [(None, 0)] * 2
    record = {
        "notebook": "10_test",
        "status": "ok",
        "parameters": {},
        "made_from": {},
        "headline": {},
        "output": "x.ipynb",
        "seconds": 7,
        "peak_memory_mb": 8,
    }
    (out / "x.json").write_text(json.dumps(record), encoding="utf-8")  # this machine itself has done it
    assert list(sweep.predicted(two, out, ask).values()) == [(7, 8)] * 2
    assert len(asked) == 1


def test_a_dry_run_lists_the_runs_and_starts_nothing(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(probe, "speed", lambda environment: 20.0)
    costs.COSTS.write_text(json.dumps({"10_test": {"default": MEASURED}}), encoding="utf-8")
    path, out = make('open("started", "a").close()'), tmp_path / "out"
    grid = ["sweep", str(path), "--grid", "n=1,2", "--out", str(out)]
    assert main([*grid, "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in said[:2]] == ["to do, about 180 s"] * 2
    assert (
        said[2]
        == f"Runs in {out}: 2 wanted, 0 finished before, 2 to do, about 6 minutes with 1 at a time, up to 1000 MB each"
    )
    assert not out.exists()
    assert not (tmp_path / "started").exists()
    assert main(["sweep", str(path), "--grid", "n=1", "--out", str(out)]) == 0
    (tmp_path / "started").unlink()
    before = sorted(p.name for p in out.iterdir())
    capsys.readouterr()
    assert main([*grid, "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(": finished before")
    assert ": to do, about " in said[1]
    assert sorted(p.name for p in out.iterdir()) == before
    assert not (tmp_path / "started").exists()


# --- what it is at ---------------------------------------------------------------------------------------------------


def test_cells_are_numbered_as_the_notebook_numbers_them(make, tmp_path):
    """Papermill's own cell with the parameters has no number; two runs at a time are told apart."""
    path, told = make("n + 1", "n + 2"), []
    runs = [processes.NotebookJob(path, {"n": n}, tmp_path / f"run{n}.ipynb") for n in (1, 2)]
    for _, record in processes.here(runs, 2, lambda *at: told.append(at)):
        assert record["status"] == "ok", record
    for name in ("run1", "run2"):
        numbers = [(cell, cells) for run, cell, cells in told if run == name]
        assert sorted(set(numbers)) == [(i, 4) for i in range(1, 5)]
        assert numbers == sorted(numbers)


def test_a_failed_run_is_told_by_its_error_not_by_its_last_cell(make, tmp_path):
    """What a run says about its cells is no error message."""
    (tmp_path / "file").touch()
    ((_, record),) = processes.here([processes.NotebookJob(make(), {}, tmp_path / "file" / "run.ipynb")], 1)
    assert record["error"].startswith("OSError: could not write ")


def test_workers_of_a_cluster_say_it_too(make, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    path, last = make("n + 1"), threading.Event()
    (tmp_path / processes.LOCK).touch()
    run = processes.NotebookJob(path, {}, tmp_path / "run.ipynb")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        ((_, record),) = processes.on_cluster([run], client, lambda *at: at == ("run", 3, 3) and last.set())
        assert record["status"] == "ok", record
        assert last.wait(100)


class Heard(io.StringIO):
    """Standard error that sets an event for each of two sentences."""

    def __init__(self):
        super().__init__()
        self.alone, self.back = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        if "all workers are gone" in text:
            self.alone.set()
        if "a worker has come" in text:
            self.back.set()
        return super().write(text)


BEGUN, GO = threading.Event(), threading.Event()


def waits(job):
    """In the place of `run_job`: a run that ends when it is told to."""
    BEGUN.set()
    GO.wait()
    return {"status": "ok"}


def test_workers_that_all_vanish_are_told_of(make, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    heard, records = Heard(), []
    monkeypatch.setattr(sys, "stderr", heard)
    monkeypatch.setattr(processes, "run_job", waits)
    run = processes.NotebookJob(make(), {}, tmp_path / "run.ipynb")
    how = dict(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster) as client:
        listening = threading.Thread(target=lambda: records.extend(processes.on_cluster([run], client)))
        listening.start()
        assert BEGUN.wait(100)
        (worker,) = client.nthreads()

        async def remove(dask_scheduler):
            await dask_scheduler.remove_worker(worker, stimulus_id="a test")

        client.run_on_scheduler(remove)
        assert heard.alone.wait(100)
        assert not heard.back.is_set()
        GO.set()  # for the second worker, and for the first one to end
        cluster.scale(2)
        assert heard.back.wait(100)
        listening.join(100)
    assert [record["status"] for _, record in records] == ["ok"]
    assert f"start it with `dask worker {cluster.scheduler_address}`" in heard.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still: [seconds]."""
    monkeypatch.setenv("GENTTA_PROGRESS", "1")
    return [0.0]


def test_a_log_gets_a_line_now_and_then(now):
    out = io.StringIO()
    watch = Watch(2, 300.0, out, lambda: now[0])
    watch.say()
    assert out.getvalue() == ""  # nothing has begun
    for cell in range(1, 32):
        watch.told("02_diffusion_tta_dit-n=1-0123abcd", cell, 83)
    now[0] = 42.0
    watch.say()
    watch.say()  # still the same cell
    watch.told("00_start_here", 1, 61)
    watch.ended("02_diffusion_tta_dit-n=1-0123abcd", "failed")
    now[0] = 50.0
    watch.say()
    assert out.getvalue().splitlines() == [
        "0 of 2 done, 42 of about 300 s | 02_diffusion_tta_dit-n=1 cell 31 of 83, 42 s",
        "1 of 2: 02_diffusion_tta_dit-n=1 failed, 42 s",
        "1 of 2 done, 1 failed, 50 of about 300 s | 00_start_here cell 1 of 61, 8 s",
    ]


def test_a_terminal_gets_one_line_that_fits(now, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    watch = Watch(1, None, out, lambda: now[0])
    watch.told("02_diffusion_tta_dit", 31, 83)
    watch.say()
    now[0] = 42.0
    watch.say()
    watch.ended("02_diffusion_tta_dit", "ok")
    lines = out.getvalue().split("\r")[1:]
    assert [len(line) for line in lines] == [39, 39]
    assert lines[1].startswith("0 of 1 done, 42 s | 02_diffusion_tta_d")
    assert "\n" not in out.getvalue()


def test_it_says_nothing_where_progress_is_switched_off(now, monkeypatch):
    monkeypatch.setenv("GENTTA_PROGRESS", "0")
    out = io.StringIO()
    with Watch(1, None, out, lambda: now[0]) as watch:
        watch.told("00_start_here", 1, 61)
        watch.ended("00_start_here", "ok")
    assert out.getvalue() == ""


def test_it_keeps_saying_until_the_end(now, monkeypatch):
    monkeypatch.setattr("gentta_utils.runner.watch.EVERY", 0.001)
    said = []
    monkeypatch.setattr(Watch, "say", lambda self: (said.append(1), len(said) == 3 and self.over.set()))
    watch = Watch(1, None, io.StringIO(), lambda: now[0])
    with watch:
        watch.thread.join()  # it ends by itself after the third line, or the test's time is over
    assert len(said) == 3
