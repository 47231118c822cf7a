"""Tables of notebook 04. All scores are in percent, mean over images unless "of the set" stands there; every difference
is paired on the same images, has an interval over scenes, and is positive where it is better, also of AbsRel.

Published shapes and claims get one of three words: holds, reversed, undecided, which it is where the interval holds 0.
"""

import numpy as np

from ...common.text import as_table
from ...evaluation.chosen import maps_choice
from ...evaluation.map_rows import (
    METRICS,
    OF_COUNTS,
    gain_of,
    gained,
    mean_score,
    metrics_of,
    minus,
    place,
    set_minus,
    set_score,
)
from ...evaluation.records import Records
from ...evaluation.rows import distinct, is_clean, pick
from ...evaluation.statistics import Interval, protocol_line
from ...world.severities import TEST
from ..side_by_side import denoiser_cost, verdict
from . import rows
from .rows import of_network, target_of
from .where import QUANTITIES

TOLERANCE = 0.5  # points that clean scenes may lose
# Diffusion-TTA (Prabhudesai et al., 2023): before, after; clean and the six corruptions in the order of PAPER_SHIFTS
PAPER_SHIFTS = ("clean", "gaussian_noise", "fog", "frost", "snow", "contrast", "shot_noise")
PAPER = {
    "mean class accuracy": (
        (66.1, 65.3, 63.0, 58.0, 55.2, 65.3, 63.3),
        (66.1, 66.4, 65.1, 58.9, 56.6, 66.4, 63.7),
    ),
    "SSIM": ((92.4, 79.1, 81.6, 72.2, 72.7, 77.4, 81.3), (92.6, 82.1, 84.4, 73.0, 74.1, 77.4, 82.1)),
}


CLEAN, SET = f"clean, above -{TOLERANCE:g}?", "that of the set"
IGNORED = rows.BOLD.partition(", ")[2]  # a variant: clean scenes ignored
HELD = {  # title of a table -> head of a column -> row, and the one that it is held against
    "the bars": {
        CLEAN: (rows.OURS, rows.SOURCE),
        "minus source": (rows.OURS, rows.SOURCE),
        "minus best control": (rows.OURS, "best"),
        SET: (rows.OURS, "best"),
    },
    "rivals, those who know more, a placebo": {
        "minus best rival": (rows.OURS, "rival"),
        "as many maps: minus source": (rows.INFORMED, rows.SOURCE),
        "minus as many maps": (rows.OURS, rows.INFORMED),
        "ceiling: minus source": (rows.CEILING, rows.SOURCE),
        "minus another image's": (rows.OURS, rows.ANOTHER),
    },
    IGNORED: {
        CLEAN: (rows.BOLD, rows.SOURCE),
        "minus source": (rows.BOLD, rows.SOURCE),
        "minus best control": (rows.BOLD, "best"),
        "minus its start": (rows.BOLD, rows.START),
        "minus its start, judged alone": (rows.BOLD, rows.CHOICE),
    },
}


def short(network: str) -> str:
    """The name of a network in tables."""
    return network.split("/")[-1]


def networks_of(runs: list[Records]) -> list[str]:
    """Those that were adapted, in the order of the runs."""
    return distinct([r for r in runs if r.about["method"] == "diffusion_tta"], "classifier")


def same_settings(one: list[Records], other: list[Records]) -> bool:
    """Whether two rows are one method with one choice."""
    return one[0].about["settings"] == other[0].about["settings"]


def header(runs: list[Records]) -> str:
    """The protocol of the rows that adapt."""
    return protocol_line([r for r in runs if r.about["method"] == "diffusion_tta"])


def seconds_of(runs: list[Records]) -> str:
    """Seconds per image."""
    return f"{np.concatenate([r.seconds for r in runs]).mean():.2f}"


def scenes_of(runs: list[Records]) -> int:
    """How many different scenes these runs met."""
    return len(np.unique(np.concatenate([r.id for r in runs])))


def shown(difference: Interval, runs: list[Records]) -> str:
    """A difference with its interval; of a single scene there is none."""
    return str(difference) if scenes_of(runs) > 1 else f"{difference.mean:+.1f}"


def parts_of(runs: list[Records]) -> dict[str, list[Records]]:
    """Head of a column -> its runs: clean, and each severity that is there."""
    severity = lambda r: 0 if is_clean(r) else r.about["stream"]["severity"]  # noqa: E731
    found = sorted({severity(r) for r in runs})
    return {f"severity {s}" if s else "clean": [r for r in runs if severity(r) == s] for s in found}


