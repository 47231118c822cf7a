"""Which diffusion model may teach a segmentor: ways to show it a map, with and without softened maps, with fewer maps,
all of them trained for as many minutes; and the shipped one and two others, trained for longer. Beside how each of them
reads (its card) stands what it teaches in three updates, on selection scenes.

The rule for the rate, written before any record: all settings are those chosen for `rows.MAP_MODEL`, at several rates.
Of each half of the scenes the rate counts that gains most on the other half, the mean of both scores. There were three
rates; x 10 was added when most of the best ones lay at x 3, the edge.
"""

from dataclasses import replace

import numpy as np

from ...common.text import as_table
from ...evaluation.chosen import tuned_maps
from ...evaluation.map_rows import METRICS, gained, mean_score, minus
from ...evaluation.records import Records
from ...evaluation.rows import distinct, is_clean, pick
from ...evaluation.tables import Job, results, table
from ...models import zoo
from ...streams.maps import MapSpec
from ...world.severities import VALIDATION
from ..side_by_side import denoiser_cost, verdict
from . import rows
from .report import aligned_rows, header, seconds_of
from .rows import MAP_MODEL, map_job, source_job

NETWORK, USUAL = "segmentor/resnet", MAP_MODEL["classes"]
LONGER = "trained for longer"  # the end of a row's name: the others were trained for as long as `BASE`
SHIPPED, BASE, AVERAGED = f"shipped: 64 px, {LONGER}", "64 px, softened maps", "32 px averages"
CANDIDATES = {  # how it is trained -> diffusion model
    SHIPPED: USUAL,
    BASE: "maps/classes-short",
    "64 px, exact maps": "maps/classes-exact",
    "64 px, the segmentor's 1,500 maps": "maps/classes-1500",
    AVERAGED: "maps/classes-averaged",
    "latents, concatenated": "maps/classes-latents",
    "latents, a ControlNet on the text model": "maps/classes-control",
    f"{AVERAGED}, softened maps, {LONGER}": "maps/classes-long",
    f"{AVERAGED}, exact maps, {LONGER}": "maps/classes-long-exact",
}
RATES = (0.3, 1.0, 3.0, 10.0)  # times the chosen one
UPDATES = 3
FIRST, HALF = 3700, 5  # first selection scene; scenes in each half under each corruption
WRONG = {"source": "(a) the segmentor's", "swapped": "(b) swapped", "dilated": "(c) dilated"}
BARS = {"source": (90, 80), "swapped": (95, 80), "dilated": (80, 80)}  # percent read, clean and corrupted


def specs() -> list[MapSpec]:
    """Both halves of the scenes under each validation corruption at severity 3, ten a corruption."""
    starts = [(name, FIRST + 20 * i + HALF * half) for half in (0, 1) for i, name in enumerate(VALIDATION)]
    return [MapSpec(HALF, name, 3, "select", start) for name, start in starts]


def label_of(row: str, times: float) -> str:
    """A row's label in the records."""
    return f"{row}, rate x {times:g}"


def candidates() -> list[Records]:
    """Three updates with each model at each rate, on the same scenes; the pairs are the same where what is denoised has
    one shape. Raises FileNotFoundError for a model that is to be trained first."""
    now, jobs = tuned_maps(NETWORK, updates=UPDATES), []
    for spec in specs():
        jobs.append(source_job(NETWORK, spec))
        jobs += [job for row, name in CANDIDATES.items() for job in of_candidate(row, name, spec, now)]
    return table("maps_candidates", jobs)


def of_candidate(row: str, name: str, spec: MapSpec, now) -> list[Job]:
    """The runs of one model on one stream, a rate each."""
    settings = {times: replace(now, lr=now.lr * times) for times in RATES}
    return [
        map_job("diffusion_tta", s, NETWORK, spec, label_of(row, times), denoiser=name) for times, s in settings.items()
    ]


