"""Pins agree everywhere, torchvision imports beside a CPU-only torch, the package stays small and speaks of itself."""

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from gentta_utils.common.paths import ROOT
from gentta_utils.common.torchvision_shim import ensure_torchvision
from gentta_utils.course import doctor

PACKAGE = sorted((ROOT / "gentta_utils").rglob("*.py"))


def pins() -> dict[str, str]:
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    return {name.lower().replace("_", "-"): version for name, version in lines}


def test_environment_yml_and_pyproject_hold_the_locked_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    first, *wanted, last = pip["pip"]
    assert (first, last) == ("-c constraints.txt", "-e .[test]")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = {re.split(r"[=<>]", d)[0] for d in project["dependencies"]}
    assert {w.split("==")[0] for w in wanted} == direct
    for requirement in [*wanted, *(d for d in project["dependencies"] if "==" in d)]:
        name, version = requirement.split("==")
        assert pins()[name.lower().replace("_", "-")] == version, requirement
    for name in itertools.chain(*project["optional-dependencies"].values()):
        assert name.lower() in pins(), name


def test_every_locked_package_has_its_checksum():
    lines = (ROOT / "requirements-hashed.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"(\S+)==(\S+)(?: --hash=sha256:[0-9a-f]{64})+", line) for line in lines]
    assert all(found)
    assert {re.sub("[_.]", "-", m[1].lower()): m[2] for m in found} == {
        name.replace(".", "-"): version for name, version in pins().items()
    }


def test_actions_are_pinned_by_commit():
    used = [
        u
        for p in (ROOT / ".github" / "workflows").glob("*.yml")
        for u in re.findall(r"uses: (\S+)", p.read_text(encoding="utf-8"))
    ]
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", u) for u in used), used


def test_the_shim_does_nothing_where_torchvision_is_loaded():
    import torchvision

    before = torchvision.__dict__.copy()
    first, second = ensure_torchvision(), ensure_torchvision()
    assert first == second
    assert sys.modules["torchvision"].__dict__ == before


def test_the_shim_reraises_other_errors():
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise RuntimeError("something else")
sys.meta_path.insert(0, Broken())
import gentta_utils
try:
    import torchvision
except RuntimeError as error:
    assert "something else" in str(error)
else:
    raise SystemExit("nothing was raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_repository_speaks_of_the_project_alone():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    bad = re.compile(r"(?<![\w.])/(home|root|work|tmp|mnt|opt)/\w")
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".ipynb", ".json", ".txt", ".cff"} and path.is_file():
            found = bad.search(path.read_text(encoding="utf-8"))
            assert not found or path.name == "test_setup.py", f"{name}: {found.group()}"


def test_doctor_is_well_and_names_what_is_not(capsys, monkeypatch):
    assert doctor.doctor()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == list(doctor.CHECKS)
    assert all(line.startswith("OK") for line in printed)
    monkeypatch.setattr(doctor, "versions", lambda names: dict.fromkeys(names, "0.0"))
    monkeypatch.setattr(doctor, "FREE_GB", 1e9)
    assert not doctor.doctor()
    printed = capsys.readouterr().out.splitlines()
    failed = [line for line in printed if line.startswith("FAIL")]
    assert [line.split()[1] for line in failed] == ["versions", "disk"]
    assert all("->" in line for line in failed)


def test_doctor_survives_a_broken_check(capsys, monkeypatch):
    monkeypatch.setitem(doctor.CHECKS, "device", lambda: 1 / 0)
    assert not doctor.doctor()
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_jaxtyping_is_on():
    """The test of the test: torch would broadcast (2, 3) with (1, 3) silently."""
    import torch

    from gentta_utils.diffusion.process import eps_error

    with pytest.raises(TypeError):
        eps_error(torch.zeros(2, 3), torch.zeros(1, 3))


def test_labels_are_complete():
    labels = json.loads((ROOT / "data" / "scenes" / "labels.json").read_text(encoding="utf-8"))
    assert len(labels["classes"]) == 10
    assert len(labels["colours"]) == 8
    assert labels["watermark_class"] in labels["classes"]
    assert all("{}" in t for t in [labels["prompt"], *labels["templates"]])


# --- clones elsewhere ------------------------------------------------------------------------------------------------


def text_calls_without_encoding(tree: ast.AST) -> list[str]:
    """Calls that read or write text in whatever encoding the machine happens to have."""
    found = []
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        given = {k.arg: k.value for k in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = {"open": 1 if isinstance(node.func, ast.Name) else 0, "fdopen": 1, "TemporaryFile": 0}
        if name in place:
            mode = given.get("mode", node.args[place[name]] if len(node.args) > place[name] else ast.Constant("r"))
            modes = {n.value for n in ast.walk(mode) if isinstance(n, ast.Constant)}
            library = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in (
                "Image",
                "tarfile",
                "os",
            )
            is_text = not library and all("b" not in str(m) for m in modes)
        else:
            process = name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & set(given)
            is_text = name in ("read_text", "write_text") or bool(process)
        if is_text and isinstance(node.func, ast.Attribute | ast.Name) and "encoding" not in given:
            found.append(ast.unparse(node))
    return found


def test_every_text_file_is_read_and_written_as_utf_8():
    for text, wrong in (("p.read_text()", 1), ("open(p, 'rb')", 0), ("open(p)", 1), ("run(c, text=True)", 1)):
        assert len(text_calls_without_encoding(ast.parse(text))) == wrong, text
    for path in [*PACKAGE, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").glob("*.py")]:
        assert not text_calls_without_encoding(ast.parse(path.read_text(encoding="utf-8"))), path


def test_line_feeds_and_bytes_survive_every_checkout():
    """With core.autocrlf=true a clone has the text of this one, and its checksums."""
    names = ["README.md", "Makefile", "data/models/checksums.json", "gentta_utils/models/zoo.py"]
    asked = ["git", "check-attr", "eol", "binary", "--", *names]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert said.count("eol: lf") == len(names)
    assert said.count("binary: set") == 0
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    binary = [n for n in tracked.splitlines() if n.endswith((".npz", ".png", ".safetensors"))]
    asked = ["git", "check-attr", "binary", "--", *binary]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    assert said.count("binary: set") == len(binary) > 50


def test_torchvision_what_stands_on_it_and_every_module_import_in_a_fresh_interpreter():
    """Modules of the package do without what Unix alone has."""
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in PACKAGE if p.stem != "__main__"]
    code = f"""
import builtins, importlib
plain = builtins.__import__
def hidden(name, globals=None, *rest, **more):  # what libraries need on Unix is theirs
    ours = str((globals or {{}}).get("__name__")).startswith("gentta_utils")
    if ours and name in ("resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "posix", "syslog", "readline"):
        raise ImportError(f"no module named {{name}} here")
    return plain(name, globals, *rest, **more)
builtins.__import__ = hidden
import gentta_utils
import torchvision, timm, open_clip
from torchvision.transforms import v2
from diffusers import DiTTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
from peft import LoraConfig
import torch
assert v2.Resize(4)(torch.rand(3, 8, 8)).shape == (3, 4, 4)
assert torchvision.ops.box_iou(torch.tensor([[0, 0, 2, 2.]]), torch.tensor([[1, 1, 3, 3.]])).item() > 0
from gentta_utils.common.torchvision_shim import ensure_torchvision
assert ensure_torchvision() in ("native", "shim")
for name in {modules}:
    importlib.import_module(name)
from gentta_utils.runner import notebook
assert notebook._peak_memory() is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_package_is_for_the_python_that_the_lock_was_made_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (wanted,) = (line.partition("=")[2] for line in environment["dependencies"] if str(line).startswith("python="))
    major, minor = map(int, wanted.split("."))
    assert project["requires-python"] == f">={wanted},<{major}.{minor + 1}"
    assert f"Python {wanted}" in (ROOT / "README.md").read_text(encoding="utf-8")
