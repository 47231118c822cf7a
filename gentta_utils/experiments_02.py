"""The tables of notebook 02: more backbones, natural shifts, streams, rivals, ablations, and when feedback helps.

Settings are those that `experiments.select` chose; what they leave open (the rate of another backbone or parameter set,
the rates of the rivals) is set on the same held-out corruptions.
"""

import json
from dataclasses import asdict, replace

from . import zoo
from .classifier import Classifier
from .corruptions import HELD_OUT, TEST
from .datasets import SceneSpec, stream
from .evaluate import Job, Records, run, table
from .experiments import (
    CANDIDATES,
    CHOSEN,
    CLASSIFIERS,
    DELTA,
    DIT,
    START,
    chosen,
    chosen_window,
    clean_spec,
    effect_jobs,
    job,
    reader_jobs,
    right,
    source_jobs,
    tuned,
    with_rate,
)
from .files import write_json
from .methods import bn_adapt, cotta, diffusion_tta, memo, tent
from .methods.base import Models
from .paths import RESULTS
from .recipes.classifiers import MEAN, RECIPES, STD
from .scenes import CLASSES

BACKBONES = (*CLASSIFIERS, "classifier/swin", "classifier/convnext")
LABELS = ("classifier/resnet-300", "classifier/resnet", "classifier/resnet-3000")  # one network, three amounts of them
WEAK = "denoiser/dit-10min"
SMALL = ("gaussian_noise", "fog", "pixelate", "snow", "contrast")  # the five corruptions of K5
RIVALS = RESULTS / "rivals.json"


def small_grid(n: int = 50, severity: int = 5, start: int = 22_000, seed: int = 0) -> list[SceneSpec]:
    """n scenes under each of the five corruptions of K5."""
    return [SceneSpec(n, name, severity, "test", start + n * i, seed) for i, name in enumerate(SMALL)]


def choose_rates(classifiers: tuple) -> None:
    """Add what `select` would choose to its file for these classifiers: its candidate, with their learning rates."""
    content = chosen()
    change = dict(CANDIDATES[content["candidate"]])
    delta = change.pop("delta", DELTA)
    for name in classifiers:
        if name not in content["models"]:
            for view in ("full", "low"):
                content["settings"][view][name] = asdict(with_rate(name, START | change | {"view": view}, delta))
            content["models"][name] = zoo.fingerprint(name)
    write_json(CHOSEN, content)


def backbones() -> list[Records]:
    """Four families, the 15 corruptions at severity 5, the very scenes of `test`."""
    choose_rates(BACKBONES)
    specs = [SceneSpec(40, name, 5, "test", 40 * i) for i, name in enumerate(TEST)]
    return table("backbones", effect_jobs(specs, BACKBONES))


# --- rivals and streams ----------------------------------------------------------------------------------------------

ONLINE = dict(reset="per_shift", batch=10)
# rates a third of a decade to a decade around the published ones
RIVAL_SETTINGS = {
    "tent": [tent.Settings(lr=lr) for lr in (1e-4, 1e-3, 3e-3, 1e-2)],
    "cotta": [cotta.Settings(lr=lr) for lr in (1e-4, 1e-3, 3e-3, 1e-2)],
    "memo": [memo.Settings(lr=lr) for lr in (5e-4, 5e-3, 2e-2)],
}


def how_of(method: str) -> dict:
    """How `evaluate.run` meets a rival: in a stream that is reset at each shift, or image by image."""
    return ONLINE if method in ("tent", "cotta") else dict(batch=25)


def online_settings(classifier: str, share: float) -> diffusion_tta.Settings:
    """The chosen settings with their state carried on, at a share of the rate: steps add up over a stream."""
    settings = tuned(classifier)
    return replace(settings, online=True, lr=float(f"{share * settings.lr:.3g}"))


