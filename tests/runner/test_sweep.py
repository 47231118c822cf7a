"""Grids: each run once, whatever is killed; wrong input is one sentence before anything starts."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from gentta_utils.__main__ import main
from gentta_utils.common.paths import NOTEBOOKS, ROOT
from gentta_utils.runner import notebook, processes, sweep

PARAMETERS = """
n: int = 1  # which
rate: float = 0.5  # how fast
name: str = "a"  # of it
shifts: list = ["fog"]  # some
fast: bool = False  # small
""".strip()
JOURNAL = """
import os, signal, time
with open("journal", "a") as file:
    print(n, file=file)
first = open("journal").read().split().count(str(n)) == 1
"""
NUMBER = 'display({"application/vnd.gentta.headline+json": {"square": n * n}, "text/plain": ""}, raw=True)'


@pytest.fixture
def make(tmp_path):
    """make(cell) -> a notebook that writes its n into a journal, does what the cell says, then shows a number."""

    def make(accident=""):
        cells = [nbformat.v4.new_code_cell(c) for c in (PARAMETERS, JOURNAL, accident, NUMBER)]
        cells[0].metadata["tags"] = ["parameters"]
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("A test."), *cells])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nb.metadata["language_info"] = {"name": "python"}
        nbformat.write(nb, tmp_path / "10_test.ipynb")
        return tmp_path / "10_test.ipynb"

    return make


def command(path, *more, out="out"):
    return ["sweep", str(path), "--out", str(path.parent / out), *more]


def journal(path):
    return sorted(int(n) for n in (path.parent / "journal").read_text(encoding="utf-8").split())


def record_of(path, n):
    (found,) = (path.parent / "out").glob(f"10_test-n={n}-*.json")
    return found


def rows_of(out):
    with open(out / "summary.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wait_until_gone(*pids):
    """Until none of these processes lives; one that outlives its parent ends the test by the limit of all tests."""
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        time.sleep(0.1)


# --- a grid ----------------------------------------------------------------------------------------------------------


def test_a_grid_is_done_once_and_makes_one_table(make, capsys):
    path = make()
    assert main(command(path, "--grid", "n=1,2", "-p", "rate", "1", "--workers", "2")) == 0
    printed = capsys.readouterr().out
    assert "2 wanted, 0 finished before, 2 to do; not known yet how long 10_test takes" in printed
    assert main(command(path, "--grid", "n=1,2,3", "-p", "rate", "1.0")) == 0
    assert "2 finished before, 1 to do, about " in capsys.readouterr().out
    assert journal(path) == [1, 2, 3]
    out = path.parent / "out"
    assert [(r["n"], r["rate"], r["status"], r["square"]) for r in rows_of(out)] == [
        (str(n), "1.0", "ok", str(n * n)) for n in (1, 2, 3)
    ]
    for record in out.glob("10_test-*.json"):
        assert f"({record.with_suffix('.ipynb').name})" in (out / "summary.md").read_text(encoding="utf-8")
        assert record.with_suffix(".ipynb").is_file()
    assert main(command(path, "--grid", "n=3", "-p", "rate", "1", "--force")) == 0
    assert journal(path) == [1, 2, 3, 3]


def test_what_makes_a_run_unfinished(make, tmp_path, capsys):
    path = make()
    job = processes.NotebookJob(path, {"n": 1}, tmp_path / "x.ipynb")
    source = notebook.made_from(path)
    record = {"notebook": "10_test", "status": "ok", "parameters": {"n": 1}, "made_from": source}
    record |= {"headline": {}, "seconds": 1.5, "output": str(job.output)}
    written = tmp_path / "x.json"
    assert sweep.finished(job, source) is None
    assert capsys.readouterr().out == ""
    written.write_text(json.dumps(record), encoding="utf-8")
    assert sweep.finished(job, source) is None  # its notebook is missing
    job.output.write_text("{}", encoding="utf-8")
    assert sweep.finished(job, source) == record
    for key, other in (("status", "failed"), ("parameters", {"n": 2}), ("made_from", source | {"package": "x"})):
        written.write_text(json.dumps(record | {key: other}), encoding="utf-8")
        assert sweep.finished(job, source) is None, key
    written.write_text(json.dumps(record)[:-20], encoding="utf-8")
    assert sweep.finished(job, source) is None
    assert "is not a whole record" in capsys.readouterr().out


def test_what_a_run_is_made_from(make, tmp_path, monkeypatch):
    path = make()
    before = notebook.made_from(path)
    nb = nbformat.read(path, 4)
    nb.cells[0].source = "Other prose."
    nbformat.write(nb, path)
    assert notebook.made_from(path) == before
    nb.cells[2].source += "\n1"
    nbformat.write(nb, path)
    changed = notebook.made_from(path)
    assert {key for key in before if changed[key] != before[key]} == {"notebook"}
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setattr(notebook, "MODELS", tmp_path)
    (tmp_path / "checksums.json").write_text("{}", encoding="utf-8")
    assert {key for key, value in notebook.made_from(path).items() if changed[key] != value} == {"package", "data"}


def test_values_take_the_types_of_the_parameters_cell(make):
    path = make()
    text = {"n": "3", "rate": "1", "name": "3", "shifts": "['fog', \"snow\"]", "fast": "True"}
    read = notebook.check_parameters(path, text)
    assert read == {"n": 3, "rate": 1.0, "name": "3", "shifts": ["fog", "snow"], "fast": True}
    assert notebook.check_parameters(path, read) == read
    axes = ['shifts=["fog"],["fog", "snow"]', "n=1,2"]
    settings = sweep.grid(path, axes, {"fast": True}, {"n": 7, "fast": False, "name": "b"})  # both win over the preset
    assert all(s["name"] == "b" for _, s in settings)
    assert [(s["shifts"], s["n"], s["fast"]) for _, s in settings] == [
        (["fog"], "1", True), (["fog"], "2", True), (["fog", "snow"], "1", True), (["fog", "snow"], "2", True),
    ]  # fmt: skip


def test_none_is_a_value_where_the_notebook_says_so(make):
    path = make()
    nb = nbformat.read(path, 4)
    nb.cells[1].source += "\nlr: float = None  # None: as chosen\nkind: str = None  # None: as chosen"
    nbformat.write(nb, path)
    for none in (None, "None", "null"):
        assert notebook.check_parameters(path, {"lr": none, "kind": none}) == {"lr": None, "kind": None}
    assert notebook.check_parameters(path, {"lr": "1", "kind": "none"}) == {"lr": 1.0, "kind": "none"}
    for refused in ({"n": None}, {"n": "None"}, {"lr": "none"}):
        with pytest.raises(ValueError, match=r"10_test.ipynb: \w+ is .*, which .* is not"):
            notebook.check_parameters(path, refused)


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, says",
    [
        (["--grid", "m=1,2"], "has no parameter m: it has fast, n, name, rate, shifts"),
        (["--grid", "n=1", "-p", "m", "1"], "has no parameter m"),
        (["--grid", "n=1,two"], "n is int, which 'two' is not"),
        (["--grid", "n=1.5"], "n is int, which '1.5' is not"),
        (["--grid", "n=1,"], "n is int, which '' is not"),
        (["--grid", "n=true"], "n is int, which 'true' is not"),
        (["--grid", "n=1", "-p", "fast", "yes"], "fast is bool, which 'yes' is not"),
        (["--grid", "shifts=fog,snow"], "shifts is list: write its values as"),
        (["--grid", "n"], "not of the form name=a,b,c"),
        (["--grid", "n=1,1"], "two of these runs are the same"),
        (["--grid", "n=1", "-p", "n", "2"], "n is given twice"),
        (["--grid", "n=1", "n=2"], "n is given twice"),
        (["--grid", "fast=true,false", "--fast"], "fast is given twice"),
        (["--grid", "n=1", "--workers", "0"], "whole numbers from 1 on"),
        (["--grid", "n=1", "--run-timeout", "0"], "whole numbers from 1 on"),
        (["--grid", "n=1", "-f", "missing.yaml"], "missing.yaml cannot be read as YAML"),
    ],
)
def test_wrong_settings_are_one_sentence_and_nothing_starts(make, more, says, capsys):
    path = make()
    assert main(command(path, *more)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (path.parent / "out").exists()


def test_wrong_notebooks_and_files_are_one_sentence(make, capsys):
    path = make()
    nb = nbformat.read(path, 4)
    nb.cells[1].metadata["tags"] = []
    nbformat.write(nb, path)
    assert main(command(path, "--grid", "n=1")) == 2
    assert "has 0 cells tagged `parameters`" in capsys.readouterr().err
    path.write_text("half of a note", encoding="utf-8")
    assert main(command(path, "--grid", "n=1")) == 2
    assert "cannot be read as a notebook" in capsys.readouterr().err
    preset = path.with_suffix(".yaml")
    for text, says in (("[1, 2]", "holds no parameters"), ("a: [", "cannot be read as YAML")):
        preset.write_text(text, encoding="utf-8")
        assert main(command(make(), "--grid", "n=1", "-f", str(preset))) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(make, capsys):
    path = make()
    assert main(command(path, "--grid", "n=1", out="10_test.ipynb/out")) == 2
    assert "choose another folder with --out; nothing was run" in capsys.readouterr().err
    if os.geteuid():  # the superuser may write anywhere
        (path.parent / "closed").mkdir(mode=0o500)
        assert main(command(path, "--grid", "n=1", out="closed")) == 2
        assert "choose another folder with --out; nothing was run" in capsys.readouterr().err


# --- kills -----------------------------------------------------------------------------------------------------------


def test_a_killed_kernel_and_a_killed_worker_lose_no_other_run(make, capsys):
    path = make("""
