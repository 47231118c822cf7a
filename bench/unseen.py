"""Constants of the unseen corruptions: at each severity they cost the shipped ResNet what the fifteen cost it.

python bench/unseen.py [--n 150] [--sheet FILE] [--constants]

--constants prints, for each of the ten, the constants at which the network has as many selection scenes right as it has
under the fifteen on average at severity 1 and at severity 5, with three even steps between; without it the table
compares both groups at the constants in use. --sheet draws every corruption at every severity.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from gentta_utils.common.progress import progress
from gentta_utils.models import zoo
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world.corruptions import corrupt, with_constant
from gentta_utils.world.severities import TEST, UNSEEN, UNSEEN_CONSTANTS

START = 9000  # of the selection scenes
SEVERITIES = range(1, 6)
RANGES = {  # the constants that are tried
    "blue_noise": (0.05, 0.25),
    "brown_noise": (0.03, 0.2),
    "caustic_refraction": (0.002, 0.05),
    "checkerboard_cutout": (0.01, 1.0),
    "concentric_sine_waves": (0.02, 0.15),
    "inverse_sparkles": (0.02, 0.12),
    "perlin_noise": (0.025, 0.15),
    "plasma_noise": (0.05, 0.4),
    "single_frequency_greyscale": (0.02, 0.15),
    "sparkles": (0.008, 0.1),
}
POINTS = 9


def accuracies(n: int) -> tuple[dict, dict]:
    """Percent right at severity 1 to 5 of the fifteen and of the ten, by name."""
    clean, net = stream(SceneSpec(n, split="select", start=START)), zoo.load("classifier/resnet")

    @torch.no_grad()
    def right(images) -> float:
        return 100 * (net(images).argmax(1) == clean.labels).float().mean().item()

    def each(names: list[str]) -> dict:
        return {
            k: [right(corrupt(clean.images, k, s, clean.ids)) for s in SEVERITIES]
            for k in progress(names, desc="accuracy")
        }

    return each(TEST), each(UNSEEN)


def curve(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Constants, and percent right at them, made to fall."""
    clean, net = stream(SceneSpec(n, split="select", start=START)), zoo.load("classifier/resnet")
    constants, right = np.geomspace(*RANGES[name], POINTS), []
    for c in constants:
        with torch.no_grad():
            logits = net(with_constant(clean.images, name, float(c), clean.ids))
        right.append(100 * (logits.argmax(1) == clean.labels).float().mean().item())
    return constants, np.minimum.accumulate(right)


def calibrated(fifteen: dict, n: int) -> None:
    """Print constants, two digits each, and the curve they are read from."""
    mean = np.mean(list(fifteen.values()), axis=0)
    wanted = np.linspace(mean[0], mean[-1], 5)
    for name in UNSEEN:
        constants, right = curve(name, n)
        found = np.exp(np.interp(-wanted, -right, np.log(constants)))
        print(f'    "{name}": ({", ".join(f"{c:.2g}" for c in found)}),', end="  # ")
        print(f"at {constants[0]:.2g} to {constants[-1]:.2g}: {np.round(right).astype(int).tolist()}", flush=True)


def sheet(path: Path) -> None:
    """One scene under each corruption (rows) at each severity (columns), the clean one first."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(len(UNSEEN), 6, figsize=(7, 11.5))
    for row, name in zip(axes, UNSEEN, strict=True):
        s = stream(SceneSpec(1, split="select", start=START + UNSEEN.index(name)))
        shown = [s.images] + [corrupt(s.images, name, k, s.ids) for k in SEVERITIES]
        for ax, image, title in zip(row, shown, ["clean", *map(str, SEVERITIES)], strict=True):
            ax.imshow(image[0].permute(1, 2, 0).numpy())
            ax.set_xticks([])
            ax.set_yticks([])
            if row is axes[0]:
                ax.set_title(title, fontsize=8)
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=7)
    fig.tight_layout(pad=0.3)
    fig.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def main() -> None:
    """Read the arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--constants", action="store_true")
    args = parser.parse_args()
    fifteen, ten = accuracies(args.n)
    print("| | " + " | ".join(f"severity {s}" for s in SEVERITIES) + " |\n|---|" + "---|" * 5)
    for what, of in (("fifteen", fifteen), ("ten", ten)):
        values = np.array(list(of.values()))
        cells = [f"{v.mean():.0f} ({v.min():.0f} to {v.max():.0f})" for v in values.T]
        print(f"| {what}: mean (range) | {' | '.join(cells)} |")
    for name, values in ten.items():
        print(f"| {name} {UNSEEN_CONSTANTS[name]} | {' | '.join(f'{v:.0f}' for v in values)} |")
    if args.constants:
        calibrated(fifteen, args.n)
    if args.sheet:
        sheet(args.sheet)


if __name__ == "__main__":
    main()
