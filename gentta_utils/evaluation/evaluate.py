"""A method meets a stream: one record per image."""

import time

import numpy as np
import torch

from ..common.progress import progress
from ..methods.base import Output
from ..streams.stream import Stream
from .records import Records

RESETS = ("per_image", "per_shift", "never")


def run(method, stream: Stream, reset: str = "per_image", batch: int = 32, about: dict | None = None) -> Records:
    """Run a method over a stream.

    Args:
        reset: "per_image": every image starts from the source. "per_shift": the state is carried through the stream and
            dropped before it. "never": as it was left by the stream before.
        about: what to remember of models and settings, for the records.

    Raises ValueError where `reset` and the method's own mode contradict each other, and where the labels of the stream
    do not count the classes of the method's models."""
    if reset not in RESETS:
        raise ValueError(f"reset={reset!r}: choose one of {', '.join(RESETS)}")
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
    if reset != "never":
        method.reset()
    outputs: list[Output] = []
    seconds = []
    for index in progress(torch.arange(len(stream)).split(batch), desc=_name(stream.about), unit="batch", leave=False):
        start = time.perf_counter()
        part = stream.rows(index)
        outputs.append(method.adapt(part.images, part.ids))
        seconds += [(time.perf_counter() - start) / len(index)] * len(index)
    nfe: dict[str, float] = {}
    for out in outputs:
        for kind, n in out.nfe.items():
            nfe[kind] = nfe.get(kind, 0) + n / len(stream)
    protocol = {"order": stream.order, "reset": reset, "predict": method.predict, "batch": batch}
    protocol["device"] = _device(method)
    return Records(
        id=stream.ids.numpy(),
        label=stream.labels.numpy(),
        before=torch.cat([o.before for o in outputs]).float().numpy(),
        after=torch.cat([o.logits for o in outputs]).float().numpy(),
        loss=torch.cat([o.loss for o in outputs], 1).T.float().numpy(),
        seconds=np.array(seconds, np.float32),
        nfe=nfe,
        about={"stream": stream.about, "protocol": protocol, **(about or {})},
    )


def _device(method) -> str:
    denoiser = method.models.denoiser
    return str(method.models.classifier.mean.device) + ("" if denoiser is None else f" {denoiser.precision}")


def _name(about: dict) -> str:
    return f"{about.get('shift', 'stream')} {about.get('severity') or ''}".strip()
