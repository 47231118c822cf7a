"""Every command that the project shows a reader, by page: from code blocks, inline code and comments."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from gentta_utils.common.paths import NOTEBOOKS, ROOT
from gentta_utils.runner.notebook import notebooks

PROGRAMS = (
    "python", "make", "papermill", "pip", "conda", "ruff", "dask", "srun", "openssl", "git", "hf", "measure", "report",
)  # fmt: skip
_SHELL = ("for", "do", "done", "export", "mkdir", "rm", "umask")  # words of scripts, which are tested as a whole
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command as words, without the variables before it; `place` is the file that shows it."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def pages() -> dict[str, str]:
    """Markdown of the pages by name: README.md, data/README.md, the notebooks' text."""
    found = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "data/README.md")}
    for path in notebooks():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.name] = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return found


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of all fenced blocks of a language; "" for shell."""
    return [(name, text) for name, page in pages().items() for kind, text in FENCE.findall(page) if kind == language]


def scripts() -> list[tuple[str, str]]:
    """(page, text) of the blocks that are scripts: they start what goes on in the background."""
    return [(name, text) for name, text in blocks("") if re.search(r"&$", text, re.MULTILINE)]


def commands() -> list[Command]:
    """All of them, once each and page."""
    shell = blocks("")
    inline = [
        (name, code)
        for name, page in pages().items()
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page))
        if re.match(rf"(?:{'|'.join(PROGRAMS)}) [\w.-]", code)
    ]
    headers = [
        (f"presets/{path.name}", re.sub(r"^#   ?", "", "\n".join(_header(path)), flags=re.MULTILINE))
        for path in sorted((NOTEBOOKS / "presets").glob("*.yaml"))
    ]
    lines = [(name, line) for name, text in [*shell, *headers, *inline] for line in _lines(text)]
    found = [Command(name, tuple(words)) for name, line in lines for words in _words(line)]
    return list(dict.fromkeys(found))


def _header(path: Path) -> list[str]:
    """The indented lines of a preset's comment."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]


def _lines(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", text)
    return [part for line in joined.splitlines() for part in re.split(r" && |; ", line)]


def _words(line: str) -> list[list[str]]:
    if line.startswith("#SBATCH"):
        return []
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    words = [w for w in words if w != "&"]
    if not words or words[0] in _SHELL:
        return []
    return [[Path(words[0]).name, *words[1:]]]
