"""Tables of notebook 03: the headline with its rivals, label sets, kinds of adaptation by prompts, top-k, controls.

All differences are paired on the same scenes. A published shape holds, is reversed, or is undecided, which it is where
the interval holds 0.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, is_clean, pick, shift_of, versus
from ...evaluation.statistics import Interval, gain, paired_interval, protocol_line
from ...evaluation.tables import results
from ...world.words import label_set
from ..display import plain
from ..side_by_side import TAUS, averaged, denoiser_cost, mean_posterior, signs, verdict
from .choose import DEFAULT, STAGES

SOURCE, LOW, TEMPLATES, OURS = "source/full", "source/low", "source/templates", "diffusion_tta/full"
ROW_NAMES = {
    SOURCE: "zero-shot, one prompt",
    LOW: "zero-shot, low view",
    TEMPLATES: "zero-shot, all templates",
    OURS: "Diffusion-TTA",
    "diffusion_tta/low": "Diffusion-TTA, low view",
    "tent": "TENT",
}
NATURAL = ("clean", "v2", "a", "r", "sketch", "stylized")
CORRUPTED = "six corruptions"
READER = f"reader/{min(STAGES)}"  # at as many evaluations as ours
ONE = f"{DEFAULT}/one"  # the default of the notebook: what the grid is compared with


def named(r: Records) -> Records:
    """The run under the name that tables show."""
    return replace(r, about=r.about | {"label": ROW_NAMES.get(r.about["label"], r.about["label"])})


def _short(classifier: str) -> str:
    return classifier.split("/")[-1]


def _header(runs: list[Records]) -> str:
    return protocol_line([r for r in runs if r.about["method"] != "source"])


def _seconds(runs: list[Records]) -> str:
    return f"{np.concatenate([r.seconds for r in runs]).mean():.2f}"


def on_shared(one: list[Records], other: list[Records]) -> tuple[list[Records], list[Records]]:
    """Both rows on the scenes that both met, by shift and id; shifts that only one of them met are left out."""
    met = [{(shift_of(r), i) for r in runs for i in r.id.tolist()} for runs in (one, other)]
    both = met[0] & met[1]
    return tuple(
        [part for r in runs if len(part := _rows(r, [(shift_of(r), i) in both for i in r.id.tolist()]))]
        for runs in (one, other)
    )


def _rows(r: Records, keep) -> Records:
    """Those rows of a run for which `keep` (N,) is true."""
    keep = np.asarray(keep, bool)
    return replace(r, **{k: getattr(r, k)[keep] for k in ("id", "label", "before", "after", "loss", "seconds")})


def minus(one: list[Records], other: list[Records]) -> Interval:
    """`one` minus `other` on the scenes that both met."""
    return versus(*on_shared(one, other))


def differences(runs: list[Records], rows: dict[str, tuple[tuple, tuple]]) -> str:
    """A table of paired differences, each of (label, classifier) minus (label, classifier), under shifts and on clean
    scenes; "undecided" where the interval holds 0. Rows that no run belongs to are left out."""
    parts = {"shifted": [r for r in runs if not is_clean(r)], "clean": [r for r in runs if is_clean(r)]}
    found = []
    for name, (one, other) in rows.items():
        row = {"difference": name}
        for head, here in parts.items():
            if pick(here, *one) and pick(here, *other):
                difference = minus(pick(here, *one), pick(here, *other))
                row[head] = f"{difference}{', undecided' if verdict(difference) == 'undecided' else ''}"
        found += [row] if len(row) > 1 else []
    heads = [head for head in ("difference", *parts) if any(head in row for row in found)]
    return as_table([{head: row.get(head, "") for head in heads} for row in found])


def against_each_other(runs: list[Records]) -> str:
    """Rows by shift, and below them every adapted row minus those above it."""
    adapted = distinct([r for r in runs if r.about["method"] == "diffusion_tta"], "label")
    rows = {f"{one} minus {other}": ((one,), (other,)) for other, one in combinations(adapted, 2)}
    return plain(list(map(named, runs))) + "\n\n" + differences(runs, rows)


# --- the fifteen corruptions, clean scenes ----------------------------------------------------------------------------


def readers_beside(runs: list[Records]) -> list[Records]:
    """The runs with the reader, which does not ask CLIP and was run once, beside each CLIP on the same scenes: `before`
    is what that CLIP says of them zero-shot."""
    said = {(r.about["classifier"], shift_of(r), r.id[0]): r for r in pick(runs, SOURCE)}
    readers = [r for r in runs if r.about["method"] == "diffusion_classifier"]
    others = [r for r in runs if r.about["method"] != "diffusion_classifier"]
    return others + [
        replace(r, before=zero.after, about=r.about | {"classifier": clip})
        for clip in distinct(others, "classifier")
        for r in readers
        if (zero := said.get((clip, shift_of(r), r.id[0]))) is not None and np.array_equal(zero.id, r.id)
    ]


def ensembles(runs: list[Records]) -> list[Records]:
    """For each reader beside a CLIP the mean of both posteriors, at the temperature that is best on the validation
    corruptions, as a row of its own."""
    readers, chosen = [r for r in runs if r.about["method"] == "diffusion_classifier"], {}
    validation = readers_beside(results("select_text"))
    for label, clip in {(r.about["label"], r.about["classifier"]) for r in readers}:
        tried = pick(validation, label, clip)
        chosen[label, clip] = max(TAUS, key=lambda tau: sum(averaged(r, tau).sum() for r in tried))
    return [
        replace(r, after=mean_posterior(r, tau), about=r.about | {"label": f"mean with {r.about['label']}"})
        for r in readers
        for tau in [chosen[r.about["label"], r.about["classifier"]]]
    ]


def rivals(runs: list[Records]) -> list[dict]:
    """A row for each CLIP and method: percent right, and the paired difference to zero-shot on the full view, on the
    low view, and to Diffusion-TTA."""
    runs, rows = readers_beside(runs), []
    runs += ensembles(runs)
    for clip in distinct(runs, "classifier"):
        mine = pick(runs, classifier=clip)
        for label in distinct(mine, "label"):
            here = pick(mine, label)
            row = {"CLIP": _short(clip), "row": ROW_NAMES.get(label, label), "right": f"{accuracy(here):.1f}"}
            for head, other in {"minus zero-shot": SOURCE, "minus low view": LOW, "minus ours": OURS}.items():
                row[head] = "" if label == other else str(versus(here, pick(mine, other)))
            rows.append(row | {"denoiser": denoiser_cost(here[0]), "s/img": _seconds(here)})
    return rows


def repaired(runs: list[Records], reader: str = READER) -> list[dict]:
    """What Diffusion-TTA does to wrong and to right images of each CLIP, by whether the reader is right on them."""
    runs, rows = readers_beside(runs), []
    for clip in distinct(runs, "classifier"):
        mine, said = on_shared(pick(runs, OURS, clip), pick(runs, reader, clip))
        reads = {(shift_of(r), i): ok for r in said for i, ok in zip(r.id, r.right_after, strict=True)}
        right = np.array([reads[shift_of(r), i] for r in mine for i in r.id])
        before, after = (np.concatenate([getattr(r, f"right_{k}") for r in mine]) for k in ("before", "after"))
        for name, here in (("right", right), ("wrong", ~right)):
            wrong, fine = here & ~before, here & before
            row = {"CLIP": _short(clip), "the reader is": name, "CLIP wrong": int(wrong.sum())}
            row |= {"of them repaired, %": _percent(after[wrong]), "CLIP right": int(fine.sum())}
            rows.append(row | {"of them broken, %": _percent(~after[fine])})
    return rows


def _percent(values: np.ndarray) -> str:
    return f"{100 * values.mean():.0f}" if len(values) else ""


def corruptions(runs: list[Records]) -> str:
    """The 15 test corruptions: all rows, how many corruptions gain, what is repaired."""
    return "\n\n".join([_header(runs) + "\n" + as_table(rivals(runs)), as_table(signs(runs)), as_table(repaired(runs))])


def clean(runs: list[Records]) -> str:
    """Clean scenes: all rows."""
    return _header(runs) + "\n" + as_table(rivals(runs))


# --- label sets (K7) --------------------------------------------------------------------------------------------------


def labels_of(r: Records) -> str:
    """The label set of a run."""
    return r.about["stream"].get("labels", "category")


def column_of(r: Records) -> str:
    """The column that a run stands in: its own natural shift, or all corruptions together."""
    shift = r.about["stream"]["shift"]
    return shift if shift in NATURAL else CORRUPTED


def _seen(runs: list[Records], seen: bool) -> list[Records]:
    """The images whose class the training captions name, or those whose class they never do."""
    named = {labels: np.array(label_set(labels).seen) for labels in set(map(labels_of, runs))}
    parts = [_rows(r, named[labels_of(r)][r.label] == seen) for r in runs]
    return [r for r in parts if len(r)]


def cells(runs: list[Records]) -> list[dict]:
    """A row for each label set and CLIP, colour_category also by whether captions name the pair: zero-shot accuracy and
    the paired gain on clean scenes, each natural shift, all corruptions together."""
    adapted, rows = pick(runs, OURS), []
    for labels in dict.fromkeys(map(labels_of, adapted)):
        for clip in distinct(adapted, "classifier"):
            mine = [r for r in pick(adapted, classifier=clip) if labels_of(r) == labels]
            groups = {labels: mine}
            if not all(label_set(labels).seen) and any(label_set(labels).seen):
                groups |= {f"{labels}, {'' if s else 'un'}seen": _seen(mine, s) for s in (True, False)}
            rows += [_row(name, clip, here) for name, here in groups.items()]
    return rows


def _row(name: str, clip: str, runs: list[Records]) -> dict:
    row = {"label set": name, "CLIP": _short(clip)}
    for column in (*NATURAL, CORRUPTED):
        here = [r for r in runs if column_of(r) == column]
        before = np.concatenate([r.right_before for r in here]) if here else []
        row[column] = f"{100 * np.mean(before):.0f} {gain(here)}" if here else ""
    return row


def smaller_gains_more(runs: list[Records]) -> list[dict]:
    """Is the gain smaller for the larger CLIP? Its gain minus the smaller one's, by label set and over all."""
    adapted = pick(runs, OURS)
    small, large = distinct(adapted, "classifier")
    rows = []
    for labels in (*dict.fromkeys(map(labels_of, adapted)), "all"):
        parts = []
        for clip in (small, large):
            here = [r for r in pick(adapted, classifier=clip) if labels in ("all", labels_of(r))]
            here.sort(key=lambda r: (labels_of(r), shift_of(r)))
            gained = [r.right_after.astype(int) - r.right_before.astype(int) for r in here]
            parts.append((np.concatenate(gained), np.concatenate([r.id for r in here])))
        (less, ids), (more, other) = parts
        if not np.array_equal(ids, other):
            raise ValueError("the two CLIPs did not meet the same scenes: their gains cannot be paired")
        difference = paired_interval(more, less, ids)
        row = {"label set": labels, "gain of the larger minus that of the smaller": str(difference)}
        rows.append(row | {"gains less": verdict(difference, negative=True)})
    return rows


