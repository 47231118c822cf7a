"""Generated views as the tables of notebook 06 name them: which generator, from which level, told what.

The prompted generator of `methods.variations` counts twice: with an empty prompt, and with the zero-shot prediction of
the image as its prompt. Views are drawn once and kept (`evaluation.generated`).
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.files import atomic_write, write_json
from ..common.paths import DATA
from ..evaluation.generated import Generated, generated, model_of
from ..evaluation.records import Records
from ..methods.base import Models
from ..methods.variations import PUBLISHED, Settings, usual
from ..models import zoo

SHIPPED = DATA / "scenes" / "variations.webp"  # a row of views for each image; what they are of is in the .json there
STEPS = 8  # of the small image-variation model, in place of 50: on 100 selection scenes as good as 20
SAME = 0.02  # mean difference up to which an image is that of a shipped row: WebP changes it by less, a shift by more
GENERATORS = ("variation", "image_to_image", "prompted_empty", "prompted_own")


@dataclass(frozen=True)
class Drawn:
    """Which views are drawn: one of `GENERATORS`, and the timestep from which it begins; None: as in `CHOSEN`.

    Attributes:
        alike: draw one view and hand it out as often as asked.

    Raises ValueError for an unknown generator."""

    generator: str
    start: int | None = None
    profile: str = "scenes"
    device: str = "cpu"
    alike: bool = False

    def __post_init__(self):
        if self.generator not in GENERATORS:
            raise ValueError(f"unknown generator {self.generator!r}: choose one of {', '.join(GENERATORS)}")

    @property
    def kind(self) -> str:
        """The generator's name in `methods.variations`."""
        return "prompted" if self.generator.startswith("prompted") else self.generator

    @property
    def settings(self) -> Settings:
        """Those published for variations, the small model in fewer steps; else those chosen for the generator, or from
        another level, unguided and with as many steps for a timestep."""
        if self.kind == "variation":
            return Settings(**PUBLISHED if self.profile == "imagenet" else PUBLISHED | dict(steps=STEPS))
        if self.start is None:
            return usual(self.kind, captions=self.generator == "prompted_own")
        chosen = usual(self.kind)
        steps = max(1, round(chosen.steps * (self.start + 1) / (chosen.start + 1)))
        return replace(chosen, start=self.start, steps=steps)

    def describe(self) -> dict:
        """For records."""
        model = model_of(self.kind, self.profile)
        network = zoo.fingerprint(model, self.profile)
        settings = {name: value for name, value in asdict(self.settings).items() if name != "noise" or value}
        about = {"generator": self.generator, "settings": settings, "model": f"{model} {network}"}
        return about | ({"alike": True} if self.alike else {})

    def make(self, images: Tensor, ids: Tensor, n: int, models: Models, prompts: list[str]) -> Generated:
        """n views of each image (B, 3, S, S) with ids (B,), or the one that is drawn where they are `alike`; what
        "prompted_own" is told is that of `prompts`, one for each class of the zero-shot classifier of `models`, which
        this takes the image for."""
        if self.alike:
            return replace(self, alike=False).make(images, ids, 1, models, prompts)
        captions = None
        if self.generator == "prompted_own":
            classifier = models.classifier
            with torch.no_grad():  # not counted: whoever looks at views has this prediction anyway
                captions = [prompts[k] for k in classifier.network(classifier.normalise(images)).argmax(1).tolist()]
        if captions is None and (found := shipped(self, images, ids, n)) is not None:
            return found
        network = zoo.cached(model_of(self.kind)) if self.profile == "scenes" and self.device == "cpu" else None
        where = dict(profile=self.profile, device=self.device, denoiser=network)
        return generated(images, ids, n, self.kind, self.settings, captions, **where)

    def views(self, models: Models, prompts: list[str], n: int) -> Callable[[Tensor, Tensor], Tensor]:
        """What methods call: images (B, 3, S, S) and ids (B,) -> n views of each, (B, n, 3, S, S) in [0, 1]."""

        def drawn(images: Tensor, ids: Tensor) -> Tensor:
            found = self.make(images, ids, n, models, prompts).views()
            return found.expand(-1, n, -1, -1, -1) if self.alike else found

        return drawn

    def counted(self, r: Records, made: Generated) -> Records:
        """A run with the generator's evaluations and seconds among its costs."""
        n = made.images.shape[1]
        return replace(r, seconds=r.seconds + n * made.seconds, nfe=r.nfe | {"generator fwd": float(n * made.nfe)})


def shipped(drawn: Drawn, images: Tensor, ids: Tensor, n: int) -> Generated | None:
    """n views of each image from the shipped picture, as WebP keeps them; None unless they are of this generator, of
    these ids and of images that look the same: the first tile of a row is the image itself."""
    about = SHIPPED.with_suffix(".json")
    content = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    if content.get("drawn") != drawn.describe() or not set(ids.tolist()) <= set(content["ids"]):
        return None
    tiles = _tiles(len(content["ids"]))[[content["ids"].index(i) for i in ids.tolist()]]  # (B, 1 + m, 3, 64, 64)
    if tiles.shape[1] <= n or images.shape[1:] != tiles.shape[2:]:
        return None
    if (images.cpu() - tiles[:, 0].float() / 255).abs().mean((1, 2, 3)).max() > SAME:
        return None
    return Generated(ids, tiles[:, 1 : 1 + n], content["drawn"], content["seconds"], content["nfe"])


@lru_cache(maxsize=1)
def _tiles(rows: int) -> Tensor:
    """The tiles (rows, 1 + m, 3, 64, 64) of the shipped picture, uint8."""
    with Image.open(SHIPPED) as picture:
        sheet = torch.from_numpy(np.array(picture.convert("RGB")))  # (rows * 64, (1 + m) * 64, 3)
    side = len(sheet) // rows
    return sheet.view(rows, side, -1, side, 3).permute(0, 2, 4, 1, 3).contiguous()


def ship(drawn: Drawn, images: Tensor, ids: Tensor, n: int, quality: int = 92) -> None:
    """Write n views of each image (B, 3, 64, 64), drawn without a prompt, as the shipped ones."""
    made = generated(images, ids, n, drawn.kind, drawn.settings)
    tiles = torch.cat([(images * 255).round().byte()[:, None], made.images], 1)  # (B, 1 + n, 3, 64, 64)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (B * 64, (1 + n) * 64, 3)
    atomic_write(SHIPPED, lambda temporary: Image.fromarray(sheet.numpy()).save(temporary, "webp", quality=quality))
    about = {"drawn": drawn.describe(), "ids": ids.tolist(), "seconds": made.seconds, "nfe": made.nfe}
    write_json(SHIPPED.with_suffix(".json"), about)
