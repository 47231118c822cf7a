"""A diffusion model with no more labels than the classifier: what does it read, and does its feedback still help?

The first scenes of `test` under each of the fifteen corruptions and clean ones of `reading`. The reader is the pruned
one of `frontier`; Diffusion-TTA has the settings that were chosen with the shipped DiT, and the rate that the rule
gives for each DiT on the validation corruptions.
"""

from itertools import combinations

import numpy as np

from ...common.text import as_table
from ...evaluation.chosen import PRUNED, chosen_window
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, is_clean, pick
from ...evaluation.statistics import protocol_line
from ...evaluation.tables import Job, results
from ...methods import diffusion_classifier
from ...models import zoo
from ...recipes.dit import DIT, FEW, FEW_NULL, FEW_NULL_SHORT, FEW_SHORT, VARIANTS, WEAK
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..side_by_side import on_scenes, verdict
from ..trials import clean_spec, job, method_job, part
from .choose import chosen_rate
from .one_by_one import RESNET, common, light_table
from .rivals import corruption_specs

SHIFTED, CLEAN, BLOCK = 20, 100, 20  # scenes under each corruption, clean ones, scenes of a run
READER, OURS = "reader, pruned", "diffusion_tta/full"


def few(trained: tuple[str, ...]) -> str:
    """Of DiTs with the same labels that differ in their steps, the longest trained first, the one that stands for those
    that are listed: the better reader of selection scenes by its card, clean and under the four validation corruptions
    alike; of equals the first. Raises ValueError where none is listed."""
    listed = [name for name in trained if name in zoo.names()]
    if not listed:
        raise ValueError(f"neither of these DiTs is listed: run `python -m gentta_utils train {trained[-1]} --promote`")
    return max(listed, key=lambda name: np.mean(read_by_card(name)))


def asked() -> list[str]:
    """The DiTs that this is about: with 1,500 labels; with the other scenes, too, without their class; and with all
    labels for few steps, which tells what labels do from what training does. Raises as `few`."""
    return [few((FEW, FEW_SHORT)), few((FEW_NULL, FEW_NULL_SHORT)), WEAK]


def read_by_card(name: str) -> list[float]:
    """Percent that a DiT reads right by its card, on clean selection scenes and under each validation corruption."""
    quality = zoo.card(name)["quality"]
    return [quality["clean"], *(quality[f"{shift}_5"] for shift in VALIDATION)]


def blocks() -> list[SceneSpec]:
    """The scenes in runs of 20: those under each corruption, then clean ones."""
    clean = [part(clean_spec(), first, BLOCK) for first in range(0, CLEAN, BLOCK)]
    return [part(spec, 0, SHIFTED) for spec in corruption_specs()[0]] + clean


def named(row: str, denoiser: str) -> str:
    """The label of a row with this diffusion model."""
    return f"{row}, {denoiser.split('/')[1]}"


def reader_job(spec: SceneSpec, denoiser: str) -> Job:
    """The pruned reader of `frontier` with another diffusion model."""
    staged = diffusion_classifier.Settings(pairs=PRUNED[-1][0], window=chosen_window(), stages=PRUNED)
    return method_job("diffusion_classifier", staged, RESNET, spec, named(READER, denoiser), denoiser=denoiser)


def few_labels() -> list[Records]:
    """Reader and Diffusion-TTA of the ResNet with each of `asked`; the shipped DiT reads the clean scenes, and has its
    other rows in other tables."""
    jobs = [reader_job(spec, DIT) for spec in blocks() if spec.shift == "clean"]
    for denoiser in asked():
        settings, label = chosen_rate(RESNET, {}, denoiser), named(OURS, denoiser)
        jobs += [reader_job(spec, denoiser) for spec in blocks()]
        jobs += [job("diffusion_tta", settings, RESNET, s, label, denoiser=denoiser, batch=BLOCK) for s in blocks()]
    return light_table("few_labels", jobs)


