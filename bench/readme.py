"""The README's tables of results, from the committed records.

python bench/readme.py          -> between the marks `<!-- NAME: bench/readme.py -->` and `<!-- end -->` of README.md
"""

import re

from gentta_utils.common.files import atomic_write
from gentta_utils.common.paths import ROOT
from gentta_utils.common.text import as_table
from gentta_utils.course import nb02, nb04, nb07
from gentta_utils.course.nb02.one_by_one import RESNET, common
from gentta_utils.evaluation.rows import accuracy, distinct, is_clean, over_classifiers, pick
from gentta_utils.evaluation.statistics import gain, summary
from gentta_utils.evaluation.tables import results

README = ROOT / "README.md"
SAME_LABELS = "ResNet, same 60,000 labels"  # as the diffusion model, and its resolution: shown on the low view alone
FEW_LABELS = "ResNet, a DiT with its 1,500 labels"  # on 20 scenes under each corruption
NULL_CLASS = "the same and 58,500 scenes without labels"
SHORT = "all 60,000 labels, as many steps as those"
NAMES = {"resnet": "ResNet", "vit": "ViT", "swin": "Swin", "convnext": "ConvNeXt"}
CHANGED = ("source/full", "source/low", "memo", "diffpure", "dda, sum", "sda, sum", "dda, chosen", "sda, chosen")
READ = {"source/full": "source", "source/low": "source on the low view"}  # label -> as the README has it


def answer() -> list[dict]:
    """What to use by how images come and what may be spent (`report grid`)."""
    return nb07.says.answer(nb07.board.board(results("grid"), "resnet"))


def backbones() -> list[dict]:
    """Diffusion-TTA of four classifiers, on both views, of the ResNet with DiTs that have no more labels than it, and a
    ResNet with the labels of the diffusion model."""
    runs, lines = results("backbones"), []
    for name in distinct(runs, "classifier"):
        of = lambda label, name=name: pick(runs, label, name)  # noqa: E731
        line = {"mean of 15 corruptions": NAMES[name.split("/")[1]]}
        line |= {"source": f"{accuracy(of('source/full')):.1f}"}
        line |= {"source on the low view": f"{accuracy(of('source/low')):.1f}"}
        for view, heads in (("full", ("Diffusion-TTA", "gain")), ("low", ("on the low view", "gain there"))):
            adapted = of(f"diffusion_tta/{view}")
            line |= {heads[0]: f"{accuracy(adapted):.1f}", heads[1]: str(gain(adapted))}
        lines.append(line)
    for name, said in zip(nb02.few_labels.asked(), (FEW_LABELS, NULL_CLASS, SHORT), strict=True):
        label = nb02.few_labels.named(nb02.few_labels.OURS, name)
        adapted = [r for r in pick(results("few_labels"), label) if not is_clean(r)]
        line = {"mean of 15 corruptions": said, "source": f"{summary(adapted)['before']:.1f}"}
        source = pick(runs, "source/full", RESNET)  # paired as in the notebook
        line |= {"Diffusion-TTA": f"{accuracy(adapted):.1f}", "gain": str(common(adapted, source))}
        lines.append(dict.fromkeys(lines[0], "") | line)
    same = pick(results("information"), "source/low", nb02.rivals.SAME_LABELS)
    right = {READ["source/low"]: f"{accuracy([r for r in same if not is_clean(r)]):.1f}"}
    return [*lines, dict.fromkeys(lines[0], "") | {"mean of 15 corruptions": SAME_LABELS} | right]


def changed_images() -> list[dict]:
    """Methods that change the image, six networks pooled, under corruptions and on clean scenes."""
    runs, clean, lines = results("sda_corruptions"), results("sda_clean"), []
    for label in CHANGED:
        mine, unshifted = pick(runs, label), [r for r in pick(clean, label) if is_clean(r)]
        line = {"mean of six networks": READ.get(label, label), "15 corruptions": f"{accuracy(mine):.1f}", "gain": ""}
        if label == "source/low":
            line["gain"] = str(over_classifiers(mine, pick(runs, "source/full")))
        elif label != "source/full":
            line["gain"] = str(gain(mine))
        lines.append(line | {"clean": f"{accuracy(unshifted):.1f}" if unshifted else ""})
    return lines


def maps() -> list[dict]:
    """Maps under the paper's six corruptions and on clean scenes: ours, and the variant that gains most."""
    lines = []
    for runs in (results("maps_classes"), results("maps_depth")):
        for network in nb04.report.networks_of(runs):
            for metric in nb04.report.METRICS[nb04.rows.target_of(network)]:
                lines += nb04.report.in_short(runs, network, metric)
    return lines


TABLES = {"answer": answer, "backbones": backbones, "changed images": changed_images, "maps": maps}


def filled(text: str, names: tuple[str, ...] = tuple(TABLES)) -> str:
    """The README's text with these tables made again. Raises ValueError where a mark is missing."""
    for name in names:
        begin, end = f"<!-- {name}: bench/readme.py -->\n", "\n<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no place for {name!r}: write {begin.strip()} and {end.strip()}")
        made = as_table(TABLES[name]())
        text = pattern.sub(lambda _: begin + made + end, text)
    return text


if __name__ == "__main__":
    made = filled(README.read_text(encoding="utf-8"))
    atomic_write(README, lambda path: path.write_text(made, encoding="utf-8"))
