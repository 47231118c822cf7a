"""A second world, of real pictures: do the ranks of the methods carry over from scenes to handwritten digits?

The digits are those of notebook 01, with its diffusion model; a small network with batch norm knows the labels of 300
of them, as on scenes the classifier knows fewer labels than the diffusion model. Both are trained here, in seconds. All
methods run through the contracts that they have on scenes, on images (B, 3, 8, 8) in [0, 1] with three equal channels,
and with the settings that were chosen on scenes. Only what is a length (low-pass and scale of the guidance) or a
learning rate of Diffusion-TTA (by the same rule) follows the smaller image. Nothing is chosen on test digits.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from ...common.paths import RESULTS
from ...common.text import as_table
from ...common.types import Images, Index
from ...common.validate import check_choice
from ...evaluation.chosen import PRUNED, choice, chosen_window, purifier, rival, tuned
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, distinct, pick, shift_of, versus
from ...evaluation.statistics import FEWER_DRAWS, ON_VALIDATION, Interval, protocol_line
from ...evaluation.tables import Job, results
from ...methods import METHODS, bn_adapt, diffusion_classifier, diffusion_tta, ensemble, source, tta_averaging
from ...methods.base import Models, stated
from ...models.classifier import Classifier, MeanPool
from ...streams.stream import Stream, iid
from ...world.corruptions import version, with_constant
from ...world.severities import TEST
from ...world.views import augment
from ..digits import CLASSES, DigitDenoiser, Digits, load, train
from ..purified import small_table
from ..side_by_side import ensemble_temperature
from ..trials import CLASSIFIERS, SMALL, how_of

SIDE = 8
DIGITS = 120  # test digits of the table, the same under every shift
LABELLED = 300  # of the 1,400 training digits, for the classifier
STEPS = {"classifier": 600, "denoiser": 3000}  # of training
# Of `world.corruptions`, the kinds that mean something at 8 x 8 pixels, each with the constant of a grid that leaves
# the classifier nearest to 60% right of 400 training digits that it never saw (fog 45%, contrast 24% at the mildest)
CONSTANTS = {
    "gaussian_noise": 0.3,
    "impulse_noise": 0.15,
    "motion_blur": (2, 1.5),
    "fog": (0.5, 2),
    "contrast": 0.5,
    "pixelate": 0.625,
    "checkerboard_cutout": 0.8,
}
RATE_SHIFTS = {"speckle_noise": 0.8, "gaussian_blur": 0.8}  # where the learning rate is found, on training digits
AS_IN_THE_GRID = {"TTA-averaging": "tta_averaging", "BN-adapt": "bn_adapt", "MEMO": "memo", "DiffPure": "diffpure"}
AS_IN_THE_GRID |= {"TEA": "tea", "DUSA": "dusa"}
PURIFIED = ("diffpure", "dda, sum", "dda, chosen")


class PictureDenoiser(DigitDenoiser):
    """The diffusion model of digits for task images (B, 3, 8, 8) in [0, 1]."""

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        return super().encode(images.mean(1, keepdim=True) * 2 - 1)

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        return ((x0 + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)


class SmallNet(nn.Module):
    """Three convolutions with batch norm, a mean over space, a linear layer: (B, 3, 8, 8) to logits (B, K)."""

    def __init__(self, width: int = 32):
        super().__init__()
        sizes = ((3, width), (width, 2 * width), (2 * width, 2 * width))
        layers = [
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o in sizes
        ]
        self.body = nn.Sequential(layers[0], layers[1], nn.AvgPool2d(2), layers[2], MeanPool(), nn.Flatten())
        self.head = nn.Linear(2 * width, CLASSES)

    def get_classifier(self) -> nn.Module:
        """The last layer, by timm's name for it."""
        return self.head

    def forward(self, x: Tensor) -> Float[Tensor, "B K"]:
        return self.head(self.body(x))


