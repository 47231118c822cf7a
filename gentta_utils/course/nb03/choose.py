"""What notebook 03 chooses on the validation corruptions: what is adapted, steps, temperature, rates of each kind."""

from dataclasses import asdict, replace

from ...common.files import write_json
from ...common.text import as_table
from ...evaluation.chosen import DIFFUSION_TTA_TEXT, PRUNED
from ...evaluation.records import Records
from ...evaluation.rows import accuracy, is_clean, pick, versus
from ...evaluation.statistics import gain
from ...evaluation.tables import Job, table
from ...methods import adapted_reader, diffusion_classifier, diffusion_tta, source, tent
from ...methods.base import Models
from ...models import zoo
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ..trials import TEXT, Wording, errors_of, how_of, job, models, right, validation_images, validation_specs

CLIPS = ("clip/small", "clip/large")
ONE = Wording()

# The start with one change each, all at 48 evaluations per image; each CLIP's best is one more on the low view. A trial
# on the same scenes had looked at steps, temperatures and pairs of the logits.
START = dict(updates=24, pairs=2, window=(300, 850), temperature=5.0, param_set="logits", tail=0.5, micro_batch=100)
CANDIDATES = {
    "start": {},
    "last logits alone": dict(tail=0.0),
    "delta 0.7": dict(delta=0.7),
    "delta 2.8": dict(delta=2.8),
}
DELTA = 1.4  # logits per step
DELTAS = (1.4, 0.35, 0.09)  # for what is adapted instead; of equals the largest
WINDOWS = [(0, 1000), (150, 600), (150, 850), (300, 850), (500, 950)]
KINDS = {  # what is adapted, by the notebook's names
    "clip_lora": dict(param_set="lora"),
    "clip_full": dict(param_set="tower"),
    "clip_norm": dict(param_set="norm"),
    "clip_text": dict(param_set="head"),
    "logits": dict(param_set="logits"),
    "clip_lora+sd_lora": dict(param_set="lora", adapt_denoiser=True, denoiser_set="lora"),
}
DEFAULT = "logits"  # the kind of the chosen candidate
# successive elimination: as many evaluations as ours, and as many as ours cost, a backward pass counted as two
STAGES = {48: PRUNED, 144: ((9, 2), (36, 1))}
TENT_RATES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5)
SD_RATES = (1e-1, 1e-2)  # of the text model's adapters; of equals the larger, which moves more


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


def _selection(n: int = 10, clean: int = 100) -> list[SceneSpec]:
    """n scenes under each validation corruption, and clean ones, which must not be lost."""
    return [*(replace(spec, n=n) for spec in validation_specs(9000)), SceneSpec(clean, split="select", start=9100)]


def candidate_jobs(label: str, clip: str, view: str, specs: list[SceneSpec]) -> list[Job]:
    """One candidate on a view, with the learning rate of this CLIP."""
    values, delta = candidate(label)
    settings = with_rate(clip, values | {"view": view}, delta)
    return [text_job("diffusion_tta", settings, clip, spec, f"{label}/{view}") for spec in specs]


def best_candidate(runs: list[Records], clip: str) -> str:
    """The candidate for a CLIP: of those that the validation corruptions do not tell from the one that is right most
    often there (the paired interval holds 0), the one with the highest lower limit of the gain on clean scenes; ties go
    to the earlier."""
    mine = {name: pick(runs, f"{name}/full", clip) for name in CANDIDATES}
    shifted = {name: [r for r in here if not is_clean(r)] for name, here in mine.items()}
    top = max(shifted, key=lambda name: accuracy(shifted[name]))
    level = [name for name in CANDIDATES if versus(shifted[name], shifted[top]).high >= 0]
    return max(level, key=lambda name: gain([r for r in mine[name] if is_clean(r)]).low)


def candidates(runs: list[Records]) -> str:
    """What the choice was between: gain on the validation corruptions against gain on clean selection scenes."""
    rows = []
    for name in CANDIDATES:
        for clip in CLIPS:
            mine = pick(runs, f"{name}/full", clip)
            row = {"candidate": name, "CLIP": clip.split("/")[-1]}
            row["chosen"] = "yes" if name == best_candidate(runs, clip) else ""
            for head, clean in (("validation corruptions", False), ("clean", True)):
                here = [r for r in mine if is_clean(r) == clean]
                row[head] = f"{sum(map(len, here))} scenes: {gain(here)}"
            rows.append(row)
    return as_table(rows)


def best_window() -> tuple[int, int]:
    """The window in which 24 pairs read the category best on 4 x 25 selection scenes."""

    def read(window: tuple[int, int]) -> int:
        return sum(
            int((errors_of(spec, 24, window, TEXT).scores().argmin(1) == stream(spec).labels).sum())
            for spec in validation_specs(9000)
        )

    return max(WINDOWS, key=read)


def select_text() -> list[Records]:
    """Choose what is adapted, its step and temperature, and the view; the steps of the other kinds, the rates of the
    text model's adapters and of TENT by grids; write all down."""
    window, specs, more = best_window(), _selection(), SceneSpec(100, split="select", start=9200)
    jobs = [source_job(clip, spec, view) for spec in specs for clip in CLIPS for view in ("full", "low")]
    jobs += [reader_job(CLIPS[0], spec, n, window) for spec in specs for n in STAGES]
    for label in CANDIDATES:
        jobs += [j for clip in CLIPS for j in candidate_jobs(label, clip, "full", [*specs, more])]
    runs = table("select_text", jobs)
    best = {clip: best_candidate(runs, clip) for clip in CLIPS}
    shifted = [spec for spec in specs if spec.shift != "clean"]
    jobs += [j for clip in CLIPS for j in candidate_jobs(best[clip], clip, "low", shifted)]
    values, _ = candidate(best[CLIPS[0]])
    steps = {}  # kind -> delta -> settings, of those that have one of their own
    for kind, change in KINDS.items():
        # a step of the prompt features is one of the logits; both kinds of adapters together take that of CLIP's
        if change["param_set"] not in ("head", "logits") and "adapt_denoiser" not in change:
            steps[kind] = {d: with_rate(CLIPS[0], values | change, d) for d in DELTAS}
            jobs += [
                text_job("diffusion_tta", s, CLIPS[0], spec, f"{kind}, delta {d:g}")
                for d, s in steps[kind].items()
                for spec in _selection(6, 6)
            ]
    runs = table("select_text", jobs)
    own = {kind: max(DELTAS, key=lambda d: right(runs, f"{kind}, delta {d:g}")) for kind in steps}
    own["clip_lora+sd_lora"] = own["clip_lora"]
    deltas = {clip: dict.fromkeys(KINDS, candidate(best[clip])[1]) | own for clip in CLIPS}
    kinds = {
        clip: {k: with_rate(clip, candidate(best[clip])[0] | c, deltas[clip][k]) for k, c in KINDS.items()}
        for clip in CLIPS
    }
    streams = [*validation_specs(9300, 40), SceneSpec(40, split="select", start=9460)]  # as long as those of the tables
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
            few = _selection(2, 2) if "+" in row else _selection(5, 5) if row == "sd_lora" else streams
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
        view: {clip: pick(runs, f"{best[clip]}/{view}", clip)[0].about["settings"] for clip in CLIPS}
        for view in ("full", "low")
    }
    shifted_runs = [r for r in runs if not is_clean(r)]
    rights = {v: sum(right(pick(shifted_runs, classifier=c), f"{best[c]}/{v}") for c in CLIPS) for v in views}
    content = {
        "candidate": best,
        "deltas": deltas,
        "view": max(rights, key=rights.get),
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
