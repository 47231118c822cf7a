"""The tables of notebook 02: more backbones, ablations, and when feedback helps; rivals are in `nb02.rivals`.

Settings are those that `nb02.choose.select` chose; what they leave open (the rate of another backbone or parameter set)
is set on the same validation corruptions.
"""

import copy
from dataclasses import asdict, replace
from functools import partial

import torch

from ...common.validate import check_choice
from ...diffusion.pairs import draw_pairs
from ...diffusion.process import diffusion_loss
from ...evaluation.chosen import chosen_window, tuned
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.tables import Job, results, table
from ...methods import diffusion_tta, from_table
from ...methods.base import Models
from ...models import zoo
from ...models.classifier import Classifier
from ...recipes.dit import SOFT, WEAK
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ...world.severities import VALIDATION
from ..trials import (
    CLASSIFIERS,
    DIT,
    clean_spec,
    effect_jobs,
    errors_of,
    in_parts,
    job,
    models,
    reader_jobs,
    right,
    small_grid,
    source_jobs,
    untrained,
    validation_specs,
)
from .choose import WINDOWS, choose_rates, chosen_rate, select_specs, with_rate
from .rivals import corruption_specs

BACKBONES = (*CLASSIFIERS, "classifier/swin", "classifier/convnext")
RESNETS = ("classifier/resnet-300", "classifier/resnet", "classifier/resnet-3000")  # one network, three amounts of them


def backbones() -> list[Records]:
    """Four families, the 15 corruptions at severity 5, 100 scenes each: the very scenes of `test` and 60 more."""
    choose_rates(BACKBONES)
    first, more = corruption_specs()
    return table("backbones", effect_jobs([*first, *more], BACKBONES))


# --- ablations -------------------------------------------------------------------------------------------------------


def forgotten(classifier: Classifier, init: str = "random") -> Classifier:
    """A copy whose layers are drawn again, the same each time: any network as it is before any training.

    Raises ValueError for another `init`."""
    check_choice("init", init, ("random",))
    made = copy.deepcopy(classifier)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for layer in made.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return made


def random_job(settings: diffusion_tta.Settings, classifier: str, spec: SceneSpec, label: str) -> Job:
    """Diffusion-TTA of the classifier's network as it is before any training."""
    about, _ = job("diffusion_tta", settings, classifier, spec, label)
    about = about | {"init": "random", "select": "none", "how": {"batch": 25}}

    def work() -> Records:
        method = diffusion_tta.configure(Models(untrained(classifier), zoo.cached(DIT)), settings)
        return run(method, stream(spec), about=about, batch=25)

    return about, work


DIT_RATES = (1e-2, 1e-1, 1.0)  # of SGD, for the diffusion model where it takes a step as well


def select_dit() -> list[Records]:
    """The diffusion model's own rate on the validation corruptions; `dit_rate` reads what did best."""
    resnet, specs, ours = CLASSIFIERS[0], validation_specs(3700, 4), tuned(CLASSIFIERS[0])
    jobs = [
        job("diffusion_tta", with_dit(ours, rate), resnet, s, f"DiT lr {rate:g}", batch=4, precision="fp32")
        for s in specs
        for rate in DIT_RATES
    ]
    return table("select_dit", jobs)


def with_dit(settings: diffusion_tta.Settings, rate: float) -> diffusion_tta.Settings:
    """The same settings with the diffusion model adapted too, by a rate of its own."""
    return replace(settings, adapt_denoiser=True, denoiser_lr=rate)


def dit_rate() -> float:
    """The rate that `select_dit` found best, the highest of equals, for a low one changes nothing; raises as
    `results`."""
    runs = results("select_dit")
    return max(reversed(DIT_RATES), key=lambda rate: right(runs, f"DiT lr {rate:g}"))


