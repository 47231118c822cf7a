"""DDA (Gao et al., CVPR 2023): diffuse half-way and denoise, held to the low frequencies of the input.

    x_{t-1} = x'_{t-1} - w grad_{x_t} |Phi_D(x) - Phi_D(x0_hat(x_t))|,   prediction p(x) + p(x_hat)

The classifier is never changed. Low-frequency corruptions (fog, contrast) survive by construction: they are what the
guidance keeps. With `entropy_scale` a second term makes it "GDA-like" (docs/methods/gda_like.md).

Card: docs/methods/dda.md
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.types import Answers, Index
from ..common.validate import Count, NotNegative, Positive, between, checked
from ..diffusion import reverse
from ..diffusion.entropy import entropy, marginal_entropy
from ..diffusion.guidance import NORMS, PADS, Energy, structure_energy
from ..diffusion.reverse import levels_of, walk
from ..diffusion.sampling import respaced
from ..world.views import jitter
from .base import Models, Needs, source_logits
from .purifier import Purifier, prepare

ENSEMBLES = ("sum", "entropy", "confidence", "calibrated", "purified")


@dataclass(frozen=True)
class Settings(reverse.Settings):
    """Defaults are the published ones without their faults, with the scale for 64 px; `PUBLISHED` has the faults."""

    start: int = 494  # abar .0826
    steps: int = 50
    scale: NotNegative = 0.75  # w of each image; a push is .4 w long near the end, several w at late levels
    factor: Count = 4  # D of the low-pass
    start_level: Literal["matched", "published"] = "matched"  # "published": one level above the first evaluation's
    norm: Literal[NORMS] = "image"  # or "batch": one norm over all images at once
    pad: Literal[PADS] = "edge"  # of the low-pass, or "zero"
    jpeg: Annotated[int, between(0, 95)] = 0  # quality of a JPEG file in between, as published (75); 0: none
    guide_on: Literal["clipped", "raw"] = "clipped"  # x0_hat; the raw one has a gradient also where it was clipped
    entropy_scale: NotNegative = 0.0  # of the GDA-like term, 0: none
    entropy_views: Count = 4  # of each image per step for that term
    ensemble: Literal[ENSEMBLES] = "sum"  # of p(x) and p(x_hat): see `combine`
    temperature: Positive = 1.0  # of p(x) in the calibrated ensemble
    longest: NotNegative = field(default=0.0, metadata={"later": True})  # a push, in w; 0: as long as it comes

    def __post_init__(self):
        super().__post_init__()
        if self.norm == "batch" and self.fixed_chunk:
            raise ValueError("fixed_chunk=True: choose norm='image', a norm over the batch depends on the neighbours")


# With the faults of the public code; it runs 4 images at once, SDA's 10
PUBLISHED = dict(
    start=494, steps=50, of=100, scale=6.0, start_level="published", norm="batch", pad="zero", jpeg=75, images_at_once=4
)


def scale_at(side: int, at_256: float = 3.0) -> float:
    """The scale at images of this side that moves a pixel as far as `at_256` does at 256 px (docs/methods/dda.md).

    3.0 is what is left of the published 6 in a batch of 4."""
    return at_256 * side / 256


def align(denoiser, images: Tensor, ids: Tensor, settings: Settings, classifier=None) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] with these ids (B,), projected to the diffusion model's domain: same shape, range.

    The one function for test images and, in SDA, for the synthetic images that a classifier is fine-tuned on.

    Args:
        classifier: of the GDA-like term. Raises ValueError without it where `settings` ask for the term."""
    s = settings
    with torch.no_grad():
        x0 = denoiser.encode(images)
    energies = {}
    if s.scale:
        energies["scale"] = structure_energy(x0, s.scale, s.factor, s.pad, s.norm)
    if s.entropy_scale:
        if classifier is None:
            raise ValueError(f"entropy_scale={s.entropy_scale:g}: choose 0, or hand over a classifier")
        energies["entropy_scale"] = entropy_energy(
            classifier, denoiser.decode, ids, s.entropy_scale, s.entropy_views, s.seed
        )
    level = _level_above(s, len(denoiser.alphas_cumprod)) if s.start_level == "published" else None
    with torch.no_grad():
        x0 = walk(
            denoiser, x0, ids, s, energies, raw=s.guide_on == "raw", noise_level=level, longest=s.longest * s.scale
        )
        changed = denoiser.decode(x0)
    return as_jpeg(changed, s.jpeg) if s.jpeg else changed


