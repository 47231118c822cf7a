"""Every command that a page, a notebook or a preset shows is run in fast mode, or parsed with its names resolved.

Commands that execute notebooks share runs: one for each notebook and profile, and one for each way of starting it; the
others go as far as the parameters that their run would get.
"""

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml
from shown_commands import Command, blocks, commands, scripts

from gentta_utils import __main__, recipes
from gentta_utils.common.paths import ROOT
from gentta_utils.course import tables
from gentta_utils.runner import executed, notebook
from gentta_utils.streams import downloads

COMMANDS = commands()
GENTTA = ("python", "-m", "gentta_utils")
IN_SCRIPTS = ("dask", "srun", "openssl")
LIMIT = 600  # seconds: only a run that hangs takes so long
FEWER = {"views": "16", "generated": "7"}  # of notebook 06, in whose presets even a fast run draws 63 of 128
each = lambda kind: pytest.mark.parametrize("command", [c for c in COMMANDS if kind_of(c) == kind], ids=str)  # noqa: E731


def words_of(command: Command) -> tuple[str, ...]:
    """`measure X` and `report X` are short for commands of the package."""
    return (*GENTTA, *command.words) if command.words[0] in ("measure", "report") else command.words


def kind_of(command: Command) -> str:
    """notebook: executes some. script: stands in one. run: done as it stands. parsed: the rest."""
    words = words_of(command)
    if words[0] in IN_SCRIPTS or "--scheduler" in words:
        return "script"
    if words[0] == "papermill":
        return "run" if "--help-notebook" in words else "notebook"
    if words[:3] == GENTTA:
        if words[3] in ("run", "sweep"):
            return "notebook"
        return "run" if words[3] in ("doctor", "report") and "NAME" not in words else "parsed"
    return "run" if words[0] in ("ruff", "make") else "parsed"


def test_how_many_of_each_kind(capsys):
    kinds = Counter(map(kind_of, COMMANDS))
    assert len(scripts()) > 1
    assert set(kinds) == {"notebook", "script", "run", "parsed"}
    with capsys.disabled():
        print(
            f"\n{len(COMMANDS)} commands shown: {kinds['run']} run as they are, {kinds['parsed']} parsed, "
            f"{kinds['notebook']} share {len(SHARED)} runs of notebooks, {kinds['script']} in {len(scripts())} scripts"
        )


# --- those that are run as they are ----------------------------------------------------------------------------------


@each("run")
def test_runs(command, capsys):
    words = words_of(command)
    if words[:3] == GENTTA:
        assert __main__.main([*words[3:]]) == 0
        assert capsys.readouterr().out.strip()
        return
    words = ("make", "-n", *words[1:]) if words[0] == "make" else words  # which commands it would run
    done = subprocess.run(here(words), cwd=ROOT, capture_output=True, encoding="utf-8", timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def here(words: tuple[str, ...]) -> list[str]:
    """With the programs of this environment; the package refuses to open text in the encoding of the machine."""
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    module = {"papermill": ["-m", "papermill"], "ruff": ["-m", "ruff"], "python": strict}
    return [sys.executable, *module[words[0]], *words[1:]] if words[0] in module else list(words)


# --- those that are parsed -------------------------------------------------------------------------------------------


@each("parsed")
def test_names_resolve(command, request):
    words = words_of(command)
    program, *rest = words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if words[:3] == GENTTA:
        resolve(words[3:])
    elif words[:3] == ("python", "-m", "pytest"):
        assert request.config._parser.parse_known_and_unknown_args(list(words[3:]))[1] == []
    elif program == "python":
        assert imports_of(ROOT / rest[0])
    elif program == "pip":
        packages = [w for w in rest[1:] if not w.startswith("-") and not w.startswith(".") and not w.endswith(".txt")]
        pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
        assert set(packages) <= pins
        assert all((ROOT / w).is_file() for w in rest if w.endswith(".txt"))
        assert all(w[2:-1] in project["optional-dependencies"] for w in rest if w.startswith(".["))
    elif program == "conda":
        assert yaml.safe_load((ROOT / rest[-1]).read_text(encoding="utf-8"))["dependencies"]
    elif program.startswith("python3."):
        assert project["requires-python"].startswith(f">={program.removeprefix('python')},")
        assert rest[:2] == ["-m", "venv"]
    elif program == "git":
        assert " ".join(rest) == "clone --depth 1"
    else:
        assert words == ("hf", "download", "ID")


def resolve(words: tuple[str, ...]) -> None:
    """A command of the package: its options are known, and so are the names that it is given."""
    args = __main__._parser().parse_args([*words])
    known = {
        "train": recipes.names,
        "measure": lambda: tables.TABLES,
        "data": lambda: ("photos", *downloads.ARCHIVES, *downloads.guides()),
    }.get(args.command, lambda: tables.TABLES)()
    given = getattr(args, "names", None) or [v for v in (getattr(args, "name", None),) if v]
    for name in given:
        if not name.isupper():  # NAME and the like stand for any
            assert name in known, name


def imports_of(path: Path) -> int:
    """How many names a script imports from the package; each is there."""
    found, nodes = 0, list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for text in texts:  # code that a script hands to another process
        if "\nfrom gentta_utils" in text:
            nodes += ast.walk(ast.parse(text))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gentta_utils":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}"), alias.name
                found += 1
    return found