def select_rivals() -> list[Records]:
    """Choose the rates of the rivals and of online Diffusion-TTA on held-out corruptions; write them down."""
    specs = [SceneSpec(50, name, 5, "select", 6000 + 50 * i) for i, name in enumerate(HELD_OUT)]
    options = {
        c: RIVAL_SETTINGS | {"diffusion_tta": [online_settings(c, share) for share in (0.3, 0.1, 0.03)]}
        for c in CLASSIFIERS
    }
    jobs = []
    for classifier in CLASSIFIERS:
        for method, candidates in options[classifier].items():
            how = ONLINE if method == "diffusion_tta" else how_of(method)
            denoiser = {} if method == "diffusion_tta" else {"denoiser": None}
            for settings in candidates:
                jobs += [
                    job(method, settings, classifier, s, f"{method} lr {settings.lr:g}", **denoiser, **how)
                    for s in specs
                ]
    runs = table("select_rivals", jobs)
    best: dict[str, dict] = {}
    for classifier in CLASSIFIERS:
        mine = [r for r in runs if r.about["classifier"] == classifier]
        best[classifier] = {
            method: asdict(max(candidates, key=lambda s: right(mine, f"{method} lr {s.lr:g}")))
            for method, candidates in options[classifier].items()
        }
    write_json(RIVALS, {"settings": best, "models": chosen()["models"]})
    return runs


def rival(method: str, classifier: str):
    """The settings that `select_rivals` wrote down. Raises FileNotFoundError before it was run."""
    if not RIVALS.is_file():
        raise FileNotFoundError(f"no settings at {RIVALS}: run `python -m gentta_utils measure select_rivals`")
    values = json.loads(RIVALS.read_text())["settings"][classifier][method]
    if method == "diffusion_tta":
        return diffusion_tta.Settings(**{**values, "window": tuple(values["window"])})
    return {"tent": tent, "cotta": cotta, "memo": memo}[method].Settings(**values)


def natural() -> list[Records]:
    """K4: clean scenes and the five natural shifts, beside TENT and CoTTA."""
    shifts = ("v2", "a", "r", "sketch", "stylized")
    specs = [clean_spec(), *(SceneSpec(100, name, 0, "test", 23_000 + 100 * i) for i, name in enumerate(shifts))]
    jobs = effect_jobs(specs)
    for method in ("tent", "cotta"):
        jobs += [
            job(method, rival(method, c), c, s, method, denoiser=None, **ONLINE) for c in CLASSIFIERS for s in specs
        ]
    return table("natural", jobs)


def online() -> list[Records]:
    """K5: one stream, state carried on, in three orders; the episodic method and the entropy baselines beside it."""
    specs = small_grid()
    jobs = source_jobs(specs) + effect_jobs(specs, views=("full",))[len(source_jobs(specs)) :]
    for c in CLASSIFIERS:
        rows = [("bn_adapt", bn_adapt.Settings())] if c == "classifier/resnet" else []
        rows += [(m, rival(m, c)) for m in ("tent", "cotta", "diffusion_tta")]
        for method, settings in rows:
            denoiser = {} if method == "diffusion_tta" else {"denoiser": None}
            name = "diffusion_tta online" if method == "diffusion_tta" else method
            jobs += [job(method, settings, c, s, f"{name}/iid", **denoiser, **ONLINE) for s in specs]
            jobs += [
                job(method, settings, c, s, f"{name}/correlated", order="correlated", **denoiser, **ONLINE)
                for s in specs
            ]
            jobs.append(job(method, settings, c, tuple(specs), f"{name}/mixed", order="mixed", **denoiser, **ONLINE))
    return table("online", jobs)


# --- ablations -------------------------------------------------------------------------------------------------------


def random_job(settings: diffusion_tta.Settings, classifier: str, spec: SceneSpec, label: str) -> Job:
    """Diffusion-TTA of the classifier's network as it is before any training."""
    about, _ = job("diffusion_tta", settings, classifier, spec, label)
    about = about | {"init": "random", "select": "none", "how": {"batch": 25}}

    def work() -> Records:
        network = RECIPES[classifier].build()
        fresh = Classifier(network, MEAN, STD, zoo.IMAGE_SIZE, len(CLASSES), f"{classifier} untrained")
        method = diffusion_tta.configure(Models(fresh, zoo.cached(DIT)), settings)
        return run(method, stream(spec), about=about, batch=25)

    return about, work


