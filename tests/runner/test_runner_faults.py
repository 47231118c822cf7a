"""Faults under the runner, and odd notebooks: nothing is taken for done that is not, nothing that is done is lost."""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import nbformat
import psutil
import pytest

from gentta_utils import __main__
from gentta_utils.__main__ import main
from gentta_utils.common.paths import ROOT
from gentta_utils.course.display import headline
from gentta_utils.runner import executed, notebook, processes, sweep

PARAMETERS = 'n: int = 1  # which\nname: str = "a"\nshifts: list[str] = ["fog"]\nsizes: dict = {}\nfast: bool = False'


@pytest.fixture
def make(tmp_path):
    """make(*cells) -> a notebook that says nothing of its language."""

    def make(*cells, name="10_test"):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (PARAMETERS, *cells)])
        nb.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        return tmp_path / f"{name}.ipynb"

    return make


def finished_run(path, out, **parameters):
    """A run as it stands in its folder when it has ended well: its job and its record."""
    assert not sweep.run([(path, parameters)], out, dry=True)
    settings = notebook.check_parameters(path, parameters)
    job = processes.NotebookJob(path, settings, out / f"{sweep._name(path, settings)}.ipynb")
    out.mkdir(exist_ok=True)
    job.output.write_text('{"cells": []}\n', encoding="utf-8")
    record = {"notebook": path.stem, "status": "ok", "parameters": settings, "made_from": notebook.made_from(path)}
    record |= {"headline": {}, "seconds": 1.0, "peak_memory_mb": None, "output": str(job.output), "error": None}
    job.output.with_suffix(".json").write_text(json.dumps(record), encoding="utf-8")
    return job, record


