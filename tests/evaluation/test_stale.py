"""Which committed rows are old: by what they say of themselves, in the tables that the file names, in the report."""

import numpy as np
import pytest

from gentta_utils.common import cache
from gentta_utils.common.paths import RESULTS
from gentta_utils.course import tables as course_tables
from gentta_utils.evaluation import records, stale, tables
from gentta_utils.methods import METHODS
from gentta_utils.streams.scenes import SceneSpec


def record(spec, **about):
    empty = np.zeros(0)
    stream = spec if isinstance(spec, dict) else spec.describe()
    return records.Records(*[empty] * 6, {}, {"method": "source", "stream": stream, **about})


@pytest.mark.parametrize(
    "shift, severity, changed, old",
    [("frost", 5, 1, 1), ("spatter", 3, 1, 0), ("spatter", 5, 0, 0), ("fog", 5, 0, 0)],
)
def test_only_rows_of_what_changed_are_stale(shift, severity, changed, old):
    """Spatter's rows were all made again, so no committed one is old."""
    now = SceneSpec(4, shift, severity).describe()
    before = {**now, "corruptions": "in-memory 1"}
    assert stale.stale(record(now)) is None
    assert bool(stale.stale(record(before))) == old
    assert (cache.fingerprint(now) != cache.fingerprint(before)) == changed  # it is made again, and only then
    mixed = {
        **SceneSpec(4, "fog", 5).describe(),
        "shift": "mixed",
        "parts": [SceneSpec(4, "fog", 5).describe(), before],
    }
    assert bool(stale.stale(record(mixed))) == old


def test_rows_of_changed_methods_are_stale_until_they_name_a_version():
    clean = SceneSpec(4)
    assert "AugMix" in stale.stale(record(clean, method="memo"))
    assert stale.stale(record(clean, method="memo", method_version=2)) is None
    assert stale.stale(record(clean, method="tea")) is None  # its rows were all made again


def test_stale_rows_of_a_method_would_be_made_again():
    """Without a version that `trials.job` writes down, a table would find them finished."""
    named = [c["rows"]["method"] for c in stale.changes() if None in c["rows"].get("method_version", ())]
    assert named
    assert all(METHODS[name].VERSION > 1 for names in named for name in names)


def test_the_file_names_the_tables_and_the_report_says_it():
    found = {change["why"]: [] for change in stale.changes()}
    for path in sorted(RESULTS.glob("*.npz")):
        for reason in {stale.stale(r) for r in records.load(path)} - {None}:
            found[reason].append(path.stem)
    assert found == {change["why"]: change["tables"] for change in stale.changes()}
    for name in found[stale.changes()[0]["why"]][:1]:
        assert stale.note(tables.results(name)) in course_tables.report(name)
