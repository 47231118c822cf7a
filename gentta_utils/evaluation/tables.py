"""Tables of records that resume: a job that was done is not done again."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..common.cache import VERSION, fingerprint
from ..common.files import DAMAGE
from ..common.paths import CACHE, RESULTS
from ..common.progress import progress
from ..common.versions import code_of
from ..methods import METHODS
from .records import Records, load, save


def _finished(folder: Path) -> dict[str, dict[str | None, Records]]:
    """Fingerprint of its job -> precision -> record, of all tables in `folder` that this version of the code could have
    made."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
                version = int(file["version"]) if "version" in file else 1
            runs = load(path) if version == VERSION else []
        except DAMAGE:
            print(f"{path} is damaged: what it held is made again; `git checkout -- {path}` brings it back at once")
            continue
        for r in runs:
            found.setdefault(_whatever_precision(r.about), {})[r.about.get("precision")] = r
    return found


def _whatever_precision(about: dict) -> str:
    return fingerprint({key: value for key, value in about.items() if key not in ("protocol", "precision")})


def _record_of(about: dict, finished: dict[str, dict[str | None, Records]]) -> Records | None:
    """The record of a job; one of another precision where this has none, so that a machine without fast bf16 need not
    make again what stands in the course's tables."""
    made = finished.get(_whatever_precision(about), {})
    return made.get(about.get("precision"), next(iter(made.values()), None))


def _other_code(record: Records) -> bool:
    """Whether a record says that its method's file was another one; those made before they said so do not."""
    made = record.about.get("protocol", {}).get("code")
    method = METHODS.get(record.about.get("method"))
    return None not in (made, method) and made not in {code_of(kind) for kind in _modules(method)}


def _modules(method) -> set[str]:
    """Of the classes that a method's module configures: it may leave that to another one."""
    return {method.__name__, *(value.__module__ for value in vars(method).values() if isinstance(value, type))}


def _kept(path: Path, work: Callable[[], Records]) -> list[Records]:
    """What a job left in the cache; it is done, or done again, where that is missing or damaged."""
    if path.is_file():
        try:
            return load(path)
        except ValueError as error:
            print(f"{str(error).partition(': ')[0]}: its run is done again")
    save(path, [work()])
    return load(path)


def results(table: str) -> list[Records]:
    """The committed records of a table in data/results."""
    return load(RESULTS / f"{table}.npz")


Job = tuple[dict, Callable[[], Records]]  # a description that determines the numbers, and the call that makes them


def missing_jobs(jobs: Iterable[Job], folder: Path = RESULTS, cache: Path = CACHE / "runs") -> list[dict]:
    """The descriptions of those that `table` would have to run: neither in a table of `folder` nor in the cache."""
    finished, left = _finished(folder), [about for about, _ in jobs]
    left = [about for about in left if _record_of(about, finished) is None]
    return [about for about in left if not (cache / f"{fingerprint(about)}.npz").is_file()]


def table(
    name: str,
    jobs: Iterable[Job],
    folder: Path = RESULTS,
    cache: Path = CACHE / "runs",
    kept: Callable[[Records], Records] = lambda r: r,
) -> list[Records]:
    """Do the jobs that have no record yet, then write all records as one table `folder`/<name>.npz.

    Each finished job is kept at once under its fingerprint, so an interrupted table goes on where it stopped; nor is a
    job done again that stands in any table of `folder`, in whichever precision it was made.

    Args:
        kept: what of a record the table holds.

    Raises ValueError if two jobs have one description."""
    runs = [kept(r) for r in done(name, jobs, folder, cache)]
    save(folder / f"{name}.npz", runs)
    return runs


def done(name: str, jobs: Iterable[Job], folder: Path = RESULTS, cache: Path = CACHE / "runs") -> list[Records]:
    """The records of `table` before any is written: for what decides which jobs come next. A table that was written
    with some of its jobs would forget the records of the others. Raises as `table`."""
    jobs, runs, finished, old = list(jobs), [], _finished(folder), set()
    if len({fingerprint(about) for about, _ in jobs}) < len(jobs):
        raise ValueError(f"two jobs of the table {name} have the same description: one of them would never run")
    for about, work in progress(jobs, desc=name, unit="run"):
        path = cache / f"{fingerprint(about)}.npz"
        known = _record_of(about, finished)
        found = _kept(path, work) if known is None else [known]
        old |= {about["method"] for r in found if _other_code(r)}
        runs += found
    for method in sorted(old):
        print(
            f"{name}: rows of {method} were made by other code of it than today's: if its numbers changed, raise "
            "VERSION in its file, and they are made again"
        )
    return runs
