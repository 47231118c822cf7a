"""How should idle threads wait? An adaptation alone and beside one busy core, by how its threads wait for each other.

    python bench/threads.py [--images 8] [--rounds 5]

Processes that differ in nothing but environment variables take turns on the same work; each ratio is the median over
rounds of the time against that of the default in the same round, with its extremes. Runs get OMP_WAIT_POLICY=PASSIVE
where the machine is busy when they start (`gentta_utils/runner/processes.py`).
"""

import argparse
import os
import statistics
import subprocess
import sys
from contextlib import contextmanager

WAYS = {
    "default (spins a while)": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_WAIT_POLICY=ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},  # of GNU's runtime
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},  # of Intel's and LLVM's
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WORK = """
import sys, time
import torch  # before gentta_utils, which would set what is measured here
from dataclasses import replace
from gentta_utils import SceneSpec, stream
from gentta_utils.course import trials
from gentta_utils.evaluation import chosen
from gentta_utils.methods import diffusion_tta

images = stream(SceneSpec({images}, "speckle_noise", 5, "test", 20_000))
settings = replace(chosen.tuned("classifier/resnet"), updates=2)
method = diffusion_tta.configure(trials.models("classifier/resnet"), settings)
method.adapt(images.images, images.ids)
print(torch.get_num_threads(), flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    method.adapt(images.images, images.ids)
    print(time.perf_counter() - start, flush=True)
"""


class Worker:
    """A process that does the work whenever it is told to."""

    def __init__(self, variables: dict[str, str], images: int):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORK.format(images=images)],
            env=clean | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.threads = int(self.process.stdout.readline())

    def seconds(self) -> float:
        """Of one adaptation, now."""
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


@contextmanager
def busy_core():
    """One core with something else to do."""
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    workers = {name: Worker(variables, args.images) for name, variables in WAYS.items()}
    first = next(iter(workers.values()))
    print(f"{os.cpu_count()} cores, {first.threads} threads, {args.images} images a turn, {args.rounds} rounds")
    alone, beside = [], []
    for _ in range(args.rounds):
        alone.append({name: worker.seconds() for name, worker in workers.items()})
        with busy_core():
            beside.append({name: worker.seconds() for name, worker in workers.items()})
    for worker in workers.values():
        worker.process.stdin.close()
    for title, rounds in (("alone", alone), ("beside one busy core", beside)):
        print(f"\n{title}")
        for name in WAYS:
            ratios = [r[name] / r["default (spins a while)"] for r in rounds]
            print(
                f"  {name:<24} {statistics.median(r[name] for r in rounds):6.2f} s   "
                f"{statistics.median(ratios):5.2f} x the default ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
