"""Diffusion-TTA online as published: one update per image, the state carried on through the stream of a shift.

The five corruptions of the paper's table at severity 5. What is adapted and how far is chosen for each network on
streams of the four validation corruptions, long enough for what ruins a stream to show.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ...common.text import as_table
from ...common.validate import frozen
from ...evaluation.chosen import tuned
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick
from ...evaluation.statistics import FEWER_DRAWS, Interval, paired_interval, protocol_line
from ...evaluation.tables import Job, results, table
from ...methods import diffusion_tta
from ...streams.scenes import SceneSpec
from ...world.severities import VALIDATION
from ..side_by_side import by_scene, verdict
from ..trials import CLASSIFIERS, SMALL, coarse, decided, job, part, right, source_jobs
from .choose import chosen_rate

RESNET = CLASSIFIERS[0]
LONG = 1000  # scenes kept apart for a stream
PAIRS = 8  # of an update
# of the rate that the rule gives for one update; what is adapted -> candidates
SHARES = {"all": (0.01, 0.03, 0.1), "norm": (0.01, 0.03, 0.1, 0.3)}
ALONE = (1.0, 3.0, 10.0)  # for one update from the source
FEW = 200  # scenes of a choice under each validation corruption
SCENES = {RESNET: LONG, "classifier/vit": LONG, "classifier/convnext": 500}  # under each corruption
REPEATED = 10  # scenes under each corruption, in each of these orders with each of these seeds of draws
ORDERS = SEEDS = (0, 1, 2)
BLOCK = 100  # images of a stream, over which the carried state's accuracy is averaged
LAST = 20  # scenes of a stream on which the chosen episodic settings run too
VOTES = partial(decided, others=-1.0)  # what records of long streams keep of logits
ONLINE, EPISODIC, WHOLE = "online", "episodic", "episodic, 96 evaluations"


def long_specs(n: int) -> list[SceneSpec]:
    """The first n of 1,000 scenes under each of the five corruptions."""
    return [SceneSpec(n, name, 5, "test", 40_000 + LONG * i) for i, name in enumerate(SMALL)]


def select_specs(n: int, corruptions: int = len(VALIDATION)) -> list[SceneSpec]:
    """The first n of 400 selection scenes under each of the first so many validation corruptions."""
    return [SceneSpec(n, name, 5, "select", 50_000 + 400 * i) for i, name in enumerate(VALIDATION[:corruptions])]


def light_table(name: str, jobs: list[Job], logits: Callable[[np.ndarray], np.ndarray] = coarse) -> list[Records]:
    """`tables.table` with coarse logits and without losses, for streams are long; jobs on one corruption one after the
    other, so that its scenes are rendered once. `logits`: what is kept of them, (B, K)."""
    none = lambda r: np.zeros((len(r), 0), np.float32)  # noqa: E731
    mean = lambda r: np.full(len(r), r.seconds.mean(), np.float32)  # noqa: E731
    kept = lambda r: replace(r, before=logits(r.before), after=logits(r.after), loss=none(r), seconds=mean(r))  # noqa: E731
    return table(name, sorted(jobs, key=lambda j: (j[0]["stream"]["start"], j[0]["stream"]["n"])), kept=kept)


def common(one: list[Records], other: list[Records]) -> Interval:
    """Paired difference of two rows, `one` minus `other`, on the scenes of `one`.

    Raises ValueError where the other did not meet all of them."""
    there, scene = by_scene(other), np.concatenate([r.id for r in one])
    if missing := set(scene.tolist()) - set(there):
        raise ValueError(f"the second row did not meet {len(missing)} scenes of the first: they cannot be paired")
    right_of = np.concatenate([r.right_after for r in one])
    return paired_interval(right_of, np.array([there[i] for i in scene.tolist()]), scene, draws=FEWER_DRAWS)


def stepped(classifier: str, param_set: str, share: float, online: bool) -> diffusion_tta.Settings:
    """One update of 8 pairs at a share of the rate that the rule gives for this network and these parameters."""
    by_rule = chosen_rate(classifier, dict(updates=1, pairs=PAIRS, param_set=param_set))
    return replace(by_rule, online=online, lr=float(f"{share * by_rule.lr:.3g}"))


def candidates(classifier: str) -> dict[str, diffusion_tta.Settings]:
    """Label -> settings for a network, online and, with as many evaluations, episodic."""
    found = {}
    for param_set, shares in SHARES.items():
        for share in shares:
            settings = stepped(classifier, param_set, share, online=True)
            found[f"{ONLINE}, {param_set}, lr {settings.lr:g}, share {share:g}"] = settings
    for share in ALONE:
        settings = stepped(classifier, "all", share, online=False)
        found[f"{EPISODIC}, lr {settings.lr:g}, share {share:g}"] = settings
    return found


def met(classifier: str, settings: diffusion_tta.Settings, spec, label: str, **how) -> Job:
    """A run online, image by image, or episodic, many at once."""
    if settings.online:
        return job("diffusion_tta", settings, classifier, spec, label, reset="per_shift", batch=1, **how)
    return job("diffusion_tta", settings, classifier, spec, label, batch=20)


def select_one_by_one() -> list[Records]:
    """Parameters and rate online, and the rate of one update from the source, for each network on streams of the
    validation corruptions; `chosen_step` reads what did best."""
    made = [met(c, s, at, k) for c in SCENES for k, s in candidates(c).items() for at in select_specs(FEW)]
    return light_table("select_one_by_one", made, VOTES)


def chosen_step(kind: str, classifier: str = RESNET) -> diffusion_tta.Settings:
    """The settings of "online" or "episodic" that did best for a network. Raises as `results`."""
    runs = pick(results("select_one_by_one"), classifier=classifier)
    mine = [label for label in distinct(runs, "label") if label.startswith(f"{kind},")]
    best = max(mine, key=lambda label: right(runs, label))  # ties go to the earlier one
    return diffusion_tta.Settings(**frozen(pick(runs, best)[0].about["settings"]))


def one_by_one() -> list[Records]:
    """ResNet and ViT on 1,000 scenes under each corruption, the ConvNeXt on 500: source, online, and episodic
    with one update; the first ten again, in three orders with three seeds; the chosen episodic settings on the last
    twenty."""
    jobs = []
    for classifier, n in SCENES.items():
        for spec in long_specs(n):
            jobs += source_jobs([spec], (classifier,))[:1]
            jobs += [met(classifier, chosen_step(kind, classifier), spec, kind) for kind in (ONLINE, EPISODIC)]
    online = chosen_step(ONLINE)
    for spec in long_specs(REPEATED):
        for order in ORDERS:
            for seed in SEEDS:
                label = f"{ONLINE}, order {order}, seed {seed}"
                jobs.append(met(RESNET, replace(online, seed=seed), spec, label, order_seed=order))
    jobs += [met(RESNET, tuned(RESNET), part(spec, LONG - LAST, LAST), WHOLE) for spec in long_specs(LONG)]
    return light_table("one_by_one", jobs, VOTES)


def online_rows(runs: list[Records]) -> str:
    """For each network accuracy and paired difference to the source of each row, on the scenes that it met; online
    minus episodic and the verdict on the published shape; the accuracy of the carried state before each update, by
    blocks of images; and how far orders and seeds differ."""
    parts, rows = [], []
    for classifier in distinct(runs, "classifier"):
        mine = pick(runs, classifier=classifier)
        name = classifier.split("/")[1]
        for label in (k for k in ("source/full", ONLINE, EPISODIC, WHOLE) if pick(mine, k)):
            rows.append(_row(name, label, pick(mine, label), pick(mine, "source/full")))
        online, alone = pick(mine, ONLINE), pick(mine, EPISODIC)
        difference, states = common(online, alone), ", ".join(f"{v:.1f}" for v in carried(online))
        parts.append(
            f"{name}: online minus episodic {difference}; the published shape, online above episodic: "
            f"{verdict(difference)}. The carried state before each update, by {BLOCK} images: {states}"
        )
    again = {k: accuracy(pick(runs, k)) for k in distinct(runs, "label") if k.startswith(f"{ONLINE}, order")}
    values = list(again.values())
    parts.append(
        f"The first {REPEATED} scenes of each in {len(ORDERS)} orders with {len(SEEDS)} seeds of draws: "
        f"{np.mean(values):.1f} right on average, from {min(values):.1f} to {max(values):.1f}"
    )
    met_by = protocol_line([r for r in runs if r.about["method"] != "source"])
    return "\n".join([met_by, as_table(rows), "", *parts])


def _row(name: str, label: str, mine: list[Records], source: list[Records]) -> dict:
    mine = sorted(mine, key=lambda r: SMALL.index(r.about["stream"]["shift"]))
    row = {"network": name, "row": label, "n": sum(map(len, mine)), "mean": f"{accuracy(mine):.1f}"}
    row |= {r.about["stream"]["shift"]: f"{100 * r.right_after.mean():.0f}" for r in mine}
    return row | {"minus source": "" if label == "source/full" else str(common(mine, source))}


def carried(runs: list[Records]) -> list[float]:
    """Percent right of the carried state before it has seen an image, by `BLOCK` images along the streams."""
    right_of = np.stack([r.right_before[: len(r) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1) for r in runs])
    return (100 * right_of.mean(0)).tolist()
