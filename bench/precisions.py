"""What notebooks cost with fast bf16 and without, on the same cores in one run; writes the cost lines.

    python bench/precisions.py [NOTEBOOK ...] [--fast] [--avx2] [--rounds 1] [--write]

The two kinds of machine take turns, notebook by notebook, each after half a second of the probe by which `run` predicts
the time of another machine; the last line is their sum, what `make course` takes. Draws of intervals are made in each
run, as in the first one of a clone. `--avx2` forbids the wider instructions too, as most laptops do not have them.
`--write` puts the medians into data/costs.json, into the line **Cost** of each notebook, and their sum into that of the
README, once all are measured.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gentta_utils.common.devices import precision_on
from gentta_utils.common.files import write_json
from gentta_utils.common.paths import CACHE, ROOT
from gentta_utils.runner import costs, probe
from gentta_utils.runner import notebook as runner_notebook

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def measured(notebook: Path, variables: dict[str, str], fast: bool) -> dict:
    """Seconds, peak memory (MB) and the probe's milliseconds of one run with these environment variables."""
    environment = os.environ | variables
    shutil.rmtree(CACHE / "draws", ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        probe_ms = probe.speed(environment)
        command = [sys.executable, "-m", "gentta_utils", "run", str(notebook), "--out", folder]
        subprocess.run(command + ["--fast"] * fast, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (record,) = (json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("[!.]*.json"))
    return {"seconds": record["seconds"], "peak_memory_mb": record["peak_memory_mb"], "probe_ms": round(probe_ms, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", help="paths or beginnings of names; all when none is given")
    parser.add_argument("--fast", action="store_true", help="in fast mode instead of at their defaults")
    parser.add_argument("--avx2", action="store_true", help="the machine without bf16 has no AVX-512 either")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    notebooks = [runner_notebook.find(name) for name in args.notebooks] or runner_notebook.notebooks()
    kinds = {"fp32": {"GENTTA_PRECISION": "fp32"} | (AVX2 if args.avx2 else {})}
    if precision_on("cpu") == "bf16":
        kinds = {"bf16": {}} | kinds
    else:
        print("this machine has no fast bf16: only the other kind is measured")
    mode = "fast" if args.fast else "default"
    costs_of = costs.read()
    for notebook in notebooks:
        rounds = [
            {k: measured(notebook, variables, args.fast) for k, variables in kinds.items()} for _ in range(args.rounds)
        ]
        medians = {
            kind: {key: statistics.median(r[kind][key] for r in rounds) for key in rounds[0][kind]} for kind in kinds
        }
        costs_of.setdefault(notebook.stem, {})[mode] = medians
        text = ", ".join(f"{kind} {c['seconds']:.1f} s (probe {c['probe_ms']:.1f} ms)" for kind, c in medians.items())
        if len(medians) == 2:
            ratios = {key: medians["fp32"][key] / medians["bf16"][key] for key in ("seconds", "probe_ms")}
            text += f": {ratios['seconds']:.2f} x as long, the probe {ratios['probe_ms']:.2f} x"
        print(f"{notebook.stem}: {text}, {max(c['peak_memory_mb'] for c in medians.values()):.0f} MB", flush=True)
    known = {notebook.stem: costs_of.get(notebook.stem, {}).get(mode) for notebook in runner_notebook.notebooks()}
    if all(known.values()):
        print(costs.line(costs.together(list(known.values())), "`make fast` takes " if args.fast else costs.COURSE))
    else:
        print(f"no sum: {', '.join(name for name, cost in known.items() if not cost)} not measured yet")
    if args.write:
        write_json(costs.COSTS, costs_of)
        costs.write_lines(runner_notebook.notebooks(), ROOT / "README.md")


if __name__ == "__main__":
    main()
