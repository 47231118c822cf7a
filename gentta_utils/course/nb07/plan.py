"""Which row meets which scenes: data/grid.yaml read, and turned into jobs."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate

import yaml

from ...common.cache import fingerprint
from ...common.paths import DATA
from ...common.validate import check_choice, frozen
from ...evaluation.chosen import (
    PRUNED,
    chosen_rows,
    chosen_window,
    prompt_choice,
    prompted,
    purifier,
    rival,
    text_rival,
    tuned,
    tuned_text,
)
from ...evaluation.tables import Job
from ...methods import METHODS, dda, diffusion_classifier
from ...methods.sda import FineTune, published
from ...models import zoo
from ...recipes import aligned
from ...streams.scenes import SceneSpec
from ...world import severities
from ..drawn import Drawn
from ..purified import CHANGE, input_job, ours, then_job
from ..trials import Wording, how_of, job

GRID = DATA / "grid.yaml"
CATEGORIES = Wording()  # what a CLIP is asked here: the categories, which the other classifiers were trained on
PAPER_START = dda.PUBLISHED["start"]  # the noise level of the papers of DDA and SDA; here another was chosen
NATURAL = ("v2", "a", "r", "sketch", "stylized")
UNSEEN = tuple(getattr(severities, "UNSEEN", ()))  # ten corruptions that nothing was chosen on
SHIFTS = (*NATURAL, "watermark", *UNSEEN)


@dataclass(frozen=True)
class Row:
    """One line of data/grid.yaml, which explains the fields. `networks`: block -> the model that is measured for it."""

    row: str
    method: str
    networks: dict[str, str]
    grid: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    label: str = ""
    settings: dict | None = None
    unseen: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    natural: tuple[int, ...] | dict[str, tuple[int, ...]] = ()
    stream: int | dict[str, int] = 0
    after: str = ""
    denoiser: str | None = None
    seconds: float = 0.0
    changed_by: "Row | None" = field(default=None, repr=False)

    @property
    def online(self) -> bool:
        """Whether its state is carried from batch to batch, with the chosen settings."""
        return METHODS[self.method].NEEDS.online or self.label.endswith(" online")

    def sizes(self, block: str, shift: str) -> tuple[int, ...]:
        """Scenes of a shift that it meets in a block, in parts; none where the plan has none."""
        asked = self.grid if shift in severities.TEST else self.unseen
        if self.natural and shift in NATURAL:
            asked = self.natural
        return asked if isinstance(asked, tuple) else asked.get(block, ())

    def stream_for(self, model: str) -> int:
        """Scenes of each corruption in the streams of one of its models."""
        if isinstance(self.stream, int):
            return self.stream
        return max((self.stream.get(block, 0) for block, name in self.networks.items() if name == model), default=0)


@lru_cache
def plan() -> tuple[Row, ...]:
    """The rows, those left out whose models are not here.

    Raises ValueError for a line with an unknown key, method, network or row before it."""
    content = yaml.safe_load(GRID.read_text(encoding="utf-8"))
    usual, found = content["networks"], {}
    for line in content["rows"]:
        check_choice("method", line["method"], METHODS)
        only_clip = METHODS[line["method"]].NEEDS.clip
        asked = line.get("networks", ["clip"] if only_clip else list(usual))
        if not isinstance(asked, dict):
            for name in asked:
                check_choice("network", name, usual)
            asked = {name: usual[name] for name in asked}
        there = {block: name for block, name in asked.items() if name in zoo.names()}
        if line.get("after"):
            check_choice("row", line["after"], found)
        lists = {key: _parts(line[key]) for key in ("grid", "unseen", "natural") if key in line}
        try:
            more = {"label": line.get("label", line["row"]), "changed_by": found.get(line.get("after"))}
            found[line["row"]] = Row(**line | lists | more | {"networks": there})
        except TypeError as error:
            raise ValueError(f"{GRID}, row {line['row']!r}: {str(error).split(') ')[-1]}") from error
    return tuple(row for row in found.values() if row.networks)


def _parts(value: list | dict) -> tuple | dict:
    """A list of sizes as a tuple, or one for each block."""
    return {block: tuple(sizes) for block, sizes in value.items()} if isinstance(value, dict) else tuple(value)


def missing() -> list[str]:
    """The models that rows of the plan ask for and that are not here."""
    content = yaml.safe_load(GRID.read_text(encoding="utf-8"))
    named = {n for line in content["rows"] if isinstance(line.get("networks"), dict) for n in line["networks"].values()}
    return sorted(named - set(zoo.names()))


# --- settings --------------------------------------------------------------------------------------------------------


def settings_of(row: Row, model: str):
    """The settings of a row for a model: given, chosen by the notebook that teaches the method, or its defaults."""
    module = METHODS[row.method]
    if row.settings is not None:
        return module.Settings(**frozen(row.settings))
    clip, base = model.startswith("clip/"), model.removesuffix("-sda")
    if row.label.startswith("text/"):
        return tuned_text(model, row.label.removeprefix("text/"))
    if row.method in ("tpt", "difftpt", "zero", "mta"):
        return prompted(row.method, model)
    if row.method in ("tda", "dota"):
        return module.Settings(**frozen(prompt_choice()["online"][row.method]))
    if row.method in ("diffpure", "dda", "sda"):
        how = ours(row.method, "chosen" if row.label.endswith(", chosen") else "sum")
        return replace(how, start=PAPER_START) if row.label.endswith(f"t {PAPER_START}") else how
    if row.label in ("diffusion_tta/low", "diffusion_tta/full") or (row.method == "diffusion_tta" and row.after):
        return tuned(base, row.label.removeprefix("diffusion_tta/") if "/" in row.label else "full")
    if row.method == "diffusion_classifier":
        stages = {"stages": PRUNED} if "pruned" in row.row else {}
        pairs = PRUNED[-1][0] if stages else 48
        return diffusion_classifier.Settings(pairs=pairs, window=chosen_window(), **stages)
    if clip:
        from .choose import clip_rival  # that one makes jobs of rows

        return text_rival(model, "tent") if row.method == "tent" else clip_rival(row.method, model)
    key = row.label if row.label in chosen_rows(base) else row.method
    return rival(key, base) if key in chosen_rows(base) else module.Settings()


def tuned_on(row: Row, model: str) -> tuple[aligned.Data, FineTune]:
    """The images that SDA's second classifier is fine-tuned on, and how: as chosen, or from the paper's start the set
    and the published rates of notebook 05's dial, whose networks are kept (10 a class, batch 25, 32 updates:
    nb05/gap.py, which notebook 07 may not import; a test compares the two)."""
    data, how = aligned.chosen(model)
    if settings_of(row, model).start != PAPER_START:
        return data, how
    alignment, how = replace(data.alignment, start=PAPER_START), published(model)
    few = replace(data, per_class=10, alignment=alignment)
    return few, replace(how, batch=25, updates=32, frozen_norm=True, half=True)


# --- scenes ----------------------------------------------------------------------------------------------------------


def spec_of(shift: str, first: int, n: int) -> SceneSpec:
    """n scenes of a shift from the `first` one on; 5 is the severity of all corruptions.

    Those of the 15 test corruptions and of the natural shifts are the scenes of notebook 02, those with the watermark
    of notebook 05, so that records made there stand here too. Raises ValueError for scenes across two of its ranges."""
    if shift in severities.TEST:
        i = severities.TEST.index(shift)
        if first < 40 < first + n:
            raise ValueError(f"scenes {first} to {first + n - 1} of {shift}: give parts that end at 40")
        start = 40 * i + first if first < 40 else 27_000 + 60 * i + first - 40
        return SceneSpec(n, shift, 5, "test", start)
    if shift in NATURAL:
        return SceneSpec(n, shift, 0, "test", 23_000 + 100 * NATURAL.index(shift) + first)
    if shift == "watermark":
        return SceneSpec(n, shift, 0, "test", 32_000 + first)
    return SceneSpec(n, shift, 5, "test", 91_000 + 100 * UNSEEN.index(shift) + first)


def consecutive(shift: str, sizes: Iterable[int]) -> list[SceneSpec]:
    """The scenes of a shift in parts of these sizes, one after the other."""
    ends = list(accumulate(sizes))
    return [spec_of(shift, end - n, n) for n, end in zip(sizes, ends, strict=True)]


# --- jobs ------------------------------------------------------------------------------------------------------------


def met(row: Row, model: str) -> dict:
    """How `evaluate.run` meets a row, and what it is asked in the case of a CLIP."""
    how = how_of(row.method, settings_of(row, model))
    if METHODS[row.method].NEEDS.clip and not METHODS[row.method].NEEDS.online:
        how = dict(batch=20)  # as in notebook 06
    if row.method == "source":
        how = dict(batch=100)
    if row.label.startswith("reader/"):
        how = dict(batch=10)
    if how.get("reset") == "per_shift":
        how = how | dict(batch=50)  # one size for all that keep a state: what statistics of a batch ask for
    if not model.startswith("clip/"):
        return how
    drawn = {"drawn": Drawn("variation", prompt_choice()["levels"].get("variation"))} if row.method == "difftpt" else {}
    return how | drawn | {"wording": CATEGORIES}


def row_job(row: Row, model: str, spec: SceneSpec | tuple[SceneSpec, ...], label: str = "", **how) -> Job:
    """The run of a row on scenes as they come; several specs are one stream. `how` goes on to `trials.job`."""
    how = met(row, model) | how
    more = {"denoiser": row.denoiser} if row.denoiser else {}
    if METHODS[row.method].NEEDS.clip:
        more["denoiser"] = None
    if isinstance(spec, tuple) and "order" not in how:
        how |= {"order": "continual"}
    return job(row.method, settings_of(row, model), model, spec, label or row.label, **how, **more)


def jobs_of(row: Row, block: str, shift: str, sizes: tuple[int, ...]) -> list[Job]:
    """The runs of a row of a block on the first scenes of a shift."""
    model, specs = row.networks[block], consecutive(shift, sizes)
    several = row.online and len(specs) > 1
    if row.after:
        return [_after(row, block, tuple(specs))] if several else [_after(row, block, spec) for spec in specs]
    if row.method in CHANGE:
        tuned = tuned_on(row, model) if row.method == "sda" else None
        wording = CATEGORIES if model.startswith("clip/") else None
        settings = settings_of(row, model)
        return [input_job(row.method, settings, model, s, row.label, tuned, wording=wording) for s in specs]
    if several:
        return [row_job(row, model, tuple(specs))]
    return [row_job(row, model, spec) for spec in specs]


def _after(row: Row, block: str, spec: SceneSpec | tuple[SceneSpec, ...]) -> Job:
    """A run on images that another row changed; those are kept for all scenes that it meets."""
    by, model = row.changed_by, row.networks[block]
    source = model.removesuffix("-sda")
    shift = (spec[0] if isinstance(spec, tuple) else spec).shift
    kept = consecutive(shift, by.sizes(block, shift))
    if by.method == "source":
        return then_job("low", None, row_job(row, model, spec), source, spec, kept)
    return then_job(by.method, purifier(by.method), row_job(row, model, spec), source, spec, kept)


def small_job(row: Row, block: str, n: int = 8, shift: str = "fog") -> Job:
    """The run of a row on n images alone; of a row on changed images with changing these."""
    before = row.changed_by and replace(row.changed_by, grid=(n,))
    return jobs_of(replace(row, grid=(n,), changed_by=before), block, shift, (n,))[0]


def unique(jobs: Iterable[Job]) -> list[Job]:
    """Each job once: a reader, for one, is the same for all classifiers."""
    return list({fingerprint(about): (about, work) for about, work in jobs}.values())


def grid_jobs(rows: Iterable[Row] | None = None) -> list[Job]:
    """All rows under the 15 test corruptions."""
    return _many(severities.TEST, rows or plan())


def unseen_jobs(rows: Iterable[Row] | None = None) -> list[Job]:
    """Under the shifts that took no part in any choice, the rows that have scenes of them."""
    return _many(SHIFTS, rows or plan())


def _many(shifts, rows) -> list[Job]:
    """Shift by shift, so that each is rendered once."""
    return unique(
        j
        for shift in shifts
        for row in rows
        for block in row.networks
        if row.sizes(block, shift)
        for j in jobs_of(row, block, shift, row.sizes(block, shift))
    )
