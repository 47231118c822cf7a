"""How the drawn frost compares with the published pictures, and what it costs the shipped classifiers.

python bench/frost.py [--crops 100] [--sheets FOLDER] [--accuracy N]

The table is of random crops as the corruption takes them, grey = mean of the channels. --sheets writes contact sheets:
crops alone, and scenes under frost of severity 1 to 5, at 224 and at 64 px. --accuracy counts on N test scenes.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from gentta_utils.models import zoo
from gentta_utils.recipes.quality import accuracy
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import frost, scenes
from gentta_utils.world.corruptions import corrupt

MEASURED = ("mean", "std within a crop", "difference of neighbours", "power above 1/8", "std of the mean")
PUBLISHED = {224: (0.636, 0.095, 0.046, 0.36, 0.15), 64: (0.658, 0.066, 0.028, 0.33, 0.15)}  # of 100 random crops


def table(crops: int) -> None:
    """Print the statistics at both sizes beside the published ones."""
    print(f"| | {' | '.join(MEASURED)} |\n|{'---|' * (len(MEASURED) + 1)}")
    for side, published in PUBLISHED.items():
        ours = frost.statistics(side, crops)
        print(f"| published, {side} px | {' | '.join(f'{v:.3f}' for v in published)} |")
        print(f"| drawn, {side} px | {' | '.join(f'{v:.3f} ({v / p:.2f})' for v, p in zip(ours, published))} |")


def sheets(folder: Path, n: int = 6) -> None:
    """Crops, and the same scenes at every severity, one row each."""
    for side in PUBLISHED:
        clean = scenes.render(scenes.sample(scenes.scene_ids(n, "select")), size=side, dense=False).image
        rng = np.random.default_rng(0)
        crops = torch.stack([torch.from_numpy(frost.texture(side, rng)).permute(2, 0, 1) for _ in range(2 * n)])
        rows = [crops[:n], crops[n:], clean, *(corrupt(clean, "frost", severity) for severity in (1, 3, 5))]
        sheet = torch.cat([torch.cat(list(row.float()), 2) for row in rows], 1).permute(1, 2, 0)
        folder.mkdir(parents=True, exist_ok=True)
        plt.imsave(folder / f"frost_{side}.png", sheet.numpy())


@torch.no_grad()
def accuracies(n: int) -> None:
    """Source accuracy under frost of every shipped classifier, severities 1 to 5."""
    print(f"\n| n = {n} | {' | '.join(f'severity {s}' for s in range(1, 6))} |\n|{'---|' * 6}")
    seen = [stream(SceneSpec(n, "frost", severity)) for severity in range(1, 6)]
    for name in (name for name in zoo.names() if name.startswith("classifier/")):
        network = zoo.load(name)
        print(f"| {name} | {' | '.join(str(accuracy(network(s.images), s.labels)) for s in seen)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=100)
    parser.add_argument("--sheets", type=Path, metavar="FOLDER")
    parser.add_argument("--accuracy", type=int, default=0, metavar="N")
    args = parser.parse_args()
    table(args.crops)
    if args.sheets:
        sheets(args.sheets)
    if args.accuracy:
        accuracies(args.accuracy)
