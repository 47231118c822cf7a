"""Method cards, glossary and references: what they name exists, and the code cites nothing that is not here."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import gentta_utils
from gentta_utils import methods
from gentta_utils.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CARDS = sorted(p for p in (DOCS / "methods").glob("*.md") if p.stem != "index")
PAGES = sorted([*DOCS.glob("*.md"), *(DOCS / "methods").glob("*.md")])
TESTS = {p.name: p for p in (ROOT / "tests").rglob("test_*.py")}
# notebooks that still cite a document which is not in the repository
CITING = {"notebooks/05_dda_sda.ipynb"}
HEADS = ("## Idea", "## Formula", "## Algorithm", "## In the package", "## What the tests hold")


def test_every_method_has_a_card_and_its_module_cites_it():
    assert set(METHODS) <= {p.stem for p in CARDS}
    for name, module in METHODS.items():
        assert f"docs/methods/{name}.md" in (module.__doc__ or ""), f"{name}: cite docs/methods/{name}.md"


def test_every_module_of_the_methods_cites_a_card():
    for info in pkgutil.iter_modules(methods.__path__):
        doc = importlib.import_module(f"gentta_utils.methods.{info.name}").__doc__ or ""
        assert re.search(r"docs/methods/\w+\.md", doc), f"methods/{info.name}.py cites no card"


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_a_card_has_its_parts(card):
    text = card.read_text(encoding="utf-8")
    if card.stem in METHODS:
        for head in (*HEADS, "## Published"):
            assert f"\n{head}" in text, f"{card.name} has no {head!r}"
        assert "| changes | reset | scored | needs | cost per image |" in text
        assert re.search(r"## (Public code, and ours|Traps, and what we do)", text)
    assert len(text.split()) < 1000, f"{card.name} is no longer read in three minutes"


@pytest.mark.parametrize("name", METHODS)
def test_a_card_explains_every_setting(name):
    """Fields that a settings class takes over from another method's stand in that method's card."""
    settings = METHODS[name].Settings
    inherited = {f.name for base in settings.__mro__[1:] if is_dataclass(base) for f in fields(base)}
    text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    missing = [f.name for f in fields(settings) if f.name not in inherited and f"`{f.name}`" not in text]
    assert not missing, f"docs/methods/{name}.md does not name {missing}"


def test_settings_of_all_input_methods_are_explained_once():
    text = (DOCS / "methods" / "diffpure.md").read_text(encoding="utf-8")
    base = METHODS["diffpure"].Settings.__mro__[1]
    assert not [f.name for f in fields(base) if f"`{f.name}`" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_modules_that_a_page_names_exist(page):
    for path in sorted(set(re.findall(r"`(gentta_utils(?:\.\w+)+)", page.read_text(encoding="utf-8")))):
        pkgutil.resolve_name(path)


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_tests_that_a_card_names_exist(card):
    text = card.read_text(encoding="utf-8")
    files = set(re.findall(r"`(test_\w+\.py)`", text))
    assert files, f"{card.name} names no test file"
    assert files <= set(TESTS)
    defined = {
        name for f in files for name in re.findall(r"^def (test_\w+)", TESTS[f].read_text(encoding="utf-8"), re.M)
    }
    assert set(re.findall(r"`(test_\w+)`", text)) <= defined


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    made = [t for t in targets if t.startswith("notebooks/")]  # by docs/conf.py, from the committed ones
    assert all((ROOT / t).is_file() for t in made)
    assert all((page.parent / t).is_file() for t in targets if "://" not in t and t not in made)


def test_the_index_lists_every_method_and_every_card():
    index = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\)", index, re.M)
    assert [a for a, _ in rows] == [b for _, b in rows]
    assert sorted(a for a, _ in rows) == sorted(METHODS)
    assert all(f"({p.name})" in index for p in CARDS)


def test_the_index_says_when_each_method_is_scored():
    index = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    for name, module in METHODS.items():
        (row,) = re.findall(rf"^\| \[{name}\].*$", index, re.M)
        scored = row.split("|")[4].split()[0]
        classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        classes += [module.Purifier] if hasattr(module, "Purifier") else []  # their class is shared
        said = {c.predict for c in classes if getattr(c, "predict", None) in ("before", "after")}
        said |= {f.default for f in fields(module.Settings) if f.name == "predict" and f.default in ("before", "after")}
        assert said == {scored}, f"{name}: the index says {scored}, the code {said}"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    suffixes = {".py", ".md", ".ipynb", ".yaml", ".yml", ".toml", ".txt", ".cff", ""}
    found = (ROOT / line for line in listed.stdout.splitlines())
    return [p for p in found if p.suffix in suffixes and p.is_file() and p != Path(__file__).resolve()]


RATES = r"evaluations( of (the|a) (denoiser|diffusion model))?|seconds|passes|pairs|steps|images|scenes|one \w+|once|ms"
UNITS = "image|class|step|second|update|pair|batch|process|line|level|evaluation|check|file|table|cell"
# what this repository does not say -> what it says instead
PLAIN = {
    r"held[-_ ]out": "validation corruptions; of words, unseen",
    r"\bmen(d|ds|ded|ding)\b": "fix, repair",
    r"\bfore(tell|told)\b": "predict",
    r"\bdea(r|rer|rest)\b": "expensive",
    r"\bbites?\b": "cost, matter",
    r"\ba(new)\b|\bof old\b": "again, from scratch",
    r"\bsave\s+in\b": "except in",
    r"\bshall\b": "should, must, will",
    r"\bwhilst\b|\b[tw]hence\b": "while, from there",
    r"\blow-passed\b": "the low view",
    rf"(?<!which )\b({RATES}) an? ({UNITS})\b": "per",
}
# a row label, which determines a record's fingerprint, and the one place that explains the low view
STORED = ("K10: one random t an update", "the *low view*, the low-passed image")


def plain_text(path: Path) -> str:
    """What a person wrote in this file: of a notebook the sources, not what it printed."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    for stored in STORED:
        text = text.replace(stored, "")
    return re.sub(r"\s+#? *", " ", text)  # a phrase may go over the end of a line


