"""The tables of the course: which method meets which stream. `python -m gentta_utils measure NAME` makes one.

Everything is chosen on the four validation corruptions, on scenes of the "select" split, by `select`, and written to
data/results/diffusion_tta.json; the test corruptions are looked at only by `test_corruptions`, on other scenes, later.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..common.cache import fingerprint
from ..common.devices import precision_on
from ..common.paths import CACHE
from ..common.randomness import generator
from ..common.validate import check_choice
from ..diffusion.error_table import ErrorTable, error_table
from ..evaluation.chosen import method_of, tuned
from ..evaluation.evaluate import run
from ..evaluation.records import Records
from ..evaluation.statistics import ON_VALIDATION
from ..evaluation.tables import Job
from ..methods import METHODS, diffusion_classifier, memo, source, tent
from ..methods.base import Models, stated
from ..models import zoo
from ..models.classifier import Classifier
from ..models.prompts import make_prompt
from ..recipes.classifiers import MEAN, RECIPES, STD
from ..streams.maps import MapSpec
from ..streams.open_vocabulary import PhotoLabels
from ..streams.scenes import SceneSpec
from ..streams.stream import Stream, continual, correlated, dirichlet, gradual, iid, long_tailed, mixed, stream
from ..world.labels import CLASSES, COLOURS
from ..world.maps import MAP_CLASSES, STUFF
from ..world.severities import VALIDATION
from ..world.words import LabelSet, label_set
from .drawn import Drawn

CLASSIFIERS = ("classifier/resnet", "classifier/vit")
DIT = "denoiser/dit"
TEXT = "denoiser/text"
PROMPTS = ("one", "templates", "floors")
SEED_STEP = 1_000_000  # between the draws of two seeds, so that they differ from those of two values of `start`
MAP_PROMPTS = [f"a photo of {'the' if name in STUFF else 'a'} {name}." for name in MAP_CLASSES]
PLACEBO = dict(n=8, split="select", start=3900)  # the scenes of feedback_from="another"


def check_prompts(prompts: str, asked: LabelSet | PhotoLabels) -> None:
    """Raise ValueError for unknown prompts, and for "floors" where the classes name the floor themselves."""
    check_choice("prompts", prompts, PROMPTS)
    if prompts == "floors" and "floor" in getattr(asked, "asks", ()):  # photographs have no such attributes
        raise ValueError(
            f"prompts='floors' names a second floor with the label set {asked.name!r}: choose one of one, templates"
        )


@dataclass(frozen=True)
class Wording:
    """How a CLIP and the text model are asked: a label set of `world.words`, and which prompts.

    "one": its first template for both. "templates": all its templates; features are averaged for CLIP, the text model
    gets one of them for each update. "floors": one for CLIP; the text model's say the floor too, one wording for each
    colour. Raises ValueError for an unknown label set and as `check_prompts`."""

    labels: str = "category"
    prompts: str = "one"

    def __post_init__(self):
        check_prompts(self.prompts, label_set(self.labels))

    @property
    def templates(self) -> tuple[str, ...]:
        """Those of the text model; the first is CLIP's, or all are with "templates"."""
        usual = label_set(self.labels).templates
        if self.prompts == "floors":
            return tuple(f"{usual[0].rstrip('.')} on a {colour} floor." for colour in COLOURS)
        return usual if self.prompts == "templates" else usual[:1]


def models(
    classifier: str, denoiser: str | None = DIT, precision: str = "auto", wording: Wording | None = None
) -> Models:
    """Shipped models by name, loaded once per process; a CLIP and the text model with the prompts of `wording`, beside
    a segmentor the text model with one prompt for each class of a map."""
    if wording is not None:
        return _asked(classifier, denoiser, precision, wording)
    network, made = zoo.cached(classifier), zoo.cached(denoiser, precision) if denoiser else None
    if denoiser == TEXT and network.target == "classes":
        made = made.for_prompts(MAP_PROMPTS)
    return Models(network, made)


