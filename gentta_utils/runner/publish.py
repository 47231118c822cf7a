"""Committed notebooks: executed at their defaults, clean of everything that changes without a reason."""

import json
import tempfile
from pathlib import Path

from ..common.files import atomic_write
from . import costs
from .sweep import run


def publish(notebook: Path) -> dict:
    """Execute a notebook at its defaults and put the result in its place, without run metadata and widget state.

    Its line "**Cost**: ..." is rewritten with what was measured on both kinds of machine (`costs`), or just now. A
    table stands there once, as the Markdown that every front end shows: its plain copy is for terminals.

    Raises RuntimeError, leaving the notebook as it was, if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        record = run([(notebook, {})], Path(folder))[0]
        if record["status"] != "ok":
            raise RuntimeError(f"{notebook.name} failed and was left as it was: {record['error']}")
        content = json.loads((Path(folder) / notebook.name).read_text(encoding="utf-8"))
    known = costs.read().get(notebook.stem, {}).get("default")
    now = f"**Cost**: {record['seconds']:.0f} seconds on two CPU cores, {record['peak_memory_mb']} MB of memory."
    cost = costs.line(known) if known else now
    for cell in content["cells"]:
        cell["source"] = costs.LINE.sub(cost, "".join(cell["source"]))
    for key in ("widgets", "papermill"):
        content["metadata"].pop(key, None)
    for cell in content["cells"]:
        keep = {k: v for k, v in cell["metadata"].items() if k in ("tags", "jupyter")}
        cell["metadata"] = keep
        for data in (output.get("data", {}) for output in cell.get("outputs", ())):
            if "text/plain" in data and data["text/plain"] == data.get("text/markdown"):
                del data["text/plain"]
    write_text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    atomic_write(notebook, lambda path: path.write_text(write_text, encoding="utf-8"))
    return record
