"""What notebook 03 chooses on the validation corruptions: steps, window, temperature, the rates of each kind."""

from dataclasses import asdict, replace

from ...common.files import write_json
from ...evaluation.chosen import DIFFUSION_TTA_TEXT
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import adapted_reader, diffusion_classifier, diffusion_tta, source, tent
from ...methods.base import Models
from ...models import zoo
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ..trials import TEXT, Wording, errors_of, how_of, job, models, right, validation_images, validation_specs

CLIPS = ("clip/small", "clip/large")
ONE = Wording()

# The start with one change each, of the whole image tower, all at 48 evaluations per image; the best is one more
# on the low view. A trial on the same scenes had looked at updates x pairs, windows and temperatures with adapters.
START = dict(updates=24, pairs=2, window=(300, 850), temperature=3.0, param_set="tower", micro_batch=100)
CANDIDATES = {
    "start": {},
    "T 5": dict(temperature=5.0),
    "delta 0.7": dict(delta=0.7),
    "delta 2.8": dict(delta=2.8),
}
DELTA = 1.4  # logits per step
LORA_DELTAS = (0.35, 0.7, 1.4)  # the product of two moving factors bears smaller steps
WINDOWS = [(0, 1000), (150, 600), (150, 850), (300, 850), (500, 950)]
KINDS = {  # what is adapted, by the notebook's names
    "clip_lora": dict(param_set="lora"),
    "clip_full": dict(param_set="tower"),
    "clip_norm": dict(param_set="norm"),
    "clip_text": dict(param_set="head"),
    "logits": dict(param_set="logits"),
    "clip_lora+sd_lora": dict(param_set="lora", adapt_denoiser=True, denoiser_set="lora"),
}
# successive elimination: as many evaluations as ours, and as many as ours cost, a backward pass counted as two
STAGES = {48: ((3, 3), (9, 1)), 144: ((9, 2), (36, 1))}
TENT_RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SD_RATES = (1e-1, 1e-2, 1e-3, 1e-4)  # of the text model's adapters; of equals the largest, which moves most


def text_job(method: str, settings, clip: str, spec: SceneSpec, label: str, wording: Wording = ONE, **how) -> Job:
    """`trials.job` with the text model, met as the method needs it."""
    return job(method, settings, clip, spec, label, TEXT, wording=wording, **how_of(method, settings) | how)


def source_job(clip: str, spec: SceneSpec, view: str = "full", wording: Wording = ONE) -> Job:
    """The frozen zero-shot classifier."""
    name = view if wording.prompts == "one" else wording.prompts
    return text_job("source", source.Settings(view), clip, spec, f"source/{name}", wording, batch=100)


def reader_job(clip: str, spec: SceneSpec, evaluations: int, window: tuple[int, int]) -> Job:
    """The Diffusion Classifier over the prompts of the ten categories, with successive elimination."""
    settings = reader_settings(evaluations, window)
    return text_job("diffusion_classifier", settings, clip, spec, f"reader/{evaluations}", batch=25)


def reader_settings(evaluations: int, window: tuple[int, int]) -> diffusion_classifier.Settings:
    """Successive elimination among ten classes within so many evaluations."""
    stages = STAGES[evaluations]
    return diffusion_classifier.Settings(pairs=stages[-1][0], window=window, stages=stages)


def with_rate(clip: str, settings: dict, delta: float, wording: Wording = ONE) -> diffusion_tta.Settings:
    """Settings with the learning rate of the rule for this CLIP and these prompts; it needs no labels."""
    trial = diffusion_tta.Settings(lr=1.0, **settings)
    return replace(trial, lr=rate_of(models(clip, TEXT, wording=wording), trial, delta))


def rate_of(models: Models, settings: diffusion_tta.Settings, delta: float) -> float:
    """The learning rate of the rule for these models; the text model itself is left as it is for that."""
    rate = diffusion_tta.learning_rate(models, *validation_images(), replace(settings, adapt_denoiser=False), delta)
    return float(f"{rate:.3g}")


def candidate(label: str) -> tuple[dict, float]:
    """What a candidate changes in `START`, and the logits that its first step moves the margin by."""
    change = dict(CANDIDATES[label])
    delta = change.pop("delta", DELTA)
    return START | change, delta


def _selection() -> list[SceneSpec]:
    """100 scenes under the validation corruptions, and 25 clean ones, which must not be lost."""
    return [*validation_specs(9000), SceneSpec(25, split="select", start=9100)]


def candidate_jobs(label: str, view: str) -> list[Job]:
    """One candidate on a view, both CLIPs, each with its own learning rate."""
    values, delta = candidate(label)
    jobs = []
    for clip in CLIPS:
        settings = with_rate(clip, values | {"view": view}, delta)
        jobs += [text_job("diffusion_tta", settings, clip, spec, f"{label}/{view}") for spec in _selection()]
    return jobs


