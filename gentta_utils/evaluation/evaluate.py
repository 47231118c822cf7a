"""A method meets a stream: one record per image."""

import time

import numpy as np
import torch

from ..common.progress import progress
from ..common.validate import check_ids
from ..common.versions import code_of, versions
from ..methods.base import Output
from ..streams.stream import Stream
from ..world.maps import VOID
from .dense import scored
from .records import Records

RESETS = ("per_image", "per_shift", "never")


def run(
    method,
    stream: Stream,
    reset: str = "per_image",
    batch: int = 32,
    about: dict | None = None,
    seen: list[Output] | None = None,
) -> Records:
    """Run a method over a stream. Of maps the records hold scores, see `Records`.

    Args:
        reset: "per_image": every image starts from the source. "per_shift": the state is carried through the stream and
            dropped before it. "never": as it was left by the stream before.
        batch: images that the method gets at once.
        about: what to remember of models and settings, for the records.
        seen: a list that gets the output of each batch, for who looks at more than records hold.

    Raises ValueError where `reset` and the method's own mode contradict each other, where the labels of the stream do
    not count the classes of the method's models or are not what its network answers with, for an empty stream and a
    batch of no image."""
    if not hasattr(method, "adapt") or not isinstance(stream, Stream):
        raise ValueError(
            "run(method, stream) takes a configured method, as `tent.configure(models)`, and a Stream, as "
            f"`stream(SceneSpec(50))`, not a {type(method).__name__} and a {type(stream).__name__}"
        )
    if reset not in RESETS:
        raise ValueError(f"reset={reset!r}: choose one of {', '.join(RESETS)}")
    if type(batch) is not int or batch < 1:
        raise ValueError(f"batch={batch!r}: choose a whole number above 0")
    if not len(stream):
        raise ValueError("the stream holds no image")
    check_ids(stream.ids, len(stream))
    if stream.classes != getattr(method.models.classifier, "subset", None):  # else every label would be wrong
        raise ValueError(
            "the labels of this stream count other classes than the models' logits: configure the method with "
            "`models.restrict(stream.classes)`, where `models` are the whole ones"
        )
    online = method.online
    if online is not None and online != (reset != "per_image"):
        raise ValueError(
            f"reset={reset!r} with online={online}: an online method keeps its state, an episodic one does not"
        )
    maps = method.models.classifier.target != "class"
    (_check_maps if maps else _check_labels)(method.models.classifier, stream)
    if reset != "never":
        method.reset()
    outputs: list[Output] = [] if seen is None else seen
    seconds, before, after = [], [], []
    for index in progress(torch.arange(len(stream)).split(batch), desc=_name(stream.about), unit="batch", leave=False):
        start = time.perf_counter()
        part = stream.rows(index)
        outputs.append(method.adapt(part.images, part.ids))
        seconds += [(time.perf_counter() - start) / len(index)] * len(index)
        for kept, answer in ((before, outputs[-1].before), (after, outputs[-1].logits)):
            kept.append(scored(answer, part.labels) if maps else answer.float().numpy())
    nfe: dict[str, float] = {}
    for out in outputs:
        for kind, n in out.nfe.items():
            nfe[kind] = nfe.get(kind, 0) + n / len(stream)
    protocol = {"order": stream.order, "reset": reset, "predict": method.predict, "batch": batch}
    protocol["device"] = _device(method)
    protocol |= {"code": code_of(type(method).__module__), "versions": versions()}  # beside what describes the record
    return Records(
        id=stream.ids.numpy(),
        label=np.zeros(len(stream), np.int64) if maps else stream.labels.numpy(),
        before=np.concatenate(before),
        after=np.concatenate(after),
        loss=torch.cat([o.loss for o in outputs], 1).T.float().numpy(),
        seconds=np.array(seconds, np.float32),
        nfe=nfe,
        about={"stream": stream.about, "protocol": protocol, **(about or {})},
    )


def _check_labels(classifier, stream: Stream) -> None:
    check_ids(stream.labels, len(stream), "labels")
    if not 0 <= int(stream.labels.min()) <= int(stream.labels.max()) < classifier.classes:
        last = classifier.classes - 1
        raise ValueError(f"the labels of this stream are not all from 0 to {last}, the classes of the models")


def _check_maps(network, stream: Stream) -> None:
    target = "depth" if stream.labels.is_floating_point() else "classes"
    if stream.labels.ndim != 3 or target != network.target:
        raise ValueError(f"this network answers with {network.target}: take a stream of such maps (`MapSpec.target`)")
    known = stream.labels[stream.labels != VOID]
    if target == "classes" and len(known) and int(known.max()) >= network.classes:
        raise ValueError(
            f"the maps of this stream have labels from {network.classes} on, the network has no such class"
        )


def _device(method) -> str:
    denoiser = method.models.denoiser
    return str(method.models.classifier.mean.device) + ("" if denoiser is None else f" {denoiser.precision}")


def _name(about: dict) -> str:
    return f"{about.get('shift', 'stream')} {about.get('severity') or ''}".strip()