def no_gain(runs: list[Records]) -> str:
    """A sentence: how many cells of the table gain clearly, lose clearly, or neither."""
    groups: dict[tuple, list[Records]] = {}
    for r in pick(runs, OURS):
        groups.setdefault((r.about["classifier"], labels_of(r), column_of(r)), []).append(r)
    said = [verdict(gain(here)) for here in groups.values()]
    up, down, open_ = (said.count(word) for word in ("holds", "reversed", "undecided"))
    return f"of {len(said)} cells {up} gain clearly, {down} lose clearly, and {open_} do neither"


def label_sets(runs: list[Records]) -> str:
    """The table of label sets, whether the larger CLIP gains less, and the cells without a gain."""
    ours = pick(runs, OURS)
    few, many = (sorted({len(r) for r in ours if (column_of(r) == CORRUPTED) == last}) for last in (False, True))
    said = f"each cell: zero-shot percent right, paired gain; {'/'.join(map(str, few))} scenes, in the last column "
    said += f"{'/'.join(map(str, many))} of each corruption; blank: the shift does not keep these labels"
    head = _header(runs) + "\n" + said
    return "\n\n".join([head, as_table(cells(runs)), as_table(smaller_gains_more(runs)), no_gain(runs)])


# --- kinds of adaptation by prompts (K13) -----------------------------------------------------------------------------