if first and n == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if first and n == 3:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)
""")
    assert main(command(path, "--grid", "n=1,2,3,4", "--workers", "2")) == 1
    error = capsys.readouterr().err
    assert "the kernel was killed, perhaps for lack of memory (DeadKernelError" in error
    assert "its process was killed by SIGKILL" in error
    good = {n: record_of(path, n).read_bytes() for n in (1, 4)}
    assert [r["status"] for r in rows_of(path.parent / "out")] == ["ok", "failed", "failed", "ok"]
    assert main(command(path, "--grid", "n=1,2,3,4", "--workers", "2")) == 0
    assert journal(path) == [1, 2, 2, 3, 3, 4]
    assert good == {n: record_of(path, n).read_bytes() for n in (1, 4)}


def test_a_killed_runner_leaves_no_process_no_lock_and_no_half_file(make, capsys):
    path = make("""
if first and n == 2:
    with open("pids", "w") as file:
        print(os.getppid(), os.getpid(), flush=True, file=file)
    time.sleep(3600)
""")
    grid = command(path, "--grid", "n=1,2,3")
    runner = subprocess.Popen([sys.executable, "-m", "gentta_utils", *grid], cwd=ROOT, stdout=subprocess.DEVNULL)
    pids = path.parent / "pids"
    while not (pids.is_file() and pids.read_text(encoding="utf-8").endswith("\n")):
        assert runner.poll() is None
        time.sleep(0.1)
    first = record_of(path, 1).read_bytes()
    assert main(grid) == 2  # a second runner on the folder
    assert "another runner is at work in" in capsys.readouterr().err
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    wait_until_gone(*map(int, pids.read_text(encoding="utf-8").split()))
    assert {p.name for p in (path.parent / "out").iterdir() if p.name.startswith(".")} == {".lock"}
    assert main(grid) == 0
    assert "1 finished before, 2 to do" in capsys.readouterr().out
    assert journal(path) == [1, 2, 2, 3]
    assert record_of(path, 1).read_bytes() == first


def test_a_run_over_its_time_is_ended_with_its_kernel(make, tmp_path):
    path = make("""
