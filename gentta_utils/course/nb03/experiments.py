"""The tables of notebook 03: the fifteen corruptions, label sets, kinds of adaptation by prompts, controls.

Settings are those that `nb03.choose.select_text` chose. What they leave open, the rate for other prompts or parameters,
is the rule's on the same validation images, without labels.
"""

from dataclasses import replace

from ...evaluation.chosen import text_choice, text_rival, tuned_text
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import diffusion_tta
from ...streams.scenes import SceneSpec
from ...world.severities import TEST
from ..trials import ONLINE, Wording, small_grid
from . import composition
from .choose import CLIPS, DEFAULT, KINDS, ONE, STAGES, candidate, reader_job, source_job, text_job, with_rate

SETS = ("category", "colour", "floor", "count", "size", "colour_category")
NATURAL = ("v2", "a", "r", "sketch", "stylized")
SIX = ("gaussian_noise", "shot_noise", "fog", "frost", "snow", "contrast")
SCENES = dict(test=50_000, clean=51_000, sets=52_000, grid=54_000, grid_clean=54_500)  # first scene of each
CONTROL = "clip/small-32"
LAST = {"tail": 0.0}  # where what is adapted is compared, the mean over the path smooths nothing


def ours(clip: str, spec: SceneSpec, view: str = "full") -> Job:
    """The chosen settings on a view."""
    return text_job("diffusion_tta", tuned_text(clip, view), clip, spec, f"diffusion_tta/{view}")


def by_rule(clip: str, changes: dict, wording: Wording = ONE, kind: str = DEFAULT) -> diffusion_tta.Settings:
    """The chosen candidate, or another kind with its own chosen step, with these changes and the rate of the rule; a
    CLIP for which nothing was chosen takes the smaller one's."""
    content = text_choice()
    chosen = clip if clip in content["candidate"] else CLIPS[0]
    values = candidate(content["candidate"][chosen])[0] | KINDS[kind] | changes
    return with_rate(clip, values, content["deltas"][chosen][kind], wording)


def beside(spec: SceneSpec, views: tuple[str, ...]) -> list[Job]:
    """All rows of the headline on one shift, both CLIPs; ours on these views."""
    window, jobs = tuple(text_choice()["window"]), []
    for clip in CLIPS:
        jobs += [source_job(clip, spec, view) for view in ("full", "low")]
        jobs += [source_job(clip, spec, wording=Wording(prompts="templates"))]
        jobs += [ours(clip, spec, view) for view in views]
        jobs += [text_job("tent", text_rival(clip, "tent"), clip, spec, "tent", **ONLINE | dict(batch=50))]
    return jobs + [reader_job(CLIPS[0], spec, n, window) for n in STAGES]  # it does not ask CLIP


def test_corruptions() -> list[Records]:
    """The 15 test corruptions at severity 5, everything frozen before."""
    specs = [SceneSpec(40, name, 5, "test", SCENES["test"] + 50 * i) for i, name in enumerate(TEST)]
    return table("text_test", [j for spec in specs for j in beside(spec, ("full", "low"))])


def clean() -> list[Records]:
    """What it does to 500 clean scenes."""
    specs = [SceneSpec(n, split="test", start=SCENES["clean"] + first) for first, n in ((0, 300), (300, 200))]
    return table("text_clean", [j for spec in specs for j in beside(spec, ("full",))])


def set_specs(labels: str, n: int = 8) -> list[SceneSpec]:
    """Clean scenes, the natural shifts that keep these labels, and the six corruptions."""
    keep = () if labels == "count" else NATURAL if labels == "category" else NATURAL[:2]
    shifts = ("clean", *NATURAL, *SIX)
    return [
        SceneSpec(n, name, 5 if name in SIX else 0, "test", SCENES["sets"] + 100 * shifts.index(name), labels=labels)
        for name in ("clean", *keep, *SIX)
    ]


def label_sets() -> list[Records]:
    """The paper's table of data sets (K7 of docs/experiments.md): six label sets over the same scenes."""
    jobs = []
    for labels in SETS:
        for clip in CLIPS:
            wording = Wording(labels)
            settings = by_rule(clip, {}, wording)
            for spec in set_specs(labels):
                jobs.append(source_job(clip, spec, wording=wording))
                jobs.append(text_job("diffusion_tta", settings, clip, spec, "diffusion_tta/full", wording))
    return table("text_k7", jobs)


def grid_specs(n: int = 15) -> list[SceneSpec]:
    """n scenes under each of the five corruptions of the paper's online table."""
    return [replace(spec, n=n) for spec in small_grid(start=SCENES["grid"])]


def grid_clean(n: int = 30) -> SceneSpec:
    """n clean scenes beside them."""
    return SceneSpec(n, split="test", start=SCENES["grid_clean"])


ASKED = {  # prompts -> wording, and how one of several is taken
    "one": (ONE, "drawn"),
    "templates": (Wording(prompts="templates"), "drawn"),
    "floors": (Wording(prompts="floors"), "read"),
    "wrong floors": (Wording(prompts="floors"), "wrong"),
}