def grid(runs: list[Records]) -> str:
    """Kinds of adaptation by kinds of prompts: percent right and gain; richer prompts against one; who wins."""
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    labels = [label.split("/") for label in distinct(adapted, "label")]
    kinds, prompts = (list(dict.fromkeys(values)) for values in zip(*labels, strict=True))
    rows, against = [], []
    for kind in kinds:
        here = {p: pick(adapted, f"{kind}/{p}") for p in prompts}
        row = {"adapted": kind, "n": sum(map(len, here["one"]))}
        row |= {p: f"{accuracy(mine):.1f} {gain(mine)}" for p, mine in here.items()}
        row[f"one, minus that of {DEFAULT}"] = "" if kind == DEFAULT else str(minus(here["one"], pick(adapted, ONE)))
        rows.append(row | {"denoiser": denoiser_cost(here["one"][0]), "s/img": _seconds(here["one"])})
        more = {f"{p} minus one": str(minus(mine, here["one"])) for p, mine in here.items() if p != "one"}
        floors = str(minus(here["wrong floors"], here["floors"]))
        against.append({"adapted": kind} | more | {"wrong floors minus floors": floors})
    zero = {"one prompt": SOURCE, "templates": TEMPLATES}
    said = ", ".join(f"{name} {accuracy(pick(runs, label)):.1f}" for name, label in zero.items())
    parts = [protocol_line(adapted) + "\n" + as_table(rows), f"zero-shot: {said}", as_table(against)]
    return "\n\n".join([*parts, best_of_grid(runs), *([adapted_reader(runs)] if pick(runs, "sd_lora/one") else [])])


