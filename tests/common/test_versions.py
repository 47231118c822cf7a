"""The list of libraries that a run rests on is that of what the package imports, and of the lock."""

import ast
import sys
from importlib.metadata import packages_distributions

from gentta_utils.common.paths import ROOT
from gentta_utils.common.versions import COMPUTING, versions

# what shows, stores, types or starts, and changes no number
OTHERS = {"distributed", "filelock", "huggingface-hub", "ipython", "ipywidgets", "jaxtyping", "lazy-loader"}
OTHERS |= {"matplotlib", "nbformat", "psutil", "pyyaml", "tabulate", "tqdm", "traitlets"}


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def imported() -> set[str]:
    """Distributions that the package imports, inside functions too."""
    names = set()
    for path in (ROOT / "gentta_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    known = packages_distributions()
    return {plain(known[name][0]) for name in names - set(sys.stdlib_module_names) - {"gentta_utils"} if name in known}


def test_every_library_that_is_imported_is_on_one_side():
    computing = set(map(plain, COMPUTING))
    assert not imported() - computing - OTHERS
    assert not computing & OTHERS


def test_all_of_them_are_locked_and_here():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {plain(name): version for name, _, version in (line.partition("==") for line in lines)}
    found = versions()
    assert "missing" not in found.values()
    assert set(map(plain, found)) <= set(locked)
    assert versions(("no-such-thing",)) == {"no-such-thing": "missing"}
