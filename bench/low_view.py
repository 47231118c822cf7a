"""What the CLIPs read of the categories on the low view, clean and under the validation corruptions: the numbers of
data/README.md.

python bench/low_view.py [--n 400]
"""

import argparse

import torch

from gentta_utils.models import zoo
from gentta_utils.recipes.quality import accuracy
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world.severities import VALIDATION
from gentta_utils.world.views import VIEWS, view_of
from gentta_utils.world.words import LABEL_SETS

CLIPS = ("clip/small", "clip/small-32", "clip/large")
START = 1000  # of the selection scenes that the model cards rest on


@torch.no_grad()
def table(n: int) -> None:
    """Print one line per shift."""
    asked = LABEL_SETS["category"]
    classifiers = [zoo.load(name).zero_shot(asked.classes, asked.templates[:1]) for name in CLIPS]
    head = ["shift", *(f"`{name}`, {view}" for name in CLIPS for view in VIEWS)]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for shift in ("clean", *VALIDATION):
        s = stream(SceneSpec(n, shift, 0 if shift == "clean" else 5, "select", START))
        right = [accuracy(f(view_of(s.images, view)), s.labels) for f in classifiers for view in VIEWS]
        print(f"| {shift} | {' | '.join(map(str, right))} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400)
    table(parser.parse_args().n)
