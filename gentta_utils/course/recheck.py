"""Records made again: some of a table's numbers are computed once more, from what the records say of themselves.

`python -m gentta_utils recheck TABLE` does so for any number of them, `few` for as many as a notebook has time for.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch

from ..common.devices import precision_on
from ..common.paths import MODELS
from ..common.progress import progress
from ..common.validate import frozen
from ..diffusion.error_table import error_table
from ..evaluation.dense import scored
from ..evaluation.map_rows import map_apart
from ..evaluation.records import Records
from ..evaluation.stale import stale
from ..evaluation.tables import results
from ..methods import METHODS, diffusion_tta, from_table
from ..models import zoo
from ..recipes.aligned import from_description, read_description
from ..streams.stream import Stream
from ..world.words import label_set
from .drawn import Drawn
from .trials import DIT, Wording, models, ordered, placebo, spec_of, untrained

FIRST = 20  # images of a stream that are run again, where an image's prediction depends on those before it

# Seconds of one evaluation as a single image asks for it, on one thread without bf16 (AVX2, fp32); of the classifiers
# those of the slowest
SECONDS = {
    "denoiser": {"fwd": 0.0042, "fwd+bwd": 0.0105},
    "unconditional": {"fwd": 0.018, "fwd+bwd": 0.038},
    "classifier": {"fwd": 0.004, "fwd+bwd": 0.010},
    "clip": {"fwd": 0.004, "fwd+bwd": 0.010},
    "text": {"fwd": 0.0005, "fwd+bwd": 0.0015},
    "generator": {"fwd": 0.02},  # of the slowest, in batches that are padded
    "segmentor": {"fwd": 0.008, "fwd+bwd": 0.025},
    "depth": {"fwd": 0.012, "fwd+bwd": 0.04},
    "maps": {"fwd": 0.018, "fwd+bwd": 0.04},
    "digits": {"fwd": 0.0001, "fwd+bwd": 0.0003},
}
RENDERING = 0.05  # seconds for the scene of a record
SOURCE = RENDERING + SECONDS["classifier"]["fwd"]  # for a record of the frozen source

# Another class may come first where either of the two leads the other by no more than so many logits, in a run that was
# made in bf16, and in one in fp32 on another processor. Of 144 records whose lead was under one logit, made in bf16 and
# in fp32, the lead changed by 0.02 in the median, by 0.35 in 97.5%; of the 3 that came out different the smaller lead
# was 0.48 at most.
MARGINS = {"bf16": 0.5, "fp32": 0.02}
# Of maps, as `map_apart` says it: the share of pixels of another class, or the distance of scores of depth
MAP_MARGINS = {"bf16": 0.05, "fp32": 0.002}


@dataclass
class Outcome:
    """What came of one table.

    Attributes:
        equal: predictions that came out as recorded. close: those among them where another class came first, within
            the margin.
        different: a line for each record that did not come out, and for each that ought to have and could not.
        skipped: why records were left out -> of what -> how many.
        cost: seconds that it takes without bf16, as estimated by `cost`.
    """

    equal: int = 0
    close: int = 0
    different: list[str] = field(default_factory=list)
    skipped: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    cost: float = 0.0

    def __str__(self) -> str:
        near = f" ({self.close} within the margin)" if self.close else ""
        n = self.equal + len(self.different)
        lines = [f"{self.equal} of {n} predictions made again are equal{near}" if n else "no record was made again"]
        lines += [f"  different: {line}" for line in self.different]
        lines += [f"  left out: {of.total()} records of {', '.join(of)}: {why}" for why, of in self.skipped.items()]
        return "\n".join(lines)


def recheck(
    runs: list[Records],
    n: int = 16,
    seed: int = 0,
    each: float = math.inf,
    seconds: float = math.inf,
    desc: str = "recheck",
) -> Outcome:
    """Make n seeded records of these runs again and compare id, label and both predictions.

    A record whose image stands alone is made alone. One that depends on its neighbours brings along the first images of
    its stream, in whole batches, all of which are compared. Records that cannot be made again are left out and named.

    Args:
        each: leave out records that would take longer, in seconds without bf16, as estimated by `cost`.
        seconds: likewise of all together; then records of the frozen source, which cost next to nothing, come last."""
    found, places = Outcome(), []
    for r in runs:
        if hindered := obstacle(r):
            of, why = hindered
            found.skipped[why][of] += len(r)
        elif (price := cost(r)) <= each:
            places += [(r, row, price) for row in range(len(r))]
    drawn = [places[k] for k in torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist()]
    if seconds < math.inf:
        drawn.sort(key=lambda place: place[0].about["method"] == "source")
    chosen: dict[tuple[int, int], tuple[Records, range]] = {}  # by run and first image: no stream is run twice
    for r, row, price in drawn:
        rows = range(together(r)) or range(row, row + 1)
        if len(chosen) < n and (id(r), rows.start) not in chosen and found.cost + price <= seconds:
            chosen[id(r), rows.start] = r, rows
            found.cost += price
    for r, rows in progress(list(chosen.values()), desc=desc, unit="record", leave=False):
        _compare(r, rows, found)
    return found


def few(*names: str, seconds: float = 10.0, each: float = 3.0, seed: int = 0) -> bool:
    """Recheck up to three records of each of these committed tables, in about so many seconds without bf16, and print
    a line for each. Returns whether all came out as recorded.

    Each table gets one record of a method, if there is time for it, the most expensive first; they then share what is
    left, and the frozen source costs so little that there is always time for it."""
    tables = {name: results(name) for name in names}
    least = {name: min(_costs(runs, each), default=0.0) for name, runs in tables.items()}
    lines, right = {}, True
    for i, name in enumerate(sorted(names, key=lambda name: -least[name])):
        left = len(names) - i
        share = min(seconds - 3 * SOURCE * (left - 1), max(least[name], seconds / left))
        lines[name] = recheck(tables[name], 3, seed, each, share, name)
        seconds -= lines[name].cost
    for name in names:
        print(f"{name}: {lines[name]}")
        right = right and not lines[name].different
    return right


def _costs(runs: list[Records], each: float) -> list[float]:
    """What one record costs of each run of a method, where it can be made again and costs no more than `each`."""
    return [c for r in runs if r.about["method"] != "source" and (c := cost(r)) <= each and not obstacle(r)]


def recheck_tables(names: Iterable[str], n: int, seed: int = 0) -> bool:
    """Recheck n records of each of these committed tables, one line printed for each, and whatever was left out or
    came out different below it. Returns whether all came out as recorded; raises nothing."""
    right = True
    for name in names:
        try:
            found = recheck(results(name), n, seed, desc=name)
        except (ValueError, OSError, KeyError, TypeError) as error:  # no such file, or a damaged one
            found = Outcome(different=[str(error)])
        print(f"{name}: {found}", flush=True)
        right = right and not found.different
    return right


# --- what a record takes ---------------------------------------------------------------------------------------------


def obstacle(r: Records) -> tuple[str, str] | None:
    """What it is of which no record can be made again here, and why; None where this run's records can.

    Records of other networks than those that are here are no such case: they come out different."""
    for name in _networks(r).values():
        if name in zoo.ON_DEMAND and not all((MODELS / file).is_file() for file in zoo.files_of(name)):
            return name, "made on demand (`python -m gentta_utils train NAME --promote`)"
    if reason := stale(r):
        return "older than the code", reason
    if r.about["stream"].get("world") == "digits":
        return "digits", "their networks are trained where the table is made: `python -m gentta_utils measure digits`"
    if r.about["stream"].get("world") == "photographs":
        return (
            "photographs",
            "records keep nine of 1,000 logits: notebook 02 makes some again where the extra is installed",
        )
    if "pairs" in r.about["stream"]:
        return "pairs of scenes", "each has captions of its own: `python -m gentta_utils measure winoground` makes them"
    if r.about["protocol"]["reset"] == "never":
        return r.about["label"], "its state comes from the stream before"
    if r.about["method"] == "dusa" and not r.about["settings"]["online"]:  # up to 45 logits between bf16 and fp32
        return "DUSA image by image", "a rounding error can change the prediction after its large steps"
    if "purified" in r.about:
        return r.about["label"], "its images were changed before, by another method: `measure` makes it"
    if "read" in r.about:
        return r.about["label"], "its words read other views than the image: `measure` makes it"
    if r.about.keys() & {"told", "few_shot"} or "attack" in r.about["stream"]:
        return r.about["label"], "it knows labels, of this image or of others: `measure` makes it"
    if "text" in r.about and r.about["method"] == "diffusion_tta" and not r.about["settings"].get("tail"):
        # of 30, one changed its lead by 2.2 logits; of 20 that average over the path no prediction changed
        return "Diffusion-TTA of CLIP by its last logits", "a rounding error can change the prediction after 24 updates"
    if "elsewhere" in r.about or ("aligned" in r.about and r.about["settings"].get("entropy_scale")):
        return r.about["label"], "its copy meets images that another network guided or aligned: `measure` makes it"
    if "aligned" in r.about:
        name, about = r.about["classifier"], r.about["aligned"]
        if not _is_here(name, json.dumps(about)):
            return name, "fine-tuned on sets that are not shipped"
    return None


@cache
def _is_here(name: str, about: str) -> bool:
    """Whether the fine-tuned form of a classifier is here, or was of other networks."""
    try:
        read_description(name, json.loads(about))
    except FileNotFoundError:
        return False
    except ValueError:
        pass
    return True


def together(r: Records) -> int:
    """How many images, from the first one on, have to be run for one of them to come out; 0 where each stands alone.

    Whole batches: of a state that is carried on at least two, so that there is one; of a norm over a batch one."""
    protocol, settings = r.about["protocol"], r.about["settings"]
    size = protocol["batch"]
    if protocol["reset"] != "per_image":
        return min(len(r), size * max(2, FIRST // size))
    if settings.get("norm") == "batch":
        size = min(size, settings["images_at_once"])
        return min(len(r), size * max(1, FIRST // size))
    return 0


def cost(r: Records) -> float:
    """Seconds for one record of this run on one thread without bf16, by its network evaluations."""
    kinds = {"denoiser": "unconditional"} | {role: name.split("/")[0] for role, name in _networks(r).items()}
    kinds |= {"aligned": "classifier", "text": "text", "generator": "generator"}
    spent = Counter(r.nfe) + Counter({"denoiser fwd": _table_pairs(r) * r.after.shape[1]})
    each = sum(n * SECONDS[kinds[role]][kind] for (role, kind), n in ((k.split(" "), n) for k, n in spent.items()))
    return (each + RENDERING) * max(1, together(r))


def _networks(r: Records) -> dict[str, str]:
    """Role -> name of the networks of a run."""
    names = {"classifier": r.about["classifier"], "denoiser": r.about.get("denoiser", DIT)}
    return {role: names[role] for role in r.about["models"]}


def _table_pairs(r: Records) -> int:
    """Pairs of the error table of one image from which a run was read; 0 where the diffusion model itself was asked."""
    return int(r.about["pairs"].split()[-1]) if "pairs" in r.about else 0


# --- making one again -------------------------------------------------------------------------------------------------


def _compare(r: Records, rows: range, found: Outcome) -> None:
    """Make these rows of a run again and write down what came of them."""
    name = f"{r.about['label']}, {r.about['classifier']}, {r.about['stream']['shift']}"
    try:
        stream, before, after = again(r, rows)
    except (ValueError, TypeError, KeyError, OSError, FloatingPointError, NotImplementedError, RuntimeError) as error:
        found.different.append(f"{name}, image {int(r.id[rows.start])} cannot be made again: {error}")
        return
    half = r.about["precision"] != "fp32" or "drawn" in r.about  # views are drawn in half precision where that is fast
    maps = r.target != "class"
    margins, between = (MAP_MARGINS, map_apart) if maps else (MARGINS, _apart)
    exact, loose = margins["fp32"], margins["bf16" if half else "fp32"]
    for i, row in enumerate(rows):
        apart = {
            "id": r.id[row] != int(stream.ids[i]),
            "label": not maps and r.label[row] != int(stream.labels[i]),
            "prediction before": between(r.before[row], before[i]) > exact,
            "prediction after": between(r.after[row], after[i]) > loose,
        }
        wrong = [what for what, is_wrong in apart.items() if is_wrong]
        if wrong:
            found.different.append(f"{name}, image {int(r.id[row])}: {', '.join(wrong)}")
        else:
            found.equal += 1
            found.close += between(r.after[row], after[i]) > 0


def _apart(kept: np.ndarray, again: np.ndarray) -> float:
    """By how many logits two rows of them (K,) disagree on the largest: 0 where the largest of `again` is one of the
    largest of `kept`, which were rounded; else the smaller of the leads that each gives to its own."""
    old, new = kept.argmax(), again.argmax()
    return float(min(kept[old] - kept[new], again[new] - again[old]))


def again(r: Records, rows: range) -> tuple[Stream, np.ndarray, np.ndarray]:
    """These images of a run, one alone or the first ones, with their logits (B, K) before and after, made again, or
    with what records keep of maps.

    A run in half precision is made again in fp32 where the processor is not fast at bf16. Raises ValueError where the
    networks are others now; raises as `aligned.from_description`."""
    about, names = r.about, _networks(r)
    changed = [n for role, n in names.items() if zoo.fingerprint(n) != about["models"][role]]
    if changed:
        raise ValueError(f"{' and '.join(changed)} changed since: measure the table again")
    stream = _images(r, rows)
    method = _method(r, stream)
    parts = [stream.rows(index) for index in torch.arange(len(stream)).split(about["protocol"]["batch"])]
    outputs = [method.adapt(part.images, part.ids) for part in parts]
    answers = (torch.cat([getattr(o, k) for o in outputs]).float() for k in ("before", "logits"))
    return stream, *(v.numpy() if r.target == "class" else scored(v, stream.labels) for v in answers)


def _images(r: Records, rows: range) -> Stream:
    """These images of a run's stream."""
    at = r.about["stream"]
    order = at.get("order", "iid")
    if order == "iid" and "order_seed" not in at:  # without rendering the others
        return ordered(spec_of(at, n=len(rows), start=at["start"] + rows.start))
    whole = tuple(spec_of(part) for part in at["parts"]) if "parts" in at else spec_of(at)
    return ordered(whole, order, at.get("order_seed")).rows(torch.tensor(rows))