def matched(runs: list[Records]) -> str:
    """For each DiT on the same scenes: what it reads, its lead over the ResNet, what Diffusion-TTA gains over the
    ResNet and over the ResNet on the low view, which the DiT sees too; below, what follows at matched labels."""
    lines, found = [], {}
    for kind, here in (("15 corruptions", lambda r: not is_clean(r)), ("clean", is_clean)):
        shown = [r for r in runs if here(r)]
        met = {int(i) for r in shown if r.about["label"].startswith(f"{OURS}, ") for i in r.id}
        shipped = _shipped(shown, kind == "clean")
        source, low, all_labels = (on_scenes(shipped[row], met) for row in ("source/full", "source/low", OURS))
        names = [DIT, *dict.fromkeys(r.about["denoiser"] for r in shown if "denoiser" in r.about)]
        for name in names:
            reader, ours = (pick(shown, named(row, name)) for row in (READER, OURS))
            if name == DIT:
                reader, ours = reader or on_scenes(shipped[READER], met), all_labels
            row = {"scenes": kind, "DiT": name.split("/")[1], "n": sum(map(len, ours))}
            lead, gained = common(reader, source), common(ours, source)
            row |= {"reader": f"{accuracy(reader):.1f}", "ResNet": f"{accuracy(source):.1f}", "lead": str(lead)}
            row |= {"Diffusion-TTA": f"{accuracy(ours):.1f}", "gain": str(gained)}
            row |= {"minus low view": str(common(ours, low)), "minus with dit": str(common(ours, all_labels))}
            lines.append(row | {"minus with dit": ""} if name == DIT else row)
            found[kind, name] = lead, gained
    said = [
        f"{kind}, {name.split('/')[1]}: the reader is ahead of the ResNet: {verdict(lead)}; its feedback helps: "
        f"{verdict(gained)}"
        for (kind, name), (lead, gained) in found.items()
    ]
    line = protocol_line([r for r in runs if r.about["method"] == "diffusion_tta"])
    return "\n".join([line, as_table(lines), "", *said, "", *_labels_alone(runs), cards()])


def _labels_alone(runs: list[Records]) -> list[str]:
    """What the labels do where all else is equal: each two of the DiTs that were trained for as long as `WEAK`, one
    minus the other."""
    said, there = [], distinct([r for r in runs if "denoiser" in r.about], "denoiser")
    alike = [name for name in there if VARIANTS[name].schedule == VARIANTS[WEAK].schedule]
    for pair in combinations(alike, 2):
        for kind, here in (("15 corruptions", lambda r: not is_clean(r)), ("clean", is_clean)):
            shown = [r for r in runs if here(r)]
            read, ours = (common(*(pick(shown, named(row, name)) for name in pair)) for row in (READER, OURS))
            what = " minus ".join(name.split("/")[1] for name in pair)
            each = (f"{row} {d} ({verdict(d)})" for row, d in (("reader", read), ("Diffusion-TTA", ours)))
            said.append(f"{kind}, {what}, as many steps: {', '.join(each)}")
    return [*said, ""]


def cards() -> str:
    """Labels and steps of the shipped DiT and of those of `asked`, and what they read of selection scenes, by their
    cards."""
    each = []
    for name in (DIT, *asked()):
        clean, *shifted = read_by_card(name)
        trained = f"{VARIANTS[name].labelled:,} labels, {zoo.card(name)['steps']:,} steps"
        each.append(f"{name.split('/')[1]} ({trained}) {clean:.0f} and {np.mean(shifted):.0f}")
    return f"percent read of 50 clean selection scenes and of 4 x 50 shifted ones (cards): {', '.join(each)}"


def _shipped(shown: list[Records], clean: bool) -> dict[str, list[Records]]:
    """Row -> the records of the ResNet in other tables, with the shipped DiT where there is one."""
    other = results("clean" if clean else "backbones")
    return {row: pick(other, row, RESNET) for row in ("source/full", "source/low", OURS)} | {
        READER: [] if clean else pick(results("frontier"), READER)
    }