@lru_cache(maxsize=4)
def _asked(clip: str, denoiser: str | None, precision: str, wording: Wording) -> Models:
    asked = label_set(wording.labels)
    of_clip = asked.templates if wording.prompts == "templates" else asked.templates[:1]
    classifier = zoo.cached(clip).zero_shot(asked.classes, of_clip)
    prompt = make_prompt(zoo.cached(clip), asked.classes, asked.templates[0])
    if denoiser != TEXT:  # a class-conditional model is asked for the classes themselves
        return Models(classifier, zoo.cached(denoiser, precision) if denoiser else None, prompt=prompt)
    prompts = [[template.format(name) for name in asked.classes] for template in wording.templates]
    return Models(classifier, zoo.cached(denoiser, precision).for_wordings(prompts), prompt=prompt)


def untrained(classifier: str) -> Classifier:
    """The network of a shipped classifier as it is before any training, the same each time."""
    with torch.random.fork_rng():
        network = RECIPES[classifier].build()
    return Classifier(network, MEAN, STD, zoo.IMAGE_SIZE, len(CLASSES), f"{classifier} untrained")


ORDERS = {"iid": lambda s, seed: s, "correlated": lambda s, seed: correlated(s)}  # of one stream
ORDERS |= {
    "dirichlet": lambda s, seed: dirichlet(s, seed=seed),
    "long-tailed": lambda s, seed: long_tailed(s, seed=seed),
}
JOINED = {"mixed": mixed, "gradual": gradual, "continual": continual}  # of several
JOINED["mixed correlated"] = lambda streams: replace(correlated(mixed(streams)), order="mixed correlated")


def ordered(spec, order: str = "iid", seed: int | None = None) -> Stream:
    """The stream of one shift in one of `ORDERS`, or several in one of `JOINED`; "mixed correlated" is sorted by class,
    the shifts of each class mixed.

    Args:
        seed: first shuffles the images of each shift; None leaves them as they are. Of "continual" it shuffles the
            shifts too, unless they are one."""
    several = isinstance(spec, tuple)
    check_choice("order", order, JOINED if several else ORDERS)
    streams = [stream(s) for s in (spec if several else (spec,))]
    if seed is not None:
        streams = [iid(s, seed) for s in streams]
        if order == "continual" and len({s.shift for s in spec}) > 1:
            turns = torch.randperm(len(streams), generator=generator(seed, 0, "shifts"))
            streams = [streams[i] for i in turns.tolist()]
    return JOINED[order](streams) if several else ORDERS[order](streams[0], seed or 0)


def _describe(spec, order: str, seed: int | None = None) -> dict:
    how = {} if order == "iid" else {"order": order}
    how |= {} if seed is None else {"order_seed": seed}
    if not isinstance(spec, tuple):
        return spec.describe() | how
    parts, shifts, severities = [s.describe() for s in spec], {s.shift for s in spec}, {s.severity for s in spec}
    one = {"shift": "mixed" if len(shifts) > 1 or order.startswith("mixed") else spec[0].shift}
    one |= {} if len(severities) == 1 else {"severity": 0}
    return {**parts[0], **one, "n": sum(s.n for s in spec), **how, "parts": parts}


def spec_of(stream: dict, **changes) -> SceneSpec | MapSpec:
    """The spec of a stream of scenes that describes itself so in a record, with changes."""
    kind = MapSpec if "target" in stream else SceneSpec
    return replace(kind(**{f.name: stream.get(f.name, f.default) for f in fields(kind)}), **changes)


def placebo(settings, of: dict) -> tuple[Tensor, ...]:
    """What a method is configured with beside models and settings, in a run on the stream `of`: the images of other
    scenes under the same shift where its feedback is from "another"."""
    if getattr(settings, "feedback_from", "image") != "another":
        return ()
    return (stream(spec_of(of, **PLACEBO)).images,)