def _method(r: Records, stream: Stream):
    """The method of a run, configured as it was."""
    about, name = r.about, r.about["classifier"]
    values = frozen(about["settings"])
    precision = (
        about["precision"] if precision_on("cpu") == "bf16" else "fp32"
    )  # elsewhere bf16 is emulated, many times slower
    wording = Wording(**about["text"]) if "text" in about else None
    used = models(name, _networks(r).get("denoiser"), precision, wording)
    if about.get("init") == "random":
        used = replace(used, classifier=untrained(name))
    if "aligned" in about:
        used = replace(used, aligned=from_description(name, about["aligned"]))
        used = replace(used, classifier=used.aligned) if about["method"] == "source" else used
    if "pairs" in about:
        s = diffusion_tta.Settings(**values)
        table = error_table(used.denoiser, stream.images, stream.ids, _table_pairs(r), s.window)
        return from_table.configure(used, s, table.thin(s.updates * s.pairs), stream.ids)
    module = METHODS[about["method"]]
    how = module.Settings(**values)
    if "drawn" not in about:
        return module.configure(used, how, *placebo(how, about["stream"]))
    said = about["drawn"]
    drawn = Drawn(said["generator"], said["settings"]["start"], alike=said.get("alike", False))
    if drawn.describe() != said:
        raise ValueError(f"the generator {drawn.generator!r} changed since: measure the table again")
    return module.configure(used, how, drawn.views(used, label_set(wording.labels).prompts(), how.generated))
