"""Tables of notebook 06: natural shifts and label sets, corruptions, which views help, filters, budgets, order, cost.

All differences are paired on the same scenes. A published shape holds, is reversed, or is undecided, which it is where
the interval holds 0. Seconds are those of the method and of drawing its views.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import softmax

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, over_classifiers, pick, versus
from ...evaluation.statistics import Interval, gain, protocol_line
from ...world.words import label_set
from ..side_by_side import verdict
from ..trials import right
from .calibration import ECE, ece
from .rows import (
    ALIKE,
    COUNTED,
    DIFFTPT,
    LOW,
    ON_THEIRS,
    ONE_PURIFIED,
    PURIFIED,
    QUANTITIES,
    READ_PURIFIED,
    TPT1,
    TPT4,
    TPT_MANY,
    TRUE,
    TUNED_PURIFIED,
    VIEWS,
    ZERO_SHOT,
)

VARIATION = DIFFTPT["variation"]
CLAIM = 5.13  # points that DiffTPT's authors name as its lead over TPT


def short(classifier: str) -> str:
    """The name of a CLIP in tables."""
    return classifier.split("/")[-1]


def shift_name(r: Records) -> str:
    """The shift of a run."""
    return r.about["stream"]["shift"].replace("_", " ")


def labels_name(r: Records) -> str:
    """The label set of a run."""
    return r.about["stream"].get("labels", "category").replace("_", " ")


def seconds_of(runs: list[Records]) -> float:
    """Seconds per image of a row, those of the generator among them."""
    return float(np.concatenate([r.seconds for r in runs]).mean())


def evaluations_of(r: Records) -> str:
    """Network evaluations per image of a row: images through CLIP, prompts, the generator's U-Net."""
    text = {k.split(" ")[1]: v for k, v in r.nfe.items() if k.startswith("text")}
    words = [f"{r.nfe.get('classifier fwd', 0):.0f} images"]
    words += [f"{v:.0f} prompts {kind}" for kind, v in text.items()]
    drawn = r.nfe.get("generator fwd", 0)
    return ", ".join([*words, *([f"{drawn:.0f} U-Net"] if drawn else [])])


def _header(runs: list[Records]) -> str:
    return protocol_line([r for r in runs if r.about["method"] != "source"])


def same_scenes(runs: list[Records], label: str, other: str) -> Interval:
    """Row `label` minus row `other`, both CLIPs pooled; raises as `rows.paired`."""
    return over_classifiers(pick(runs, label), pick(runs, other))


# --- natural shifts, label sets ---------------------------------------------------------------------------------------


def by_column(runs: list[Records], column_of: Callable[[Records], str]) -> list[dict]:
    """A row for each CLIP and label: percent right in each column and in all, paired differences, calibration, cost."""
    columns, rows = list(dict.fromkeys(map(column_of, runs))), []
    for clip in distinct(runs, "classifier"):
        mine = pick(runs, classifier=clip)
        for label in distinct(mine, "label"):
            here = pick(mine, label)
            row = {"CLIP": short(clip), "row": label}
            for column in columns:
                part = [r for r in here if column_of(r) == column]
                row[column] = f"{accuracy(part):.0f}" if part else ""
            row["all"] = f"{accuracy(here):.1f}"
            for head, other in {"minus zero-shot": ZERO_SHOT, "minus TPT, 4 steps": TPT4}.items():
                row[head] = "" if label == other else str(versus(here, pick(mine, other)))
            rows.append(row | {ECE: ece(here), "s/img": f"{seconds_of(here):.2f}"})
    return rows


def claim(runs: list[Records]) -> list[dict]:
    """What DiffTPT, with the published kind of generator, is ahead of, for each CLIP; and the share of what was left to
    gain (T1)."""
    rows = []
    for clip in distinct(pick(runs, VARIATION), "classifier"):
        mine = pick(runs, classifier=clip)
        for other in (TPT4, TPT_MANY, *ON_THEIRS.values(), ZERO_SHOT):
            if there := pick(mine, other):
                ahead, left = versus(pick(mine, VARIATION), there), 100 - accuracy(there)
                row = {"CLIP": short(clip), "DiffTPT minus": other, "points": str(ahead)}
                rows.append(row | {"of what was left, %": f"{100 * ahead.mean / left:+.0f}", "ahead": verdict(ahead)})
    return rows