def pictures(digits: Images) -> Float[Tensor, "B 3 8 8"]:
    """Digits (B, 1, 8, 8) in [-1, 1] as task images (B, 3, 8, 8) in [0, 1]."""
    return ((digits + 1) / 2).expand(-1, 3, -1, -1).contiguous()


def shifted(images: Float[Tensor, "B 3 8 8"], name: str, ids: Index, seed: int = 0) -> Float[Tensor, "B 3 8 8"]:
    """Task images under a corruption of `CONSTANTS` or `RATE_SHIFTS`, grey again by their first channel, or "clean".

    Raises ValueError for another name."""
    check_choice("shift", name, ("clean", *CONSTANTS, *RATE_SHIFTS))
    if name == "clean":
        return images
    return (
        with_constant(images, name, (CONSTANTS | RATE_SHIFTS)[name], ids, seed)[:, :1]
        .expand(-1, 3, -1, -1)
        .contiguous()
    )


def train_classifier(data: Digits, steps: int, batch: int = 64, seed: int = 0) -> Classifier:
    """A `SmallNet` trained on these digits, shifted by up to a pixel; frozen."""
    images, g = pictures(data.images), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SmallNet()
    mean, std = float(images.mean()), float(images.std())
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (batch,), generator=g)
        x = (augment(images[rows], g, pad=1, flips=False) - mean) / std
        loss = nn.functional.cross_entropy(network(x), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.requires_grad_(False)
    return Classifier(network, (mean,) * 3, (std,) * 3, SIDE, CLASSES, "digits/net")


@lru_cache(maxsize=1)
def models() -> Models:
    """The two networks, trained on the training digits: half a minute on one core, once per process."""
    whole = load("train")
    some = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:LABELLED]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = PictureDenoiser()
    train(denoiser, whole.images, whole.labels, STEPS["denoiser"])
    few = Digits(whole.images[some], whole.labels[some], whole.ids[some])
    return Models(train_classifier(few, STEPS["classifier"]), denoiser)


def stream(name: str, n: int = DIGITS) -> Stream:
    """n test digits, of 397, under a shift, in random order."""
    test = load("test")
    about = {"world": "digits", "shift": name, "severity": 0, "seed": 0, "split": "test", "n": n}
    if name != "clean":
        about |= {"constant": CONSTANTS[name], "corruptions": f"in-memory {version(name, 0)}"}
    whole = iid(Stream(pictures(test.images), test.labels, test.ids, about)).rows(torch.arange(n))
    return replace(whole, images=shifted(whole.images, name, whole.ids))


def with_rate(settings: diffusion_tta.Settings) -> diffusion_tta.Settings:
    """These settings with the rate that the rule of scenes gives on 2 x 32 training digits under `RATE_SHIFTS`."""
    whole = load("train")
    parts = [slice(32 * i, 32 * i + 32) for i in range(len(RATE_SHIFTS))]
    images = [
        shifted(pictures(whole.images[p]), name, whole.ids[p]) for p, name in zip(parts, RATE_SHIFTS, strict=True)
    ]
    ids = torch.cat([whole.ids[p] for p in parts])
    lr = diffusion_tta.learning_rate(models(), torch.cat(images), ids, settings, choice()["delta"])
    return replace(settings, lr=float(f"{lr:.3g}"))