def best_of_grid(runs: list[Records]) -> str:
    """Which cell of the grid is best on the scenes that all of them met, and by how much it leads the default."""
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    least = min((pick(adapted, label) for label in distinct(adapted, "label")), key=lambda mine: sum(map(len, mine)))
    same = {label: on_shared(pick(adapted, label), least)[0] for label in distinct(adapted, "label")}
    best = max(same, key=lambda label: accuracy(same[label]))  # ties go to the earlier one
    n = sum(map(len, same[best]))
    if best == ONE:
        return f"best on the {n} images that all met: {best}, {accuracy(same[best]):.1f}"
    lead = versus(same[best], same[ONE])
    return (
        f"best on the {n} images that all met: {best}, {accuracy(same[best]):.1f}, which is {lead} over {ONE}: "
        f"{'clear' if lead.low > 0 else 'undecided'}"
    )


def adapted_reader(runs: list[Records]) -> str:
    """The text model's adapters alone, read as a Diffusion Classifier before and after: percent right, and the margin
    in log-probability between the true class and its best rival."""
    mine = pick(runs, "sd_lora/one")
    read = 100 * np.concatenate([r.right_before for r in mine]).mean()
    before, after = (np.concatenate([margin(getattr(r, k), r.label) for r in mine]) for k in ("before", "after"))
    change = paired_interval(after > before, after < before, np.concatenate([r.id for r in mine]))
    return (
        f"sd_lora alone, read as a Diffusion Classifier: {read:.1f} → {accuracy(mine):.1f}, {gain(mine)}; median "
        f"margin of the true class {np.median(before):.2f} → {np.median(after):.2f}; share of margins that rise minus "
        f"share that fall {change}"
    )


def margin(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How far the true class is above its best rival (N,), in the logits (N, K)."""
    truth = np.take_along_axis(logits, label[:, None], 1)[:, 0]
    others = logits.copy()
    np.put_along_axis(others, label[:, None], -np.inf, 1)
    return truth - others.max(1)


# --- top-k, the same information --------------------------------------------------------------------------------------


def top_k(runs: list[Records]) -> str:
    """Eighty classes: percent right and gain by k, also against all 80, how often the truth is among the k, pairs that
    captions name and pairs that they never do, cost."""
    rows, whole = [], pick(runs, "all 80")
    for label in distinct(runs, "label"):
        mine = pick(runs, label)
        row = {"row": ROW_NAMES.get(label, label), "right": f"{accuracy(mine):.1f}"}
        if label.startswith(("top", "all")):
            k = int(label.split(" ")[1])
            row |= {"truth among them": f"{recall(mine, k):.1f}", "gain": str(gain(mine))}
            row["minus all 80"] = str(minus(mine, whole)) if whole and label != "all 80" else ""
            for name, here in (("seen pairs", _seen(mine, True)), ("unseen pairs", _seen(mine, False))):
                row[name] = str(gain(here)) if here else ""
        rows.append(row | {"s/img": _seconds(mine)})
    keys = list(dict.fromkeys(k for row in rows for k in row))
    return _header(runs) + "\n" + as_table([{k: row.get(k, "") for k in keys} for row in rows])


def recall(runs: list[Records], k: int) -> float:
    """Percent of images whose true class is among the k best of the logits that came in."""
    found = [(r.before > np.take_along_axis(r.before, r.label[:, None], 1)).sum(1) < k for r in runs]
    return 100 * float(np.concatenate(found).mean())


def information(runs: list[Records]) -> str:
    """CLIP beside one that was trained on more of what the text model saw, source and adapted, on both views; and the
    reader, where it was measured."""
    small, control = distinct(runs, "classifier")
    rows = {}
    for view in ("full", "low"):
        zero, ours, on = f"source/{view}", f"diffusion_tta/{view}", f", {view} view"
        a, b = _short(small), _short(control)
        rows |= {
            f"{b} minus {a}, both zero-shot{on}": ((zero, control), (zero, small)),
            f"{a} adapted minus {b} zero-shot{on}": ((ours, small), (zero, control)),
            f"{b} adapted minus itself zero-shot{on}": ((ours, control), (zero, control)),
            f"{b} adapted minus {a} adapted{on}": ((ours, control), (ours, small)),
            f"reader minus {b} zero-shot{on}": ((READER,), (zero, control)),
        }
    return plain(list(map(named, runs))) + "\n\n" + differences(runs, rows)