def job(
    method: str,
    settings,
    classifier: str,
    spec,
    label: str,
    denoiser: str | None = DIT,
    precision: str = "auto",
    order: str = "iid",
    wording: Wording | None = None,
    drawn: Drawn | None = None,
    order_seed: int | None = None,
    **how,
) -> Job:
    """One run: all that its numbers depend on, and the call.

    Args:
        label: names its row. how: goes to `evaluate.run`.
        denoiser: which one, for a method that needs one. precision: of it, as in `zoo.load`.
        order, order_seed: as in `ordered`, which says what `spec` may be.
        wording: of a CLIP's classes and the text model's prompts.
        drawn: where the generated views of a CLIP's method come from; their cost is part of the record."""
    version = getattr(METHODS[method], "VERSION", 1)  # of the method's numbers: rows of an older one are made again
    denoiser = denoiser if METHODS[method].NEEDS.denoiser else None
    used = {"classifier": classifier, **({"denoiser": denoiser} if denoiser else {})}
    about = {
        "method": method,
        "label": label,
        "settings": stated(settings),
        "classifier": classifier,
        "models": {role: zoo.fingerprint(name) for role, name in used.items()},
        "precision": precision_on("cpu", precision) if denoiser else "fp32",
        "stream": _describe(spec, order, order_seed),
        "how": how,
        "select": "none" if method == "source" else ON_VALIDATION,
        **({"denoiser": denoiser} if denoiser not in (None, DIT) else {}),
        **({"text": asdict(wording)} if wording else {}),
        **({"drawn": drawn.describe()} if drawn else {}),
        **({"method_version": version} if version > 1 else {}),
    }

    def work() -> Records:
        used, s = models(classifier, denoiser, precision, wording), ordered(spec, order, order_seed)
        if drawn is None:
            configured = METHODS[method].configure(used, settings, *placebo(settings, about["stream"]))
            return run(configured, s, about=about, **how)
        prompts, n = label_set(wording.labels).prompts(), settings.generated
        made = drawn.make(s.images, s.ids, n, used, prompts)  # all at once, for the network takes full batches
        configured = METHODS[method].configure(used, settings, drawn.views(used, prompts, n))
        return drawn.counted(run(configured, s, about=about, **how), made)

    return about, work


def source_jobs(specs: list, classifiers: tuple = CLASSIFIERS) -> list[Job]:
    """The frozen classifiers on both views: the low-view control belongs to every table."""
    return [
        job("source", source.Settings(view), c, spec, f"source/{view}", batch=100)
        for spec in specs
        for c in classifiers
        for view in ("full", "low")
    ]


def reader_jobs(
    specs: list[SceneSpec], pairs: int, window: tuple[int, int], remark: str = "", denoiser: str = DIT
) -> list[Job]:
    """The Diffusion Classifier with so many stratified pairs inside the window; `remark` ends the row's label."""
    settings = diffusion_classifier.Settings(pairs=pairs, window=window)
    label = f"reader/{pairs} pairs/{window[0]}..{window[1]}{remark}"
    return [job("diffusion_classifier", settings, CLASSIFIERS[0], spec, label, denoiser, batch=10) for spec in specs]


def right(runs: list[Records], label: str, when: str = "after") -> int:
    """Right predictions over the runs with this label."""
    return sum(int(getattr(r, f"right_{when}").sum()) for r in runs if r.about["label"] == label)


def errors_of(spec: SceneSpec, pairs: int, window: tuple[int, int], denoiser: str = DIT) -> ErrorTable:
    """The error table of a stream, resumable, from the cache where it is there."""
    s, network = stream(spec), zoo.cached(denoiser)
    depends = {"pairs": pairs, "window": window, "denoiser": zoo.fingerprint(denoiser), "precision": network.precision}
    folder = CACHE / "errors" / fingerprint({"spec": spec.describe(), **depends})
    return error_table(network, s.images, s.ids, pairs, window, cache=folder)


