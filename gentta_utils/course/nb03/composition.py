"""The compositional probe of notebook 03: 400 pairs of scenes and captions, clean and corrupted, for CLIP before and
after its adaptation and for the diffusion model that reads.

A record is an image: its logits are those of its pair's two captions, of which caption 0 is true of even images, 1 of
odd ones. The four numbers of a pair are stored without their mean, so a pair's S is there again in `scores_of`. Of the
reader, `before` is minus the error, times the dimensions; `after` has the unconditional error of the same image and
draws subtracted, which only changes how images compare.

Card: docs/methods/composition.md
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...common.devices import precision_on
from ...common.text import as_table
from ...diffusion.error_table import error_table
from ...evaluation.composition import CHANCE, RIGHT, centred
from ...evaluation.records import Records
from ...evaluation.statistics import ON_VALIDATION, paired_interval, protocol_line
from ...evaluation.tables import Job, table
from ...methods import diffusion_tta
from ...methods.base import Models, stated
from ...models import zoo
from ...streams.stream import Stream, stream
from ...world import composition, scenes
from ...world.composition import KINDS, Pairs, holds_unseen, pairs, rendered
from ...world.corruptions import corrupt, version
from ...world.severities import TEST, VALIDATION
from ...world.views import view_of
from ..trials import TEXT
from .choose import CLIPS, DELTA

SHIFTS = {"clean": (), "test corruptions": tuple(TEST), "validation corruptions": tuple(VALIDATION)}
START = 40_000  # first pair of the first kind, scene ids from 80,000
NEXT = 1_000  # pairs from one kind to the next
ADAPTED = 25  # pairs of a kind whose images are adapted to, the first ones


@dataclass(frozen=True)
class PairSpec:
    """Which pairs, clean or each under one of some corruptions in turn, at severity 5 and seeded by image."""

    kind: str  # one of KINDS
    shift: str = "clean"  # one of SHIFTS
    n: int = 100
    split: str = "test"
    start: int = 0  # behind the first pair of the kind

    def __post_init__(self):
        for name, choices in (("kind", KINDS), ("shift", SHIFTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")

    def describe(self) -> dict:
        """For records."""
        made = ", ".join(f"{name} {version(name, 5)}" for name in SHIFTS[self.shift])
        about = asdict(self) | {
            "severity": 5 if made else 0,
            "world": scenes.VERSION,
            "pairs": composition.VERSION,
            "seed": 0,
        }
        return about | ({"corruptions": made} if made else {})

    def pairs(self) -> Pairs:
        """The pairs, not rendered."""
        return pairs(self.kind, self.n, self.split, START + NEXT * list(KINDS).index(self.kind) + self.start)

    def load(self) -> Stream:
        """Images (2N, 3, 64, 64), both of a pair under one corruption; labels: which of the captions is true, 0, 1."""
        these, names = rendered(self.pairs()), SHIFTS[self.shift]
        images, labels = these.scenes.image, torch.arange(2 * self.n) % 2
        turn = torch.arange(2 * self.n) // 2
        for i, name in enumerate(names):
            rows = (turn % len(names) == i).nonzero()[:, 0]
            images[rows] = corrupt(images[rows], name, 5, these.ids[rows]) if len(rows) else images[rows]
        return Stream(images, labels, these.ids, self.describe())


# --- what a model says of the captions of a pair ---------------------------------------------------------------------


def own(values: Float[Tensor, "M M"]) -> Float[Tensor, "M 2"]:
    """Of all captions' values those of the two that belong to each image's pair."""
    M = len(values)
    return values.gather(1, torch.arange(M)[:, None] // 2 * 2 + torch.arange(2))


def by_clip(clip, images: Tensor, captions: list[str]) -> Float[Tensor, "M 2"]:
    """Cosines times the learned scale (2N, 2), of images (2N, 3, S, S) with their pairs' captions."""
    with torch.no_grad():
        return own(clip.zero_shot(captions)(images).cpu())


