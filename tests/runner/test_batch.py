"""Headless runs: a record for every outcome, unknown parameters refused, nothing green that is not."""

import base64
import io
import json

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from gentta_utils.__main__ import main
from gentta_utils.course import widgets
from gentta_utils.course.plots import show
from gentta_utils.runner import notebook as runner_notebook
from gentta_utils.runner import sweep
from gentta_utils.runner.publish import publish

PARAMETERS = "n: int = 2  # how many\nfast: bool = False  # small"


def notebook(folder, *cells, name="10_test.ipynb"):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (PARAMETERS, *cells)])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata["language_info"] = {"name": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(nb, folder / name)
    return folder / name


HEADLINE = "from gentta_utils.course.display import headline\nheadline(answer=n * 21)"
TABLE = """\
display({"text/markdown": "| a |", "text/plain": "| a |"}, raw=True)
display({"text/markdown": "*a*", "text/plain": "a"}, raw=True)"""  # and a caption
PLAIN = 'display({"application/vnd.gentta.headline+json": {"answer": 42}, "text/plain": ""}, raw=True)'  # at once


def test_a_good_run_is_recorded_with_its_headline(tmp_path):
    path = notebook(tmp_path / "in", HEADLINE)
    (record,) = sweep.run([(path, {"n": 3})], tmp_path / "out")
    assert record["status"] == "ok"
    assert record["headline"] == {"answer": 63}
    assert record["seconds"] > 0
    assert record["peak_memory_mb"] > 10
    assert json.loads(next((tmp_path / "out").glob("10_test-n=3-*.json")).read_text(encoding="utf-8")) == record
    assert "| answer |" in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "summary.csv").read_text(encoding="utf-8").startswith("notebook,n,status,seconds")


def test_an_error_is_said_whole_however_long(tmp_path):
    """Its record begins at a line, not inside one, and the table shows all of what was raised."""
    lines = [f"part {i:03d} is missing: fetch it from somewhere or other" for i in range(60)]  # 3,300 characters
    code = f"raise FileNotFoundError('weights are missing:\\n' + {chr(10).join(lines)!r})"
    padding = "\n".join(f"# {i} a line of the cell that the traceback shows" for i in range(200))
    (record,) = sweep.run([(notebook(tmp_path / "in", f"{padding}\n{code}"), {})], tmp_path / "out")
    assert record["problem"] == "FileNotFoundError: weights are missing:\n" + "\n".join(lines)
    assert record["error"].endswith(lines[-1])
    assert all(line in record["error"] for line in lines)
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "weights are missing: " + " ".join(lines) in summary

    class Said(Exception):
        ename, evalue = "ValueError", "short"

    text = "\n".join(f"line {i} of a long message" for i in range(400))
    kept = runner_notebook._end(Said(text))
    assert kept.startswith("...\nline ")
    assert 1900 < len(kept) < 2050
    assert text.endswith(kept.removeprefix("...\n"))
    assert runner_notebook._end(Said("line")) == "line"