def grid() -> list[Records]:
    """Six kinds of adaptation by four kinds of prompts (K13) of the smaller CLIP.

    Read off the last logits. Where the text model is adapted too, 5 of the 15 scenes. Reading the floor costs
    evaluations forward, each a third of one with backward: so many updates fewer."""
    clip, jobs = CLIPS[0], []
    chosen = text_choice()["kinds"][clip]
    for spec in grid_specs():
        jobs += [source_job(clip, spec), source_job(clip, spec, wording=Wording(prompts="templates"))]
    for kind in KINDS:
        heavy = "sd_lora" in kind
        for prompts, (wording, how) in ASKED.items():
            values = LAST | ({"denoiser_lr": chosen[kind]["denoiser_lr"]} if heavy else {})
            values |= {} if how == "drawn" else {"updates": fewer_updates()}
            settings = replace(by_rule(clip, values, wording, kind), wording=how)
            more = {"precision": "fp32"} if heavy else {}
            for spec in grid_specs(5 if heavy else 15):
                jobs.append(text_job("diffusion_tta", settings, clip, spec, f"{kind}/{prompts}", wording, **more))
    reader = text_rival(clip, "sd_lora")
    jobs += [text_job("adapted_reader", reader, clip, spec, "sd_lora/one", precision="fp32") for spec in grid_specs(5)]
    return table("text_k13", jobs)


def fewer_updates() -> int:
    """Updates that are left after one of eight floors was read with four pairs, at a third of their cost."""
    values, _ = candidate(text_choice()["candidate"][CLIPS[0]])
    return int((values["updates"] * values["pairs"] - 8 * 4 / 3) / values["pairs"])


def ranks() -> list[Records]:
    """The rank of CLIP's adapters, on shifted and on clean scenes, read off the last logits."""
    clip, specs = CLIPS[0], [*grid_specs(), grid_clean()]
    jobs = [source_job(clip, spec) for spec in specs]
    for rank in (1, 4, 16):
        settings = by_rule(clip, LAST | {"rank": rank}, kind="clip_lora")
        jobs += [text_job("diffusion_tta", settings, clip, spec, f"rank {rank}") for spec in specs]
    full = by_rule(clip, LAST, kind="clip_full")
    jobs += [text_job("diffusion_tta", full, clip, spec, "full rank") for spec in specs]
    return table("text_rank", jobs)


def top_k() -> list[Records]:
    """Eighty classes: only the k best of CLIP's first answer stay in the condition."""
    clip, wording = CLIPS[0], Wording("colour_category")
    specs = [replace(spec, labels="colour_category") for spec in grid_specs()]
    jobs = [source_job(clip, spec, wording=wording) for spec in specs]
    for k in (2, 5, 10, 20, 0):
        settings = by_rule(clip, {"top_k": k}, wording)
        label = f"top {k}" if k else "all 80"
        jobs += [text_job("diffusion_tta", settings, clip, spec, label, wording) for spec in specs]
    return table("text_topk", jobs)


def batches() -> list[Records]:
    """The norm layers adapted to one image at a time, or to the mean loss of 5 or 15 with one copy for all."""
    clip = CLIPS[0]
    jobs = [source_job(clip, spec) for spec in grid_specs()]
    alone = by_rule(clip, LAST, kind="clip_norm")
    jobs += [text_job("diffusion_tta", alone, clip, spec, "batch 1") for spec in grid_specs()]
    shared = replace(alone, online=True)
    for size in (5, 15):
        parts = [replace(s, n=size, start=s.start + k) for s in grid_specs() for k in range(0, 15, size)]
        how = dict(reset="per_shift", batch=size)  # a stream is one batch: the copy is dropped after it
        jobs += [text_job("diffusion_tta", shared, clip, spec, f"batch {size}", **how) for spec in parts]
    return table("text_batch", jobs)


def information() -> list[Records]:
    """A CLIP that saw what the text model saw, 32 pixels and its autoencoder's jitter, beside the usual one."""
    specs, jobs = [*grid_specs(), grid_clean()], []
    for clip in (CLIPS[0], CONTROL):
        settings = {view: by_rule(clip, {"view": view}) for view in ("full", "low")}
        for spec in specs:
            jobs += [source_job(clip, spec, view) for view in settings]
            jobs += [text_job("diffusion_tta", s, clip, spec, f"diffusion_tta/{view}") for view, s in settings.items()]
    window = tuple(text_choice()["window"])
    jobs += [reader_job(CLIPS[0], spec, min(STAGES), window) for spec in specs]  # it does not ask CLIP
    return table("text_information", jobs)


def winoground() -> list[Records]:
    """The compositional probe with the chosen settings and window; the smaller CLIP is adapted, at the rule's rate."""
    content = text_choice()
    clip = CLIPS[0]
    values = candidate(content["candidate"][clip])[0] | KINDS["clip_full"] | LAST
    settings = composition.by_rule(clip, content["deltas"][clip]["clip_full"], **values)
    return composition.winoground({clip: settings}, window=tuple(content["window"]))
