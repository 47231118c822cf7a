"""Tables of notebook 02 that need more than rows and columns: ablations, trust, and the map of when feedback helps."""

import numpy as np

from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, is_clean, one_severity, pick, shift_of, versus
from ...evaluation.statistics import gain, paired_interval, protocol_line, summary
from ...evaluation.tables import results
from ..display import plain
from ..side_by_side import ensemble_temperature, gains_by_shift, signs, verdict  # noqa: F401  (the notebook's names)
from ..trials import CLASSIFIERS
from . import trust
from .experiments import UNTOUCHED

# the codes that stored labels begin with
ABLATIONS = {"K10": "components", "K11": "parameters", "K12": "pairs"}


def ablations(runs: list[Records]) -> str:
    """Rows of the three ablations with paired gains, each on its own scenes; below them consecutive rows of the
    components, paired on the scenes that both met. Two ensembles are computed from the records of "logits": with the
    source, and as published with the diffusion model's own reading.

    Raises ValueError for records of two severities."""
    adapted = [r for r in runs if r.about["method"] == "diffusion_tta"]
    one_severity(adapted)
    rows = []
    for label in dict.fromkeys(r.about["label"] for r in adapted):
        mine = [r for r in adapted if r.about["label"] == label]
        rows.append(_ablation(spoken(label), mine, [r.right_after for r in mine]))
        if label == "K11: logits":
            for name, other in {"the source": None, "the reader": _readings(mine)}.items():
                if other != []:
                    rows.append(_ablation(spoken(f"{label}, ensemble with {name}"), mine, _ensemble(mine, other)))
    return "\n".join([protocol_line(adapted), as_table(rows), *_steps(adapted)])


READER = "reader/9 pairs/150..600"  # of `rivals`, on the same scenes at 90 evaluations


def _readings(runs: list[Records]) -> list[np.ndarray]:
    """Probabilities (N, K) of the diffusion model's reading for the images of each run, at the temperature that is best
    on validation corruptions; none where the images were not read."""
    tau, read = ensemble_temperature(READER), {}
    for r in (r for r in results("rivals") if r.about["label"] == READER):
        q = trust.softmax(r.after * r.about["settings"]["temperature"] / tau, axis=1)
        read |= dict(zip(r.id.tolist(), q, strict=True))
    return [np.stack([read[i] for i in r.id.tolist()]) for r in runs] if set(runs[0].id.tolist()) <= set(read) else []


def _ensemble(runs: list[Records], other: list[np.ndarray] | None) -> list[np.ndarray]:
    """Right predictions of the mean of the adapted probabilities and others, of None the source's."""
    others = [trust.softmax(r.before, axis=1) for r in runs] if other is None else other
    return [(trust.softmax(r.after, axis=1) + q).argmax(1) == r.label for r, q in zip(runs, others, strict=True)]


def _steps(adapted: list[Records]) -> list[str]:
    """The components, each against the row that it adds to, on the scenes that both met: antithetic noise and the DiT
    are two ways to go on from ours. Then other parameters, each against all of them."""
    labels, lines = [label for label in distinct(adapted, "label") if label.startswith("K10")], []
    ours = [label for label in labels if label.endswith("(ours)")]
    parts = [label for label in distinct(adapted, "label") if label.startswith("K11")]
    for before, label in [
        *zip(labels[:2], labels[1:3], strict=False),
        *((o, n) for o in ours for n in labels[3:] + parts),
    ]:
        one, other = (
            {int(i): ok for r in pick(adapted, n) for i, ok in zip(r.id, r.right_after, strict=True)}
            for n in (label, before)
        )
        both = sorted(one.keys() & other.keys())
        found = paired_interval(*(np.array([v[i] for i in both]) for v in (one, other)), np.array(both))
        lines.append(f"\n{spoken(label)} minus {spoken(before)}: {found} on {len(both)} scenes")
    return lines


def spoken(label: str) -> str:
    """A stored row label with the code of its published table (docs/experiments.md) in words."""
    code, colon, rest = label.partition(": ")
    return f"{ABLATIONS[code]}: {rest}" if colon and code in ABLATIONS else label


def _ablation(label: str, runs: list[Records], after: list[np.ndarray]) -> dict:
    before = np.concatenate([r.right_before for r in runs])
    right, scene = np.concatenate(after), np.concatenate([r.id for r in runs])
    row = {"row": label, "n": len(before), "source": f"{100 * before.mean():.1f}", "after": f"{100 * right.mean():.1f}"}
    shift = np.concatenate([[r.about["stream"]["shift"]] * len(r) for r in runs])
    row |= {name: f"{100 * right[shift == name].mean():.0f}" for name in dict.fromkeys(shift.tolist())}
    evaluations = sum(n for kind, n in runs[0].nfe.items() if kind.startswith("denoiser"))
    return row | {"gain": str(paired_interval(right, before, scene)), "evaluations": f"{evaluations:g}"}