def selection(runs: list[Records]) -> str:
    """What the choice was between: both scores, clean and under the validation corruptions, and the gain over the
    source on the same scenes. The source met those of the controls as well: its own row is over the scenes of
    Diffusion-TTA, so that the gains of those rows are differences to it."""
    found = []
    for network in distinct(runs, "classifier"):
        met = {place(r.about) for r in pick(runs, classifier=network) if r.about["method"] == "diffusion_tta"}
        for label in distinct(pick(runs, classifier=network), "label"):
            mine, row = pick(runs, label, network), {"network": short(network), "row": label}
            for metric in metrics_of(mine):
                for head, clean in (("clean", True), ("corrupted", False)):
                    part = [r for r in mine if is_clean(r) == clean]
                    part = [r for r in part if label != rows.SOURCE or not met or place(r.about) in met]
                    over = gained(part, pick(runs, rows.SOURCE, network), metric)
                    row[f"{metric}, {head}"] = f"{mean_score(part, metric):.1f} ({over:+.1f})"
            found.append(row)
    return header(runs) + "\n" + as_table(aligned_rows(found))


def aligned_rows(found: list[dict]) -> list[dict]:
    """Rows with all columns that any of them has."""
    keys = list(dict.fromkeys(k for row in found for k in row))
    return [{k: row.get(k, "") for k in keys} for row in found]


# --- the paper's six corruptions (K8) ---------------------------------------------------------------------------------


def rivals(runs: list[Records], network: str, metric: str) -> list[dict]:
    """A row of one network and score: its value clean and by severity, the difference to the source and of ours to it,
    both under the corruptions; of classes the score of the set too."""
    found, labels = [], [label for label in distinct(runs, "label") if of_network(runs, network, label)]
    shifted = [r for r in runs if not is_clean(r)]
    named = {maps_choice()[key][network][metric]: what for key, what in (("best", "control"), ("rival", "rival"))}
    for label in labels:
        mine, row = of_network(runs, network, label), {"network": short(network), "row": label}
        row["row"] += f" (best {named[label]} on validation)" if label in named else ""
        row |= {head: f"{mean_score(part, metric):.1f}" for head, part in parts_of(mine).items()}
        here, source, us = (of_network(shifted, network, at) for at in (label, rows.SOURCE, rows.OURS))
        row["minus source"] = "" if label == rows.SOURCE else str(minus(here, source, metric))
        row["ours minus it"] = "" if label == rows.OURS else str(minus(us, here, metric))
        if metric in OF_COUNTS:
            row["of the set"] = f"{set_score(here, metric):.1f}"
            row["ours minus it, of the set"] = "" if label == rows.OURS else str(set_minus(us, here, metric))
        found.append(row | {"diffusion model": denoiser_cost(mine[0]), "s/img": seconds_of(mine)})
    return found


def claims(runs: list[Records]) -> dict[str, list[dict]]:
    """The tables of `HELD`, a row for each network and score: paired differences under the corruptions, and on clean
    scenes, which may lose `TOLERANCE`, each with a verdict. The variant has rows where its settings are others."""
    found = {title: [] for title in HELD}
    for network in networks_of(runs):
        us, bold = (of_network(runs, network, label) for label in (rows.OURS, rows.BOLD))
        for metric in METRICS[target_of(network)]:
            named = {key: maps_choice()[key][network][metric] for key in ("best", "rival")}
            for title, columns in HELD.items():
                line = {"network": short(network), "score": metric}
                for head, (one, other) in columns.items():
                    both = [of_network(runs, network, named.get(label, label)) for label in (one, other)]
                    pair = [[r for r in part if is_clean(r) == (head == CLEAN)] for part in both]
                    if all(pair) and (head != SET or metric in OF_COUNTS):
                        apart = (set_minus if head == SET else minus)(*pair, metric)
                        more = TOLERANCE if head == CLEAN else 0
                        said = verdict(Interval(apart.mean + more, apart.low + more, apart.high + more))
                        line[head] = f"{apart}, {said}" + (f" ({named[other]})" if other in named else "")
                if title != IGNORED or not same_settings(us, bold):
                    found[title].append(line)
    return {title: aligned_rows(lines) for title, lines in found.items() if lines}


def claimed(runs: list[Records]) -> str:
    """The protocol, and the tables of `claims` under their titles."""
    return "\n".join([header(runs), *(f"\n{title}\n\n{as_table(lines)}" for title, lines in claims(runs).items())])