def test_failures_are_failures(tmp_path, capsys):
    """An error in a cell, a dead kernel, an error inside a widget, a cell over its time; the others still run."""
    widget = "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n    1 / 0\nout"
    paths = [
        notebook(tmp_path / "in", "1 / 0", name="10_error.ipynb"),
        notebook(tmp_path / "in", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", name="11_dead.ipynb"),
        notebook(tmp_path / "in", widget, name="12_widget.ipynb"),
        notebook(tmp_path / "in", PLAIN, name="13_good.ipynb"),
    ]
    assert main(["run", *map(str, paths), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((tmp_path / "out").glob("1*.json"))]
    assert [r["status"] for r in found] == ["failed"] * 3 + ["ok"]
    for record, says in zip(found, ("ZeroDivisionError", "DeadKernelError", "in a widget"), strict=False):
        assert says in record["error"]
        assert f"{record['notebook']} failed: " in printed
    slow = notebook(tmp_path / "in", "import time\ntime.sleep(3600)", name="14_slow.ipynb")
    (record,) = sweep.run([(slow, {})], tmp_path / "out", cell_timeout=1)
    assert record["status"] == "failed"
    assert "CellTimeoutError" in record["error"]
    assert record["problem"] == "timed out: a cell took longer than 1 seconds (--cell-timeout)"


def test_unknown_parameters_are_refused_before_anything_runs(tmp_path, capsys):
    path = notebook(tmp_path / "in", HEADLINE)
    with pytest.raises(ValueError, match="has no parameter m: it has fast, n"):
        sweep.run([(path, {"m": 3})], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["run", str(path), "-p", "m", "3", "--out", str(tmp_path / "out")]) == 2
    assert "has no parameter m" in capsys.readouterr().err


def test_finding_notebooks():
    assert runner_notebook.find("00").name == "00_start_here.ipynb"
    with pytest.raises(ValueError, match="0 notebooks match 'zz'"):
        runner_notebook.find("zz")


def test_publishing_cleans_and_states_the_cost_and_failure_changes_nothing(tmp_path):
    path = notebook(tmp_path / "in", f"{TABLE}\n{PLAIN}")
    nb = nbformat.read(path, 4)
    nb.cells.insert(0, nbformat.v4.new_markdown_cell("**Cost**: unknown"))
    nbformat.write(nb, path)
    publish(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "seconds on two CPU cores" in "".join(content["cells"][0]["source"])
    assert set(content["metadata"]) <= {"kernelspec", "language_info"}
    assert all(not set(c["metadata"]) - {"tags"} for c in content["cells"])
    assert content["cells"][-1]["execution_count"] == 2
    table, caption, other = (output["data"] for output in content["cells"][-1]["outputs"])
    assert "".join(table.pop("text/markdown")) == "| a |"
    assert table == {}  # once: as Markdown
    assert len(caption) == len(other) == 2
    bad = notebook(tmp_path / "in", "1 / 0", name="11_bad.ipynb")
    before = bad.read_text(encoding="utf-8")
    with pytest.raises(RuntimeError, match="was left as it was"):
        publish(bad)
    assert bad.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "argv, says",
    [
        (["train", "denoiser/none"], "no recipe for 'denoiser/none'"),
        (["train", "classifier/none", "--promote"], "no recipe for 'classifier/none'"),
        (["measure", "none"], "unknown table 'none'"),
        (["report", "none"], "unknown table 'none'"),
        (["run", "zz"], "notebooks match 'zz'"),
    ],
)
def test_wrong_commands_are_one_sentence(argv, says, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


# --- figures and widgets ---------------------------------------------------------------------------------------------


def bars(ax, height, kind="a"):
    if height > 9:
        raise ValueError("too high")
    ax.bar([kind], [height])


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "gentta_utils.course.plots.display", lambda data, metadata=None, raw=False: calls.append((data, metadata))
    )
    return calls


def test_figures_carry_their_text(shown):
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    show(fig, "a rising line")
    (data, metadata), (caption, _) = shown  # apart: beside an image, front ends leave out the text of its own output
    assert metadata == {"image/png": {"alt": "a rising line"}}
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
        assert (image.format, image.mode) == ("PNG", "P")  # at most 256 colours
    assert caption == {"text/markdown": "*a rising line*", "text/plain": "a rising line"}
    with pytest.raises(ValueError, match="alternative text"):
        show(fig, " ")


def test_static_twin_shows_the_start_and_the_ends(shown, monkeypatch):
    monkeypatch.delenv("GENTTA_INTERACTIVE", raising=False)
    controls = {"height": (0.0, 5.0, 2.0), "kind": ["a", "b"]}
    assert widgets.settings_shown(controls) == [
        {"height": 2.0, "kind": "a"}, {"height": 0.0, "kind": "a"}, {"height": 5.0, "kind": "a"},
        {"height": 2.0, "kind": "b"},
    ]  # fmt: skip
    widgets.explore(bars, "bars of some height", **controls)
    assert len(shown) == 2  # the picture and its caption
    with pytest.raises(ValueError, match="too high"):
        widgets.explore(bars, "bars", height=(0.0, 10.0, 2.0))


def test_live_widget_is_wired(shown, monkeypatch):
    monkeypatch.setenv("GENTTA_INTERACTIVE", "1")
    boxes = []
    monkeypatch.setattr("IPython.display.display", boxes.append)
    widgets.explore(bars, "bars of some height", height=(0, 20, 2), kind=["a", "b"])
    slider, dropdown, _ = boxes[0].children
    assert (slider.min, slider.max, slider.value) == (0, 20, 2)
    drawn = len(shown)
    slider.value = 3
    dropdown.value = "b"
    assert len(shown) == drawn + 4
    with pytest.raises(ValueError, match="too high"):
        slider.value = 15


BAR = "from gentta_utils.common.progress import progress\nfor _ in progress(range(3), desc='bar'):\n    pass"


def test_progress_can_be_switched_off(monkeypatch, capsys):
    from gentta_utils.common.progress import progress

    for value, shown in (("0", False), ("", False), ("1", True)):  # stderr is no terminal here
        monkeypatch.setenv("GENTTA_PROGRESS", value)
        assert list(progress(range(3), desc="bar")) == [0, 1, 2]
        assert ("bar" in capsys.readouterr().err) == shown


def test_progress_is_drawn_for_somebody_alone(monkeypatch, capsys):
    from gentta_utils.common.progress import progress

    monkeypatch.delenv("GENTTA_PROGRESS")
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        list(progress(range(3), desc="bar"))
        assert ("bar" in capsys.readouterr().err) == terminal
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BAR)])
    client = NotebookClient(nb, timeout=200)
    for asks in (False, True):  # as whatever executes notebooks, and as JupyterLab
        with client.setup_kernel():
            client.kc.allow_stdin = asks
            client.execute_cell(nb.cells[0], 0)
        assert bool(nb.cells[0].outputs) == asks