def gains_by(runs: list[Records], column_of: Callable[[Records], str], labels: tuple[str, ...]) -> list[dict]:
    """A row for each column: zero-shot accuracy, the paired gain of some rows, both CLIPs pooled."""
    rows = []
    for column in dict.fromkeys(map(column_of, runs)):
        here = [r for r in runs if column_of(r) == column]
        row = {"set": column, "n": sum(map(len, pick(here, ZERO_SHOT)))}
        row["zero-shot"] = f"{accuracy(pick(here, ZERO_SHOT)):.0f}"
        row |= {f"gain of {label}": str(gain(mine)) for label in labels if (mine := pick(here, label))}
        rows.append(
            row | ({"DiffTPT minus TPT": str(same_scenes(here, VARIATION, TPT4))} if pick(here, VARIATION) else {})
        )
    return rows


ALL_ROWS = (
    "All rows: percent right by column, paired differences in points, calibration error (in brackets that of a "
    "calibrated CLIP as sure on as few scenes), seconds per image with drawing."
)
AHEAD = "DiffTPT with variations minus other rows, in points, and as a share of what these left wrong:"
BY_COLUMN = "The same by column, CLIPs pooled:"


def every_row(runs: list[Records], column_of: Callable[[Records], str] = shift_name) -> str:
    """All rows by column."""
    return "\n\n".join([_header(runs), ALL_ROWS, as_table(by_column(runs, column_of))])


def claimed(runs: list[Records], column_of: Callable[[Records], str] = shift_name) -> str:
    """The same; what DiffTPT is ahead of, and gains by column (T1)."""
    rows = as_table(gains_by(runs, column_of, (TPT4, VARIATION)))
    return "\n\n".join([every_row(runs, column_of), AHEAD, as_table(claim(runs)), BY_COLUMN, rows])


def by_question(runs: list[Records]) -> list[Records]:
    """The runs with their label set in the place of the shift: ten questions to one scene are no repetition of it."""
    return [replace(r, about=r.about | {"stream": r.about["stream"] | {"shift": labels_name(r)}}) for r in runs]


def label_sets(runs: list[Records]) -> str:
    """Ten label sets: all rows."""
    return every_row(by_question(runs), labels_name)


def claimed_of_sets(runs: list[Records]) -> str:
    """The claim on ten label sets, and which sets gain most (T5)."""
    return claimed(by_question(runs), labels_name)


# --- corruptions ------------------------------------------------------------------------------------------------------


def by_shift_of(runs: list[Records]) -> dict[str, list[Records]]:
    """The runs of each shift."""
    return {name: [r for r in runs if shift_name(r) == name] for name in dict.fromkeys(map(shift_name, runs))}


def corruptions(runs: list[Records]) -> str:
    """Fifteen corruptions: all rows against zero-shot and against the low view, and how many of them gain."""
    rows = []
    for clip in distinct(runs, "classifier"):
        mine = pick(runs, classifier=clip)
        usual = by_shift_of(pick(mine, ZERO_SHOT))
        for label in distinct(mine, "label"):
            here = pick(mine, label)
            signs = [right(met, label) - right(usual[name], ZERO_SHOT) for name, met in by_shift_of(here).items()]
            row = {"CLIP": short(clip), "row": label, "right": f"{accuracy(here):.1f}"}
            for head, other in {"minus zero-shot": ZERO_SHOT, "minus low view": LOW, "minus TPT": TPT4}.items():
                row[head] = "" if label == other else str(versus(here, pick(mine, other)))
            row |= {"gain": sum(s > 0 for s in signs), "lose": sum(s < 0 for s in signs)}
            rows.append(row | {ECE: ece(here), "s/img": f"{seconds_of(here):.2f}"})
    shown = [label for label in (ZERO_SHOT, LOW, TPT4, *DIFFTPT.values()) if pick(runs, label)]
    by_shift = []
    for shift, here in by_shift_of(runs).items():
        by_shift.append({"corruption": shift} | {label: f"{accuracy(pick(here, label)):.0f}" for label in shown})
    parts = [_header(runs) + "\n" + as_table(rows), *taken_apart(runs), as_table(by_shift)]
    return "\n\n".join(parts)


PARTS = {  # row -> what it is compared with, to tell purification, diversity and tuning apart
    READ_PURIFIED: (TUNED_PURIFIED, PURIFIED),
    DIFFTPT["image_to_image"]: (ALIKE,),
    PURIFIED: (ONE_PURIFIED,),
}


