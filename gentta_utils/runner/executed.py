"""What an executed notebook says of its run: numbers of its headline, and what went wrong without an exception."""

import json
import re
from pathlib import Path

HEADLINE = "application/vnd.gentta.headline+json"
COLUMNS = ("notebook", "status", "seconds", "peak memory MB", "problem", "headline")  # of the summary's table


def read(path: Path) -> dict | None:
    """An executed notebook; None where there is none, or half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "cells" in content else None


def headline(content: dict) -> dict:
    """The numbers for the summary's table: name -> number or text, without those that are columns of it already."""
    taken = _columns(content)
    return {name: value for name, value in _shown(content).items() if name not in taken}


def wrong(content: dict) -> str | None:
    """What is wrong with a run in which nothing was raised, in a sentence; None for a good one."""
    taken = sorted(_columns(content) & set(_shown(content)))
    misnamed = f"headline: {', '.join(taken)} is a column of the summary already: name it otherwise" if taken else None
    return _in_a_widget(content) or _stopped(content) or misnamed


def _shown(content: dict) -> dict:
    shown = [o.get("data", {}).get(HEADLINE) for cell in content["cells"] for o in cell.get("outputs", [])]
    return {name: value for numbers in shown if isinstance(numbers, dict) for name, value in numbers.items()}


def _columns(content: dict) -> set[str]:
    sources = ("".join(c["source"]) for c in content["cells"] if "parameters" in c["metadata"].get("tags", []))
    return {*COLUMNS, *re.findall(r"^(\w+)\s*[:=]", "\n".join(sources), re.MULTILINE)}


def _in_a_widget(content: dict) -> str | None:
    """An exception inside a widget's output leaves the run green: it sits only in the widget state."""
    states = (
        content["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    )
    for state in states.values():
        for output in state.get("state", {}).get("outputs", []):
            if output.get("output_type") == "error":
                return f"in a widget: {output.get('ename')}: {output.get('evalue')}"
    return None


def _stopped(content: dict) -> str | None:
    """A notebook that ended before its last cell, by `sys.exit()` or otherwise, is not done."""
    for i, cell in enumerate(content["cells"], start=1):
        ended = any(o.get("ename") == "SystemExit" for o in cell.get("outputs", []))
        code = cell["cell_type"] == "code" and "".join(cell["source"]).strip()
        if ended or (code and cell.get("execution_count") is None):
            how = "called sys.exit()" if ended else "was not executed"
            return f"cell {i} of {len(content['cells'])} {how}: a run is good when all of its cells are done"
    return None
