"""Tables from records: the only way from a file in data/results to a number that somebody reads."""

from collections.abc import Callable

from IPython.display import display

from . import experiments_02, experiments_05, experiments_05_choices, report_02, report_05
from .batch import as_table
from .evaluate import Records, gain, protocol_line, results, summary
from .experiments import EXPERIMENTS, UNTOUCHED
from .report_rows import accuracy, distinct, is_clean, pick, shift_of, versus
from .stale import note


def effect(runs: list[Records]) -> str:
    """The tables of `heldout`, `test` and `clean`: one part a classifier, then the gains over both."""
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    parts = [protocol_line(adapted)]
    for classifier in distinct(adapted, "classifier"):
        mine = pick(runs, classifier=classifier)
        reader = [r for r in runs if r.about["method"] == "diffusion_classifier"]
        names = list(dict.fromkeys(map(shift_of, mine)))
        rows = [_effect_row(name, [r for r in mine + reader if shift_of(r) == name]) for name in names]
        if len(names) > 1:
            rows.append(_effect_row("mean", mine + reader))
        parts += [f"\n{classifier}\n", as_table(rows)]
    names = distinct(adapted, "classifier")
    count = "both classifiers" if len(names) == 2 else f"all {len(names)} classifiers"
    for view in ("full", "low"):
        mine = pick(runs, f"diffusion_tta/{view}")
        parts.append(f"\nGain over {count}, {view} view: {gain(mine)} points.")
        untouched = pick(mine, shifts=UNTOUCHED)
        if untouched:
            parts.append(f"Of it on {', '.join(UNTOUCHED)}: {gain(untouched)}.")
    return "\n".join(parts)


def _effect_row(name: str, runs: list[Records]) -> dict:
    """Source, control, Diffusion-TTA on both views with fixed/broken counts and gain, the reader where it was run."""
    row = {"shift": name}
    for label, head in (("source/full", "source"), ("source/low", "low-passed")):
        row[head] = f"{accuracy(pick(runs, label)):.1f}"
    for view, head in (("full", "Diffusion-TTA"), ("low", "on the low view")):
        s = summary(pick(runs, f"diffusion_tta/{view}"))
        row |= {
            head: f"{s['after']:.1f}",
            f"fixed/broken {view}": f"{s['fixed']}/{s['broken']}",
            f"gain {view}": s["gain"],
        }
    reader = [r for r in runs if r.about["method"] == "diffusion_classifier"]
    return row | ({"reader": f"{accuracy(reader):.1f}"} if reader else {})


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


def reading(runs: list[Records]) -> str:
    """The plain table, and the reader against each classifier and its control on the same scenes."""
    (reader,) = {r.about["label"] for r in runs if r.about["label"].startswith("reader/48")}
    parts = [plain(runs), ""]
    for kind, keep in (("held-out corruptions", lambda r: not is_clean(r)), ("clean", is_clean)):
        here = [r for r in runs if keep(r)]
        for label in ("source/full", "source/low"):
            for classifier in distinct(pick(here, label), "classifier"):
                difference = versus(pick(here, reader), pick(here, label, classifier))
                parts.append(f"{kind}: {reader} minus {classifier} {label}: {difference} points")
    return "\n".join(parts)


def soft(runs: list[Records]) -> str:
    """The plain table, and mixed conditions in training against single classes on the same scenes."""
    parts = [plain(runs), ""]
    for kind, keep in (("shifted", lambda r: not is_clean(r)), ("clean", is_clean)):
        here = [r for r in runs if keep(r)]
        for label in (label for label in distinct(here, "label") if "-soft" in label):
            other = label.replace("-soft", "")
            parts.append(f"{kind}: {label} minus {other}: {versus(pick(here, label), pick(here, other))} points")
    return "\n".join(parts)


TABLES: dict[str, Callable[[list[Records]], str]] = {
    "select": plain,
    "reading": reading,
    "heldout": effect,
    "test": effect,
    "clean": effect,
    "why": plain,
    **dict.fromkeys(experiments_02.EXPERIMENTS, plain),
    "backbones": lambda runs: f"{effect(runs)}\n\n{as_table(report_02.signs(runs))}",
    "ablations": report_02.ablations,
    "trust": report_02.of_trust,
    "phase": report_02.phase,
    "phase_output": report_02.phase,
    "soft": soft,
    **dict.fromkeys(("natural", "online", "rivals", "select_sda"), report_02.compared),
    **report_05.TABLES,
}
ALL_EXPERIMENTS = (
    EXPERIMENTS | experiments_02.EXPERIMENTS | experiments_05_choices.EXPERIMENTS | experiments_05.EXPERIMENTS
)
assert set(TABLES) == set(ALL_EXPERIMENTS)


def show(text: str) -> None:
    """Show a table in a notebook: as Markdown, which does not wrap its rows, and as plain text."""
    display({"text/markdown": text, "text/plain": text}, raw=True)


def report(name: str) -> str:
    """A table of the course from its committed records; below it, which of them are older than the code.

    Raises ValueError for an unknown name."""
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}: choose one of {', '.join(TABLES)}")
    runs = results(name)
    old = note(runs)
    return TABLES[name](runs) + (f"\n\n{old}" if old else "")