def taken_apart(runs: list[Records]) -> list[str]:
    """A sentence for each row of `PARTS` that was measured with its others: the paired differences to them."""
    found = []
    for row, others in PARTS.items():
        if all(pick(runs, label) for label in (row, *others)):
            said = (f"minus *{other}* {versus(pick(runs, row), pick(runs, other))}" for other in others)
            found.append(f"*{row}*: {', '.join(said)}")
    return found


# --- which views help -------------------------------------------------------------------------------------------------


def quantities(runs: list[Records]) -> list[dict]:
    """A row for each set and kind of views: the means of `QUANTITIES`, and the right share of the image itself."""
    rows = []
    for shift in dict.fromkeys(map(shift_name, runs)):
        for label in distinct(pick(runs, shifts=[shift]), "label"):
            (r,) = pick(runs, label, shifts=[shift])
            if label.startswith(VIEWS):
                row = {"set": shift, "views": label.removeprefix(VIEWS), "image": f"{100 * r.right_before.mean():.0f}"}
                values = dict(zip(QUANTITIES, r.loss.mean(0), strict=True))
                row |= {k: f"{100 * v:.0f}" if "right" in k else f"{v:.2f}" for k, v in values.items()}
                rows.append(row | {"gain of their mean": str(gain([r])), ECE: ece([r])})
    return rows


def precision(runs: list[Records]) -> str:
    """Which views help: how near, how different and how often right they are, before and after the entropy filter."""
    return _header(runs) + "\n" + as_table(quantities(runs))


# --- filters, budgets (T3, T6) ----------------------------------------------------------------------------------------


def against(runs: list[Records], usual: str) -> str:
    """Rows by set: percent right and the paired difference to the row `usual`, which is named above."""
    rows, sets = [], list(dict.fromkeys(map(shift_name, runs)))
    for label in distinct(runs, "label"):
        row = {"row": label}
        for name in sets:
            here, other = (pick(runs, of, shifts=[name]) for of in (label, usual))
            row[name] = f"{accuracy(here):.1f}"
            row[f"{name}: minus {usual}"] = "" if label == usual else str(versus(here, other))
        here = pick(runs, label)
        rows.append(row | {ECE: ece(here), "evaluations": evaluations_of(here[0])})
    return _header(runs) + "\n" + as_table(rows)


def filters(runs: list[Records]) -> str:
    """Filters of views, each against none; below it what counts behind each."""
    looked, tuned = ([r for r in runs if r.about["label"].startswith(VIEWS) == wanted] for wanted in (True, False))
    parts = [against(tuned, distinct(tuned, "label")[0]), *([COUNTING, as_table(counted(looked))] if looked else [])]
    return "\n\n".join(parts)


COUNTING = (
    "What counts behind each filter: views per image, how often they are right, and what their untuned mean gains:"
)


def counted(runs: list[Records]) -> list[dict]:
    """A row for each set and filter: means of `COUNTED`, the image beside them."""
    rows = []
    for r in sorted(runs, key=shift_name):
        n, drawn, crops_right, drawn_right = r.loss.sum(0)
        row = {"set": shift_name(r), "filter": r.about["label"].removeprefix(VIEWS)}
        row |= dict(zip(COUNTED[:2], (f"{v / len(r):.1f}" for v in (n, drawn)), strict=True))
        row |= {"image right, %": f"{100 * r.right_before.mean():.0f}"}
        row |= {"crops right, %": f"{100 * crops_right / (n - drawn):.0f}" if n > drawn else ""}
        row |= {"drawn right, %": f"{100 * drawn_right / drawn:.0f}" if drawn else ""}
        rows.append(row | {"gain of their mean": str(gain([r])), ECE: ece([r])})
    return rows


def budget(runs: list[Records]) -> str:
    """Numbers of views and steps, shares of generated views, both filters' shares, each against the usual."""
    return against(runs, VARIATION)


# --- initialisations --------------------------------------------------------------------------------------------------


def initial(runs: list[Records]) -> str:
    """Contexts to begin with, by what is done with them; pairs that captions name apart."""
    seen, rows = np.array(label_set("colour_category").seen), []
    for label in distinct(runs, "label"):
        here = pick(runs, label)
        row = {"row": label}
        for name, wanted in (("named pairs", True), ("unnamed pairs", False)):
            right = np.concatenate([r.right_after[seen[r.label] == wanted] for r in here])
            row[name] = f"{right.sum()} of {len(right)}"
        row["all"] = f"{accuracy(here):.1f}"
        row["minus zero-shot"] = "" if label == ZERO_SHOT else str(versus(here, pick(runs, ZERO_SHOT)))
        rows.append(row | {ECE: ece(here), "s/img": f"{seconds_of(here):.2f}"})
    return _header(runs) + "\n" + as_table(rows)