def rows() -> dict[str, tuple[str, object]]:
    """Row -> method and settings, under the names that the rows have on scenes; views are not mirrored."""
    resnet, reader = CLASSIFIERS[0], f"reader/48 pairs/{'..'.join(map(str, chosen_window()))}"
    read = diffusion_classifier.Settings(window=chosen_window())
    naive = ensemble.Settings(reader=replace(read, temperature=ensemble_temperature(reader)))
    small = dict(scale=purifier("dda").scale * SIDE / 32, factor=2)  # on scenes at 32 px, with factor 4
    return {
        "source/full": ("source", source.Settings()),
        "source/low": ("source", source.Settings("low")),
        "tta_averaging": ("tta_averaging", tta_averaging.Settings(crop="none")),
        "bn_adapt": ("bn_adapt", bn_adapt.Settings()),
        "tent": ("tent", rival("tent", resnet)),
        "memo": ("memo", replace(rival("memo", resnet), crop="none")),
        "tea": ("tea", rival("tea", resnet)),
        "dusa": ("dusa", rival("dusa", resnet)),
        reader: ("diffusion_classifier", read),
        "reader, pruned": ("diffusion_classifier", replace(read, pairs=PRUNED[-1][0], stages=PRUNED)),
        "naive ensemble": ("ensemble", naive),
        "diffusion_tta/full": ("diffusion_tta", with_rate(tuned(resnet, "full"))),
        "diffusion_tta/low": ("diffusion_tta", with_rate(tuned(resnet, "low"))),
        "diffpure": ("diffpure", purifier("diffpure")),
        "dda, sum": ("dda", purifier("dda", **small)),
        "dda, chosen": ("dda", purifier("dda", **small, ensemble="purified")),
    }


def jobs(n: int = DIGITS) -> list[Job]:
    """Every row on clean digits and under every corruption. Trains the networks: the learning rates depend on them."""
    known = rows()
    return [_job(label, *known[label], name, n) for name in ("clean", *CONSTANTS) for label in known]


def _job(label: str, method: str, settings, name: str, n: int) -> Job:
    needs, how, s = METHODS[method].NEEDS, how_of(method, settings), stream(name, n)
    version_of_method = getattr(METHODS[method], "VERSION", 1)
    about = {
        "method": method,
        "label": label,
        "settings": stated(settings),
        "classifier": "digits/net",
        **({"denoiser": "digits/mlp"} if needs.denoiser else {}),
        "models": {"classifier": f"{LABELLED} labels, {STEPS['classifier']} steps"}
        | ({"denoiser": f"{STEPS['denoiser']} steps"} if needs.denoiser else {}),
        "precision": "fp32",
        "stream": s.about,
        "how": how,
        "select": "none" if method == "source" else ON_VALIDATION,
        **({"method_version": version_of_method} if version_of_method > 1 else {}),
    }
    return about, lambda: run(METHODS[method].configure(models(), settings), s, about=about, **how)


def digits() -> list[Records]:
    """The table `digits`: all rows on the same test digits, clean and under seven corruptions."""
    return small_table("digits", jobs())


# --- report ----------------------------------------------------------------------------------------------------------


def summaries(runs: list[Records]) -> list[dict]:
    """A row per method: percent right by shift, its mean under corruptions, and the paired difference to the source."""
    corrupted, found = [r for r in runs if r.about["stream"]["shift"] != "clean"], []
    source_rows = pick(corrupted, "source/full")
    for label in distinct(runs, "label"):
        mine = pick(corrupted, label)
        row = {"row": label} | {shift_of(r): f"{accuracy([r]):.1f}" for r in pick(runs, label)}
        row["mean"] = f"{accuracy(mine):.1f}"
        row["minus source"] = "" if label == "source/full" else str(versus(mine, source_rows))
        found.append(row)
    return found


Differences = dict[str, tuple[np.ndarray, np.ndarray]]  # row -> right minus the source's (N,), and the scene (N,)


def minus_source(runs: list[Records]) -> Differences:
    """Of every row of one classifier: right or wrong (1, 0) minus the source's on the same scene and shift."""
    base = {(shift_of(r), i): ok for r in pick(runs, "source/full") for i, ok in zip(r.id, r.right_after, strict=True)}
    found: Differences = {}
    for label in distinct(runs, "label"):
        mine = pick(runs, label)
        gained = [
            float(ok) - float(base[shift_of(r), i]) for r in mine for i, ok in zip(r.id, r.right_after, strict=True)
        ]
        found[label] = np.array(gained), np.concatenate([r.id for r in mine])
    return found