def of_trust(readers_of_heldout: list[Records]) -> str:
    """The rule chosen on validation corruptions, judged on the test corruptions; the reader's agreement beside it."""
    common = results("common_draws")
    validation = [r for r in common if r.about["label"] == "heldout"]
    rule, threshold = trust.choose(trust.evidence(validation, readers_of_heldout))
    readers = [r for r in results("test") if r.about["method"] == "diffusion_classifier"]
    rows = []
    for option, cut in {rule: threshold, "reader agrees": 0.0}.items():
        for name in (*CLASSIFIERS, "both"):
            adapted = [r for r in common if r.about["label"] == "test"]
            e = trust.evidence([r for r in adapted if name in (r.about["classifier"], "both")], readers)
            row = {"rule": f"{option}, at least {cut:.2f}", "classifier": name}
            right = {"never": e.right_before, "always": e.right_after, "by the rule": trust.accepted(e, option, cut)}
            row |= {when: f"{100 * values.mean():.1f}" for when, values in right.items()}
            rows.append(row | {name: str(gain) for name, gain in trust.judge(e, option, cut).items()})
    chosen = f"Chosen on validation corruptions: {rule}, at least {threshold:.2f}."
    return f"{protocol_line(readers)}\n{chosen}\n\n{as_table(rows)}"


def severities(runs: list[Records]) -> str:
    """The table `severity`: the small grid at severity 3, and at severity 5 with another seed of scenes and draws."""
    adapted, rows = [r for r in runs if r.about["method"] == "diffusion_tta"], []
    for label in distinct(adapted, "label"):
        for classifier in distinct(adapted, "classifier"):
            mine = pick(adapted, label, classifier)
            s = summary(mine)
            at = f"severity {mine[0].about['stream']['severity']}, seed {mine[0].about['settings']['seed']}"
            row = {"stream": at, "classifier": classifier.split("/")[1], "n": s["n"]}
            rows.append(row | {"source": f"{s['before']:.1f}", "after": f"{s['after']:.1f}", "gain": str(s["gain"])})
    return f"{protocol_line(adapted)}\n{as_table(rows)}"


def natural_shapes(runs: list[Records]) -> list[dict]:
    """For each set of images of `natural`: the gain of Diffusion-TTA on each classifier and whether the published
    shape, a gain on every set, holds; and the best entropy method there."""
    rows = []
    for name in dict.fromkeys(map(shift_of, runs)):
        row, here = {"images": name}, [r for r in runs if shift_of(r) == name]
        for classifier in CLASSIFIERS:
            found = gain(pick(here, "diffusion_tta/full", classifier))
            others = {label: accuracy(pick(here, label, classifier)) for label in ("tent", "cotta")}
            best = max(others, key=others.get)
            row[classifier.split("/")[1]] = f"{found}: {verdict(found)}"
            ours = accuracy(pick(here, "diffusion_tta/full", classifier))
            row[f"ours, best of TENT and CoTTA ({classifier.split('/')[1]})"] = f"{ours:.0f}, {best} {others[best]:.0f}"
        rows.append(row)
    return rows


def headlines(runs: list[Records]) -> list[dict]:
    """One row per classifier: source and control, Diffusion-TTA on both views, paired gains."""
    rows = []
    for name in dict.fromkeys(r.about["classifier"] for r in runs if r.about["method"] == "diffusion_tta"):
        row = {"classifier": name.split("/")[1]}
        heads = {"source/full": "source", "source/low": "low view"}
        heads |= {"diffusion_tta/full": "Diffusion-TTA", "diffusion_tta/low": "on the low view"}
        for label, head in heads.items():
            mine = [r for r in runs if (r.about["classifier"], r.about["label"]) == (name, label)]
            row[head] = f"{100 * np.concatenate([r.right_after for r in mine]).mean():.1f}"
            if label.startswith("diffusion_tta"):
                row["gain" if label.endswith("full") else "gain there"] = str(gain(mine))
        rows.append(row)
    return rows


def backbones(runs: list[Records]) -> str:
    """The effect on each classifier, and how many corruptions gain."""
    return f"{effect(runs)}\n\n{as_table(signs(runs))}"


def effect(runs: list[Records]) -> str:
    """The tables of `heldout`, `test` and `clean`: one part per classifier, then the gains over both."""
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
    for label, head in (("source/full", "source"), ("source/low", "low view")):
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


def reading(runs: list[Records]) -> str:
    """The plain table, and the reader against each classifier and its control on the same scenes."""
    (reader,) = {r.about["label"] for r in runs if r.about["label"].startswith("reader/48")}
    parts = [plain(runs), ""]
    for kind, keep in (("validation corruptions", lambda r: not is_clean(r)), ("clean", is_clean)):
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