def by_reader(
    denoiser, images: Tensor, ids: Tensor, captions: list[str], draws: int, window: tuple[int, int]
) -> tuple[Float[Tensor, "M 2"], Float[Tensor, "M 1"]]:
    """Errors of the two captions (2N, 2) and of the empty one (2N, 1) on the same pairs of t and noise for both images.

    Sums over dimensions, means over `draws` stratified (t, eps) drawn by the id of the pair's first image."""
    reader, first = denoiser.for_prompts([*captions, ""]), torch.arange(len(images)) // 2 * 2
    asked = torch.stack([first, first + 1, torch.full_like(first, len(captions))], 1)  # (2N, 3)
    error = error_table(reader, images, ids[first], draws, window, classes=asked).error.mean(1)
    error = error * torch.Size(reader.shape).numel()
    return error[:, :2], error[:, 2:]


def by_adapted(
    clip, denoiser, settings: diffusion_tta.Settings, images: Tensor, ids: Tensor, captions: list[str]
) -> tuple[Float[Tensor, "M 2"], Float[Tensor, "M 2"], Float[Tensor, "S M"], dict[str, int]]:
    """Logits before and after Diffusion-TTA of each image between its pair's two captions, loss, and evaluations."""
    outputs = []
    for rows in torch.arange(len(images)).split(2):
        models = between(clip, denoiser, captions[rows[0] : rows[0] + 2])
        outputs.append(diffusion_tta.configure(models, settings).adapt(images[rows], ids[rows]))
    nfe = {kind: sum(o.nfe[kind] for o in outputs) for kind in outputs[0].nfe}
    before, after = (torch.cat([getattr(o, name) for o in outputs]) for name in ("before", "logits"))
    return before, after, torch.cat([o.loss for o in outputs], 1), nfe


def between(clip, denoiser, captions: list[str]) -> Models:
    """Zero-shot classifier and diffusion model over the two captions of a pair."""
    return Models(clip.zero_shot(captions), denoiser.for_prompts(captions))


