"""Which unconditional model purifies best: accuracies of shipped classifiers on purified selection scenes.

python bench/race_unconditional.py [NAME ...] [--n 50] [--levels 20] [--starts 100 200 300]

NAME is `denoiser/dit` (its null class, as shipped) or a recipe of `recipes.unconditional`, whose candidate is taken,
or, where that is not finished, the moving average in its checkpoint. Nothing here looks at a test corruption.
"""

import argparse
import json

import torch
from safetensors import safe_open

from gentta_utils.common.devices import precision_on
from gentta_utils.models import zoo
from gentta_utils.models.denoiser import Denoiser
from gentta_utils.models.dit import PixelDiT
from gentta_utils.models.unet import PixelUNet
from gentta_utils.recipes import CANDIDATES_FOLDER, dit, quality, unconditional
from gentta_utils.world import severities


def model(name: str) -> tuple[Denoiser, str]:
    """A denoiser and how far it was trained."""
    if name not in unconditional.RECIPES:
        return zoo.load(name), "as shipped"
    folder = CANDIDATES_FOLDER / name
    if (folder / "card.json").is_file():
        return zoo.load(
            name, folder=CANDIDATES_FOLDER
        ), f"{json.loads((folder / 'card.json').read_text(encoding='utf-8'))['steps']} steps"
    recipe = unconditional.RECIPES[name]
    network = recipe.build()
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file, torch.no_grad():
        step = json.loads(file.metadata()["run"])["step"]
        for key, value in network.named_parameters():
            value.copy_(file.get_tensor(f"average.{key}"))
    abar, precision = dit.scheduler().alphas_cumprod, precision_on("cpu")
    if recipe.start:
        return PixelDiT(network, abar, zoo.IMAGE_SIZE, precision=precision), f"{step} steps so far"
    return PixelUNet(network, abar, zoo.IMAGE_SIZE, precision=precision, unshuffle=recipe.unshuffle), f"{step} so far"


def rows(name: str, trained: str, found: dict) -> None:
    """Print one line per view: percent, ResNet / ViT, clean, the validation corruptions and their mean."""
    for view, classifiers in found.items():
        if view != "loss":
            shifts = {s: [c[s] for c in classifiers.values()] for s in next(iter(classifiers.values()))}
            validation = [v for s, v in shifts.items() if s != "clean"]
            cells = [*shifts.values(), [sum(v) / len(v) for v in zip(*validation, strict=True)]]
            shown = " | ".join(" / ".join(f"{v:.0f}" for v in cell) for cell in cells)
            print(f"| {name}, {trained} | {view} | {shown} |", flush=True)
    print(f"| {name}, {trained} | loss | {found['loss']} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["denoiser/dit", *unconditional.RECIPES])
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--levels", type=int, default=20)
    parser.add_argument("--starts", type=int, nargs="+", default=[100, 200, 300])
    args = parser.parse_args()
    columns = ["model", "view", "clean", *severities.VALIDATION, "mean of the four"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in args.names:
        denoiser, trained = model(name)
        rows(name, trained, quality.of_purifier(denoiser, args.n, tuple(args.starts), levels=args.levels))