# --- what a finished run stands on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    ["models/checksums.json", "results/diffusion_tta.json", "results/rivals.json", "results/sda.json"]
    + ["results/test.npz", "scenes/labels.json", "scenes/test.npz"],
)
def test_a_change_of_what_is_read_makes_a_run_unfinished(make, tmp_path, monkeypatch, file):
    for name in ("models", "results", "scenes"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(notebook, name.upper(), tmp_path / name)
    (tmp_path / file).write_text("lr 1.18", encoding="utf-8")
    path = make()
    job, record = finished_run(path, tmp_path / "out", n=1)
    assert sweep.finished(job, notebook.made_from(path)) == record
    (tmp_path / file).write_text("lr 0.0001", encoding="utf-8")
    assert sweep.finished(job, notebook.made_from(path)) is None


def test_libraries_and_the_precision_are_part_of_it(make, monkeypatch):
    path = make()
    monkeypatch.delenv("GENTTA_PRECISION", raising=False)
    before = notebook.made_from(path)
    assert {"torch", "numpy", "scipy", "scikit-image", "pillow", "transformers", "open_clip_torch", "peft"} <= set(
        before["versions"]
    )
    monkeypatch.setenv("GENTTA_PRECISION", "fp32")
    after = notebook.made_from(path)
    assert {key for key in before if before[key] != after[key]} == {"precision"}
    monkeypatch.setenv("GENTTA_PRECISION", "")  # as good as not set
    assert notebook.made_from(path) == before


@pytest.mark.parametrize("left", ["", '{"cells": [', "[]"])
def test_an_executed_notebook_that_is_cut_is_made_again(make, tmp_path, left):
    path = make()
    job, record = finished_run(path, tmp_path / "out", n=1)
    assert sweep.finished(job, record["made_from"]) == record
    job.output.write_text(left, encoding="utf-8")
    assert sweep.finished(job, record["made_from"]) is None


@pytest.mark.parametrize("key, value", [("output", None), ("parameters", None), ("headline", []), ("seconds", "1")])
def test_a_damaged_record_stops_nobody_else(make, tmp_path, key, value):
    path, out = make(), tmp_path / "out"
    job, record = finished_run(path, out, n=1)
    finished_run(path, out, n=2)
    damaged = {k: v for k, v in record.items() if k != key} if value is None else record | {key: value}
    job.output.with_suffix(".json").write_text(json.dumps(damaged), encoding="utf-8")
    found = sweep.run([(path, {"n": 1}), (path, {"n": 2})], out, dry=True)
    assert [r["parameters"]["n"] for r in found] == [2]
    job.output.with_suffix(".json").write_text(json.dumps(record | {key: None}), encoding="utf-8")
    assert len(sweep.run([(path, {"n": 1}), (path, {"n": 2})], out, dry=True)) == 1


# --- full disks ------------------------------------------------------------------------------------------------------


def test_half_a_notebook_is_never_put_in_place(make, tmp_path, monkeypatch):
    import papermill

    def full(path, draft, **how):
        with open(draft, "w", encoding="utf-8") as file:
            file.write('{"cells": [{"cell_type"')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", full)
    path, output = make(), tmp_path / "x.ipynb"
    output.write_text("of an earlier run", encoding="utf-8")
    record = notebook.run_notebook(path, output, {})
    assert record["status"] == "failed"
    assert record["problem"].startswith("the disk of temporary files is full: free some space in ")
    assert "TMPDIR" in record["error"]
    assert not output.exists()
    assert json.loads(output.with_suffix(".json").read_text(encoding="utf-8")) == record


def test_a_full_disk_at_the_table_loses_no_run(make, tmp_path, monkeypatch, capsys):
    path, out = make(), tmp_path / "out"
    for n in (1, 2):
        finished_run(path, out, n=n)
    write = sweep.atomic_write

    def full(target, writer):
        raise OSError(f"could not write {target}: free some space")

    monkeypatch.setattr(sweep, "atomic_write", full)
    command = ["sweep", str(path), "--grid", "n=1,2", "--out", str(out)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "free some space; the same command writes the summary, no run is lost" in said.err
    assert said.out.count("| ok ") == 2  # it is shown all the same
    monkeypatch.setattr(sweep, "atomic_write", write)
    assert main(command) == 0
    assert (out / "summary.md").read_text(encoding="utf-8").count("| ok ") == 2


# --- what is refused before anything starts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, says",
    [
        (["--grid", "shifts= "], "gives shifts no value"),
        (["--grid", "n=1", "-p", "name", "\udcff"], "cannot be kept in a record"),
        (["--grid", "n=1", "-p", "sizes", "{1: 2}"], "cannot be kept in a record"),
        (["--grid", "n=1", "-p", "sizes", "{'a': (1, 2)}"], "cannot be kept in a record"),
        (["--grid", "n=1", "-p", "sizes", "{'a': NaN}"], "sizes is dict"),
        (["--grid", "n=1", "-p", "shifts", "[1, 2]"], "shifts is list[str], which"),
        (["--grid", "n=1", "-p", "n", "["], "given twice"),
        (["--grid", "n=" + "[" * 5000], "n is int, which"),
    ],
)
def test_wrong_values_are_one_sentence(make, tmp_path, capsys, more, says):
    assert main(["sweep", str(make()), "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [{1: 2}, {(1, 2): 3}, {"a": (1, 2)}, {"a": float("nan")}, {"a": {1}}])
def test_values_that_json_changes_are_refused(make, value):
    with pytest.raises(ValueError, match="cannot be kept in a record"):
        notebook.check_parameters(make(), {"sizes": value})
    kept = {"a": [1, True, None, 1.5, "→"]}
    assert notebook.check_parameters(make(), {"sizes": kept}) == {"sizes": kept}


def test_a_key_of_a_preset_is_text(make, tmp_path, capsys):
    preset = tmp_path / "p.yaml"
    preset.write_text("1: 2\n", encoding="utf-8")
    assert main(["run", str(make()), "-f", str(preset), "--out", str(tmp_path / "out")]) == 2
    assert "1 is no name of a parameter" in capsys.readouterr().err


def test_names_of_files_fit_a_file_system_that_counts_bytes(make):
    path = make()
    names = {sweep._name(path, {"name": "图" * n}) for n in (30, 80, 500)}
    assert len(names) == 3
    assert max(len(f".{name}-12345678.ipynb".encode()) for name in names) <= 255


def test_no_run_at_all_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no run is asked for"):
        sweep.run([], tmp_path / "out")


def test_a_scheduler_file_of_something_else(tmp_path):
    pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    for content in ("{}", "[]", "not JSON", ""):
        (tmp_path / "scheduler.json").write_text(content, encoding="utf-8")
        with pytest.raises(OSError, match=r"no dask scheduler answers at .*scheduler\.json"):
            processes.connect(str(tmp_path / "scheduler.json"))


def test_a_scheduler_without_workers_is_told_of(make, tmp_path, monkeypatch, capsys):
    client = SimpleNamespace(nthreads=dict)
    monkeypatch.setattr(sweep, "connect", lambda address: nullcontext(client))
    monkeypatch.setattr(sweep, "open_addresses", lambda client: [])
    monkeypatch.setattr(sweep, "on_cluster", lambda jobs, *_: ((j, processes.failed(j, "lost")) for j in jobs))
    path, out = make(), tmp_path / "out"
    finished_run(path, out, n=1)
    sweep.run([(path, {"n": 1}), (path, {"n": 2})], out, scheduler="tcp://127.0.0.1:1")
    said = capsys.readouterr().out
    assert "1 to do, about 1 seconds with 1 at a time" in said
    assert "tcp://127.0.0.1:1 has no worker yet: the runs begin when the first one comes" in said


def test_ctrl_c_before_anything_runs_is_one_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "_sweep", interrupted)
    assert main(["sweep", "00", "--grid", "n=1"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"


def test_ten_thousand_runs_are_listed_in_seconds(make, tmp_path, monkeypatch, capsys):
    path = make()
    finished_run(path, tmp_path / "out", n=1)
    begun = time.process_time()
    found = sweep.run([(path, {"n": n}) for n in range(10_000)], tmp_path / "out", dry=True)
    assert time.process_time() - begun < 5
    assert len(found) == 1
    assert "10000 wanted, 1 finished before, 9999 to do, about 167 minutes" in capsys.readouterr().out


# --- notebooks that end otherwise ------------------------------------------------------------------------------------


def content(*cells, parameters="n: int = 1"):
    """An executed notebook: a parameters cell, then for each given one its outputs, or None where it was not run."""
    first = {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}, "execution_count": 1}
    more = [
        {"cell_type": "code", "source": "x", "metadata": {}, "execution_count": None if o is None else 2}
        | {"outputs": o or []}
        for o in cells
    ]
    return {"cells": [first | {"outputs": []}, *more], "metadata": {}}


def shown(**numbers):
    return [{"output_type": "display_data", "data": {executed.HEADLINE: numbers}, "metadata": {}}]


def test_a_notebook_is_done_when_all_its_cells_are():
    assert executed.wrong(content([], [])) is None
    left = [{"output_type": "error", "ename": "SystemExit", "evalue": "0", "traceback": []}]
    assert executed.wrong(content([], left, None)).startswith("cell 3 of 4 called sys.exit()")
    assert executed.wrong(content([], None)).startswith("cell 3 of 3 was not executed")


@pytest.mark.parametrize("name", [*executed.COLUMNS, "n"])
def test_a_headline_takes_the_place_of_no_other_column(name):
    good = content(shown(answer=42))
    assert executed.wrong(good) is None
    assert executed.headline(good) == {"answer": 42}
    bad = content(shown(answer=42, **{name: 99}))
    assert f"headline: {name} is a column of the summary already" in executed.wrong(bad)
    assert executed.headline(bad) == {"answer": 42}


def test_a_notebook_hears_at_once_that_a_name_is_taken():
    with pytest.raises(ValueError, match="headline: the summary has a column 'status' already"):
        headline(status="ok", n=99)


@pytest.mark.parametrize("numbers", [[1], "text", 3, None])
def test_a_headline_of_another_form_is_passed_over(numbers):
    strange = content([{"output_type": "display_data", "data": {executed.HEADLINE: numbers}, "metadata": {}}])
    assert executed.headline(strange) == {}
    assert executed.wrong(strange) is None


def test_sys_exit_in_a_cell_fails_the_run(make, tmp_path):
    (record,) = sweep.run([(make("import sys\nsys.exit()", "1"), {})], tmp_path / "out")
    assert record["status"] == "failed"
    assert record["error"] == "cell 2 of 3 called sys.exit(): a run is good when all of its cells are done"


CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
with open("pids", "w") as file:
    print(os.getpid(), child.pid, flush=True, file=file)
"""


def gone(*pids):
    """Waits until none of these processes lives; the limit of all tests ends it otherwise."""
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        time.sleep(0.1)
    return True


def test_odd_notebooks_under_an_old_locale(make, tmp_path):
    """No kernel metadata, parameters, an arrow, much output, a child in its own session: good, and nothing is left."""
    path = make(CHILD, "assert n == 5\nprint('→' * 1_000_000)")
    old = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONWARNINGS": "ignore"}
    command = ["run", str(path), "-p", "n", "5", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "gentta_utils", *command], cwd=ROOT, env=os.environ | old, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert gone(*map(int, (tmp_path / "pids").read_text(encoding="utf-8").split()))


def test_a_killed_run_leaves_no_child_of_its_kernel(make, tmp_path):
    path = make(CHILD + "import signal\nos.kill(os.getppid(), signal.SIGKILL)", "import time\ntime.sleep(3600)")
    ((_, record),) = processes.here([processes.NotebookJob(path, {}, tmp_path / "x.ipynb")], 1)
    assert record["error"] == "its process was killed by SIGKILL"
    assert gone(*map(int, (tmp_path / "pids").read_text(encoding="utf-8").split()))
