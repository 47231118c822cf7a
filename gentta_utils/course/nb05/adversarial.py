"""What DiffPure was made for: images that an attack has moved (`measure sda_adversarial`).

    x <- clip(x + eps/4 sign grad_x CE(f(x), y)) to |x - x0| <= eps and [0, 1], from a random point within eps

PGD (Madry et al., ICLR 2018). The attack knows the classifier alone; or also that there is a DiffPure before it: then
its gradient passes straight through the purifier, averaged over the purifier's noise (Athalye et al., ICML 2018).
"""

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.randomness import generator
from ...common.text import as_table
from ...evaluation.records import Records
from ...evaluation.rows import distinct, pick
from ...evaluation.statistics import accuracy_interval
from ...methods import diffpure
from ...models import zoo
from ...recipes.aligned import ALIGNER
from ...streams.scenes import SceneSpec
from ...streams.stream import Stream, stream
from ..purified import ours, small_table
from ..trials import source_jobs
from .experiments import input_jobs, set_of
from .report import LOW, ROW_NAMES, SOURCE, header, minus, percent, short, shown

NETWORKS = ("classifier/resnet", "classifier/swin")
EPS, STEPS = 4 / 255, 10  # published for ImageNet, and so many gradients
DRAWS = (2, 8)  # of the purifier's noise for each gradient that passes through it
SEEDS = (0, 1, 2)  # of the random point where an attack begins
DEFENCES = (49, 149, 249)  # DiffPure's starts; 149 is published for ImageNet
THROUGH = diffpure.Settings(start=149, steps=5)  # the attacker's purifier, which it can afford


@dataclass(frozen=True)
class Attacked:
    """Scenes that PGD has moved against a classifier: a stream for everything that takes one."""

    scenes: SceneSpec
    classifier: str = NETWORKS[0]
    through: diffpure.Settings | None = None  # the purifier that the attack knows of
    seed: int = 0
    draws: int = DRAWS[0]  # of its noise

    @property
    def name(self) -> str:
        """What it is called among the shifts."""
        more = f", {self.draws} draws" if self.draws > DRAWS[0] else ""
        return f"pgd{f' through DiffPure{more}' if self.through else ''}, seed {self.seed}"

    def describe(self) -> dict:
        """For records: all that the images depend on."""
        attack = {"eps": EPS, "steps": STEPS, "classifier": zoo.fingerprint(self.classifier), "seed": self.seed}
        if self.through:
            attack |= {"through": asdict(self.through), "draws": self.draws, "denoiser": zoo.fingerprint(ALIGNER)}
        return self.scenes.describe() | {"shift": self.name, "attack": attack}

    def load(self) -> Stream:
        """The attacked images, with the scenes' labels and ids."""
        s, classifier = stream(self.scenes), zoo.cached(self.classifier)
        purifier = zoo.cached(ALIGNER) if self.through else None

        def read(x: Tensor, step: int, draw: int) -> Tensor:
            if purifier is None:
                return classifier(x)
            how = replace(self.through, seed=1 + self.seed + len(SEEDS) * (step * self.draws + draw))  # of no defender
            return classifier(x + (diffpure.purify(purifier, x.detach(), s.ids, how) - x).detach())

        moved = pgd(read, s.images, s.labels, s.ids, self.draws if self.through else 1, self.seed)
        return replace(s, images=moved, about=self.describe())


def pgd(read, images: Tensor, labels: Tensor, ids: Tensor, draws: int = 1, seed: int = 0) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] at most EPS from `images`, moved against `read(x, step, draw)` -> logits (B, K)."""
    start = torch.stack([torch.rand(images.shape[1:], generator=generator(seed, i, "pgd")) for i in ids.tolist()])
    low, high = (images - EPS).clamp_min(0), (images + EPS).clamp_max(1)
    x = low + start * (high - low)
    for step in range(STEPS):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            loss = sum(F.cross_entropy(read(x, step, d), labels, reduction="sum") for d in range(draws))
            (grad,) = torch.autograd.grad(loss, x)
        x = torch.minimum(torch.maximum(x.detach() + EPS / 4 * grad.sign(), low), high)
    return x


def adversarial() -> list[Records]:
    """Each network's defences on clean scenes, under an attack that does not know of them, from three seeds, and under
    one that attacks through DiffPure, averaged over eight draws of its noise, for the first network over two as well;
    each kind on 20 scenes of its own."""
    clean, through, *scenes = (SceneSpec(20, split="test", start=35_000 + 20 * i) for i in range(2 + len(SEEDS)))
    rows = {f"diffpure, t {t}": ("diffpure", replace(ours("diffpure"), start=t)) for t in DEFENCES}
    rows |= {f"dda, {k}": ("dda", ours("dda", e)) for k, e in (("alone", "purified"), ("sum", "sum"))}
    rows |= {f"sda, {k}": ("sda", ours("sda", e), set_of()) for k, e in (("alone", "purified"), ("sum", "sum"))}
    jobs = []
    for c in NETWORKS:
        draws = DRAWS if c == NETWORKS[0] else DRAWS[1:]
        specs = [clean, *(Attacked(through, c, THROUGH, draws=n) for n in draws)]
        specs += [Attacked(spec, c, seed=seed) for spec, seed in zip(scenes, SEEDS, strict=True)]
        for spec in specs:  # one after the other: few streams are kept, and an attack is made again
            jobs += source_jobs([spec], (c,)) + input_jobs(rows, (c,), [spec])
    return small_table("sda_adversarial", jobs)


def kinds_of(runs: list[Records]) -> dict[str, list[str]]:
    """Kind of attack -> its shifts, one a seed; "none" for the scenes as they are."""
    found: dict[str, list[str]] = {}
    for shift in dict.fromkeys(r.about["stream"]["shift"] for r in runs):
        found.setdefault("none" if shift == "clean" else shift.rsplit(", ", 1)[0], []).append(shift)
    return found


def rows_of(runs: list[Records]) -> list[dict]:
    """Each row of each network under each kind of attack: accuracy with its interval, over all seeds, and what it is
    above others."""
    rows = []
    for c in distinct(runs, "classifier"):
        for kind, shifts in kinds_of(runs).items():
            here = pick(runs, classifier=c, shifts=shifts)
            for label in distinct(here, "label"):
                mine = pick(here, label)
                row = {"classifier": short(c), "attack": kind, "seeds": len(shifts), "row": label}
                row["accuracy"] = accuracy_interval(mine)
                others = {"minus source": SOURCE, "minus low view": LOW}
                rows.append(
                    row | {k: None if label in (SOURCE, v) else minus(here, label, v) for k, v in others.items()}
                )
    return rows


def brief(runs: list[Records]) -> str:
    """The same as a grid, for the notebook: a line for each row, a column for each network and attack."""
    lines: dict[str, dict] = {}
    for row in rows_of(runs):
        lines.setdefault(row["row"], {"row": ROW_NAMES.get(row["row"], row["row"])})
        lines[row["row"]][f"{row['classifier']}, {row['attack']}"] = percent(row["accuracy"], 0)
    return f"{header(runs)}\n{as_table(list(lines.values()))}"


def report(runs: list[Records]) -> str:
    """Every defence under every kind of attack."""
    rows = [row | {"accuracy": percent(row["accuracy"])} for row in rows_of(runs)]
    return f"{header(runs)}\n{as_table([shown(row) for row in rows])}"