def best_window() -> tuple[int, int]:
    """The window in which 24 pairs read the category best on 4 x 25 selection scenes."""

    def read(window: tuple[int, int]) -> int:
        return sum(
            int((errors_of(spec, 24, window, TEXT).scores().argmin(1) == stream(spec).labels).sum())
            for spec in validation_specs(9000)
        )

    return max(WINDOWS, key=read)


def select_text() -> list[Records]:
    """Choose window, temperature, step and view for CLIP's image tower; the step of adapters apart, the rates of the
    other kinds by the same rule, of the text model's adapters and of TENT by a grid; write all down."""
    window, specs = best_window(), _selection()
    jobs = [source_job(clip, spec, view) for spec in specs for clip in CLIPS for view in ("full", "low")]
    jobs += [reader_job(CLIPS[0], spec, n, window) for spec in specs for n in STAGES]
    for label in CANDIDATES:
        jobs += candidate_jobs(label, "full")
    runs = table("select_text", jobs)
    best = max(CANDIDATES, key=lambda label: right(runs, f"{label}/full"))  # ties go to the earlier one
    jobs += candidate_jobs(best, "low")
    values, delta = candidate(best)
    lora = {d: with_rate(CLIPS[0], values | KINDS["clip_lora"], d) for d in LORA_DELTAS}
    few = [replace(spec, n=10) for spec in specs]
    jobs += [
        text_job("diffusion_tta", s, CLIPS[0], spec, f"clip_lora, delta {d:g}") for d, s in lora.items() for spec in few
    ]
    runs = table("select_text", jobs)
    lora_delta = max(LORA_DELTAS, key=lambda d: right(runs, f"clip_lora, delta {d:g}"))

    def step(kind: str) -> float:
        return lora_delta if KINDS[kind]["param_set"] == "lora" else delta

    kinds = {clip: {k: with_rate(clip, values | change, step(k)) for k, change in KINDS.items()} for clip in CLIPS}
    grids: dict[str, dict] = {clip: {} for clip in CLIPS}
    for clip in CLIPS:
        grids[clip]["tent"] = {f"tent lr {lr:g}": ("tent", tent.Settings(lr=lr)) for lr in TENT_RATES}
    both = kinds[CLIPS[0]]["clip_lora+sd_lora"]
    grids[CLIPS[0]]["clip_lora+sd_lora"] = {
        f"clip_lora+sd_lora lr {lr:g}": ("diffusion_tta", replace(both, denoiser_lr=lr)) for lr in SD_RATES
    }
    grids[CLIPS[0]]["sd_lora"] = {f"sd_lora lr {lr:g}": ("adapted_reader", reader_of(lr, values)) for lr in SD_RATES}
    for clip, rows in grids.items():
        for row, options in rows.items():
            few = [replace(spec, n=5) if "sd_lora" in row else spec for spec in specs]
            jobs += [
                text_job(method, settings, clip, spec, label, **({"precision": "fp32"} if "sd_lora" in row else {}))
                for label, (method, settings) in options.items()
                for spec in few
            ]
    runs = table("select_text", jobs)
    mine = {clip: [r for r in runs if r.about["classifier"] == clip] for clip in CLIPS}
    chosen = {
        clip: {row: options[max(options, key=lambda n: right(mine[clip], n))][1] for row, options in rows.items()}
        for clip, rows in grids.items()
    }
    views = {
        view: {r.about["classifier"]: r.about["settings"] for r in runs if r.about["label"] == f"{best}/{view}"}
        for view in ("full", "low")
    }
    content = {
        "candidate": best,
        "delta": delta,
        "lora_delta": lora_delta,
        "view": max(views, key=lambda view: right(runs, f"{best}/{view}")),
        "window": list(window),
        "settings": views,
        "kinds": {clip: {k: asdict(chosen[clip].get(k, s)) for k, s in rows.items()} for clip, rows in kinds.items()},
        "rivals": {
            clip: {row: asdict(rows[row]) for row in rows if row in ("tent", "sd_lora")}
            for clip, rows in chosen.items()
        },
        "models": {name: zoo.fingerprint(name) for name in (*CLIPS, TEXT)},
    }
    write_json(DIFFUSION_TTA_TEXT, content)
    return runs


def reader_of(lr: float, values: dict) -> adapted_reader.Settings:
    """Adapters of the text model at this rate with the updates, pairs, window and temperature of `values`."""
    same = {k: values[k] for k in ("updates", "pairs", "window", "temperature")}
    return adapted_reader.Settings(lr=lr, reader=reader_settings(48, same["window"]), **same)
