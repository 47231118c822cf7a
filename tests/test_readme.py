"""The README's tables are those of the committed records."""

import importlib.util

import pytest

import gentta_utils  # noqa: F401
from gentta_utils.common.paths import RESULTS, ROOT

spec = importlib.util.spec_from_file_location("readme", ROOT / "bench" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)


@pytest.mark.parametrize("name", readme.TABLES)
def test_a_table_of_the_readme_is_that_of_the_records(name):
    """Otherwise: python bench/readme.py"""
    if name == "answer" and not (RESULTS / "grid.npz").is_file():
        pytest.skip("no records of `grid` yet")
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text, (name,)) == text


def test_a_missing_mark_is_named():
    with pytest.raises(ValueError, match="no place for 'backbones'"):
        readme.filled("# A title", ("backbones",))
