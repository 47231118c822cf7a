"""Images that are purified once, kept in data/cache, and then read by every classifier and every ensemble."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from ..common.cache import ImageSet, fingerprint, make_images
from ..common.evaluations import together
from ..common.paths import CACHE
from ..common.types import Index
from ..common.validate import frozen
from ..diffusion.reverse import Settings
from ..evaluation.chosen import purifier, selection
from ..evaluation.evaluate import run
from ..evaluation.records import Records
from ..evaluation.tables import Job, table
from ..methods import METHODS, dda, diffpure, ilvr
from ..methods.base import Models, source_logits
from ..methods.purifier import what_changes
from ..methods.sda import FineTune
from ..models import zoo
from ..models.classifier import Classifier
from ..recipes.aligned import ALIGNER, Data, aligned_classifier, describe, shipped
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.views import view_of
from .trials import DIT, Wording, coarse, job, models, ordered

CHANGE = {"diffpure": diffpure.purify, "ilvr": ilvr.purify, "dda": dda.align, "sda": dda.align}
ENSEMBLES = {
    "sum": {},
    "entropy": dict(ensemble="entropy"),
    "confidence": dict(ensemble="confidence"),
    **{f"calibrated {T:g}": dict(ensemble="calibrated", temperature=T) for T in (2.0, 4.0, 8.0)},
    "purified": dict(ensemble="purified"),
}


def ours(method: str, ensemble: str = "sum"):
    """The chosen settings of "diffpure", "dda" or "sda"; `ensemble` "chosen" or one of `ENSEMBLES`."""
    if method == "diffpure":
        return purifier(method)
    return purifier(method, **ENSEMBLES[selection()[f"{method}_ensemble"] if ensemble == "chosen" else ensemble])


def small_table(name: str, jobs: Iterable[Job], logits: Callable = coarse) -> list[Records]:
    """`tables.table` with coarse logits, or with others made of them: these tables have many rows."""
    return table(name, jobs, kept=lambda r: replace(r, before=logits(r.before), after=logits(r.after)))


def purified(method: str, settings: Settings, spec, classifier: str | None = None, aligner: str = ALIGNER) -> ImageSet:
    """The images of a stream as a method changes them, resumable, from the cache where they are there.

    `classifier` only where the images depend on it (`entropy_scale`)."""
    s, denoiser = stream(spec), zoo.cached(aligner)
    about = {"spec": spec.describe(), "method": method.replace("sda", "dda"), "settings": what_changes(settings)}
    about |= {"denoiser": zoo.fingerprint(aligner), "precision": denoiser.precision}
    about |= {"classifier": zoo.fingerprint(classifier)} if classifier else {}
    more = (zoo.cached(classifier),) if classifier else ()
    return make_images(
        lambda rows: CHANGE[method](denoiser, s.images[rows], s.ids[rows], settings, *more),
        s.ids, denoiser, CACHE / "purified" / fingerprint(about), settings.images_at_once, "purified images",
    )  # fmt: skip


def input_job(
    method: str,
    settings,
    classifier: str,
    spec,
    label: str,
    tuned: tuple[Data, FineTune] | None = None,
    aligner: str = ALIGNER,
    wording: Wording | None = None,
    elsewhere: bool = False,
) -> Job:
    """One run of a method that changes the input by `aligner`. `tuned`: what SDA's second classifier is fine-tuned on,
    and how; the method "source" reads the image as it is with that one. `wording`: of a CLIP's classes. `elsewhere`,
    only with `tuned`: that classifier may meet another alignment than its own, as in the published code."""
    about, _ = job(method, settings, classifier, spec, label, denoiser=aligner, wording=wording, batch=100)
    about |= {"aligned": describe(classifier, *tuned)} if tuned else {}
    about |= {"elsewhere": True} if elsewhere else {}

    def work() -> Records:
        second = _second(classifier, *tuned) if tuned else None
        if elsewhere:
            second = copy.copy(second)
            second.alignment = None
        if method == "source":
            return run(METHODS[method].configure(Models(second), settings), stream(spec), about=about, batch=100)
        needed = classifier if getattr(settings, "entropy_scale", 0) else None
        made = purified(method, settings, spec, needed, aligner)
        task = models(classifier, None, wording=wording).classifier
        configured = METHODS[method].configure(Models(task, zoo.cached(aligner), second), settings, made.by_id())
        return _with_cost(run(configured, stream(spec), about=about, batch=100), made)

    return about, work


@lru_cache(maxsize=1)  # it reads one stream after the other
def _second(classifier: str, data: Data, how: FineTune) -> Classifier:
    return shipped(classifier, data, how) or aligned_classifier(classifier, data, how)


def _with_cost(r: Records, made: ImageSet) -> Records:
    """A run with what its purified images cost."""
    return replace(r, seconds=r.seconds + np.float32(made.seconds), nfe=together(made.nfe, r.nfe))


def _joined(parts: list[ImageSet], ids: Index) -> ImageSet:
    """The images of these ids, from parts that hold them, with what they cost on average."""
    by_id = {i: image for part in parts for i, image in part.by_id().items()}
    share = [torch.isin(ids, part.ids).float().mean().item() for part in parts]
    nfe = {kind: sum(w * part.nfe[kind] for w, part in zip(share, parts, strict=True)) for kind in parts[0].nfe}
    seconds = sum(w * part.seconds for w, part in zip(share, parts, strict=True))
    return ImageSet(ids, torch.stack([by_id[i] for i in ids.tolist()]), seconds, nfe)


def then_job(
    change: str,
    changed_by: Settings | None,
    then: Job,
    source: str,
    spec: SceneSpec | tuple[SceneSpec, ...],
    kept: Iterable[SceneSpec],
) -> Job:
    """Another method's run, on images that were purified first.

    Args:
        change: the method that purifies, with its settings; or "low" for the low view, without any.
        then: the run to make on them, of a job for the same scenes as they come.
        source: the classifier whose answers to these, as they come, are the record's `before`.
        spec: of these scenes; several are one stream, one after the other.
        kept: parts of scenes whose purified images are kept, those of `spec` among them.

    The record's label and costs are of both together."""
    about = then[0] | {"purified": {"by": change, "source": f"{source} {zoo.fingerprint(source)}"}}
    if changed_by is not None:
        network = {"denoiser": f"{ALIGNER} {zoo.fingerprint(ALIGNER)}"}
        about["purified"] |= {"settings": what_changes(changed_by), **network}

    def work() -> Records:
        s = ordered(spec, "continual") if isinstance(spec, tuple) else stream(spec)
        images = s.images[:]  # those of several scenes are read when they are asked for
        settings, wording = METHODS[about["method"]].Settings, Wording(**about["text"]) if "text" in about else None
        if changed_by is None:
            made = ImageSet(s.ids, view_of(images, change), 0.0, {})
        else:
            asked = spec if isinstance(spec, tuple) else (spec,)
            shared = [k for k in kept if any(k.start < a.start + a.n and a.start < k.start + k.n for a in asked)]
            made = _joined([purified(change, changed_by, part) for part in shared], s.ids)
        denoiser = about.get("denoiser", DIT) if "denoiser" in about["models"] else None
        both = models(about["classifier"], denoiser, wording=wording)
        configured = METHODS[about["method"]].configure(both, settings(**frozen(about["settings"])))
        r = run(configured, replace(s, images=made.images), about=about, **about["how"])
        before = source_logits(models(source, None, wording=wording), images)
        return _with_cost(replace(r, before=before.numpy()), made)

    return about, work
