"""Method x stream -> one record per image; tables that resume; paired intervals; the protocol line.

Every table and plot of the course is made from records, and every table carries the line that `protocol_line` makes
from them.
"""

import hashlib
import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.cache import VERSION, plain_json
from ..common.files import DAMAGE, atomic_write, how_damaged

_COLUMNS = ("id", "label", "before", "after", "loss", "seconds")


@dataclass(frozen=True)
class Records:
    """One row per image of one run, as arrays of length N.

    Attributes:
        id, label: (N,) int64. before, after: (N, K) float32 logits. loss: (N, S) float32. seconds: (N,) float32.
            Of maps, whose truth is no one label, label is 0, and before and after are scores: pixels by true and
            predicted class (N, K, K) uint16, or of depth (N, 5) float32, as `dense.scored` gives them.
        nfe: network evaluations per image, by network and kind.
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
    def target(self) -> str:
        """What was predicted: the "class" of an image, or a map of "classes" or "depth"."""
        return self.about.get("stream", {}).get("target", "class")

    @property
    def right_before(self) -> np.ndarray:
        """(N,) bool. Raises ValueError for maps, as `right_after`."""
        return self._right(self.before)

    @property
    def right_after(self) -> np.ndarray:
        """(N,) bool."""
        return self._right(self.after)

    def _right(self, logits: np.ndarray) -> np.ndarray:
        if self.target != "class":
            raise ValueError("a map is not right or wrong as a whole: take its scores (`evaluation.map_rows`)")
        return logits.argmax(1) == self.label


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
    """Write runs to one npz, atomically: floats halved, what several runs have in common once, each kind of column as
    one array, its first bytes before its second ones (small runs on their own hardly compress)."""
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
    about = json.dumps([{"nfe": r.nfe, **r.about} for r in runs], sort_keys=True, default=plain_json)
    made = {"about": np.array(about), "version": np.array(VERSION), "places": np.array(json.dumps(places))}
    atomic_write(path, lambda temporary: _zipped(temporary, made | planes))


def _zipped(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz as numpy reads it, by LZMA: half as large as numpy's own compression makes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, array in arrays.items():
            np.save(member := io.BytesIO(), array, allow_pickle=False)
            file.writestr(f"{name}.npy", member.getvalue())


def _columns(file) -> list[dict[str, np.ndarray]]:
    """The columns of each run in an open table."""
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
    fix = f"run `git checkout -- data/results`, or make it with `python -m gentta_utils measure {path.stem}`"
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}: {fix}")
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            abouts = json.loads(str(file["about"]))
            rows = [{name: _whole(value) for name, value in run.items()} for run in _columns(file)]
        return [Records(**row, nfe=about.pop("nfe"), about=about) for row, about in zip(rows, abouts, strict=True)]
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged ({how_damaged(path, error)}): {fix}") from error
