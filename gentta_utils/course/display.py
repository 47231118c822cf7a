"""What a notebook prints: tables as plain text, and the figures that a sweep collects."""

from IPython.display import display

from ..common.text import as_table
from ..evaluation.records import Records
from ..evaluation.rows import accuracy, distinct, is_clean, pick, shift_of
from ..evaluation.statistics import gain, protocol_line, summary
from ..runner.executed import COLUMNS, HEADLINE


def headline(**numbers: int | float | str) -> None:
    """Called in a notebook: the numbers that its line in the summary table should show.

    Raises ValueError for what is neither a number nor text, and for a name of a column that the table has already."""
    for name, value in numbers.items():
        if not isinstance(value, int | float | str):
            raise ValueError(f"headline: {name} is a {type(value).__name__}: give a number or text, as float({name})")
        if name in COLUMNS:
            raise ValueError(f"headline: the summary has a column {name!r} already: name the number otherwise")
    text = "  ".join(f"{name} {value}" for name, value in numbers.items())
    display({HEADLINE: numbers, "text/plain": text}, raw=True)


def plain(runs: list[Records]) -> str:
    """Rows by label and classifier, columns by shift: accuracy after; paired gains where something was adapted."""
    names = list(dict.fromkeys(map(shift_of, runs)))
    rows = []
    for label in distinct(runs, "label"):
        for classifier in distinct(pick(runs, label), "classifier"):
            mine = pick(runs, label, classifier)
            row = {"row": label, "classifier": classifier.split("/")[-1]}
            for name in names:
                here = [r for r in mine if shift_of(r) == name]
                row[name] = f"{accuracy(here):.1f}" if here else ""
            for kind, part in (
                ("shifted", [r for r in mine if not is_clean(r)]),
                ("clean", [r for r in mine if is_clean(r)]),
            ):
                adapted = part and part[0].about["method"] == "diffusion_tta"
                row |= {f"mean {kind}": f"{accuracy(part):.1f}"} if part and kind == "shifted" else {}
                if any(is_clean(r) for r in runs) or kind == "shifted":
                    row[f"gain {kind}"] = str(gain(part)) if adapted else ""
            rows.append(row | {"s/img": f"{summary(mine)['seconds']:.2f}"})
    longest = [r for r in runs if r.about["method"] != "source"]
    return protocol_line(longest) + "\n" + as_table(rows)


def show(text: str) -> None:
    """Show a table in a notebook: as Markdown, which does not wrap its rows, and as plain text."""
    display({"text/markdown": text, "text/plain": text}, raw=True)