@lru_cache(maxsize=1)
def validation_images(n: int = 8, start: int = 2000) -> tuple[Tensor, Tensor]:
    """n selection scenes under each validation corruption at severity 5, for the learning rate: images and ids."""
    parts = [stream(SceneSpec(n, name, 5, "select", start + i * n)) for i, name in enumerate(VALIDATION)]
    return torch.cat([p.images for p in parts]), torch.cat([p.ids for p in parts])


def validation_specs(start: int, n: int = 25) -> list[SceneSpec]:
    """n selection scenes under each validation corruption at severity 5."""
    return [SceneSpec(n, name, 5, "select", start + n * i) for i, name in enumerate(VALIDATION)]


STEP, LEAST = 1 / 4, -8.0  # logits are kept in these steps below the largest, which makes the tables a third


def coarse(logits: np.ndarray) -> np.ndarray:
    """Logits (B, K) less the largest of each row, in steps of `STEP` down to `LEAST`; the prediction alone is 0."""
    top = np.arange(logits.shape[1]) == logits.argmax(1)[:, None]
    steps = np.round((logits - logits.max(1, keepdims=True)) / STEP) * STEP
    return np.where(top, 0, steps.clip(LEAST, -STEP)).astype(np.float32)


def decided(logits: np.ndarray, others: float = LEAST) -> np.ndarray:
    """Of logits (B, K) the prediction alone, for tables of many rows: 0 where they are largest, `others` elsewhere."""
    return np.where(np.arange(logits.shape[1]) == logits.argmax(1)[:, None], 0, others).astype(np.float32)


# --- measuring -------------------------------------------------------------------------------------------------------


def clean_spec() -> SceneSpec:
    """The 500 clean test scenes of `reading` and `clean`."""
    return SceneSpec(500, split="test", start=6000)


def effect_jobs(specs: list[SceneSpec], classifiers: tuple = CLASSIFIERS, views: tuple = ("full", "low")) -> list[Job]:
    """Source on both views and episodic Diffusion-TTA on these, every classifier."""
    return source_jobs(specs, classifiers) + [
        job("diffusion_tta", tuned(c, view), c, spec, f"diffusion_tta/{view}", batch=25)
        for spec in specs
        for c in classifiers
        for view in views
    ]


SMALL = ("gaussian_noise", "fog", "pixelate", "snow", "contrast")  # the corruptions of Diffusion-TTA's online table
ONLINE = dict(reset="per_shift", batch=10)


def small_grid(n: int = 50, severity: int = 5, start: int = 22_000, seed: int = 0) -> list[SceneSpec]:
    """n scenes under each of the five corruptions of `SMALL`."""
    return [SceneSpec(n, name, severity, "test", start + n * i, seed) for i, name in enumerate(SMALL)]


def part(spec: SceneSpec, first: int, n: int) -> SceneSpec:
    """n scenes of a stream from the `first` one on."""
    return replace(spec, start=spec.start + first, n=n)


def in_parts(specs: list[SceneSpec], sizes: tuple[int, ...]) -> list[SceneSpec]:
    """The first scenes of each stream, in runs of so many."""
    return [part(s, sum(sizes[:k]), n) for s in specs for k, n in enumerate(sizes)]


def how_of(method: str, settings) -> dict:
    """How `evaluate.run` meets a method: in a stream that is reset at each shift, or image by image."""
    needs = METHODS[method].NEEDS
    if needs.batch_statistics:
        return ONLINE | dict(batch=50)
    return ONLINE if getattr(settings, "online", needs.online) else dict(batch=25)


def published_for(row: str, classifier: str) -> dict:
    """What TENT and MEMO (on a ResNet, or on another network) were published with for ImageNet; else nothing."""
    settings = memo.PUBLISHED_RESNET50 if "resnet" in classifier else memo.PUBLISHED_RVT
    return {"tent": tent.PUBLISHED_IMAGENET, "memo": settings}.get(method_of(row), {})


def method_job(row: str, settings, classifier: str, spec, label: str, **how) -> Job:
    """The job of a row, met as its method needs it; `how` goes on to `job`."""
    method = method_of(row)
    return job(method, settings, classifier, spec, label, **how_of(method, settings) | how)