def by_rule(name: str, delta: float = DELTA, n: int = 4, **changes) -> diffusion_tta.Settings:
    """Settings whose rate moves the margin of the median validation image by `delta` logits in the first step: n pairs
    of each kind of the split "select", under the validation corruptions."""
    trial = diffusion_tta.Settings(**{"lr": 1.0, "window": (150, 850), **changes})
    clip, denoiser, rates = zoo.cached(name), zoo.cached(TEXT), []
    for kind in KINDS:
        spec = PairSpec(kind, "validation corruptions", n, "select")
        s, captions = stream(spec), spec.pairs().captions
        for row in torch.arange(2 * n).split(1):
            models = between(clip, denoiser, captions[row // 2 * 2 : row // 2 * 2 + 2])
            rates.append(diffusion_tta.learning_rate(models, s.images[row], s.ids[row], trial, delta))
    return replace(trial, lr=float(f"{np.median(rates):.3g}"))


# --- the table -------------------------------------------------------------------------------------------------------


def winoground(
    settings: dict[str, diffusion_tta.Settings] | None = None,
    draws: int = 24,
    window: tuple[int, int] = (150, 850),
    n: int = 100,
) -> list[Records]:
    """Four kinds x clean and corrupted x both CLIPs on both views and the reader; corrupted after adaptation too.

    Args:
        settings: of the adaptation to corrupted images, for each CLIP that is adapted; None: those of `by_rule`.
        draws, window: of the reader, which also evaluates the empty caption.
        n: pairs of each kind."""
    settings = {name: by_rule(name) for name in CLIPS} if settings is None else settings
    jobs = []
    for spec in [PairSpec(kind, shift, n) for shift in ("clean", "test corruptions") for kind in KINDS]:
        jobs += [_clip_job(name, view, spec) for name in CLIPS for view in ("full", "low")]
        if spec.shift != "clean":  # where the frozen CLIPs are right already
            jobs += [_adapted_job(name, s, replace(spec, n=min(n, ADAPTED))) for name, s in settings.items()]
        jobs.append(_reader_job(draws, window, spec))
    return table("winoground", jobs)


def _job(method: str, label: str, settings: dict, used: dict[str, str], spec: PairSpec, work: Callable) -> Job:
    """`work(images, ids, captions)` -> (before, after, loss, evaluations) becomes a run with its description."""
    bound = precision_on("cpu", "auto") if "denoiser" in used else "fp32"
    about = {
        "method": method,
        "label": label,
        "settings": settings,
        "classifier": used.get("classifier", ""),
        "models": {role: zoo.fingerprint(name) for role, name in used.items()},
        "precision": bound,
        "stream": spec.describe(),
        "select": "none" if method == "source" else ON_VALIDATION,
        **({"denoiser": used["denoiser"]} if "denoiser" in used else {}),
    }

    def run() -> Records:
        s, start = stream(spec), time.perf_counter()
        before, after, loss, nfe = work(s.images, s.ids, spec.pairs().captions)
        seconds = np.full(len(s), (time.perf_counter() - start) / len(s), np.float32)
        predict = "after" if method == "diffusion_tta" else "before"
        protocol = {"order": s.order, "reset": "per_image", "predict": predict, "batch": 2, "device": f"cpu {bound}"}
        stored = [centred(v.float().numpy().reshape(-1, 2, 2)).reshape(-1, 2) for v in (before, after)]
        nfe = {kind: count / len(s) for kind, count in nfe.items()}
        arrays = (s.ids.numpy(), s.labels.numpy(), *stored, loss.T.float().numpy(), seconds)
        return Records(*arrays, nfe, about | {"protocol": protocol})

    return about, run


def _clip_job(name: str, view: str, spec: PairSpec) -> Job:
    def work(images: Tensor, ids: Tensor, captions: list[str]) -> tuple:
        logits = by_clip(zoo.cached(name), view_of(images, view), captions)
        return logits, logits, torch.zeros(0, len(ids)), {"classifier fwd": len(ids)}

    return _job("source", f"source/{view}", {"view": view}, {"classifier": name}, spec, work)


def _adapted_job(name: str, settings: diffusion_tta.Settings, spec: PairSpec) -> Job:
    def work(images: Tensor, ids: Tensor, captions: list[str]) -> tuple:
        return by_adapted(zoo.cached(name), zoo.cached(TEXT), settings, images, ids, captions)

    used = {"classifier": name, "denoiser": TEXT}
    return _job("diffusion_tta", f"diffusion_tta/{settings.view}", stated(settings), used, spec, work)


def _reader_job(draws: int, window: tuple[int, int], spec: PairSpec) -> Job:
    def work(images: Tensor, ids: Tensor, captions: list[str]) -> tuple:
        error, unconditional = by_reader(zoo.cached(TEXT), images, ids, captions, draws, window)
        return -error, unconditional - error, torch.zeros(0, len(ids)), {"denoiser fwd": 3 * draws * len(ids)}

    label = f"reader/{draws} pairs/{window[0]}..{window[1]}"
    settings = {"pairs": draws, "window": list(window)}
    return _job("diffusion_classifier", label, settings, {"denoiser": TEXT}, spec, work)


# --- what is shown ---------------------------------------------------------------------------------------------------


def scores_of(r: Records, when: str = "after") -> dict[str, np.ndarray]:
    """For "text", "image", "group": whether each pair of a run is right (N,); of an adapted CLIP the text score alone,
    because two copies that were adapted to different images cannot compare them."""
    S = getattr(r, when).reshape(-1, 2, 2)
    kept = ("text",) if r.about["method"] == "diffusion_tta" else tuple(RIGHT)
    return {name: RIGHT[name](S) for name in kept}


def _models(runs: list[Records]) -> dict[str, tuple[list[Records], str]]:
    """Row -> its runs, and which of their logits it is about."""
    rows: dict[str, tuple[list[Records], str]] = {}
    for r in runs:
        name = " ".join(filter(None, (r.about["classifier"].split("/")[-1], r.about["label"])))
        if r.about["method"] == "diffusion_classifier":
            rows.setdefault(name, ([], "before"))[0].append(r)
            name += ", less unconditional"
        rows.setdefault(name, ([], "after"))[0].append(r)
    return rows


def _right(runs: list[Records], when: str, score: str, unseen: bool | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether each pair is right and the id of its first image, each (N,); of those alone that are unseen, or seen."""
    right, pair = [], []
    for r in runs:
        first = torch.from_numpy(r.id[::2])
        kept = slice(None) if unseen is None else (holds_unseen(first) == unseen).numpy()
        right.append(scores_of(r, when)[score][kept])
        pair.append(r.id[::2][kept])
    return np.concatenate(right), np.concatenate(pair)


def _cell(runs: list[Records], when: str, score: str, unseen: bool | None = None) -> str:
    """Percent of pairs with the 95% interval over pairs."""
    right, pair = _right(runs, when, score, unseen)
    if not len(right):
        return ""
    found = paired_interval(right, np.zeros(len(right)), pair)
    return f"{found.mean:.0f} [{found.low:.0f}, {found.high:.0f}]"


def compared(runs: list[Records]) -> list[dict]:
    """The reader minus each frozen CLIP, and an adapted CLIP minus itself, on the same pairs: the text score, and the
    image score with the unconditional error subtracted, in points with 95% intervals over pairs."""
    rows = []
    for shift in dict.fromkeys(r.about["stream"]["shift"] for r in runs):
        models = _models([r for r in runs if r.about["stream"]["shift"] == shift])
        reader = next((mine for mine, _ in models.values() if mine[0].about["method"] == "diffusion_classifier"), [])
        for score, (name, (mine, _)) in product(("text", "image"), models.items()):
            one, other, said = reader, mine, f"reader minus {name}"
            if mine[0].about["method"] == "diffusion_tta":
                one, said = mine, f"{name} minus itself before"
            if not one or (one is reader and mine[0].about["method"] != "source"):
                continue
            if score not in scores_of(one[0]):
                continue
            row = {"shift": shift, "score": score, "difference": said}
            for kind in (*KINDS, "all"):
                here = [[r for r in v if kind in ("all", r.about["stream"]["kind"])] for v in (one, other)]
                row[kind] = _difference(*here, score)
            rows.append(row)
    return rows


def _difference(one: list[Records], other: list[Records], score: str) -> str:
    (right, pair), (rest, same) = _right(one, "after", score), _right(other, "before", score)
    if not np.array_equal(pair, same):
        raise ValueError("the two rows did not meet the same pairs: they cannot be compared")
    return str(paired_interval(right, rest, pair))


def show(runs: list[Records]) -> str:
    """Text, image and group score of every model in percent, with 95% intervals over pairs, beside their chance.

    Columns: the kinds, all of them, and all by whether a caption holds a pair of category and colour that is named in
    no training caption. Below, the reader minus each CLIP in pairs."""
    parts = [protocol_line(runs)]
    for shift in dict.fromkeys(r.about["stream"]["shift"] for r in runs):
        for score, chance in CHANCE.items():
            rows = []
            for model, (all_runs, when) in _models([r for r in runs if r.about["stream"]["shift"] == shift]).items():
                if score not in scores_of(all_runs[0], when):
                    continue
                cell, row = partial(_cell, when=when, score=score), {"model": model}
                for kind in KINDS:
                    here = [r for r in all_runs if r.about["stream"]["kind"] == kind]
                    row[kind] = cell(here) if here else ""
                row |= {"all": cell(all_runs)}
                rows.append(row | {"seen": cell(all_runs, unseen=False), "unseen": cell(all_runs, unseen=True)})
            parts.append(f"{score} score, {shift} (chance {chance:.1f})\n" + as_table(rows))
    return "\n\n".join([*parts, as_table(compared(runs))])
