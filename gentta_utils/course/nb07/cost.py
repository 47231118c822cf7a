"""What the papers say their methods cost, beside the rows of the grid; the size of the same grid on ImageNet-C.

Forward equivalents: evaluations of all networks per image, one with a backward pass counted as three (a backward pass
costs about two forward ones). The networks differ in size; the counts do not.
"""

from ...common.evaluations import forwards
from .board import Board

# Per image, as published (docs/methods has a card for each), 1,000 classes: evaluations by network
PUBLISHED = {
    "BN-adapt": {"classifier fwd": 1},
    "TENT": {"classifier fwd+bwd": 1},
    "MEMO": {"classifier fwd+bwd": 64, "classifier fwd": 1},
    "CoTTA": {"classifier fwd": 33, "classifier fwd+bwd": 1},
    "TEA": {"classifier fwd+bwd": 22},
    "TTT-MAE": {"classifier fwd+bwd": 20 * 128, "classifier fwd": 1},
    "DUSA": {"denoiser fwd+bwd": 6, "classifier fwd+bwd": 1},
    "Diffusion-TTA": {"denoiser fwd+bwd": 900, "classifier fwd+bwd": 60},
    "Diffusion-TTA, text model": {"denoiser fwd+bwd": 960, "classifier fwd+bwd": 60},
    "reader": {"denoiser fwd": 250 * 1000},
    "DiffPure": {"denoiser fwd": 150, "classifier fwd": 1},
    "DDA": {"denoiser fwd+bwd": 50, "classifier fwd": 2},
    "SDA": {"denoiser fwd+bwd": 50, "classifier fwd": 2},
    "TPT": {"classifier fwd": 64, "text fwd+bwd": 1000},
    "DiffTPT": {"generator fwd": 6500, "classifier fwd": 128, "text fwd+bwd": 4 * 1000},
    "ZERO": {"classifier fwd": 64},
    "MTA": {"classifier fwd": 64},
    "TDA": {"classifier fwd": 1},
    "DOTA": {"classifier fwd": 1},
}

# Billions of multiply-adds of one forward pass: ResNet-50 at 224 px, the text tower of CLIP ViT-B/16, DiT-XL/2 and ADM
# at 256 px (Peebles and Xie, ICCV 2023, state both), about those of the U-Net of Stable Diffusion 1 at 512 px
GIGA = {"classifier": 4.1, "text": 3.0, "DiT": 119.0, "ADM": 1120.0, "Stable Diffusion": 340.0}
DENOISER = {"DiffPure": "ADM", "DDA": "ADM", "SDA": "ADM", "Diffusion-TTA, text model": "Stable Diffusion"}


def published() -> dict[str, float]:
    """Row -> forward equivalents per image as its paper has them."""
    return {row: forwards(nfe) for row, nfe in PUBLISHED.items()}


def beside(boards: list[Board]) -> list[dict]:
    """One line for each method whose paper states its cost: forward equivalents per image here, as published, and how
    many times that is; of the first of these boards that has the row."""
    here = {row: b.facts[row].forwards for b in reversed(boards) for row in b.rows}
    return [
        {"row": row, "here": f"{here[row]:,.0f}", "published": f"{cost:,.0f}", "times": f"{cost / here[row]:,.1f}"}
        for row, cost in published().items()
        if row in here
    ]


def gpu_hours(images: int = 15 * 1000, classifiers: int = 2, tera: float = 100.0) -> dict[str, float]:
    """Row -> hours of one GPU for `images` photographs of ImageNet-C with the published settings, `classifiers` times
    where the diffusion model is run for each; a GPU that does `tera` trillion multiply-adds a second."""
    hours = {}
    for row, nfe in PUBLISHED.items():
        own = DENOISER.get(row, "Stable Diffusion" if "generator fwd" in nfe else "DiT")
        each = sum(
            n * (3 if kind.endswith("bwd") else 1) * GIGA.get(kind.split()[0], GIGA[own]) for kind, n in nfe.items()
        )
        shared = row in (
            "DiffPure",
            "DDA",
            "SDA",
            "reader",
        )  # the images, or the errors, are the same for all classifiers
        hours[row] = each * images * (1 if shared else classifiers) / (1000 * tera) / 3600
    return hours
