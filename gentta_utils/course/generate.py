"""The command `variations`: makes the generated views of scenes, photographs or any folder of images into the cache."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.generated import Generated, generated, model_of
from ..methods.variations import CHOSEN
from ..models import zoo
from ..streams.folders import SUFFIXES, id_of, read_image
from .profiles import profile


def generate(args: argparse.Namespace) -> None:
    """Make what the options ask for; says where it stands, and what it cost.

    Raises ValueError for options that do not go together, and as `generated`."""
    generators, share = args.generator or list(CHOSEN), _share(args.share)
    if args.out and (len(generators) > 1 or share[1] > 1):
        raise ValueError("--out writes one generator's images: give one --generator, and no --share")
    kit = profile(args.profile, args.data_root, args.device)
    if args.folder:
        images, ids = images_of(args.folder, zoo.IMAGE_SIZE if args.profile == "scenes" else 224)
    else:
        s = kit.stream(args.images, args.shift, args.severity, args.split, args.start)
        images, ids = s.images[torch.arange(len(s))], s.ids
    for name in generators:
        told = captions(kit, args.caption, images) if args.caption and name == "prompted" else None
        made = generated(images, ids, args.n, name, None, told, profile=args.profile, device=args.device, share=share)
        print(said(made, model_of(name, args.profile)) if made else f"{name}: share {args.share} is done")
        if args.out and made:
            made.save(args.out)
            print(args.out)


def images_of(folder: Path, size: int) -> tuple[Tensor, Tensor]:
    """All images under a folder, by name: (B, 3, size, size) in [0, 1], shorter side to `size` and the middle, and ids
    (B,) by the name.

    Raises FileNotFoundError for a folder without any, ValueError for a file that is damaged."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no images ({', '.join(SUFFIXES)}) under {folder}: give a folder that holds some")
    ids = torch.tensor([id_of(str(p.relative_to(folder))) for p in paths])
    return torch.stack([read_image(p, size, size) for p in paths]), ids


def captions(kit, clip: str, images: Tensor) -> list[str]:
    """What a CLIP reads in each image, as the single prompt of the profile's usual label set."""
    asked = kit.label_set()
    read = kit.load(clip).zero_shot(asked.classes, asked.templates[:1])
    with torch.no_grad():
        classes = torch.cat([read(part).argmax(1) for part in images.split(100)]).tolist()
    prompts = asked.prompts()
    return [prompts[k] for k in classes]


def said(made: Generated, model: str) -> str:
    """One line on what there is now."""
    B, n = made.images.shape[:2]
    cost = f"{made.nfe} evaluations and {made.seconds:.3f} s per variation"
    return f"{made.about['generator']} ({model}): {n} variations of {B} images, {cost}"


def _share(text: str) -> tuple[int, int]:
    k, _, of = text.partition("/")
    if not (k.isdigit() and of.isdigit()):
        raise ValueError(f"--share {text}: write it as 1/4, the first of four processes")
    return int(k), int(of)
