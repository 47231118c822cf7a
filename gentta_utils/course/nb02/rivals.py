"""Diffusion-TTA and its rivals: natural shifts, streams, and all of them at equal compute.

Every rate and what else a rival leaves open at this size is chosen by `select_rivals` on the validation corruptions.
"""

from ...common.evaluations import forwards
from ...common.text import as_table
from ...evaluation.chosen import chosen_window, rival, tuned
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, is_clean, pick, versus
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import results, table
from ...methods import bn_adapt, tta_averaging
from ...streams.scenes import SceneSpec
from ...world.severities import TEST
from ..trials import CLASSIFIERS, ONLINE, clean_spec, effect_jobs, method_job, reader_jobs, small_grid, source_jobs
from .choose import MAE, choose_rates
from .one_by_one import common


def natural() -> list[Records]:
    """The paper's single-sample table: clean scenes and the five natural shifts, beside TENT and CoTTA."""
    shifts = ("v2", "a", "r", "sketch", "stylized")
    specs = [clean_spec(), *(SceneSpec(100, name, 0, "test", 23_000 + 100 * i) for i, name in enumerate(shifts))]
    jobs = effect_jobs(specs)
    for row in ("tent", "cotta"):
        jobs += [method_job(row, rival(row, c), c, s, row) for c in CLASSIFIERS for s in specs]
    return table("natural", jobs)


def online() -> list[Records]:
    """The paper's online table: state carried on, in three orders; episodic method and entropy baselines beside it."""
    specs = small_grid()
    jobs = source_jobs(specs) + effect_jobs(specs, views=("full",))[len(source_jobs(specs)) :]
    for c in CLASSIFIERS:
        rows = {"bn_adapt": bn_adapt.Settings()} if c == "classifier/resnet" else {}
        rows |= {row: rival(row, c) for row in ("tent", "cotta", "diffusion_tta online")}
        for row, settings in rows.items():
            for order, met in {"iid": specs, "correlated": specs, "mixed": [tuple(specs)]}.items():
                jobs += [method_job(row, settings, c, s, f"{row}/{order}", order=order, **ONLINE) for s in met]
    return table("online", jobs)


def rivals() -> list[Records]:
    """What one would try on a ResNet for a single image, on the small grid: at most 96 evaluations of the diffusion
    model per image, the Diffusion Classifier at five times as many beside it; TTT-MAE on its own network, with 16 masks
    where 128 are published. Beside them the statistics of a batch of 50."""
    specs, resnet = small_grid(), CLASSIFIERS[0]
    choose_rates((MAE,))
    prepared = ("classifier/resnet-augmix", "classifier/resnet-ceiling")
    jobs = source_jobs(specs, (resnet, *prepared, MAE))
    jobs += [j for pairs in (9, 48) for j in reader_jobs(specs, pairs, chosen_window())]
    jobs += effect_jobs(specs, (resnet,))[len(source_jobs(specs, (resnet,))) :]
    jobs += [method_job("bn_adapt", bn_adapt.Settings(), resnet, s, "bn_adapt") for s in specs]
    jobs += [method_job("tta_averaging", tta_averaging.Settings(), resnet, s, "tta_averaging") for s in specs]
    rows = ("memo", "dusa", "dusa one by one", "diffusion_tta online")
    jobs += [method_job(row, rival(row, resnet), resnet, s, row) for row in rows for s in specs]
    for row, settings in {"ttt_mae": rival("ttt_mae", MAE), "diffusion_tta": tuned(MAE)}.items():
        jobs += [method_job(row, settings, MAE, s, f"{row} (mae)") for s in specs]
    return table("rivals", jobs)


# made on demand: one saw the diffusion model's labelled scenes on the low view, one has its reading for labels
SAME_LABELS, DISTILLED = "classifier/resnet-60000", "classifier/resnet-distilled"
ADAPTED = ("source/full", "source/low", "diffusion_tta/full", "diffusion_tta/low")  # rows of `backbones`


