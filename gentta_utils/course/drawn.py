"""Generated views as the tables of notebook 06 name them: which generator, from which level, told what.

The prompted generator of `methods.variations` counts twice: with an empty prompt, and with the zero-shot prediction of
the image as its prompt. Views are drawn once and kept (`evaluation.generated`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..evaluation.generated import Generated, generated, model_of
from ..evaluation.records import Records
from ..methods.base import Models
from ..methods.variations import CHOSEN, PUBLISHED, Settings
from ..models import zoo

GENERATORS = ("variation", "image_to_image", "prompted_empty", "prompted_own")


@dataclass(frozen=True)
class Drawn:
    """Which views are drawn: one of `GENERATORS`, and the timestep from which it begins; None: as in `CHOSEN`.

    Raises ValueError for an unknown generator."""

    generator: str
    start: int | None = None
    profile: str = "scenes"
    device: str = "cpu"

    def __post_init__(self):
        if self.generator not in GENERATORS:
            raise ValueError(f"unknown generator {self.generator!r}: choose one of {', '.join(GENERATORS)}")

    @property
    def kind(self) -> str:
        """The generator's name in `methods.variations`."""
        return "prompted" if self.generator.startswith("prompted") else self.generator

    @property
    def settings(self) -> Settings:
        """The published ones for published weights of variations; else as many steps for a timestep as chosen."""
        usual = CHOSEN[self.kind]
        if self.profile == "imagenet" and self.kind == "variation":
            return Settings(**PUBLISHED)
        if self.start is None or usual.start is None:
            return usual
        steps = max(1, round(usual.steps * (self.start + 1) / (usual.start + 1)))
        return replace(usual, start=self.start, steps=steps)

    def describe(self) -> dict:
        """For records."""
        model = model_of(self.kind, self.profile)
        network = zoo.fingerprint(model, self.profile)
        return {"generator": self.generator, "settings": asdict(self.settings), "model": f"{model} {network}"}

    def make(self, images: Tensor, ids: Tensor, n: int, models: Models, prompts: list[str]) -> Generated:
        """n views of each image (B, 3, S, S) with ids (B,); what "prompted_own" is told is that of `prompts`, one for
        each class of the zero-shot classifier of `models`, which this takes the image for."""
        captions = None
        if self.generator == "prompted_own":
            classifier = models.classifier
            with torch.no_grad():  # not counted: whoever looks at views has this prediction anyway
                captions = [prompts[k] for k in classifier.network(classifier.normalise(images)).argmax(1).tolist()]
        network = zoo.cached(model_of(self.kind)) if self.profile == "scenes" and self.device == "cpu" else None
        where = dict(profile=self.profile, device=self.device, denoiser=network)
        return generated(images, ids, n, self.kind, self.settings, captions, **where)

    def views(self, models: Models, prompts: list[str], n: int) -> Callable[[Tensor, Tensor], Tensor]:
        """What methods call: images (B, 3, S, S) and ids (B,) -> n views of each, (B, n, 3, S, S) in [0, 1]."""
        return lambda images, ids: self.make(images, ids, n, models, prompts).views()

    def counted(self, r: Records, made: Generated) -> Records:
        """A run with the generator's evaluations and seconds among its costs."""
        n = made.images.shape[1]
        return replace(r, seconds=r.seconds + n * made.seconds, nfe=r.nfe | {"generator fwd": float(n * made.nfe)})