def ablations() -> list[Records]:
    """K10, K11, K12 on the small grid with the ResNet. Rows that cost far more meet 20 of the 50 scenes, as they say.

    Every row has the chosen settings with its own changes; the rate stays as chosen (K10, K12) or follows the rule for
    the parameters that move (K11)."""
    resnet, specs = CLASSIFIERS[0], small_grid()
    few = [replace(s, n=20) for s in specs]
    ours = tuned(resnet)
    change = dict(CANDIDATES[chosen()["candidate"]])
    delta = change.pop("delta", DELTA)

    def by_rule(param_set: str) -> diffusion_tta.Settings:
        return with_rate(resnet, START | change | {"param_set": param_set}, delta)

    both = replace(ours, adapt_denoiser=True, denoiser_lr=1e-5)
    rows = {
        "K10: one random t an update": replace(ours, pairs=1, timesteps="iid"),
        "K10: + many t, one noise": replace(ours, noise="shared"),
        "K10: + fresh noise (ours)": ours,
        "K11: logits": by_rule("logits"),
        "K11: batch norm": by_rule("bn"),
        "K11: last layer": by_rule("head"),
        "K11: LoRA": by_rule("lora"),
        "K11: leaves without head (public code)": by_rule("leaf_no_head"),
        "K12: 1 pair": replace(ours, updates=5, pairs=1),
        "K12: 4 pairs": replace(ours, updates=5, pairs=4),
        "K12: 16 pairs": replace(ours, updates=5, pairs=16),
        "K12: 64 pairs": replace(ours, updates=5, pairs=64),
    }
    dear = {
        "K10: + adapting the DiT (20 scenes)": both,
        "K12: 180 pairs (20 scenes)": replace(ours, updates=5, pairs=180),
        "K12: published settings (20 scenes)": diffusion_tta.Settings(
            **{**diffusion_tta.PUBLISHED, "adapt_denoiser": False}
        ),
    }
    jobs = source_jobs(specs, (resnet,))
    for label, settings in (rows | dear).items():
        exact = {"precision": "fp32"} if settings.adapt_denoiser else {}
        seen = specs if label in rows else few
        jobs += [job("diffusion_tta", settings, resnet, s, label, batch=25, **exact) for s in seen]
    jobs += [random_job(ours, resnet, s, "K11: untrained network (20 scenes)") for s in few]
    return table("ablations", jobs)


def severity() -> list[Records]:
    """The small grid once more: severity 3, and severity 5 with another seed of scenes, corruptions and draws."""
    mild, other = small_grid(severity=3, start=24_000), small_grid(start=24_500, seed=1)
    jobs = effect_jobs(mild, views=("full",)) + source_jobs(other)
    for c in CLASSIFIERS:
        jobs += [job("diffusion_tta", tuned(c, seed=1), c, s, "diffusion_tta/full, seed 1", batch=25) for s in other]
    return table("severity", jobs)


def trust() -> list[Records]:
    """The Diffusion Classifier on the scenes of `heldout`, on which the rule of `trust.choose` is chosen."""
    grid = [(name, severity) for name in HELD_OUT for severity in (3, 5)]
    specs = [SceneSpec(75, *at, "test", 8000 + 75 * i) for i, at in enumerate(grid)]
    return table("trust", reader_jobs(specs, 48, chosen_window()))


# --- when does generative feedback help? -----------------------------------------------------------------------------

BUDGETS = {6: dict(updates=3, pairs=2), 24: dict(updates=6, pairs=4), 48: dict(updates=12, pairs=4)}  # evaluations


def phase_jobs(specs: list[SceneSpec]) -> list[Job]:
    """Two diffusion models x three budgets x three ResNets: source, reader with as many pairs, Diffusion-TTA."""
    change = {k: v for k, v in CANDIDATES[chosen()["candidate"]].items() if k != "delta"}
    delta = CANDIDATES[chosen()["candidate"]].get("delta", DELTA)
    jobs = source_jobs(specs, LABELS)
    for denoiser in (WEAK, "denoiser/dit"):
        name = denoiser.split("/")[1]
        for pairs, budget in BUDGETS.items():
            jobs += reader_jobs(specs, pairs, chosen_window(), f" {name}", denoiser)
            for classifier in LABELS:
                settings = with_rate(classifier, START | change | budget, delta, denoiser)
                jobs += [
                    job("diffusion_tta", settings, classifier, s, f"{name}/{pairs}", denoiser=denoiser, batch=40)
                    for s in specs
                ]
    return jobs


def phase() -> list[Records]:
    """The map of when it helps: gain against (accuracy of the reader - accuracy of the classifier)."""
    specs = [*small_grid(40, start=25_000), SceneSpec(40, "clean", 0, "test", 25_200)]
    return table("phase", phase_jobs(specs))


EXPERIMENTS = {
    "backbones": backbones,
    "select_rivals": select_rivals,
    "natural": natural,
    "online": online,
    "ablations": ablations,
    "severity": severity,
    "trust": trust,
    "phase": phase,
}