def corruption_specs() -> tuple[list[SceneSpec], list[SceneSpec]]:
    """The fifteen corruptions at severity 5: the 40 scenes of `test` under each, and the 60 more of `backbones`."""
    first = [SceneSpec(40, name, 5, "test", 40 * i) for i, name in enumerate(TEST)]
    return first, [SceneSpec(60, name, 5, "test", 27_000 + 60 * i) for i, name in enumerate(TEST)]


def information() -> list[Records]:
    """A ResNet with labels and resolution of the diffusion model, and one that learned from its reading, on the scenes
    of `backbones` and clean ones."""
    first, more = corruption_specs()
    return table("information", source_jobs([*first, *more, clean_spec()], (SAME_LABELS, DISTILLED)))


def same_labels(runs: list[Records]) -> str:
    """What labels alone buy: that ResNet on the low view, beside the ResNet with 1,500 labels, adapted or not, and the
    one that learned from the reader, on the scenes of `backbones`, and beside the reader on those that it met; paired
    differences to the first, and of each row to the ResNet that learned from the reader, on its view."""
    clean = {(r.about["classifier"], r.about["label"]): accuracy([r]) for r in runs if is_clean(r)}
    shifted = [r for r in runs if not is_clean(r)]
    first = pick(shifted, "source/low", SAME_LABELS)
    taught = {view: pick(shifted, f"source/{view}", DISTILLED) for view in ("full", "low")}

    def row(name: str, mine: list[Records], view: str = "low") -> dict:
        met, line = {int(i) for r in mine for i in r.id}, {"row": name, "n": sum(map(len, mine))}
        line["right"] = f"{accuracy(mine):.1f}"
        for other, theirs in {"same labels": first, "taught by the reader": taught[view]}.items():
            here = [r for r in theirs if met.issuperset(r.id.tolist())]
            line[f"{other} minus it"] = "" if theirs is mine else str(versus(here, mine))
        return line

    rows = [row("ResNet, same 60,000 labels, low view", first)]
    rows += [row(f"ResNet, taught by the reader, {view} view", taught[view], view) for view in taught]
    for label in ADAPTED:
        rows.append(row(f"ResNet, {label}", pick(results("backbones"), label, CLASSIFIERS[0]), label.split("/")[1]))
    reader = readers()
    rows.append(row(f"the reader, {reader[0].nfe['denoiser fwd']:g} evaluations", reader))
    told = f"{clean[SAME_LABELS, 'source/low']:.1f}; taught by the reader {clean[DISTILLED, 'source/low']:.1f}"
    return f"{protocol_line(first)}\n{as_table(rows)}\n\nclean scenes, low view: same labels {told}"


def readers() -> list[Records]:
    """The runs of `test` that ask the diffusion model which class it sees."""
    return [r for r in results("test") if r.about["method"] == "diffusion_classifier"]


def against(runs: list[Records], ours: str = "diffusion_tta/full") -> list[dict]:
    """Rows of `rivals` on the ResNet, paired with our row; cost of the diffusion model per image in forward passes, a
    backward pass counted as two."""
    resnet, rows = [r for r in runs if r.about["classifier"] == CLASSIFIERS[0]], []
    for label in distinct(resnet, "label"):
        mine = pick(resnet, label)
        spent = forwards({kind: n for kind, n in mine[0].nfe.items() if kind.startswith("denoiser")})
        gap = "" if label == ours else str(versus(mine, pick(resnet, ours)))
        row = {"row": label, "right": f"{accuracy(mine):.1f}", "minus Diffusion-TTA": gap}
        rows.append(row | {"forward passes of the diffusion model": f"{spent:g}"})
    return rows


def reader_or_ours() -> list[dict]:
    """For each network of `backbones`: the reader and the adapted network on the 600 scenes of `test`, in pairs."""
    reader, rows = readers(), []
    for name in distinct(results("backbones"), "classifier"):
        row = {"network": name.split("/")[1], "n": sum(map(len, reader)), "reader": f"{accuracy(reader):.1f}"}
        for view in ("full", "low"):
            found = common(reader, pick(results("backbones"), f"diffusion_tta/{view}", name))
            row[f"reader minus Diffusion-TTA, {view} view"] = str(found)
        rows.append(row)
    return rows
