"""The examples of docs/add.md, as they stand there: a method, a shift, a rendition, a table."""

import importlib.util
import re
import sys
import textwrap

import pytest

from gentta_utils.common.paths import ROOT
from gentta_utils.course import side_by_side
from gentta_utils.course.nb02 import rivals
from gentta_utils.evaluation import tables
from gentta_utils.methods import METHODS
from gentta_utils.streams import stream as streams
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.world import corruptions, renditions, severities, shifts
from gentta_utils.world.tracing import photograph

PAGE = (ROOT / "docs" / "add.md").read_text(encoding="utf-8")
METHOD, USE, SHIFT, USE_SHIFT, TABLE, LINE = (
    textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)
)


def few(text: str) -> str:
    """With two scenes where the page has many."""
    text = re.sub(r"\bn=\d+", "n=2", text)
    return text.replace("SceneSpec(20,", "SceneSpec(2,").replace("20 * i", "2 * i")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The method of the page, as its file and its line would make it."""
    path = tmp_path / "mirror.py"
    path.write_text(METHOD, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("gentta_utils.methods.mirror", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "mirror", module)
    return module


def test_the_method_and_the_shift(mirror, monkeypatch, capsys):
    names = {}
    exec(few(USE), names)
    assert re.search(r"-?\d+\.\d \[", capsys.readouterr().out)
    exec(SHIFT, there := dict(vars(corruptions)))
    monkeypatch.setitem(corruptions._APPLY, "stripes", there["_stripes"])
    for side in severities.CONSTANTS:
        monkeypatch.setitem(severities.CONSTANTS[side], "stripes", (0.1, 0.2, 0.3, 0.4, 0.5))
    monkeypatch.setattr(severities, "ALL", [*severities.ALL, "stripes"])
    monkeypatch.setattr(corruptions, "ALL", severities.ALL)
    monkeypatch.setattr(shifts, "SHIFTS", [*shifts.SHIFTS, "stripes"])
    exec(few(USE_SHIFT), names)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_rendition(monkeypatch):
    monkeypatch.setitem(renditions.STYLES, "negative", (renditions.World(), lambda s, v: 1 - photograph(s, v)))
    monkeypatch.setattr(renditions, "SHIFTS", (*renditions.SHIFTS, "negative"))
    monkeypatch.setattr(shifts, "SHIFTS", [*shifts.SHIFTS, "negative"])
    made = streams.stream.__wrapped__.__wrapped__(SceneSpec(n=2, shift="negative"))
    whole = SceneSpec(n=2).load()
    assert (made.images + whole.images - 1).abs().mean() < 0.02  # but for the sensor's noise


def test_the_table(mirror, monkeypatch, tmp_path):
    to = lambda name, jobs: tables.table(name, jobs, tmp_path, tmp_path / "cache")  # noqa: E731
    names = vars(rivals) | {"mirror": mirror, "table": to}
    exec(few(TABLE), names)
    runs = names["my_table"]()
    assert LINE.strip() == '"my_table": (rivals.my_table, compared),'
    assert "| mirror " in side_by_side.compared(runs)
    assert (tmp_path / "my_table.npz").is_file()