def unplain(text: str) -> list[str]:
    """What stands in a text that should be said otherwise, each with what to say."""
    found = ((m.group(), say) for word, say in PLAIN.items() for m in re.finditer(word, text, re.I))
    return [f"{said!r}: say {say}" for said, say in found]


def test_the_repository_speaks_plainly():
    """Plain modern English, and one name for each thing: see the glossary."""
    outside = {"constraints.txt", "requirements-hashed.txt", "LICENSE"}
    wrong = {str(p.relative_to(ROOT)): unplain(plain_text(p)) for p in tracked() if p.name not in outside}
    assert not any(wrong.values()), {path: words for path, words in wrong.items() if words}


@pytest.mark.parametrize(
    "halves",
    [
        ("96 evaluations an", " image"),
        ("how to men", "d it"),
        ("on held", "-out corruptions"),
        ("made a", "new"),
        ("save", " in two"),
        ("dea", "rer"),
        ("it bi", "tes"),
    ],
)
def test_old_words_are_noticed(halves):
    """In halves, and patterns in groups, so that a search for these words finds none here either."""
    assert len(unplain("".join(halves))) == 1
    assert not unplain("96 evaluations per image; which images a method meets; recommended; a second image")


def test_no_file_cites_a_document_that_is_not_here():
    """METHODS as a document, that is: `METHODS[...]`, the table of methods, is code."""
    outside = re.compile(r"\b(METHODS|DESIGN|COURSE|LAYOUT|TOOLS|TRIALS|REVIEW_\w+)\.md|\bMETHODS:? ?C?\d")
    citing = {
        str(p.relative_to(ROOT)) for p in tracked() if outside.search(p.read_text(encoding="utf-8", errors="ignore"))
    }
    assert citing <= CITING, f"cite the paper and a page under docs/: {sorted(citing - CITING)}"


def test_pages_that_the_repository_cites_exist():
    cited = {
        (match, p.relative_to(ROOT))
        for p in tracked()
        if p.name != ".gitignore"
        for match in re.findall(r"docs/[\w/]+\.md", p.read_text(encoding="utf-8", errors="ignore"))
    }
    assert cited
    missing = [(page, str(where)) for page, where in cited if not (ROOT / page).is_file()]
    assert not missing, missing


def test_codes_of_published_tables_are_explained():
    """Those of presets' names, and those that labels in the package begin with."""
    explained = set(re.findall(r"^\| ([A-Z]\d+) \|", (DOCS / "experiments.md").read_text(encoding="utf-8"), re.M))
    presets = {p.stem.split("_")[1].upper() for p in (ROOT / "notebooks" / "presets").glob("*.yaml")}
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "gentta_utils").rglob("*.py"))
    used = {c for c in presets if re.fullmatch(r"[KS]\d+", c)} | set(re.findall(r"\b[KS]\d{1,2}\b", code))
    assert used
    assert used <= explained


def test_tables_that_experiments_names_exist():
    from gentta_utils.course.tables import TABLES

    for row in re.findall(r"^\| [KS]\d+ \|.*$", (DOCS / "experiments.md").read_text(encoding="utf-8"), re.M):
        *_, preset, tables, _ = row.split("|")
        assert set(re.findall(r"`(\w+)`", tables)) <= set(TABLES)
        assert all((ROOT / "notebooks" / "presets" / f).is_file() for f in re.findall(r"`([\w.]+)`", preset))


def test_the_package_is_found_where_this_file_is():
    """Otherwise the tests above would hold another checkout's code against these pages."""
    assert Path(gentta_utils.__file__).resolve().is_relative_to(ROOT)
