"""Does SDA hand on a shortcut? Its generator drew the watermark where its own scenes had it (`measure sda_unmarked`).

30% of the training scenes of one class carry the watermark, and the source reads the class in it. A generator that was
trained on for 500 steps on the same scenes without it (`denoiser/dit-unmarked`) has less of a stripe to hand on, or
none: `carried` counts. Fine-tuning, training sets and seeds are those of the dial (`gap`), at the chosen alignment:
only the generator differs.

Written down before either was measured: under the watermark, on the projected image alone, SDA with this generator is
above SDA with the shipped one; on clean scenes and under corruptions they do not differ.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.files import read_json, write_json
from ...common.paths import RESULTS
from ...common.text import as_table
from ...evaluation.chosen import purifier
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, pick
from ...models import zoo
from ...recipes.aligned import GENERATOR, images_of
from ...recipes.dit import UNMARKED
from ...streams.scenes import SceneSpec
from ...world import scenes
from ...world.watermark import coverage, watermark
from ..purified import input_job, small_table
from ..trials import decided, source_jobs
from .experiments import THREE, table_specs, watermark_specs
from .gap import PER_CLASS, READINGS, SEEDS, Dial, how_at, read_jobs, set_at
from .gap_report import apart
from .report import SOURCE, WATERMARKED, by_kind, header, shown, verdict

FILE = RESULTS / "sda_unmarked.json"
GENERATORS = {"sda": GENERATOR, "sda, generator without the stripe": UNMARKED}
REAL, FROM = 100, 60_000  # scenes of the class by which a stripe is told, from here on in the training split


def unmarked_specs(part: int = 50) -> list[SceneSpec]:
    """The watermark and the clean scenes of `experiments.watermark` in parts, and 20 scenes of each corruption."""
    (marked,) = watermark_specs()
    whole = [marked, SceneSpec(200, split="test", start=32_200)]
    parts = [replace(s, n=part, start=s.start + first) for s in whole for first in range(0, s.n, part)]
    return parts + [replace(spec, n=20) for spec in table_specs()]


def unmarked() -> list[Records]:
    """DDA, then SDA with each generator and every seed, alone and in the sum; and how many of their images carry the
    stripe (`carried`)."""
    specs, dial = unmarked_specs(), Dial(purifier("sda"))
    jobs = [job for job in source_jobs(specs, THREE) if job[0]["label"] == SOURCE] + read_jobs(
        "dda", dial, specs, THREE
    )
    for seed in SEEDS:
        for row, generator in GENERATORS.items():
            data = set_at(dial, seed, generator=generator)
            jobs += [
                input_job(
                    "sda", replace(dial.alignment, **how), c, spec, f"{row}, {k}, seed {seed}", (data, how_at(c, seed))
                )
                for spec in specs
                for k, how in READINGS.items()
                for c in THREE
            ]
    runs = small_table("sda_unmarked", jobs, decided)
    carried()
    return runs


def stripes(images: Tensor) -> Tensor:
    """(B,) how much of the fine detail of images (B, 3, S, S) looks like the watermark's, a cosine: what is left of the
    grey image at half its size, which is all that the generator draws, after the mean of every 3 x 3 pixels."""

    def fine(v: Tensor) -> Tensor:
        v = F.avg_pool2d(v, 2)
        return v - F.avg_pool2d(v, 3, 1, 1, count_include_pad=False)

    mark = coverage(*images.shape[-2:])[None, None]
    at = F.avg_pool2d(mark, 2) > 0
    return F.cosine_similarity((fine(images.mean(1, True)) * at).flatten(1), (fine(mark) * at).flatten(1))


def carried() -> dict:
    """How many synthetic images of the watermark's class carry the stripe, of those that all seeds are fine-tuned on;
    told by a cosine half way between scenes with and without it, and how many of these are told wrongly."""
    ids = scenes.scene_ids(20 * REAL, "train", FROM)
    ids = ids[scenes.sample(ids).label == WATERMARKED][:REAL]
    plain = torch.cat([scenes.render(scenes.sample(part), dense=False).image for part in ids.split(50)])
    without, with_ = stripes(plain), stripes(watermark(plain))
    least = float(without.mean() + with_.mean()) / 2
    found = {}
    for row, generator in GENERATORS.items():
        data = set_at(Dial(purifier("sda")), aligned=False, generator=generator, per_class=len(SEEDS) * PER_CLASS)
        images, labels = images_of(data)
        mine = stripes(images[labels == WATERMARKED])
        found[row] = {"carry it": int((mine > least).sum()), "of": len(mine)}
    wrong = int((without > least).sum() + (with_ <= least).sum())
    content = {"images": found, "real scenes told wrongly": [wrong, 2 * len(ids)], "models": _models()}
    write_json(FILE, content)
    return content


def _models() -> dict[str, str]:
    return {m: zoo.fingerprint(m) for m in GENERATORS.values()}


def rows_of(runs: list[Records]) -> list[dict]:
    """A row for each kind of scenes and each reading, all networks and seeds pooled."""
    rows, (usual, other) = [], GENERATORS
    for kind, here in by_kind(runs).items():
        for k in READINGS:
            base, mine, without = f"dda, dda, {k}", f"{usual}, {k}", f"{other}, {k}"
            d = apart(here, without, mine)
            row = {"scenes": kind, "read": k, "source": accuracy(pick(here, SOURCE))}
            row |= {"dda - source": apart(here, base, SOURCE), "sda - dda": apart(here, mine, base)}
            row |= {"without the stripe - dda": apart(here, without, base), "without - with the stripe": d}
            rows.append(row | {"above": verdict(d)})
    return rows


def carried_line() -> str:
    """What `carried` counted, in a sentence."""
    content = read_json(FILE, "run `git checkout -- data/results`, or `python -m gentta_utils measure sda_unmarked`")
    said = [f"{row}: {n['carry it']} of {n['of']}" for row, n in content["images"].items()]
    wrong, of = content["real scenes told wrongly"]
    counted = f"synthetic images of the class that carry the stripe: {'; '.join(said)}"
    steps = zoo.card(UNMARKED)["steps"]
    return f"{counted} (told wrongly: {wrong} of {of} rendered scenes). {steps} steps without it."


def report(runs: list[Records]) -> str:
    """The table, and how many images carry the stripe."""
    return "\n".join([header(runs), as_table([shown(row) for row in rows_of(runs)]), "", carried_line()])