# --- those that execute notebooks ------------------------------------------------------------------------------------


def settings_of(command: Command) -> list[tuple[Path, dict]]:
    """The notebooks and their checked parameters, as the command's own code gives them to the runner."""
    words = tuple("data" if w == "DIR" else w for w in words_of(command))
    if words[0] == "papermill":
        from papermill.cli import papermill

        given = papermill.make_context("papermill", [*words[1:]]).params
        preset = {k: v for file in given["parameters_file"] for k, v in notebook.read_preset(ROOT / file).items()}
        settings = [(ROOT / given["notebook_path"], preset | dict(given["parameters"]))]
    else:
        args = __main__._parser().parse_args([*words[3:]])
        if args.file:
            args.file = ROOT / args.file
        made = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(__main__, "_run_all", lambda settings, folder, args: made.extend(settings) or 0)
            (__main__._sweep if args.command == "sweep" else __main__._run)(args)
        settings = made
    return [(path, notebook.check_parameters(path, parameters)) for path, parameters in settings]


def shared() -> dict[tuple[str, str], Command]:
    """One command for each notebook and profile: the one with the fewest shifts, of equals one that is started in a way
    of its own. A notebook that no page shows on the imagenet profile is run on it as it stands."""
    found, ways = {}, set()
    for command in (c for c in COMMANDS if kind_of(c) == "notebook"):
        settings = settings_of(command)
        path, parameters = settings[0]
        size = len(parameters.get("shifts", [])), len(parameters.get("classifier_names", []))
        if len(settings) < len(notebook.notebooks()):  # not the whole course: `make fast` is that
            found.setdefault((path.stem, parameters.get("profile", "scenes")), []).append((size, command))
    for path in notebook.notebooks():
        words = (*GENTTA, "run", path.stem, "-p", "profile", "imagenet", "-p", "data_root", "DIR")
        found.setdefault((path.stem, "imagenet"), [((0, 0), Command("no page", words))])
    chosen = {}
    for key in sorted(found, key=lambda key: len({way_of(c) for _, c in found[key]})):  # those with no choice first
        _, chosen[key] = min(found[key], key=lambda item: (item[0], way_of(item[1]) in ways))
        ways.add(way_of(chosen[key]))
    return chosen


def way_of(command: Command) -> str:
    """papermill, run or sweep."""
    words = words_of(command)
    return words[0] if words[0] == "papermill" else words[3]


SHARED = shared()


def test_every_way_of_starting_a_notebook_is_run():
    assert {way_of(c) for c in SHARED.values()} == {way_of(c) for c in COMMANDS if kind_of(c) == "notebook"}


@each("notebook")
def test_parameters_reach_the_runner(command):
    """The grid wins over the file: every axis has its values, and the preset's other parameters are there."""
    settings = settings_of(command)
    words = words_of(command)
    if "--grid" not in words:
        assert len(settings) in (1, len(notebook.notebooks()))
        return
    axes = dict(w.split("=") for w in words if re.fullmatch(r"\w+=\S+", w))
    assert len(settings) == len({repr(parameters) for _, parameters in settings})
    for name, values in axes.items():
        assert {str(parameters[name]) for _, parameters in settings} == set(values.split(","))
    if "-f" in words:
        for name, value in notebook.read_preset(ROOT / words[words.index("-f") + 1]).items():
            assert name in axes or all(parameters[name] == value for _, parameters in settings)


