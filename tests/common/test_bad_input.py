"""Every public function against generated bad input: one sentence each time, no library's exception, no silence."""

import json
import os
import subprocess
import sys

from gentta_utils.common.paths import ROOT


def test_bad_input_is_refused_in_a_sentence():
    """In a process without the type checker of the tests: no user has it."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bad_input.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["wrong"], "\n".join(" | ".join(case) for case in found["wrong"])
    assert not found["left"], f"public, and not tried: {found['left']}"
    assert found["tried"] > 4500
    assert {f"{m} clip" for m in ("tpt", "difftpt", "zero", "mta", "coop", "tda", "dota")} | {"ttt_mae mae"} <= {
        *found["met"]
    }