with open("pids", "w") as file:
    print(os.getppid(), os.getpid(), flush=True, file=file)
time.sleep(3600)
""")
    run = processes._Run(processes.NotebookJob(path, {}, tmp_path / "x.ipynb"), dict(os.environ))
    pids = tmp_path / "pids"
    while not (pids.is_file() and pids.read_text(encoding="utf-8").endswith("\n")):
        assert run.outcome() is None
        time.sleep(0.1)
    run.start -= processes.RUN_TIMEOUT  # as if it had run for four hours
    assert "it took longer than 14400 seconds (--run-timeout)" in run.outcome()["error"]
    wait_until_gone(*map(int, pids.read_text(encoding="utf-8").split()))
    assert not (tmp_path / "x.json").exists()


def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(make):
    path = make('open("started", "w").close()\ntime.sleep(3600)')
    grid = command(path, "--grid", "n=1,2")
    # whoever runs the tests in the background may have told them to ignore it, and a child inherits that
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    runner = subprocess.Popen(
        [sys.executable, "-m", "gentta_utils", *grid],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **listening,
    )
    while not (path.parent / "started").is_file():
        assert runner.poll() is None
        time.sleep(0.1)
    below = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(signal.SIGINT)
    _, error = runner.communicate()
    assert runner.returncode == 130
    assert b"the same command goes on from here" in error
    wait_until_gone(*(process.pid for process in below))


# --- a cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch):
    """A scheduler and two workers, each a process, to which everyone is patient."""
    distributed = pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    import dask

    monkeypatch.setattr(processes, "PATIENCE", 3600)
    how = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with dask.config.set({"distributed.comm.timeouts.connect": "1h"}), distributed.LocalCluster(**how) as cluster:
        yield cluster


def test_a_cluster_does_the_same_grid_and_survives_a_killed_worker(make, cluster, capsys):
    path = make("""
