"""What a record remembers of the code and the libraries that made it, beside what it is found by; streams refused."""

import inspect
from dataclasses import replace

import pytest
import torch

from gentta_utils.common import cache
from gentta_utils.common.versions import code_of, versions
from gentta_utils.evaluation import evaluate, tables
from gentta_utils.methods import METHODS, source
from gentta_utils.streams.stream import Stream


@pytest.fixture
def small(tiny):
    """Three images of the size and classes of the tiny models."""
    return Stream(torch.rand(3, 3, 16, 16), torch.arange(3), torch.arange(3), {"shift": "fog", "severity": 5})


def test_a_record_knows_its_code_and_libraries_and_is_found_without_them(tiny, small, tmp_path, capsys):
    about = {"method": "source", "label": "a"}
    r = evaluate.run(source.configure(tiny), small, about=about)
    protocol = r.about["protocol"]
    assert protocol["code"] == code_of(source.__name__)
    assert protocol["versions"] == versions()
    described = {"stream": small.about, **about}

    def measure(made):
        return tables.table("t", [(described, lambda: made)], tmp_path, tmp_path / "cache")

    (kept,) = measure(r)
    assert kept.about["protocol"] == protocol
    assert capsys.readouterr().out == ""
    (tmp_path / "t.npz").unlink()
    (tmp_path / "cache" / f"{cache.fingerprint(described)}.npz").unlink()
    other = replace(r, about=r.about | {"protocol": protocol | {"code": "0" * 12}})
    measure(other)
    measure(r)  # taken up from the table, all the same
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0] == said[1]
    assert "t: rows of source were made by other code of it than today's: " in said[0]


def test_only_code_counts(tmp_path, monkeypatch):
    def of(text):
        path = tmp_path / "m.py"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setitem(__import__("sys").modules, "a_method", type("M", (), {"__file__": str(path)}))
        return code_of.__wrapped__("a_method")

    first = of('"""Says."""\n\n\ndef f(x):\n    """What."""\n    return x + 1\n')
    assert of('"""Says more."""\ndef f(x):\n    return (x + 1)  # more\n') == first
    assert of("def f(x):\n    return x + 2\n") != first
    assert code_of("no_such_module") is None


@pytest.mark.parametrize("labels, says", [([0, 1, 99], "from 0 to 3"), ([0, -1, 2], "from 0 to 3")])
def test_labels_that_the_models_do_not_have_are_refused(tiny, small, labels, says):
    with pytest.raises(ValueError, match=says):
        evaluate.run(source.configure(tiny), replace(small, labels=torch.tensor(labels)))


def test_a_stream_without_images_is_refused(tiny, small):
    with pytest.raises(ValueError, match="the stream holds no image"):
        evaluate.run(source.configure(tiny), small.rows(torch.arange(0)))
    with pytest.raises(ValueError, match="there is no image"):
        source.configure(tiny).adapt(small.images[:0], small.ids[:0])


@pytest.mark.parametrize("batch", [0, -1, 2.0, True, "2"])
def test_a_batch_is_a_whole_number_of_images(tiny, small, batch):
    with pytest.raises((ValueError, TypeError), match="batch"):
        evaluate.run(source.configure(tiny), small, batch=batch)


def test_methods_that_are_configured_check_what_they_get(tiny):
    """One decorator for all of them, and none is forgotten."""
    for name, module in METHODS.items():
        assert hasattr(module.configure, "__wrapped__"), f"{name}: write @checked above its configure"
        needed = {n: None for n, p in inspect.signature(module.configure).parameters.items() if p.default is p.empty}
        with pytest.raises(ValueError, match="models is 'x': choose Models"):
            module.configure(**needed | {"models": "x"})