# --- order ------------------------------------------------------------------------------------------------------------


def orders(runs: list[Records]) -> str:
    """Online methods by order: percent right of each of the seeds, their mean, the worst; the source beside it."""
    rows = []
    for label in distinct(runs, "label"):
        for order in dict.fromkeys(r.about["stream"]["order"] for r in pick(runs, label)):
            here = [r for r in pick(runs, label) if r.about["stream"]["order"] == order]
            each = [100 * r.right_after.mean() for r in here]
            row = {"row": label, "order": order, "seeds": " ".join(f"{v:.1f}" for v in each)}
            row |= {"mean": f"{np.mean(each):.1f}", "worst": f"{min(each):.1f}", "gain": str(gain(here))}
            rows.append(row | {ECE: ece(here)})
    return _header(runs) + "\n" + as_table(rows)


# --- cost ------------------------------------------------------------------------------------------------------------


def frontier(runs: list[Records]) -> list[dict]:
    """Rows by cost: seconds per image with those of the generator, evaluations, percent right; on the frontier stand
    those that no cheaper row reaches."""
    rows = []
    for label in distinct(runs, "label"):
        if label != TRUE:
            here = pick(runs, label)
            rows.append((seconds_of(here), accuracy(here), label, ece(here), evaluations_of(here[0])))
    rows.sort()
    return [
        {"row": label, "s/img": f"{s:.3f}", "right": f"{right:.1f}", ECE: error, "evaluations": spent}
        | {"on the frontier": "yes" if right > max((r for t, r, *_ in rows if t < s), default=-1) else ""}
        for s, right, label, error, spent in rows
    ]


# --- where it fails ---------------------------------------------------------------------------------------------------


def confirmed(runs: list[Records]) -> list[dict]:
    """The smaller CLIP's rows that tune: how often the loss fell, and what became of wrong and of right images."""
    rows = []
    for label in (TPT1, TPT4, TPT_MANY, *DIFFTPT.values()):
        if not (here := pick(runs, label, "clip/small")):
            continue
        fell = np.concatenate([r.loss[:, -1] < r.loss[:, 0] for r in here])
        before, after = (np.concatenate([getattr(r, f"right_{k}") for r in here]) for k in ("before", "after"))
        row = {"row": label, "loss fell, %": f"{100 * fell.mean():.0f}" if here[0].loss.shape[1] > 1 else ""}
        row |= {"wrong before": int((~before).sum()), "of them right after": int((after & ~before).sum())}
        row |= {"right before": int(before.sum()), "of them wrong after": int((before & ~after).sum())}
        for name, at in (("before", before), ("after", after)):
            sure = np.concatenate([softmax(getattr(r, name), axis=1).max(1) for r in here])
            row[f"wrong with p > .9, {name}"] = int((sure[~at] > 0.9).sum())
        rows.append(row)
    return rows


def own_prompts(runs: list[Records]) -> list[dict]:
    """DiffTPT by what the generator was told, the smaller CLIP: images that it reads right and wrong apart."""
    rows = []
    for label in (TPT4, *DIFFTPT.values()):
        if not (here := pick(runs, label, "clip/small")):
            continue
        before, after = (np.concatenate([getattr(r, f"right_{k}") for r in here]) for k in ("before", "after"))
        same = np.concatenate([r.before.argmax(1) == r.after.argmax(1) for r in here])
        row = {"row": label, "right: kept, %": f"{100 * after[before].mean():.0f}"}
        row |= {"wrong: repaired, %": f"{100 * after[~before].mean():.0f}"}
        rows.append(row | {"wrong: the same wrong class again, %": f"{100 * same[~before].mean():.0f}"})
    return rows


def headline(runs: list[Records]) -> dict[str, str]:
    """What a sweep's summary shows of the records: gains on all sets, each CLIP."""
    return {
        f"gain of {label}, {short(clip)}": str(gain(pick(runs, label, clip)))
        for clip in distinct(runs, "classifier")
        for label in (TPT4, VARIATION)
        if pick(runs, label, clip)
    }
