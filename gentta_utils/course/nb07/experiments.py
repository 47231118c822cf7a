"""The tables of notebook 07: all rows on the same scenes, streams for rows with a state, shifts that nobody chose on.

Rows and scenes stand in data/grid.yaml (`nb07.plan`), settings are those of the notebooks that teach the methods. Each
command says first what is left to do and what it will cost.
"""

from collections.abc import Iterator
from dataclasses import replace

from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.tables import Job, missing_jobs, table
from ...methods import METHODS, source
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ...world.severities import TEST
from ...world.views import view_of
from ..purified import CHANGE
from ..trials import DIT, SMALL, Wording, coarse, job, models, ordered
from .plan import SHIFTS, Row, consecutive, grid_jobs, missing, plan, row_job, settings_of, unique, unseen_jobs

SEEDS = (0, 1, 2)
STREAM, GRADUAL, CONTINUAL, CLEAN = 92_000, 95_000, 98_000, 99_900  # first scene of each
ORDERS = ("iid", "correlated", "dirichlet", "long-tailed", "mixed", "gradual", "continual")
BATCHES = (1, 10, 50)
LONG = 200  # scenes of each of five corruptions in the longest stream
READ, RENDERED = 0.005, 0.02  # seconds of a classifier for an image that was changed before, and to render a scene
ROUGH = (20,)  # images of a shift that say how rough it is
CLEAN_AFTER = "clean after: "


def measured(name: str, jobs: list[Job]) -> list[Records]:
    """The table, after a line on what is left to do and about how long that takes on one core with bf16."""
    left = missing_jobs(jobs)
    seconds = expected(left)
    print(f"{name}: {len(jobs)} runs, {len(left)} to do, about {seconds / 60:.0f} core-minutes with bf16", flush=True)
    for model in missing():
        print(f"{name}: no row of {model}, which is not here")
    return table(name, jobs, kept=small)


def small(r: Records) -> Records:
    """A record with coarse logits; those of the reader stay as they are, for the ensemble reads them at another
    temperature."""
    if r.about["method"] == "diffusion_classifier":
        return r
    return replace(r, before=coarse(r.before), after=coarse(r.after))


def expected(left: list[dict]) -> float:
    """Seconds that these runs will take. Scenes are rendered once, and changed images are made once, however many rows
    and classifiers read them."""
    seconds, made = 0.0, set()
    for about in left:
        of, by = about["stream"], about["method"].replace("sda", "dda")
        scenes = (of["shift"], of["start"], of["n"])
        changed = (by, about["settings"].get("start"), *scenes)
        seconds += of["n"] * (READ if by in CHANGE and changed in made else seconds_of(about))
        seconds += of["n"] * RENDERED * (scenes not in made)
        made |= {scenes, changed}
    return seconds


def seconds_of(about: dict) -> float:
    """Seconds for an image of a row, as data/grid.yaml has them; a row with a label of its own takes its method's."""
    of_label = {row.label: row.seconds for row in plan()}
    of_method = {row.method: row.seconds for row in plan()}
    return of_label.get(about["label"], of_method.get(about["method"], 0.05))


def grid() -> list[Records]:
    """Every row under the 15 test corruptions at severity 5."""
    return measured("grid", grid_jobs())


def unseen() -> list[Records]:
    """Natural shifts, the watermark and ten more corruptions; how rough the images of each shift are."""
    rough = [rough_job(spec) for shift in (*TEST, *SHIFTS) for spec in consecutive(shift, ROUGH)]
    return measured("unseen", unseen_jobs() + rough)


# --- what is known of a shift without labels -------------------------------------------------------------------------


def rough_job(spec: SceneSpec) -> Job:
    """How rough images are, mean |x - low view of x| in [0, 1], kept in the place of a loss: no label is looked at."""
    about, _ = job("source", source.Settings(), "classifier/resnet", spec, "roughness", None, batch=100)

    def work() -> Records:
        s = stream(spec)
        r = run(source.configure(models("classifier/resnet", None)), s, about=about, batch=100)
        return replace(r, loss=(s.images - view_of(s.images, "low")).abs().mean((1, 2, 3))[:, None].numpy())

    return about, work


