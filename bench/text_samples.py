"""A grid of prompted samples of the text model, as a picture: twelve seen combinations, four that no caption names.

python bench/text_samples.py --folder data/models/candidates/denoiser/text --out samples.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import gentta_utils  # noqa: F401
from gentta_utils.common.paths import DATA, MODELS
from gentta_utils.models.text_unet import load_pipeline
from gentta_utils.world.labels import CLASSES, COLOURS
from gentta_utils.world.words import UNSEEN_PAIRS


def prompts() -> list[str]:
    """Twelve prompts of seen pairs, then four of unseen ones; floors and walls in turn."""
    seen = [pair for k in CLASSES for c in COLOURS if (pair := f"{c} {k}") not in UNSEEN_PAIRS][::4][:12]
    held = sorted(UNSEEN_PAIRS)[::7][:4]
    floor, wall = (COLOURS[i:] + COLOURS[:i] for i in (2, 5))
    return [
        f"a photo of a {pair} on a {floor[i % 8]} floor before a {wall[i % 8]} wall."
        for i, pair in enumerate(seen + held)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODELS / "denoiser/text")
    parser.add_argument("--out", type=Path, default=DATA / "scenes" / "text_samples.png")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pipe, texts = load_pipeline(args.folder), prompts()
    generators = [torch.Generator().manual_seed(args.seed + i) for i in range(len(texts))]
    images = pipe(
        texts, num_inference_steps=args.steps, guidance_scale=args.guidance, generator=generators, output_type="np"
    ).images
    figure, axes = plt.subplots(4, 4, figsize=(9, 9.6))
    for ax, text, image in zip(axes.flat, texts, images, strict=True):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(text.removeprefix("a photo of ").replace(" before", "\nbefore"), fontsize=7)
        ax.axis("off")
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)
    print(args.out)


if __name__ == "__main__":
    main()