@pytest.mark.long
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("key", SHARED, ids="-".join)
def test_notebooks_run(key, hub_home, image_root, forked, tmp_path):
    """One run of each kind, smallest sizes, the first value of each axis of a grid, with a fake hub and noise images in
    the place of real ones. Kernels are forked, except of notebooks without marked numbers: no other test starts a fresh
    kernel for these."""
    words = words_of(SHARED[key])
    variables = environment() | {"HF_HOME": str(hub_home)}
    if "NBVAL_CHECK_OUTPUT" in notebook.find(key[0]).read_text(encoding="utf-8"):
        variables |= forked
    change = {"DIR": str(image_root), "cuda": "cpu", "out.ipynb": str(tmp_path / "out.ipynb")}
    words = [re.sub(r"^(\w+=[^,]+),.*", r"\1", change.get(w, w)) for w in words]
    asked = notebook.parameters_of(notebook.find(key[0]))
    words += [w for name in asked if name in FEWER for w in ("-p", name, FEWER[name])]
    words += ["-p", "fast", "True"] if words[0] == "papermill" else ["--fast", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        here(tuple(words)), cwd=ROOT, env=variables, capture_output=True, encoding="utf-8", timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = tmp_path.rglob("*.ipynb")
    content = json.loads(made.read_text(encoding="utf-8"))
    assert made.stat().st_size > 10_000
    assert not [o["text"] for c in content["cells"] for o in c.get("outputs", []) if o.get("name") == "stderr"]
    if key[1] == "imagenet":
        speaks_of_real_images(content)


def speaks_of_real_images(content: dict) -> None:
    """No number or word of the scenes stands for those of this run."""
    assert not any("15 corruptions" in name for name in executed.headline(content))
    for cell in content["cells"]:
        shown = "".join(told(o) for o in cell.get("outputs", []))
        if not shown.startswith("From the committed records"):
            source = "".join(cell["source"])
            assert "evaluation.results(" not in source
            assert "tables.report(" not in source
            same = ("scenes.make(", "doctor()", "environment()")  # what these show is the same in both profiles
            assert any(call in source for call in same) or "scenes" not in shown, shown


def told(output: dict) -> str:
    """What an output says in words, alternative texts of figures included."""
    said = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
    return said + "".join(output.get("data", {}).get("text/markdown", ""))


def environment() -> dict[str, str]:
    """Of a reader who set nothing, offline, in the plainest of languages."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "GENTTA_", "DASK_"))}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "LC_ALL": "C"}


def small_notebook(folder: Path) -> Path:
    """With the parameters that the scripts give to notebook 00: which notebook a worker runs is nothing to a script."""
    parameters = 'severity: int = 5  # of the shifts\ndevice: str = "cuda"  # cpu or cuda\nfast: bool = False  # small'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (parameters, "severity, device, fast")])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata["language_info"] = {"name": "python"}
    nbformat.write(nb, folder / "00_small.ipynb")
    return folder / "00_small.ipynb"


@pytest.mark.long
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("text", [text for _, text in scripts()], ids=["one machine", "SLURM"])
def test_scripts_run(text, tmp_path):
    """On this machine, with one worker and one run; `srun` is whatever comes after it."""
    pytest.importorskip("distributed", reason="dask is not installed: pip install -e '.[cluster]'")
    shims = tmp_path / "bin"
    shims.mkdir()
    (shims / "srun").write_text('#!/bin/sh\nexec "$@"\n', encoding="utf-8")
    (shims / "srun").chmod(0o755)
    for old, new in (
        ("0 1 2 3", "0"),
        ("=4", "=1"),
        ("severity=1,2,3,4,5", "severity=1"),
        ("device cuda", "device cpu --fast --out out"),
        ("sweep 00 ", f"sweep {small_notebook(tmp_path)} "),
    ):
        assert old in text or old == "0 1 2 3"
        text = text.replace(old, new)
    path = os.pathsep.join([str(shims), str(Path(sys.executable).parent), os.environ["PATH"]])
    with open(tmp_path / "log", "w+", encoding="utf-8") as log:
        script = subprocess.Popen(
            ["sh", "-e", "-c", text], cwd=tmp_path, env=environment() | {"PATH": path}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = script.wait(LIMIT)
        finally:
            os.killpg(script.pid, signal.SIGTERM)  # the scheduler and its worker
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert status == 0, said[-3000:]
    assert "whoever reaches it can run code" not in said
    assert [p.suffix for p in sorted((tmp_path / "out").glob("00_*"))] == [".ipynb", ".json"]
    (made,) = (tmp_path / "out").glob("00_*.ipynb")
    assert "(1, 'cpu', True)" in made.read_text(encoding="utf-8")


# --- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for name, text in blocks("python") if name.endswith(".md")])
def test_python_examples(text):
    """What needs a cluster is parsed, and its packages are those of that extra; the rest is run on two images."""
    tree = ast.parse(text)
    modules = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    if "dask_jobqueue" in modules:
        extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        assert {m.replace("_", "-") for m in modules} == set(extra["cluster"])
        return
    names = {}
    exec(re.sub(r"n=\d+", "n=2", text), names)
    assert names["out"].logits.isfinite().all()
