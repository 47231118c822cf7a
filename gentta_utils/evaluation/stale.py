"""Which committed records are older than the code: data/results/stale.json says it, `report` and rechecks ask here.

The file lists what changed: why, how the old rows are known, in which tables they stand. A row made again describes
itself otherwise, so it is not taken for an old one.
"""

from collections import Counter
from functools import lru_cache

from ..common.files import read_json
from ..common.paths import RESULTS
from .records import Records


@lru_cache
def changes() -> list[dict]:
    """What changed, each {"why": a sentence, "rows": {key: values that an old row has there}, "tables": names}.

    A key may have dots (`stream.shift`); null among its values stands for a row that lacks the key."""
    return read_json(RESULTS / "stale.json", "run `git checkout -- data/results`")


def stale(record: Records) -> str | None:
    """Why a record's numbers are no longer what the code would give; None where they are."""
    stream = record.about["stream"]
    abouts = [{**record.about, "stream": part} for part in (stream, *stream.get("parts", ()))]
    for change in changes():
        if any(all(_value(a, key) in values for key, values in change["rows"].items()) for a in abouts):
            return change["why"]
    return None


def _value(about: dict, key: str):
    for name in key.split("."):
        about = about.get(name) if isinstance(about, dict) else None
    return about


def note(runs: list[Records]) -> str:
    """One line a reason on how many of these runs are stale; empty if none is."""
    reasons = Counter(reason for r in runs if (reason := stale(r)))
    return "\n".join(f"{n} of {len(runs)} runs are older than the code: {reason}." for reason, n in reasons.items())