def on_scenes() -> Differences:
    """The same rows of the ResNet on scenes, by their names here: those of the grid under the fifteen corruptions.

    Before the grid is measured, those of the tables of notebooks 02 and 05, on the five corruptions that both met. A
    row's gain is over the source on its own scenes, which may differ from row to row."""
    resnet = CLASSIFIERS[0]
    if (RESULTS / "grid.npz").is_file():
        mine = minus_source(pick(results("grid"), classifier=resnet, shifts=TEST))
        return {AS_IN_THE_GRID.get(label, label): v for label, v in mine.items()}
    rivals, changed = (
        minus_source(pick(results(name), classifier=resnet, shifts=SMALL)) for name in ("rivals", "sda_corruptions")
    )
    return rivals | {label: changed[label] for label in PURIFIED}


def carried(
    one: Differences, other: Differences, draws: int = FEWER_DRAWS, seed: int = 0
) -> tuple[list[str], Interval]:
    """Rows that both worlds have, and Kendall's tau of their order by gain (in hundredths) with a 95% interval.

    Scenes of each world are resampled, all rows together. Noise hides an order, so the interval leans towards 0."""
    names = [k for k in one if k in other]
    rng = np.random.default_rng(seed)
    means = [_means([world[k] for k in names], rng, draws) for world in (one, other)]
    taus = [stats.kendalltau(a, b).statistic for a, b in zip(*means, strict=True)]
    return names, Interval(100 * taus[0], *(100 * float(v) for v in np.nanpercentile(taus[1:], [2.5, 97.5])))


def _means(rows: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, draws: int) -> np.ndarray:
    """Mean gain (1 + draws, rows): as measured, then with the scenes resampled."""
    scenes = np.unique(np.concatenate([scene for _, scene in rows]))
    weights = np.vstack(
        [np.ones(len(scenes)), rng.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), draws)]
    )
    columns = []
    for gained, scene in rows:
        w = weights[:, np.searchsorted(scenes, scene)]
        columns.append((w @ gained) / w.sum(1))
    return np.stack(columns, 1)


def ranks(runs: list[Records], scenes: Differences | None = None) -> list[dict]:
    """Rank and gain over the source of each row that both worlds have, best on scenes first."""
    scenes, here = on_scenes() if scenes is None else scenes, minus_source(runs)
    names = sorted((k for k in scenes if k in here), key=lambda k: -scenes[k][0].mean())
    order = sorted(names, key=lambda k: -here[k][0].mean())
    return [
        {
            "row": k,
            "gain on scenes": f"{100 * scenes[k][0].mean():+.1f}",
            "gain on digits": f"{100 * here[k][0].mean():+.1f}",
            "rank on scenes": i + 1,
            "rank on digits": order.index(k) + 1,
        }
        for i, k in enumerate(names)
    ]


def show(runs: list[Records]) -> str:
    """The table, and whether the ranks carry over: of all rows, and without those on the low view, of 4 x 4 pixels."""
    corrupted = [r for r in runs if r.about["stream"]["shift"] != "clean"]
    scenes, here = on_scenes(), minus_source(corrupted)
    full = {label: v for label, v in here.items() if not label.endswith("/low")}
    said = [_tau(scenes, rows, kind) for kind, rows in (("rows", here), ("rows on the full view", full))]
    return "\n".join([protocol_line(runs), as_table(summaries(runs)), "", as_table(ranks(corrupted)), "", *said])


def _tau(scenes: Differences, here: Differences, kind: str) -> str:
    names, tau = carried(scenes, here)
    mean, low, high = (v / 100 for v in (tau.mean, tau.low, tau.high))
    return f"Kendall's tau of {len(names)} {kind}, by gain on scenes and on digits: {mean:.2f} [{low:.2f}, {high:.2f}]"
