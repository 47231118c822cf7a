"""Variations of scenes by all three generators, as a picture: each row a scene, what the generators make of it, and the
training scene that is nearest to the first variation, so that a copy would be seen.

python bench/variation_samples.py --folder data/models/candidates --out samples.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image

import gentta_utils  # noqa: F401
from gentta_utils.common.paths import DATA, MODELS
from gentta_utils.methods.variations import CHOSEN, MODELS_OF, variations
from gentta_utils.models import zoo
from gentta_utils.recipes.data import training_set
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream

ROWS, VARIATIONS = 8, 5
CONTROL = 200  # selection scenes whose own nearest training scene says what is near


def nearest(images: torch.Tensor, scenes: torch.Tensor, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image (B, 3, S, S) in [0, 1] the nearest of the scenes (N, 3, S, S) uint8 or of their mirror images, by
    the root mean square difference of their averages over `side` x `side` blocks: indices (B,) and distances (B,)."""
    small = lambda x: F.interpolate(x, (side, side), mode="area").flatten(1)  # noqa: E731
    wanted = small(images)
    found = []
    for part in scenes.split(5000):
        x = part.float() / 255
        found.append(torch.minimum(torch.cdist(wanted, small(x)), torch.cdist(wanted, small(x.flip(-1)))))
    distance, index = torch.cat(found, 1).min(1)
    return index, distance / wanted.shape[1] ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODELS, help="where denoiser/variation lies")
    parser.add_argument("--out", type=Path, default=DATA / "scenes" / "variations.png")
    args = parser.parse_args()
    s, scenes = stream(SceneSpec(CONTROL, split="select", start=1000)), training_set(60_000)[0]
    images, ids = s.images[:ROWS], s.ids[:ROWS]
    columns = [("scene", images)]
    for name in CHOSEN:
        folder = args.folder if name == "variation" else MODELS
        denoiser = zoo.load(MODELS_OF[name], folder=folder)
        n = VARIATIONS if name == "variation" else 2
        made = variations(images, n, name, denoiser, ids)
        columns += [(f"{name} {j + 1}", made[:, j]) for j in range(n)]
        if name == "variation":
            index, _ = nearest(made[:, 0], scenes)
            columns.append(("nearest of training\nto variation 1", scenes[index].float() / 255))
            many = variations(s.images, 1, name, denoiser, s.ids)[:, 0]
            for what, x in (("variations", many), ("selection scenes", s.images)):
                print(f"median distance of {what} to the nearest training scene: {nearest(x, scenes)[1].median():.3f}")
    figure, axes = plt.subplots(ROWS, len(columns), figsize=(1.1 * len(columns), 1.12 * ROWS))
    for column, (title, shown) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=6)
        for ax, image in zip(column, shown, strict=True):
            ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(args.out, dpi=80)
    Image.open(args.out).convert("RGB").quantize(256).save(args.out, optimize=True)  # noise does not compress
    print(args.out)


if __name__ == "__main__":
    main()
