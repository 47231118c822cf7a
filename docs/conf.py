"""The site: committed notebooks, method cards, how to add things, the API. `make site` builds it; nothing is run."""

import inspect
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import latex2mathml.converter
from docutils import nodes

import gentta_utils  # first: makes torchvision importable on a CPU-only torch

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGES = (
    "common", "world", "diffusion", "models", "streams", "methods", "evaluation", "recipes", "course", "runner",
)  # fmt: skip

project = "GenTTA"
author = "the GenTTA developers"
copyright = "the GenTTA developers; MIT licence"
version = release = version("gentta")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those of the repository
nb_render_markdown_format = "myst"
html_theme = "sphinx_book_theme"
html_title = "GenTTA"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"use_download_button": True, "show_toc_level": 2, "home_page_in_toc": True}
exclude_patterns = ["_build", "jupyter_execute"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]  # free headings; the numbers that a sweep collects

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


def made(folder: str) -> Path:
    """An empty folder below docs/ for what this file makes; git ignores it."""
    path = DOCS / folder
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def take_notebooks() -> None:
    """The committed notebooks, beside which Sphinx looks for what they link to."""
    folder = made("notebooks")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        # links between files of the repository become links of the site
        text = path.read_text(encoding="utf-8").replace("../data/README.md", "../data.md")
        text = text.replace("../data/scenes/", "../scenes/")
        (folder / path.name).write_text(text.replace("../docs/", "../"), encoding="utf-8")


def take_data_card() -> None:
    """data/README.md as a page, with its pictures."""
    folder = made("scenes")
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "data" / "scenes").glob("*.png"):
        shutil.copy(path, folder)
    (DOCS / "data.md").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "data" / "datasets.md", DOCS / "datasets.md")


def heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]


def write_api() -> None:
    """A page for each package, a section for each module, from their docstrings."""
    folder, package = made("api"), ROOT / "gentta_utils"
    for name in PACKAGES:
        lines = [*heading(f"gentta_utils.{name}", "="), f".. automodule:: gentta_utils.{name}", ""]
        for path in sorted((package / name).rglob("*.py")):
            if path.name != "__init__.py":
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                lines += heading(module.removeprefix(f"gentta_utils.{name}."), "-")
                lines += [f".. automodule:: {module}", "   :members:", ""]
        (folder / f"{name}.rst").write_text("\n".join(lines), encoding="utf-8")
    pages = [f"   {name}" for name in PACKAGES]
    index = [*heading("API", "="), inspect.getdoc(gentta_utils).replace(":\n\n    ", "::\n\n    "), ""]
    index += [".. toctree::", "   :maxdepth: 1", "", *pages, ""]
    (folder / "index.rst").write_text("\n".join(index), encoding="utf-8")


take_notebooks()
take_data_card()
write_api()


def mathml(translator, node: nodes.Node, display: str) -> None:
    """Formulas as MathML, which browsers draw by themselves: no script, no network."""
    source = node.astext().replace(r"\operatorname", r"\mathrm").replace(r"\|", r"\Vert ")
    source = re.sub(r"\\(begin|end)\{(align|equation|gather)\*?\}", lambda m: rf"\{m[1]}{{aligned}}", source)
    translator.body.append(latex2mathml.converter.convert(source, display=display))
    raise nodes.SkipNode


def block(translator, node: nodes.Node) -> None:
    translator.body.append('<div class="formula">')
    try:
        mathml(translator, node, "block")
    finally:
        translator.body.append("</div>")


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with formulas and `code`: nothing else in them is markup."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([|*\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        lines[i] = "``".join(parts) if len(parts) % 2 else line


def setup(app):
    app.connect("autodoc-process-docstring", plain, priority=100)  # before the sections are read
    nothing = lambda *_: None  # noqa: E731
    app.add_html_math_renderer("mathml", (lambda t, n: mathml(t, n, "inline"), nothing), (block, nothing))
    app.config.html_math_renderer = "mathml"