def readings() -> list[dict]:
    """A row for each model, from its card: share of scenes whose true map has a lower loss than each wrong one, clean
    and in the mean of the validation corruptions, by window of t."""
    found = []
    for row, name in CANDIDATES.items():
        quality = zoo.card(name)["quality"]
        line = {"diffusion model": row}
        for wrong, head in WRONG.items():
            for when, shares in shares_of(quality, wrong).items():
                line[f"{head}, {when}"] = " / ".join(f"{v:.0f}" for v in shares)
        found.append(line)
    return found


def shares_of(quality: dict, wrong: str) -> dict[str, np.ndarray]:
    """ "clean" and "corrupted" -> percent of scenes by window, of a card's reading of one wrong map."""
    corrupted = np.mean([quality[name][wrong]["read"] for name in VALIDATION], 0)
    return {"clean": np.array(quality["clean"][wrong]["read"], float), "corrupted": corrupted}


def bars() -> list[dict]:
    """A row for each model: its size and training (scenes, steps, minutes on the machine of its
    card), in which windows all of its reading is above the bars, and which bars it misses in its best window, that with
    the highest mean of the six shares."""
    found = []
    for row, name in CANDIDATES.items():
        card = zoo.card(name)
        quality = card["quality"]
        shares = {(wrong, when): v for wrong in WRONG for when, v in shares_of(quality, wrong).items()}
        enough = {(wrong, when): v >= BARS[wrong][when == "corrupted"] for (wrong, when), v in shares.items()}
        best = int(np.mean(list(shares.values()), 0).argmax())
        windows = ["{}..{}".format(*w) for w in quality["windows"]]
        missed = [f"{WRONG[w]} {when} {v[best]:.0f}" for (w, when), v in shares.items() if not enough[w, when][best]]
        met = [window for i, window in enumerate(windows) if all(v[i] for v in enough.values())]
        line = {"diffusion model": row, "parameters, M": f"{card['parameters'] / 1e6:.1f}"}
        line |= {"scenes": card["recipe"]["scenes"], "steps": card["steps"], "minutes": f"{card['minutes']:.0f}"}
        line |= {"reads in": ", ".join(met) or "none", "best window": windows[best]}
        found.append(line | {"bars missed there": ", ".join(missed) or "none"})
    return found


def halves(runs: list[Records]) -> tuple[list[Records], list[Records]]:
    """Runs on the first and on the second half of the scenes."""
    first = [(r.about["stream"]["start"] - FIRST) % 20 < HALF for r in runs]
    return tuple([r for r, one in zip(runs, first, strict=True) if one == wanted] for wanted in (True, False))


def at_best_rate(runs: list[Records], row: str) -> tuple[list[Records], list[float]]:
    """The runs of a model at the rate that gains most on the other half of the scenes, the mean of both scores, and the
    two rates; ties go to the lower one."""
    taken, rates, source = [], [], pick(runs, rows.SOURCE)
    by_rate = {times: halves(pick(runs, label_of(row, times))) for times in RATES}
    for half in (0, 1):
        worth = {
            times: np.mean([gained(parts[1 - half], source, m) for m in METRICS["classes"]])
            for times, parts in by_rate.items()
        }
        rates.append(max(worth, key=worth.get))
        taken += by_rate[rates[-1]][half]
    return taken, rates


def taught(runs: list[Records]) -> list[dict]:
    """A row for each model: both scores after three updates at the usual rate and at its best one, the gain over the
    segmentor, and the differences to `BASE` and `SHIPPED`, paired, with a verdict."""
    found, source = [], pick(runs, rows.SOURCE)
    labels = [row for row in CANDIDATES if label_of(row, 1.0) in distinct(runs, "label")]
    parts = {row: (pick(runs, label_of(row, 1.0)), *at_best_rate(runs, row)) for row in labels}
    for row, (usual, best, rates) in parts.items():
        line = {"diffusion model": row, "rates of the halves": " and ".join(f"x {v:g}" for v in rates)}
        for metric in METRICS["classes"]:
            line[f"{metric}, usual rate"] = f"{mean_score(usual, metric):.1f}"
            line[f"{metric}, its rates"] = f"{mean_score(best, metric):.1f}"
            line[f"{metric}, minus source"] = str(minus(best, source, metric))
            for other in (v for v in (BASE, SHIPPED) if v != row):
                apart = minus(best, parts[other][1], metric)
                line[f"{metric}, minus {other}"] = f"{apart}, {verdict(apart)}"
        found.append(line | {"diffusion model's cost": denoiser_cost(usual[0]), "s/img": seconds_of(usual)})
    return aligned_rows(found)