# --- streams ---------------------------------------------------------------------------------------------------------


def specs_of(order: str, n: int) -> list[SceneSpec | tuple[SceneSpec, ...]]:
    """The streams of an order, n scenes under each of five corruptions: "mixed" is one, "continual" is one over all 15
    with n / 5 scenes of each, "gradual" has n / 5 scenes at each severity on the way."""
    usual = [SceneSpec(n, shift, 5, "test", STREAM + 500 * i) for i, shift in enumerate(SMALL)]
    few = max(2, n // 5)
    if order == "mixed":
        return [tuple(usual)]
    if order == "continual":
        return [tuple(SceneSpec(few, shift, 5, "test", CONTINUAL + 100 * i) for i, shift in enumerate(TEST))]
    if order == "gradual":
        steps = [[GRADUAL + 500 * i + 100 * k for k in range(5)] for i in range(len(SMALL))]
        return [
            tuple(SceneSpec(few, shift, k + 1, "test", start) for k, start in enumerate(starts))
            for shift, starts in zip(SMALL, steps, strict=True)
        ]
    return usual


def stream_jobs(row: Row, model: str) -> Iterator[Job]:
    """A row with a state in every order, each with three seeds; at three batch sizes; in one long stream; and on clean
    scenes afterwards. A row that takes long meets the usual order alone."""
    orders, n = ORDERS if row.seconds <= 0.1 else ORDERS[:1], row.stream_for(model)
    for order in orders:
        for spec in specs_of(order, n):
            for seed in SEEDS:
                yield row_job(row, model, spec, order=order, order_seed=seed)
    if len(orders) == 1:
        return
    for batch in BATCHES:
        for spec in specs_of("iid", n):
            yield row_job(row, model, spec, f"{row.label}, batch {batch}", batch=batch, order_seed=0)
    if row.seconds <= 0.01:
        long = specs_of("mixed", LONG)[0]
        yield row_job(row, model, long, f"{row.label}, {LONG * len(long)} images", order="mixed", order_seed=0)
    yield clean_after_job(row, model)


def clean_after_job(row: Row, model: str) -> Job:
    """Clean scenes after the 15 corruptions, the state as those left it: has the source been forgotten?"""
    (before,), clean = specs_of("continual", row.stream_for(model)), SceneSpec(100, split="test", start=CLEAN)
    about, _ = row_job(row, model, clean, CLEAN_AFTER + row.label, reset="never", order_seed=0)
    first = row_job(row, model, before, order="continual", order_seed=0)[0]
    about["after_stream"] = first["stream"]

    def work() -> Records:
        denoiser = first.get("denoiser", DIT) if "denoiser" in first["models"] else None
        used = models(model, denoiser, wording=Wording(**first["text"]) if "text" in first else None)
        method = METHODS[row.method].configure(used, settings_of(row, model))
        run(method, ordered(before, "continual", 0), **first["how"])
        return run(method, ordered(clean, seed=0), about=about, **about["how"])

    return about, work


def streams() -> list[Records]:
    """Rows with a state: orders, seeds, batches, a long stream, what is left of the source."""
    return measured("grid_streams", all_streams())


def all_streams() -> list[Job]:
    """The jobs of `streams`, those on the same scenes one after the other, so that these are rendered once."""
    rows = [(row, model) for row in plan() for model in row.networks.values() if row.stream_for(model)]
    jobs = unique(j for row, model in rows for j in stream_jobs(row, model))

    def scenes(j: Job) -> list[tuple]:
        about = j[0]["stream"]
        return [(part["start"], part["n"]) for part in about.get("parts", [about])]

    return sorted(jobs, key=scenes)
