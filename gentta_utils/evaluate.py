"""Method x stream -> one record an image; tables that resume; paired intervals; the protocol line.

Every table and plot of the course is made from records, and every table carries the line that `protocol_line` makes
from them.
"""

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from .datasets import Stream
from .files import atomic_write
from .methods.base import Output
from .paths import CACHE, RESULTS
from .progress import progress

VERSION = 1  # raise it when a change of code changes numbers: no older run is then taken up again
RESETS = ("per_image", "per_shift", "never")
_COLUMNS = ("id", "label", "before", "after", "loss", "seconds")


@dataclass(frozen=True)
class Records:
    """One row an image of one run, as arrays of length N.

    Attributes:
        id, label: (N,) int64. before, after: (N, K) float32 logits. loss: (N, S) float32. seconds: (N,) float32.
        nfe: network evaluations an image, by network and kind.
        about: method, settings, stream, models with checksums, protocol: all that the numbers depend on.
    """

    id: np.ndarray
    label: np.ndarray
    before: np.ndarray
    after: np.ndarray
    loss: np.ndarray
    seconds: np.ndarray
    nfe: dict[str, float]
    about: dict

    def __len__(self) -> int:
        return len(self.id)

    @property
    def right_before(self) -> np.ndarray:
        """(N,) bool."""
        return self.before.argmax(1) == self.label

    @property
    def right_after(self) -> np.ndarray:
        """(N,) bool."""
        return self.after.argmax(1) == self.label


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
    online = getattr(method, "online", None)
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


# --- records on disk -------------------------------------------------------------------------------------------------


def fingerprint(content: dict) -> str:
    """Hash of a description and of VERSION, independent of the order of its keys."""
    text = json.dumps({**content, "version": VERSION}, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value):
    if is_dataclass(value):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def halved(values: np.ndarray) -> np.ndarray:
    """Float32 values as float16, half the size of a table, unless too large; each row's largest stays the largest."""
    if values.dtype != np.float32 or np.abs(values).max(initial=0) > 60_000:
        return values
    half = values.astype(np.float16)
    if values.ndim == 2 and values.shape[1]:
        best = values.argmax(1)
        tied = np.flatnonzero(half.argmax(1) != best)  # rounding made it equal to an earlier one
        half[tied, best[tied]] = np.nextafter(half[tied].max(1), np.float16(np.inf))
    return half


def save(path: Path, runs: list[Records]) -> None:
    """Write runs to one compressed npz, atomically: floats halved, what several runs have in common once, each kind of
    column as one array, its first bytes before its second ones (small runs on their own hardly compress)."""
    parts, places, seen = {}, [], {}
    for r in runs:
        places.append({})
        for name in _COLUMNS:
            value = np.ascontiguousarray(halved(getattr(r, name)))
            pool, key = f"{name} {value.dtype.str}", (name, value.dtype.str, hashlib.sha256(value).digest())
            if key not in seen:
                begun = parts.setdefault(pool, [])
                seen[key] = sum(map(len, begun))
                begun.append(value.ravel())
            places[-1][name] = [pool, seen[key], *value.shape]
    pools = {pool: np.concatenate(values) for pool, values in parts.items()}
    planes = {pool: v.view(np.uint8).reshape(len(v), v.itemsize).T for pool, v in pools.items()}
    about = json.dumps([{"nfe": r.nfe, **r.about} for r in runs], sort_keys=True, default=_plain)
    made = {"about": np.array(about), "version": np.array(VERSION), "places": np.array(json.dumps(places))}
    atomic_write(path, lambda temporary: np.savez_compressed(temporary, **made, **planes))


def _columns(file) -> list[dict[str, np.ndarray]]:
    """The columns of each run in an open table, also of one in which every run's are kept for themselves."""
    if "places" not in file:
        shared = json.loads(str(file["shared"])) if "shared" in file else {}
        runs = range(len(json.loads(str(file["about"]))))
        return [{n: file[shared.get(f"{i}.{n}", f"{i}.{n}")] for n in _COLUMNS} for i in runs]
    places = json.loads(str(file["places"]))
    names = {pool for run in places for pool, *_ in run.values()}
    pools = {pool: np.ascontiguousarray(file[pool].T).ravel().view(pool.split()[1]) for pool in names}
    return [
        {n: pools[pool][start : start + math.prod(shape)].reshape(shape) for n, (pool, start, *shape) in run.items()}
        for run in places
    ]


def _whole(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float16 else values


def load(path: Path) -> list[Records]:
    """Read what `save` wrote. Raises FileNotFoundError or ValueError with a sentence that says how to make it again."""
    path = Path(path)
    mend = "make it with `python -m gentta_utils measure`, or run `git checkout -- data/results`"
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}: {mend}")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            abouts = json.loads(str(file["about"]))
            rows = [{name: _whole(value) for name, value in run.items()} for run in _columns(file)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): {mend}") from error
    return [Records(**row, nfe=about.pop("nfe"), about=about) for row, about in zip(rows, abouts, strict=True)]