def _level_above(s: Settings, T: int) -> int:
    """The kept level above the start, to which the public code noises: t 505 for 50 of 100 levels."""
    if s.of is not None and s.steps < s.of:
        return int(respaced(s.of, T)[s.steps])
    kept = levels_of(s, T)
    gap = int(kept[-1] - kept[-2]) if len(kept) > 1 else 0
    return min(s.start + gap, T - 1)


def as_jpeg(images: Tensor, quality: int) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] after a JPEG file of this quality: a corruption of its own."""
    out = []
    for pixels in (images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8):
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=quality)
            out.append(torch.from_numpy(np.array(Image.open(file))))
    return (torch.stack(out).permute(0, 3, 1, 2).float() / 255).to(images)


def combine(source: Tensor, purified: Tensor, ensemble: str = "sum", temperature: float = 1.0) -> Tensor:
    """log of the mixed prediction (..., K) from the logits (..., K) of the image and of the purified image.

    "sum": equal weights. "entropy", "confidence": weights exp(-H(p)), max p, of each. "calibrated": p(x) at a
    temperature, for a classifier that is over-confident under shift. "purified": p(x_hat) alone."""
    if ensemble == "purified":
        return purified.log_softmax(-1)
    z = torch.stack([source / temperature if ensemble == "calibrated" else source, purified])
    weight = torch.ones_like(z[..., 0])
    if ensemble == "entropy":
        weight = (-entropy(z)).exp()
    elif ensemble == "confidence":
        weight = z.softmax(-1).amax(-1)
    return ((weight / weight.sum(0)).log()[..., None] + z.log_softmax(-1)).logsumexp(0)


class DDA(Purifier):
    """The source classifier on the image and on the projected one."""

    @torch.no_grad()
    def read(self, images: Tensor, changed: Tensor) -> tuple[Answers, Answers]:
        return self.read_by(self.models.classifier, images, changed)

    def read_by(self, second, images: Tensor, changed: Tensor) -> tuple[Answers, Answers]:
        """Logits (B, K) of the ensemble, with `second` the classifier of the changed images, and of the source; of
        depth the mean of both, or that of the changed image alone."""
        s, purified, depth = self.settings, second(changed).cpu(), self.models.classifier.target == "depth"
        if s.ensemble == "purified":
            return purified if depth else purified.log_softmax(1), source_logits(self.models, images)
        before = self.models.classifier(images).cpu()
        if depth:
            return (before + purified) / 2, before
        last = (z.movedim(1, -1) for z in (before, purified))  # classes last: maps are (B, K, h, w)
        return combine(*last, s.ensemble, s.temperature).movedim(-1, 1), before


NEEDS = Needs(denoiser=True)


@checked
def configure(models: Models, settings: Settings | None = None, ready: dict[int, Tensor] | None = None) -> DDA:
    """The input is changed, no weight is. Images (3, S, S) in `ready`, by id, were changed before.

    Raises ValueError where settings and denoiser do not fit."""
    settings = settings or Settings()
    models = prepare(models, settings)
    if models.classifier.target == "depth" and settings.ensemble not in ("sum", "purified"):
        raise ValueError(f"ensemble={settings.ensemble!r}: depth has no confidence, choose sum or purified")
    change = partial(align, models.denoiser, settings=settings, classifier=models.classifier)
    return DDA(models, settings, change, ready)


def entropy_energy(classifier, decode: Callable, ids: Index, scale: float, views: int, seed: int = 0) -> Energy:
    """scale x H( mean over views of p(a_v(x0_hat)) ): confident, and alike for all jittered views.

    One of the three terms of GDA (Tsai et al., CVPR 2024; docs/methods/gda_like.md), with the jitter of CoTTA in place
    of its augmentations, whose code is not public; so "GDA-like". Costs `views` classifier evaluations per step."""

    def energy(x0_hat: Tensor, t: int) -> Tensor:
        images = decode(x0_hat)
        each = [classifier(jitter(images, ids, t * views + v, seed)) for v in range(views)]
        return scale * marginal_entropy(torch.stack(each, 1))

    return energy