def longer(runs: list[Records]) -> list[dict]:
    """What longer training is worth: a model minus the same, trained for less, each at its rates, in each score."""
    found, steps = [], lambda row: f"{zoo.card(CANDIDATES[row])['steps']:,}"
    for short, long in ((BASE, SHIPPED), (AVERAGED, f"{AVERAGED}, softened maps, {LONGER}")):
        line = {"diffusion model": short, "steps": f"{steps(short)} and {steps(long)}"}
        for metric in METRICS["classes"]:
            apart = minus(at_best_rate(runs, long)[0], at_best_rate(runs, short)[0], metric)
            line[f"{metric}, the longer one minus the other"] = f"{apart}, {verdict(apart)}"
        found.append(line)
    return found


def tried(label: str) -> str:
    """What a row of the ablations changes, "" for ours and the source."""
    starts = {"t ": "window of t", "T ": "softness: temperature", "free map": "a free map in place of weights"}
    ends = {" pairs": "pairs per update", " updates": "updates", " alone": "weights that move"}
    found = [what for start, what in starts.items() if label.startswith(start)]
    found += [what for end, what in ends.items() if label.endswith(end)]
    return found[0] if found else {"no judge": "judge", "phi adapted too": "diffusion model moves too"}.get(label, "")


def search(altered: list[Records], runs: list[Records]) -> list[dict]:
    """How far the search went, a row for each thing that was varied: how many other options, which of them gains most
    in hindsight (mean of both scores under corruptions), and what it has over ours in each score, paired, with a
    verdict. Step (rate) and model are of selection scenes and three updates, the others of test scenes (`altered`)."""
    found, mine = [], [r for r in pick(altered, classifier=NETWORK) if not is_clean(r)]
    ours, groups = pick(mine, rows.OURS), {}
    for label in distinct(mine, "label"):
        if what := tried(label):
            groups.setdefault(what, {})[label] = pick(mine, label)
    found += [_best(what, options, ours, pick(mine, rows.SOURCE)) for what, options in groups.items()]
    models = {row: at_best_rate(runs, row)[0] for row in CANDIDATES if label_of(row, 1.0) in distinct(runs, "label")}
    steps = {f"x {times:g}": pick(runs, label_of(SHIPPED, times)) for times in RATES if times != 1}
    usual, source = pick(runs, label_of(SHIPPED, 1.0)), pick(runs, rows.SOURCE)
    found.append(_best("step: rate", steps, usual, source))
    trained, base = {row: v for row, v in models.items() if row not in (SHIPPED, BASE)}, models[BASE]
    return [*found, _best(f"diffusion model, each at its rates, minus {BASE}", trained, base, source)]


def _best(what: str, options: dict[str, list[Records]], ours: list[Records], source: list[Records]) -> dict[str, str]:
    metrics = METRICS["classes"]
    best = max(options, key=lambda label: np.mean([gained(options[label], source, m) for m in metrics]))
    row = {"varied": what, "other options": len(options), "best of them in hindsight": best}
    for metric in metrics:
        apart = minus(options[best], ours, metric)
        row[f"{metric}, minus ours"] = f"{apart}, {verdict(apart)}"
    return row


def show(runs: list[Records]) -> str:
    """How each model reads, whether that is enough, what it teaches, what longer training is worth; last how far the
    search went, with the records of `maps_ablations`."""
    source = ", ".join(f"{m} {mean_score(pick(runs, rows.SOURCE), m):.1f}" for m in METRICS["classes"])
    parts = [as_table(readings()), as_table(bars()), f"the segmentor itself: {source}\n" + as_table(taught(runs))]
    last = as_table(longer(runs)), as_table(search(results("maps_ablations"), runs))
    return header(runs) + "\n" + "\n\n".join([*parts, *last])
