"""Source accuracies under the natural shifts, on selection scenes: the table of data/README.md.

python bench/natural.py [--n 500] [--picture FILE]

Shift "a" is left out as long as its filter network is not there.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from gentta_utils.models import zoo
from gentta_utils.recipes.quality import accuracy
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import renditions
from gentta_utils.world.scenes import scene_ids

CLASSIFIERS = ("classifier/resnet", "classifier/vit")
START = 1000  # of the selection scenes that the model cards rest on


@torch.no_grad()
def table(n: int) -> None:
    """Print one line per shift."""
    shifts = ["clean", *(s for s in renditions.SHIFTS if s != "a" or renditions.FILTER in zoo.names())]
    networks = [zoo.load(name) for name in CLASSIFIERS]
    print(f"| shift | {' | '.join(f'`{name}`' for name in CLASSIFIERS)} | n |\n|---|---|---|---|")
    for shift in shifts:
        s = stream(SceneSpec(n, shift, split="select", start=START))
        right = [accuracy(torch.cat([f(part) for part in s.images.split(100)]), s.labels) for f in networks]
        print(f"| `{shift}` | {' | '.join(map(str, right))} | {n} |", flush=True)


def picture(path: Path, n: int = 10) -> None:
    """The same scenes in every style, one row each."""
    styles = [name for name in renditions.STYLES if name != "a"]
    fig, axes = plt.subplots(len(styles), n, figsize=(n, 1.1 * len(styles)), squeeze=False)
    for name, row in zip(styles, axes, strict=True):
        for ax, image in zip(
            row, renditions.paint(scene_ids(n, "select", START), name, dense=False).image, strict=True
        ):
            ax.imshow(image.permute(1, 2, 0))
            ax.axis("off")
        row[0].set_title(name, fontsize=8, loc="left")
    fig.savefig(path, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    table(args.n)
    if args.picture:
        picture(args.picture)