def by_shift(runs: list[Records], network: str, metric: str) -> list[dict]:
    """A row for each shift and severity: source, ours, the gain; beside it what the paper printed, where it did."""
    found, others = [], [maps_choice()[key][network][metric] for key in ("best", "rival")]
    places = list(dict.fromkeys((r.about["stream"]["shift"], r.about["stream"]["severity"]) for r in runs))
    for shift, severity in places:
        here = [r for r in runs if (r.about["stream"]["shift"], r.about["stream"]["severity"]) == (shift, severity)]
        us = of_network(here, network, rows.OURS)
        row = {"network": short(network), "shift": shift.replace("_", " "), "severity": severity or ""}
        row |= {"n": sum(map(len, us)), "source": f"{mean_score(us, metric, 'before'):.1f}"}
        row |= {"ours": f"{mean_score(us, metric):.1f}", "gain": shown(gain_of(us, metric), us)}
        for label in others:
            control = of_network(here, network, label)
            row |= {
                label: f"{mean_score(control, metric):.1f}",
                f"minus {label}": shown(minus(us, control, metric), us),
            }
        if metric in PAPER and shift in PAPER_SHIFTS:
            before, after = (values[PAPER_SHIFTS.index(shift)] for values in PAPER[metric])
            row["the paper"] = f"{before} → {after}"
        found.append(row)
    return found


def k8(runs: list[Records]) -> str:
    """The whole table: claims, then for each network and score all rows, then ours by shift."""
    parts = [claimed(runs)]
    for network in networks_of(runs):
        mine = [r for r in runs if r.about["classifier"].startswith(network)]
        for metric in METRICS[target_of(network)]:
            tables = rivals(mine, network, metric), by_shift(mine, network, metric)
            parts += [f"{metric}, {short(network)}", *map(as_table, tables)]
    return "\n\n".join(parts)


def in_short(runs: list[Records], network: str, metric: str) -> list[dict]:
    """Lines for the README, ours and, where it is another one, the variant that gains most: what each gains over the
    source, over the best control and over its own start under the corruptions, what clean scenes gain or lose, and on
    how many scenes of either kind."""
    control, found = maps_choice()["best"][network][metric], []
    at = lambda label, clean: [r for r in of_network(runs, network, label) if is_clean(r) == clean]  # noqa: E731
    for label, start in ((rows.OURS, rows.SOURCE), (rows.BOLD, rows.START)):
        mine, line = at(label, False), {"network": network, "score": metric, "row": label}
        if label == rows.BOLD and same_settings(mine, at(rows.OURS, False)):
            continue
        for head, other in (("minus source", rows.SOURCE), ("minus best control", control)):
            line[head] = str(minus(mine, at(other, False), metric))
        line["best control"] = control
        line["minus its start"] = str(minus(mine, at(start, False) or at(rows.SOURCE, False), metric))
        line["clean"] = str(minus(at(label, True), at(rows.SOURCE, True), metric))
        found.append(line | {"scenes": f"{scenes_of(mine)}, {scenes_of(at(label, True))} clean"})
    return found


# --- all fifteen ------------------------------------------------------------------------------------------------------


def all_corruptions(runs: list[Records]) -> str:
    """Mean gain over the 15 corruptions, over the source and the best control; how many gain and how many lose."""
    found, each = [], []
    for network in networks_of(runs):
        for metric in METRICS[target_of(network)]:
            us = pick(runs, rows.OURS, network)
            best, rival = (maps_choice()[key][network][metric] for key in ("best", "rival"))
            gains = {s: gain_of(pick(us, shifts=[s]), metric) for s in TEST if pick(us, shifts=[s])}
            row = {"network": short(network), "score": metric, "gain": str(gain_of(us, metric))}
            control = minus(us, pick(runs, best, network), metric)
            row |= {"best control": best, "minus it": f"{control}, {verdict(control)}"}
            other = minus(us, pick(runs, rival, network), metric)
            row |= {"best rival": rival, "minus that": f"{other}, {verdict(other)}"}
            said = [verdict(g) for s, g in gains.items() if scenes_of(pick(us, shifts=[s])) > 1]
            for side, word, sign in (("above", "holds", 1), ("below", "reversed", -1)):
                row[f"{side} 0"] = sum(sign * g.mean > 0 for g in gains.values())
                row[f"clearly {side}"] = said.count(word) if said else "one scene each"
            worst = min(gains, key=lambda s: gains[s].mean)
            found.append(row | {"worst": f"{worst.replace('_', ' ')} {gains[worst].mean:+.1f}"})
            each.append(
                {"network": short(network), "score": metric}
                | {s.replace("_", " "): f"{g.mean:+.1f}" for s, g in gains.items()}
            )
    return header(runs) + "\n" + as_table(found) + "\n\n" + as_table(each)


