"""Claims of the papers: rules on differences that are known, and a page that says what the records say."""

import numpy as np
import pytest

from gentta_utils.__main__ import main
from gentta_utils.course import claimed, claims, compared
from gentta_utils.course.claimed import CLAIMS
from gentta_utils.course.claims import Claim, above, all_but_one, below, no_change, no_gain
from gentta_utils.course.tables import TABLES
from gentta_utils.evaluation.records import Records
from gentta_utils.evaluation.statistics import Interval

UP, DOWN, OPEN = Interval(5.0, 2.0, 8.0), Interval(-5.0, -8.0, -2.0), Interval(3.0, -1.0, 7.0)
NONE = Interval(0.0, -0.8, 0.8)
EVERY = [c for group in CLAIMS.values() for c in group]


@pytest.mark.parametrize(
    "rule, differences, verdict",
    [
        (above, [UP, UP], "holds"),
        (above, [UP, OPEN], "undecided"),
        (above, [UP, OPEN, DOWN], "undecided"),
        (above, [OPEN, DOWN], "reversed"),
        (below, [DOWN], "holds"),
        (below, [DOWN, NONE], "undecided"),
        (below, [UP, DOWN], "undecided"),
        (below, [UP, NONE], "reversed"),
        (no_gain, [NONE, DOWN], "holds"),
        (no_gain, [OPEN], "undecided"),
        (no_gain, [Interval(0.5, 0.2, 0.7)], "holds"),
        (no_gain, [NONE, UP], "undecided"),
        (no_gain, [OPEN, UP], "reversed"),
        (no_change, [Interval(-0.2, -0.7, 0.5)], "holds"),
        (no_change, [OPEN], "undecided"),
        (no_change, [UP], "reversed"),
        (no_change, [DOWN], "reversed"),
        (no_change, [Interval(0.5, 0.2, 0.7)], "holds"),
        (no_change, [Interval(-0.5, -0.7, -0.2)], "holds"),
        (no_change, [Interval(-0.9, -1.5, 0.1)], "undecided"),
        (no_change, [NONE, UP], "undecided"),
        (no_change, [OPEN, DOWN], "reversed"),
        (all_but_one, [UP, UP, DOWN], "holds"),
        (all_but_one, [UP, OPEN, OPEN], "undecided"),
        (all_but_one, [UP, DOWN, DOWN], "reversed"),
    ],
)
def test_rules(rule, differences, verdict):
    assert rule(dict(zip("abc", differences, strict=False))) == verdict


def test_parts_are_counted_where_there_are_several():
    claim = Claim("Table 1", "it works", "", "02", "test", lambda runs: {}, above)
    found = claims.Finding(claim, "undecided", {"a": UP, "b": DOWN, "c": UP, "d": OPEN}, "")
    assert claims.how_many(found) == "2 hold, 1 reversed, 1 undecided"
    assert claims.how_many(claims.Finding(claim, "holds", {"a": UP, "b": UP}, "")) == ""


def test_a_few_scenes_decide_nothing():
    """Resampling one scene gives an interval without width."""
    one = claims.enough(UP, np.array([3, 3, 3]))
    assert above({"a": one}) == below({"a": one}) == no_gain({"a": one}) == "undecided"
    assert one.mean == UP.mean
    assert claims.enough(UP, np.arange(20) % (claims.LEAST - 1)) == one  # of many rows, but a scene too few
    assert claims.enough(UP, np.arange(claims.LEAST)) == UP


def record(label: str, right: list[bool], ids: list[int], classifier: str = "classifier/a") -> Records:
    after, n = np.where(np.array(right)[:, None], [0.0, 1.0], [1.0, 0.0]).astype(np.float32), len(right)
    about = {"label": label, "classifier": classifier, "stream": {"shift": "fog", "severity": 5}}
    wrong = np.tile(np.float32([1, 0]), (n, 1))
    empty = np.zeros((n, 0), np.float32)
    return Records(np.array(ids), np.ones(n, int), wrong, after, empty, np.zeros(n, np.float32), {}, about)


def test_rows_are_paired_on_the_scenes_that_both_met():
    runs = [record("ours", [True, True, False], [1, 2, 3]), record("theirs", [False, True, True], [2, 3, 9])]
    assert claims.minus(runs, "ours", "theirs").low == -np.inf  # two scenes are too few
    assert claims.minus(runs, "ours", "theirs").mean == pytest.approx(0)  # scene 2: +1, scene 3: -1
    runs += [record(k, [k == "ours"] * 2, [2, 3], "classifier/b") for k in ("ours", "theirs")]
    assert claims.minus(runs, "ours", "theirs").mean == pytest.approx(50)  # both classifiers
    assert claims.minus(runs, "ours", "theirs", "classifier/b").mean == pytest.approx(100)
    assert claims.gained(runs[:1]).mean == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="share no scene"):
        claims.minus([runs[0], record("theirs", [True], [9])], "ours", "theirs")


def test_gains_are_those_of_the_asked_order_of_a_stream():
    runs = [record("tent", [True, False], [1, 2]), record("tent", [False, False], [1, 2])]
    for r, order in zip(runs, ("iid", "correlated"), strict=True):
        r.about["stream"]["order"] = order
    means = {
        o: compared.gains_of({"it": "tent"}, "classifier/a", o)(runs)["it"].mean for o in ("iid", "correlated", None)
    }
    assert means == {"iid": 50, "correlated": 0, None: 25}


def test_a_claim_needs_records_or_a_reason():
    with pytest.raises(ValueError, match="give a table"):
        Claim("Table 1", "it works", "", "02")
    with pytest.raises(ValueError, match="give a table"):
        Claim("Table 1", "it works", "", "02", "test")


def test_a_claim_without_records_is_undecided_and_one_without_a_way_is_out_of_reach():
    found = claims.find(Claim("Table 1", "it works", "", "02", "nowhere", lambda runs: {}))
    assert (found.verdict, found.remark) == ("undecided", "no records of `nowhere` yet")
    found = claims.find(Claim("Table 1", "it is fast", "", "02", reason="other machines"))
    assert (found.verdict, found.remark) == ("out of reach here", "other machines")


def test_all_claims_name_what_there_is():
    assert len(EVERY) >= 60
    assert len({(d, c.where, c.says) for d, group in CLAIMS.items() for c in group}) == len(EVERY)
    for c in EVERY:
        assert not c.table or c.table in TABLES or c.notebook == "04", c.says
        assert c.rule in (above, below, no_gain, no_change, all_but_one)
        assert "|" not in c.says + c.published + c.where + c.reason


@pytest.mark.long
def test_the_page_says_what_the_records_say():
    made = claims.page(claimed.findings())
    assert claims.PAGE.read_text(encoding="utf-8") == made, "run `python -m gentta_utils claims`"
    assert made.count("| **") == len(EVERY)


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    one = Claim("Table 1", "it works", "+1", "02", "nowhere", lambda runs: {})
    monkeypatch.setattr("gentta_utils.course.claimed.CLAIMS", {"A paper": [one]})
    monkeypatch.setattr("gentta_utils.course.claimed.write", lambda write=claimed.write: write(tmp_path / "claims.md"))
    assert main(["claims"]) == 0
    assert "Of 1 claims" in capsys.readouterr().out
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "## A paper" in text
    assert (
        "| Table 1 | it works | +1 | no records of `nowhere` yet (`nowhere`, notebook 02) | above | **undecided** |"
        in text
    )