def ablation_rows() -> dict[str, tuple[diffusion_tta.Settings, tuple[int, ...]]]:
    """Label -> settings of a row of `ablations`, and how many scenes under each corruption each of its runs meets."""
    resnet, ours = CLASSIFIERS[0], tuned(CLASSIFIERS[0])
    by_rule = lambda param_set: chosen_rate(resnet, {"param_set": param_set})  # noqa: E731
    rows = {
        "K10: one random t an update": replace(ours, pairs=1, timesteps="iid"),
        "K10: + many t, one noise": replace(ours, noise="shared"),
        "K10: + fresh noise (ours)": ours,
        "K10: + antithetic noise": replace(ours, noise="antithetic"),
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
    published = diffusion_tta.Settings(**{**diffusion_tta.PUBLISHED, "adapt_denoiser": False})
    return {label: (settings, (50,)) for label, settings in rows.items()} | {
        "K10: + adapting the DiT": (with_dit(ours, dit_rate()), (10, 40)),
        "K12: 180 pairs (20 scenes)": (replace(ours, updates=5, pairs=180), (20,)),
        "K12: published settings (20 scenes)": (published, (20,)),
    }


def ablations() -> list[Records]:
    """The paper's three ablations (K10, K11, K12 of docs/experiments.md) on the small grid with the ResNet.

    Rows that cost far more meet 20 of the 50 scenes, as they say. Every row has the chosen settings with its own
    changes; the rate stays as chosen, or follows the rule where other parameters move.
    Row labels are stored in the records: `nb02.report.spoken` says them in words. "All parameters" of K11 is the row of
    K10 with fresh noise, "classifier and diffusion model" its last row; ensembles are computed from the records."""
    resnet, specs = CLASSIFIERS[0], small_grid()
    few = [replace(s, n=20) for s in specs]
    jobs = source_jobs(specs, (resnet,))
    for label, (settings, sizes) in ablation_rows().items():
        exact = {"precision": "fp32"} if settings.adapt_denoiser else {}
        jobs += [job("diffusion_tta", settings, resnet, s, label, batch=25, **exact) for s in in_parts(specs, sizes)]
    jobs += [random_job(tuned(resnet), resnet, s, "K11: untrained network (20 scenes)") for s in few]
    return table("ablations", jobs)


def severity() -> list[Records]:
    """The small grid once more: severity 3, and severity 5 with another seed of scenes, corruptions and draws."""
    mild, other = small_grid(severity=3, start=24_000), small_grid(start=24_500, seed=1)
    jobs = effect_jobs(mild, views=("full",)) + source_jobs(other)
    for c in CLASSIFIERS:
        jobs += [job("diffusion_tta", tuned(c, seed=1), c, s, "diffusion_tta/full, seed 1", batch=25) for s in other]
    return table("severity", jobs)


def trust() -> list[Records]:
    """The Diffusion Classifier on the scenes of `heldout`, on which the rule of `nb02.trust.choose` is chosen."""
    grid = [(name, severity) for name in VALIDATION for severity in (3, 5)]
    specs = [SceneSpec(75, *at, "test", 8000 + 75 * i) for i, at in enumerate(grid)]
    return table("trust", reader_jobs(specs, 48, chosen_window()))


COMMON = 8  # pairs on which the loss is compared before and after


def common_draws() -> list[Records]:
    """The rows of `heldout` and `test` on the full view with another loss, (N, 2): that of the source's prediction and
    that of the adapted one, on the same pairs, so that the two differ by nothing but the prediction."""
    jobs = []
    for name in ("heldout", "test"):
        for r in results(name):
            if r.about["label"] == "diffusion_tta/full":
                about = {k: v for k, v in r.about.items() if k != "protocol"} | {"label": name, "common": COMMON}
                jobs.append((about, partial(_on_common_draws, r, about)))
    return table("common_draws", jobs)


def _on_common_draws(r: Records, about: dict) -> Records:
    at = {k: r.about["stream"][k] for k in ("n", "shift", "severity", "split", "start", "seed")}
    s, denoiser, T = stream(SceneSpec(**at)), zoo.cached(DIT), r.about["settings"]["temperature"]
    window = tuple(r.about["settings"]["window"])
    t, eps = draw_pairs(s.ids, COMMON, denoiser.shape, window, purpose="common")  # (N, n), (N, n, C, H, W)
    p = torch.stack([torch.tensor(z).div(T).softmax(1) for z in (r.before, r.after)], 1)  # (N, 2, K)
    x0, losses = denoiser.encode(s.images), []
    for rows in torch.arange(len(s)).split(4):
        both = [v[rows, None].expand(-1, 2, *v.shape[1:]).flatten(0, 2) for v in (t, eps)]  # (4 * 2 * n, ...)
        x = x0[rows].repeat_interleave(2 * COMMON, 0)
        cond = p[rows].flatten(0, 1).repeat_interleave(COMMON, 0)
        with torch.no_grad():
            loss = diffusion_loss(denoiser, x, *both, cond, denoiser.alphas_cumprod)
        losses.append(loss.view(-1, 2, COMMON).mean(2))
    return replace(r, about={**r.about, **about}, loss=torch.cat(losses).float().numpy())


# --- when does generative feedback help? -----------------------------------------------------------------------------


BUDGETS = {6: dict(updates=3, pairs=2), 24: dict(updates=6, pairs=4), 48: dict(updates=12, pairs=4)}  # evaluations


def phase_jobs(specs: list[SceneSpec]) -> list[Job]:
    """Two diffusion models x three budgets x three ResNets: source, reader with as many pairs, Diffusion-TTA."""
    jobs = source_jobs(specs, RESNETS)
    for denoiser in (WEAK, "denoiser/dit"):
        name = denoiser.split("/")[1]
        for pairs, budget in BUDGETS.items():
            jobs += reader_jobs(specs, pairs, chosen_window(), f" {name}", denoiser)
            for classifier in RESNETS:
                settings = chosen_rate(classifier, budget, denoiser)
                jobs += [
                    job("diffusion_tta", settings, classifier, s, f"{name}/{pairs}", denoiser=denoiser, batch=40)
                    for s in specs
                ]
    return jobs


def phase_specs() -> list[SceneSpec]:
    """40 scenes under each of the five corruptions of the paper's online table, and 40 clean ones."""
    return [*small_grid(40, start=25_000), SceneSpec(40, "clean", 0, "test", 25_200)]


def phase() -> list[Records]:
    """The map of when it helps: gain against (accuracy of the reader - accuracy of the classifier)."""
    return table("phase", phase_jobs(phase_specs()))


def phase_output() -> list[Records]:
    """The same map with output mixing, from one error table for each diffusion model and stream: no further evaluation.

    Budgets are those of `phase` in pairs; the rate is the rule's for output mixing."""
    specs = phase_specs()
    jobs = source_jobs(specs, RESNETS)
    for denoiser in (WEAK, "denoiser/dit"):
        for pairs, budget in BUDGETS.items():
            jobs += reader_jobs(specs, pairs, chosen_window(), f" {denoiser.split('/')[1]}", denoiser)
            for classifier in RESNETS:
                settings = chosen_rate(classifier, budget | {"mixing": "output"}, denoiser)
                jobs += [_table_job(settings, classifier, s, denoiser, pairs) for s in specs]
    return table("phase_output", jobs)


def _table_job(settings: diffusion_tta.Settings, classifier: str, spec: SceneSpec, denoiser: str, pairs: int) -> Job:
    label = f"{denoiser.split('/')[1]}/{pairs}"
    about, _ = job("diffusion_tta", settings, classifier, spec, label, denoiser=denoiser, batch=40)
    about |= {"pairs": f"thinned from a table of {max(BUDGETS)}"}

    def work() -> Records:
        found = errors_of(spec, max(BUDGETS), settings.window, denoiser).thin(pairs)
        method = from_table.configure(models(classifier, denoiser), settings, found, stream(spec).ids)
        return run(method, stream(spec), about=about, batch=40)

    return about, work


def soft() -> list[Records]:
    """A DiT that saw mixed conditions in training beside one that did not, both after ten minutes, on `phase`'s scenes.

    Under embedding mixing, which asks for such conditions, and under output mixing, which does not."""
    resnet, jobs = RESNETS[1], []
    specs = phase_specs()
    for denoiser in (WEAK, SOFT):
        name = denoiser.split("/")[1]
        ours = chosen_rate(resnet, BUDGETS[48], denoiser)
        jobs += reader_jobs(specs, 48, chosen_window(), f" {name}", denoiser)
        for label, settings in {
            f"{name}/48": ours,
            f"{name}/48, output mixing": replace(ours, mixing="output"),
        }.items():
            jobs += [job("diffusion_tta", settings, resnet, s, label, denoiser=denoiser, batch=40) for s in specs]
    return table("soft", source_jobs(specs, (resnet,)) + jobs)


UNTOUCHED = ("shot_noise", "glass_blur", "motion_blur", "snow", "frost", "elastic")  # not even seen by the trial


def reading() -> list[Records]:
    """Does the diffusion model read shifted scenes? Validation corruptions and clean, by number of pairs and window."""
    shifted = [SceneSpec(100, name, 5, "test", 5000 + 100 * i) for i, name in enumerate(VALIDATION)]
    window = chosen_window()
    jobs = source_jobs([*shifted, clean_spec()])
    for pairs in (6, 12, 24):
        jobs += reader_jobs(shifted, pairs, window)
    jobs += reader_jobs([*shifted, clean_spec()], 48, window)
    few = [replace(spec, n=25) for spec in shifted]
    for other in WINDOWS:
        jobs += reader_jobs(few, 12, other, " (25 scenes)")
    return table("reading", jobs)


def heldout() -> list[Records]:
    """The effect where the settings were chosen: validation corruptions, severities 3 and 5, other scenes."""
    grid = [(name, severity) for name in VALIDATION for severity in (3, 5)]
    return table("heldout", effect_jobs([SceneSpec(75, *at, "test", 8000 + 75 * i) for i, at in enumerate(grid)]))


def test_corruptions() -> list[Records]:
    """The effect where nothing was chosen: the 15 test corruptions at severity 5, everything frozen."""
    specs, _ = corruption_specs()
    return table("test", effect_jobs(specs) + reader_jobs(specs, 48, chosen_window()))


def clean() -> list[Records]:
    """What it does to clean scenes."""
    return table("clean", effect_jobs([clean_spec()]))


def from_published() -> list[Records]:
    """From the published settings to ours on the ResNet: each change alone, all together, all with Adam's step.

    The DiT stays frozen. The published rows cost 900 evaluations per image and meet the validation corruptions alone;
    all others stand at about 96, so that a change is not bought, and meet clean scenes too."""
    resnet, specs = CLASSIFIERS[0], [*select_specs(3500), SceneSpec(100, split="select", start=4000)]
    ours = tuned(resnet)
    published = diffusion_tta.Settings(**{**diffusion_tta.PUBLISHED, "adapt_denoiser": False})
    few = replace(published, pairs=round(ours.updates * ours.pairs / published.updates))

    def by_rule(settings: diffusion_tta.Settings) -> diffusion_tta.Settings:
        return with_rate(resnet, {k: v for k, v in asdict(settings).items() if k != "lr"})

    rows = {
        "few pairs": few,
        "few pairs, Adam 1e-3": replace(few, lr=1e-3),
        "alone: SGD, lr by the rule": by_rule(replace(few, optimizer="sgd")),
        "alone: temperature": replace(few, temperature=ours.temperature),
        "alone: window": replace(few, window=ours.window),
        "alone: stratified t": replace(few, timesteps="stratified"),
        "alone: updates x pairs": replace(few, updates=ours.updates, pairs=ours.pairs),
        "all together": ours,
        "all but SGD: Adam 1e-3": replace(ours, optimizer="adamw", lr=1e-3),
    }
    many = {"published (Adam 1e-5)": published, "published, Adam 1e-3": replace(published, lr=1e-3)}
    jobs = source_jobs(specs, (resnet,))
    for label, settings in (many | rows).items():
        seen = specs if label in rows else specs[:-1]  # ten times the cost: not on the clean scenes
        jobs += [job("diffusion_tta", settings, resnet, spec, label, batch=25) for spec in seen]
    return table("why", jobs)
