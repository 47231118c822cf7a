"""On photographs: a real ImageNet network meets real pixels. An exhibit of eight pictures, no claim about accuracy.

No diffusion model of photographs comes with a package that may be passed on, so Diffusion-TTA is not shown here. Of the
1,000 logits records keep nine numbers: the largest among the accepted classes of each photograph, and the largest of
all others. So a prediction is right there where it was right among 1,000.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ...common.text import as_table
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.rows import distinct, pick, shift_of
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import Job, results, table
from ...methods import METHODS, bn_adapt, source, tent
from ...methods.base import Models, stated
from ...models import lite0
from ...models.classifier import Classifier
from ...streams.folders import id_of, read_image
from ...streams.open_vocabulary import imagenet_names
from ...streams.photos import PHOTOS, CropSpec
from ...streams.stream import stream
from ...world.shifts import shifted
from .. import plots

CROPS = 8  # of each photograph
SHIFTS = {"clean": 0, "gaussian_noise": 5, "snow": 5, "contrast": 5, "jpeg": 5}
SHOWN = {"clean": 0, "gaussian_noise": 5, "snow": 5, "contrast": 4}  # in the gallery
ONE = dict(reset="per_shift", batch=1)
ROWS = {  # label -> method, settings, how it meets the crops
    "source": ("source", source.Settings(), dict(batch=64)),
    "batch statistics of 64": ("bn_adapt", bn_adapt.Settings(), dict(reset="per_shift", batch=64)),
    "batch statistics of 16": ("bn_adapt", bn_adapt.Settings(), dict(reset="per_shift", batch=16)),
    "TENT, batches of 16": ("tent", tent.Settings(**tent.PUBLISHED_IMAGENET), dict(reset="per_shift", batch=16)),
    "batch statistics of 1": ("bn_adapt", bn_adapt.Settings(), ONE),
    "one image, source as 16": ("bn_adapt", bn_adapt.Settings(**bn_adapt.PUBLISHED_MEMO), dict(batch=1)),
}
CLOSE = 0.1  # logits between two processors, and what records round off


cached = lru_cache(maxsize=1)(lite0.load)


def network(device: str = "cpu") -> Classifier | None:
    """EfficientNet-Lite0, or None, with one sentence printed, where the extra `photos` is not installed."""
    try:
        return cached(device)
    except FileNotFoundError as error:
        print(f"{error}. What follows is from the committed records.")
        return None


@dataclass(frozen=True)
class Answers:
    """The photographs under some shifts: image (3, 224, 224), what the network says of it, with which probability."""

    photo: str
    shift: str
    image: torch.Tensor
    said: str
    p: float
    right: bool


@torch.no_grad()
def answers(classifier: Classifier, shifts: dict[str, int] = SHOWN) -> list[Answers]:
    """What the network says of every photograph, cropped as its weights want it, under shifts with their severity."""
    found, names = [], imagenet_names()
    size, resize, ids = classifier.image_size, classifier.resize, [id_of(f"photos/{p.name}") for p in PHOTOS]
    clean = torch.stack([read_image(p.path, size, resize, Image.Resampling.BICUBIC) for p in PHOTOS])
    for shift, severity in shifts.items():
        images = shifted(clean, shift, severity, torch.tensor(ids))
        best = classifier(images).softmax(1).cpu().max(1)
        for photo, image, p, k in zip(PHOTOS, images, best.values.tolist(), best.indices.tolist(), strict=True):
            found.append(Answers(photo.name, shift, image, names[k], p, k in photo.classes))
    return found


def gallery(found: list[Answers]) -> Figure:
    """A row for each shift and a column for each photograph; green where the answer is accepted."""
    titles = [f"{a.said}, {a.p:.2f}" for a in found]
    frames = [plots.GREEN if a.right else plots.RED for a in found]
    return plots.gallery([a.image for a in found], titles, len(PHOTOS), frames, 1.3 * len(PHOTOS))


def counts(found: list[Answers]) -> str:
    """A table: how many of the photographs are right under each shift."""
    shifts = list(dict.fromkeys(a.shift for a in found))
    rows = []
    for shift in shifts:
        mine = [a for a in found if a.shift == shift]
        right = f"{sum(a.right for a in mine)} of {len(mine)}"
        rows.append({"shift": shift, "right": right, "mean p": f"{np.mean([a.p for a in mine]):.2f}"})
    return as_table(rows)


def folded(r: Records) -> Records:
    """Records with K = 9 in the place of the 1,000 logits, and the photograph as label."""
    accepted = [list(photo.classes) for photo in PHOTOS]
    others = np.setdiff1d(np.arange(r.after.shape[1]), np.concatenate(accepted))
    kept = {
        name: np.stack([getattr(r, name)[:, k].max(1) for k in (*accepted, others)], 1) for name in ("before", "after")
    }
    label = np.array([[classes[0] for classes in accepted].index(k) for k in r.label])
    return replace(r, label=label, **kept)


def _run(label: str, classifier: Classifier, spec: CropSpec, about: dict, rows: slice = slice(None)) -> Records:
    method, settings, how = ROWS[label]
    s = stream(spec)
    part = s.rows(torch.arange(len(s))[rows])
    return folded(run(METHODS[method].configure(Models(classifier), settings), part, about=about, **how))


def _job(label: str, spec: CropSpec) -> Job:
    method, settings, how = ROWS[label]
    about = {
        "method": method,
        "label": label,
        "settings": stated(settings),
        "classifier": lite0.NAME,
        "models": {"classifier": lite0.fingerprint()},
        "precision": "fp32",
        "stream": spec.describe(),
        "how": how,
        "select": "none" if method == "source" else "published",
    }
    return about, lambda: _run(label, cached(), spec, about)


def photographs() -> list[Records]:
    """Eight crops of each photograph under four corruptions, with and without the statistics of a batch."""
    specs = [CropSpec(CROPS, shift, severity) for shift, severity in SHIFTS.items()]
    return table("photographs", [_job(label, spec) for label in ROWS for spec in specs])


def show(runs: list[Records]) -> str:
    """Right predictions of each row under each shift; all rows meet the same crops."""
    rows = []
    for label in distinct(runs, "label"):
        mine = pick(runs, label)
        rows.append({"row": label} | {shift_of(r): f"{int(r.right_after.sum())} of {len(r)}" for r in mine})
    return protocol_line(runs) + "\n" + as_table(rows)


def again(classifier: Classifier, shift: str = "contrast", n: int = 16) -> bool:
    """Make the first n records again of three rows (of single images n / 2) and say how many are right.

    Returns whether the logits are those of the committed records, up to rounding."""
    same, spec = True, CropSpec(CROPS, shift, SHIFTS[shift])
    for label in ("source", "batch statistics of 16", "batch statistics of 1"):
        rows = slice(n // 2 if label.endswith(" of 1") else n)
        made = _run(label, classifier, spec, {"label": label}, rows)
        (kept,) = pick(results("photographs"), label, shifts=(shift,))
        same &= bool(np.array_equal(made.id, kept.id[rows]))
        same &= bool(np.abs(made.after - kept.after[rows]).max() < CLOSE)
        print(f"{shift}, {label}: {int(made.right_after.sum())} of {len(made)} right")
    return same