import psutil
if first and n == 2:
    os.kill(psutil.Process(os.getppid()).ppid(), signal.SIGKILL)
    time.sleep(3600)
""")
    grid = command(path, "--grid", "n=1,2,3", "--scheduler", cluster.scheduler_address)
    assert main(grid) == 0
    assert "3 to do" in capsys.readouterr().out
    assert journal(path) == [1, 2, 2, 3]
    assert [json.loads(record_of(path, n).read_text(encoding="utf-8"))["headline"]["square"] for n in (1, 2, 3)] == [
        1,
        4,
        9,
    ]
    assert main(grid) == 0
    assert "3 finished before, 0 to do" in capsys.readouterr().out
    assert journal(path) == [1, 2, 2, 3]


@pytest.mark.parametrize(
    "address, is_open",
    [
        ("tcp://127.0.0.1:8786", False), ("tcp://[::1]:8786", False), ("tcp://localhost:8786", False),
        ("tls://0.0.0.0:8786", False), ("wss://0.0.0.0:8786", False), ("inproc://10.0.0.7/1/2", False),
        ("tcp://0.0.0.0:8786", True), ("tcp://[::]:8786", True), ("tcp://10.0.0.7:8786", True), ("tcp://:8786", True),
        ("ws://0.0.0.0:8786", True), ("tcp://node7:8786", True),
    ],
)  # fmt: skip
def test_which_addresses_are_open(address, is_open):
    assert processes._is_open(address) == is_open


@pytest.mark.parametrize("host, warns", [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_open_scheduler_is_warned_of(make, capsys, host, warns):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    how = dict(n_workers=0, host=host, processes=False, protocol="tcp://", dashboard_address=None)
    path = make()
    with distributed.LocalCluster(**how) as cluster:
        settings = sweep.grid(path, ["n=1"])
        output = path.parent / "out" / f"{sweep._name(path, {'n': 1})}.ipynb"
        record = {"notebook": path.stem, "status": "ok", "parameters": {"n": 1}, "made_from": notebook.made_from(path)}
        record |= {"headline": {}, "seconds": 1.5, "output": str(output)}
        output.parent.mkdir()
        output.write_text("{}", encoding="utf-8")
        output.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")  # nothing is left to do
        sweep.run(settings, path.parent / "out", scheduler=cluster.scheduler_address)
    error = capsys.readouterr().err
    assert ("without TLS: whoever reaches it can run code as you" in error) == warns


def test_a_missing_scheduler_is_one_sentence(make, capsys, monkeypatch):
    pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    monkeypatch.setattr(processes, "PATIENCE", 1)
    path = make()
    for address in ("tcp://127.0.0.1:9", "missing.json"):
        assert main(command(path, "--grid", "n=1", "--scheduler", address)) == 2
        error = capsys.readouterr().err
        assert f"no dask scheduler answers at {address}" in error
        assert error.count("\n") == 1


def test_a_worker_that_does_not_share_the_folder_says_so(make, tmp_path):
    record = processes.run_job(processes.NotebookJob(make(), {}, tmp_path / "elsewhere" / "x.ipynb"))
    assert record["status"] == "failed"
    assert "work in folders that all machines share" in record["error"]


# --- plain papermill -------------------------------------------------------------------------------------------------


def test_plain_papermill_and_presets(make, capsys):
    path = make()
    preset = path.with_suffix(".yaml")
    preset.write_text("n: 4\nshifts: [fog, snow]\n", encoding="utf-8")
    plain = [sys.executable, "-m", "papermill", str(path), str(path.parent / "plain.ipynb"), "-f", str(preset)]
    subprocess.run([*plain, "-p", "n", "5"], cwd=path.parent, check=True, capture_output=True)
    assert main(["run", str(path), "-f", str(preset), "--out", str(path.parent / "out")]) == 0
    assert journal(path) == [4, 5]


@pytest.mark.parametrize("preset", sorted((NOTEBOOKS / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_fit_their_notebooks(preset):
    """00_vit.yaml is for the notebook whose name begins with 00."""
    assert notebook.check_parameters(notebook.find(preset.stem.split("_")[0]), notebook.read_preset(preset))