# --- mixing, ablations ------------------------------------------------------------------------------------------------


def against(runs: list[Records], usual: str) -> list[dict]:
    """Rows of a table by network: both scores clean and corrupted, the gain, the difference to the row `usual` on the
    scenes that both met, cost."""
    found = []
    for network in networks_of(runs):
        for label in distinct(pick(runs, classifier=network), "label"):
            mine, row = pick(runs, label, network), {"network": short(network), "row": label}
            for metric in metrics_of(mine):
                for head, clean in (("corrupted", False), ("clean", True)):
                    part = [r for r in mine if is_clean(r) == clean]
                    other = [r for r in pick(runs, usual, network) if is_clean(r) == clean]
                    if not part:
                        continue
                    row[f"{metric}, {head}"] = f"{mean_score(part, metric):.1f}"
                    if label not in (usual, rows.SOURCE) and [len(r) for r in part] == [len(r) for r in other]:
                        row[f"{metric}, {head}, minus {usual}"] = shown(minus(part, other, metric), part)
            found.append(row | {"diffusion model": denoiser_cost(mine[0]), "s/img": seconds_of(mine)})
    return aligned_rows(found)


def mixing(runs: list[Records]) -> str:
    """The map as condition against predictions that are mixed per pixel."""
    return header(runs) + "\n" + as_table(against(runs, "map as condition"))


def ablations(runs: list[Records]) -> str:
    """One thing changed at a time; a table for each target."""
    parts = [[r for r in runs if r.target == target] for target in METRICS]
    return header(runs) + "\n" + "\n\n".join(as_table(against(part, rows.OURS)) for part in parts if part)


# --- where it fails ---------------------------------------------------------------------------------------------------


def pooled(runs: list[Records]) -> dict[str, float]:
    """`QUANTITIES` summed over images; those in ten thousandths as their mean."""
    values = np.concatenate([r.loss for r in runs]).astype(float)
    found = dict(zip(QUANTITIES, values.sum(0), strict=True))
    return {k: v / len(values) if "thousandths" in k else v for k, v in found.items()}


def share(part: float, whole: float) -> str:
    """Percent, empty of nothing."""
    return f"{100 * part / whole:.0f}" if whole else ""


def where(runs: list[Records]) -> str:
    """Wrong pixels whose gradient points to the truth; what is repaired and broken near edges and inside; objects whose
    class is changed as a whole."""
    found = []
    for network in networks_of(runs):
        for label in distinct(pick(runs, classifier=network), "label"):
            for head, clean in (("corrupted", False), ("clean", True)):
                if part := [r for r in pick(runs, label, network) if is_clean(r) == clean]:
                    found.append({"network": short(network), "row": label, "scenes": head} | _where(part))
    return header(runs) + "\n" + as_table(aligned_rows(found))


def _where(runs: list[Records]) -> dict[str, str]:
    q = pooled(runs)
    row = {"wrong pixels pointing to the truth, %": share(q["pointing to the truth"], q["wrong"])}
    row["gradient's energy near edges, %"] = f"{q['energy in ten thousandths near edges'] / 100:.0f}"
    row["pixels near edges, %"] = f"{q['edge in ten thousandths'] / 100:.0f}"
    for at in ("near edges", "inside"):
        row[f"repaired {at}, %"] = share(q[f"repaired {at}"], q[f"wrong {at}"])
        row[f"broken {at}, %"] = share(q[f"broken {at}"], q[f"right {at}"])
    if q["objects wrong"] + q["objects right"]:
        row["objects of a wrong class, of them relabelled"] = f"{q['objects wrong']:.0f}, {q['objects relabelled']:.0f}"
        row["objects of the right class, of them broken"] = f"{q['objects right']:.0f}, {q['objects broken']:.0f}"
        small = [share(q[f"small right {when}"], q["small"]) for when in ("before", "after")]
        row["pixels of small objects right, %"] = " → ".join(small)
    return row


def headline(runs: list[Records]) -> dict[str, str]:
    """What a sweep's summary shows of the records: gain of each network in each score, under corruptions."""
    return {
        f"gain in {metric}, {short(network)}": str(gain_of(part, metric))
        for network in networks_of(runs)
        if (part := [r for r in pick(runs, rows.OURS, network) if not is_clean(r)])
        for metric in metrics_of(part)
    }
