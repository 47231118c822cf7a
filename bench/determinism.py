"""Are results the same whatever the batch and the order? On the shipped models, real shifts.

    python bench/determinism.py [--images 32] [--more 200]

With `fixed_chunk` the records must be bit-equal; without it, equal to float rounding, which may flip a rare prediction.
"""

import argparse
from dataclasses import replace

import torch

from gentta_utils.course import trials
from gentta_utils.evaluation import chosen
from gentta_utils.evaluation.evaluate import run
from gentta_utils.evaluation.records import Records
from gentta_utils.methods import diffusion_tta
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Stream, stream
from gentta_utils.world.severities import VALIDATION


def validation(n: int) -> Stream:
    """n test scenes under each validation corruption at severity 5, as one stream."""
    parts = [stream(SceneSpec(n, name, 5, "test", 20_000 + n * i)) for i, name in enumerate(VALIDATION)]
    joined = [torch.cat([getattr(p, k) for p in parts]) for k in ("images", "labels", "ids")]
    return Stream(*joined, about={"shift": "validation", "split": "test"})


def same(a: Records, b: Records, order: torch.Tensor) -> bool:
    """Whether b, run in this order, holds the numbers of a bit for bit."""
    return all(bool((getattr(a, k)[order.numpy()] == getattr(b, k)).all()) for k in ("before", "after", "loss"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=32, help="for the bit-equal part, a multiple of 4")
    parser.add_argument("--more", type=int, default=200, help="for the predictions, a multiple of 4")
    args = parser.parse_args()
    models = trials.models("classifier/resnet")
    settings = chosen.tuned("classifier/resnet")

    images = validation(args.images // 4)
    fixed = diffusion_tta.configure(models, replace(settings, fixed_chunk=True, images_at_once=16))
    in_order = torch.arange(len(images))
    first = run(fixed, images, batch=64)
    for batch in (1, 7, 64):
        print(
            f"fixed chunk, batch {batch:2d}: bit-equal {same(first, run(fixed, images, batch=batch), in_order)}",
            flush=True,
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    shuffled = run(fixed, images.rows(order), batch=7)
    print(f"fixed chunk, shuffled stream: bit-equal {same(first, shuffled, order)}", flush=True)

    images = validation(args.more // 4)
    free = diffusion_tta.configure(models, settings)
    runs = {batch: run(free, images, batch=batch).after.argmax(1) for batch in (32, 7)}
    agree = (runs[32] == runs[7]).mean()
    print(f"free chunks, batch 32 against 7: {100 * agree:.1f}% of {len(images)} predictions equal")


if __name__ == "__main__":
    main()