def _finished(folder: Path) -> dict[str, Records]:
    """Fingerprint of its job -> record, of all tables in `folder` that this version of the code could have made."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                version = int(file["version"]) if "version" in file else 1
            runs = load(path) if version == VERSION else []
        except (OSError, ValueError, zipfile.BadZipFile):  # damaged: made anew
            continue
        for r in runs:
            found[fingerprint({key: value for key, value in r.about.items() if key != "protocol"})] = r
    return found


def results(table: str) -> list[Records]:
    """The committed records of a table in data/results."""
    return load(RESULTS / f"{table}.npz")


Job = tuple[dict, Callable[[], Records]]  # a description that determines the numbers, and the call that makes them


def table(
    name: str,
    jobs: Iterable[Job],
    folder: Path = RESULTS,
    cache: Path = CACHE / "runs",
    kept: Callable[[Records], Records] = lambda r: r,
) -> list[Records]:
    """Do the jobs that have no record yet, then write all records as one table `folder`/<name>.npz.

    Each finished job is kept at once under its fingerprint, so an interrupted table goes on where it stopped; nor is a
    job done again that stands in any table of `folder`.

    Args:
        kept: what of a record the table holds.

    Raises ValueError if two jobs have one description."""
    jobs, runs, finished = list(jobs), [], _finished(folder)
    if len({fingerprint(about) for about, _ in jobs}) < len(jobs):
        raise ValueError(f"two jobs of the table {name} have the same description: one of them would never run")
    for about, work in progress(jobs, desc=name, unit="run"):
        path = cache / f"{fingerprint(about)}.npz"
        if fingerprint(about) in finished:
            runs.append(finished[fingerprint(about)])
            continue
        if not path.is_file():
            save(path, [work()])
        runs += load(path)
    runs = [kept(r) for r in runs]
    save(folder / f"{name}.npz", runs)
    return runs


# --- statistics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% bootstrap interval, in points (hundredths)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired_interval(
    after: np.ndarray, before: np.ndarray, scene: np.ndarray, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of after - before (N,) in points, with a percentile bootstrap over scenes.

    Rows of one scene (several classifiers, severities, seeds) are resampled together, or the interval is too narrow."""
    difference = 100 * (np.asarray(after, float) - np.asarray(before, float))
    _, index = np.unique(scene, return_inverse=True)
    total, count = np.bincount(index, difference), np.bincount(index)
    weights = _resampled(len(total), draws, seed)
    means = (weights @ total) / (weights @ count)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(difference.mean(), low, high)


@lru_cache(maxsize=3)  # a report asks for the same dozens of times, and they take seconds to draw
def _resampled(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of n scenes is drawn: (draws, n) float64."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def gain(runs: list[Records]) -> Interval:
    """Paired gain of after over before, over all rows of these runs."""
    return paired_interval(
        *(np.concatenate([getattr(r, k) for r in runs]) for k in ("right_after", "right_before", "id"))
    )


def summary(runs: list[Records]) -> dict:
    """Accuracies in percent, counts of fixed and broken predictions, the paired gain, cost an image."""
    before, after = (np.concatenate([getattr(r, k) for r in runs]) for k in ("right_before", "right_after"))
    return {
        "n": len(before),
        "before": 100 * before.mean(),
        "after": 100 * after.mean(),
        "fixed": int((after & ~before).sum()),
        "broken": int((before & ~after).sum()),
        "gain": gain(runs),
        "seconds": float(np.concatenate([r.seconds for r in runs]).mean()),
    }


def protocol_line(runs: list[Records]) -> str:
    """The line under the title of every results table (docs/methods/protocol.md), made from the records, never typed.

    n counts scenes, whatever number of methods and classifiers met them."""

    def all_of(values: Iterable) -> str:
        return "|".join(sorted({str(v) for v in values}))

    scenes = len(np.unique(np.concatenate([r.id for r in runs])))
    splits = {r.about["stream"].get("split") for r in runs}
    select = all_of(r.about.get("select", "none") for r in runs)
    seeds = len({(r.about.get("settings") or {}).get("seed", 0) for r in runs})
    nfe = {f"{k.replace(' ', ':')}:{v:g}" for r in runs for k, v in r.nfe.items()}
    seconds = np.concatenate([r.seconds for r in runs]).mean()
    resizes = {str(r.about["stream"]["resize"]) for r in runs if "resize" in r.about["stream"]}
    geometry = f" resize={'|'.join(sorted(resizes))}" if resizes else ""  # of photographs, before their centre crop
    if len(resizes) > 1:
        geometry += " (two geometries: clean images and stored corruptions are not the same crops)"
    get = lambda key: all_of(r.about["protocol"][key] for r in runs)  # noqa: E731
    return (
        f"protocol: stream={get('order')} reset={get('reset')} predict={get('predict')} batch={get('batch')} "
        f"n={scenes} split={all_of(splits)}{geometry} seeds={seeds} select={select} nfe={','.join(sorted(nfe))} "
        f"time={seconds:.2f} s/img, {get('device')}"
    )
