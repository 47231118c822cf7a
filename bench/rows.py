"""What a row of notebook 07 costs, each in a process of its own: CPU seconds per image on one thread, and memory.

    python bench/rows.py [BLOCK ...]        -> data/row_costs.json, for the blocks of data/grid.yaml or for these

A row adapts to `N` images at once, after one image that loads its networks. CPU seconds do not depend on what else runs
on the machine. Memory is the peak of its process less that of the frozen source of the same block. Rows that stand
there already, with the same settings and networks, are not measured again.
"""

import argparse
import resource
import sys
import tempfile
import time
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import torch

from gentta_utils.common.cache import fingerprint
from gentta_utils.common.files import write_json
from gentta_utils.course import purified
from gentta_utils.course.nb07 import board, plan
from gentta_utils.evaluation import generated
from gentta_utils.streams.stream import stream

N = 8
UNIT = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere


def measured(row: plan.Row, block: str) -> tuple[float, float]:
    """CPU seconds per image, and the peak of this process in MB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # an image in the cache would cost nothing
        purified.CACHE = generated.CACHE = Path(folder)
        for shift, n in (("snow", 1), ("fog", N)):
            stream(plan.spec_of(shift, 0, n))  # rendered before the clock runs
            _, work = plan.small_job(row, block, n, shift)
            start = time.process_time()
            work()
            seconds = (time.process_time() - start) / n
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT


def alone(row: plan.Row, block: str) -> tuple[float, float]:
    """`measured` in a fresh process."""
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["gentta_utils.course.nb07"])  # libraries are loaded once
    with context.Pool(1) as pool:
        return pool.apply(measured, (row, block))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("blocks", nargs="*", help="resnet, vit, clip or mae; all when none is given")
    blocks = parser.parse_args().blocks
    known, source = dict(board.row_costs()), {}
    for row in plan.plan():
        for block in row.networks if not blocks else [b for b in blocks if b in row.networks]:
            key, mine = fingerprint(plan.small_job(row, block)[0]), known.setdefault(block, {})
            if mine.get(row.row, {}).get("job") == key:
                continue
            if block not in source:
                source[block] = alone(next(r for r in plan.plan() if r.row == board.SOURCE), block)[1]
            seconds, peak = alone(row, block)
            mine[row.row] = {"seconds": round(seconds, 4), "memory_mb": max(0, round(peak - source[block])), "job": key}
            print(f"{block} {row.row}: {seconds:.3f} s, {mine[row.row]['memory_mb']} MB", flush=True)
            write_json(board.COSTS, known)


if __name__ == "__main__":
    main()
