"""What a notebook costs: measured on two kinds of machine (bench/precisions.py), predicted for this one.

data/costs.json holds, for each notebook at its defaults and in fast mode, seconds, peak memory and how long the probe
took on the same cores just before, with fast bf16 and in fp32 on AVX2. A machine whose probe takes a time between
the two gets the seconds between the two; a slower or faster one is as much slower or faster as its probe.
"""

import json
import re
from pathlib import Path

from ..common.files import atomic_write, read_json
from ..common.paths import DATA

COSTS = DATA / "costs.json"
LINE = re.compile(r"\*\*Cost\*\*: .*")  # of a notebook, and of the README for all of them
COURSE = "`make course` takes "


def read() -> dict:
    """{notebook: {"default" or "fast": {"bf16" or "fp32": {"seconds", "peak_memory_mb", "probe_ms"}}}}."""
    return read_json(COSTS, "run `git checkout -- data/costs.json`") if COSTS.is_file() else {}


def predict(cost: dict, probe_ms: float) -> float:
    """Seconds of a notebook where the probe takes so many milliseconds, from what it cost elsewhere.

    Args:
        cost: {kind of machine: {"seconds", "probe_ms", ...}}, one kind or more.
    """
    points = sorted((c["probe_ms"], c["seconds"]) for c in cost.values())
    (x0, y0), (x1, y1) = points[0], points[-1]
    if x0 < probe_ms < x1:
        return y0 + (y1 - y0) * (probe_ms - x0) / (x1 - x0)
    x, y = points[0] if probe_ms <= x0 else points[-1]
    return y * probe_ms / x


def line(cost: dict[str, dict], what: str = "") -> str:
    """The cost line of a notebook's first screen, from what it cost on one or both kinds of machine."""
    at = {kind: f"{c['seconds']:.0f}" for kind, c in cost.items()}
    without = f"{at['fp32']} seconds on two CPU cores without fast bf16" if "fp32" in at else ""
    if "bf16" in at:
        without = f"{at['bf16']} seconds on two CPU cores with fast bf16" + (
            f", {at['fp32']} without" if without else ""
        )
    return f"**Cost**: {what}{without}, {max(c['peak_memory_mb'] for c in cost.values()):.0f} MB of memory."


def write_lines(notebooks: list[Path], readme: Path) -> None:
    """State what was measured, in place: in each of these notebooks, and in the README once all are measured."""
    known = {path: read().get(path.stem, {}).get("default") for path in notebooks}
    for path, cost in known.items():
        if cost:
            content = json.loads(path.read_text(encoding="utf-8"))
            for cell in content["cells"]:
                cell["source"] = LINE.sub(lambda _, cost=cost: line(cost), "".join(cell["source"]))
            _write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if all(known.values()):
        everything = line(together(list(known.values())), COURSE)
        _write(readme, LINE.sub(lambda _: everything, readme.read_text(encoding="utf-8")))


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def together(costs: list[dict[str, dict]]) -> dict[str, dict]:
    """What several notebooks cost one after the other, on the kinds of machine where all were measured."""
    kinds = [kind for kind in costs[0] if all(kind in cost for cost in costs)]
    add = {"seconds": sum, "peak_memory_mb": max}
    return {kind: {key: how(cost[kind][key] for cost in costs) for key, how in add.items()} for kind in kinds}
