"""Words to begin with: TPT and DiffTPT from a prompt that CoOp or CoCoOp learnt from few images."""

from functools import lru_cache

import torch

from ...evaluation.chosen import prompted
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import METHODS, coop
from ...methods.base import Models, stated
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ...world.words import label_set
from .. import trials
from ..trials import Wording
from . import rows
from .choose import prompt_job, zero_shot_job
from .experiments import SMALL, drawn_by, settings_of, spec_of

SHOTS = 8  # images of each named pair, at most
LEARNT = {"CoOp": coop.Settings(), "CoCoOp": coop.Settings(kind="cocoop", epochs=10, batch=8)}


@lru_cache
def learnt(name: str) -> Models:
    """The smaller CLIP among pairs of colour and category, its prompt learnt from scenes of the named pairs alone."""
    s = stream(SceneSpec(1000, split="select", start=20_000, labels="colour_category"))
    named = torch.tensor(label_set("colour_category").seen)[s.labels]
    order = [int(i) for k in s.labels.unique() for i in ((s.labels == k) & named).nonzero()[:SHOTS, 0]]
    models = trials.models(SMALL, None, wording=Wording("colour_category"))
    return coop.learn(models, s.images[order], s.labels[order], LEARNT[name])


def initial(n: int = 20) -> list[Records]:
    """A prompt learnt from few images, as it is and as the start of TPT and DiffTPT, on pairs far away."""
    spec, jobs = spec_of("far", n, "colour_category"), []
    usual, drawn = prompted("tpt", SMALL, spec.labels), drawn_by("variation")
    for start in ("", *LEARNT):
        plus = f" from {start}" if start else ""
        if start:
            rows_ = [prompt_job("coop", LEARNT[start], SMALL, spec, start)]
        else:
            rows_ = [zero_shot_job(SMALL, spec)]
        rows_.append(prompt_job("tpt", usual, SMALL, spec, rows.TPT4 + plus))
        rows_.append(
            prompt_job("difftpt", prompted("difftpt", SMALL, spec.labels), SMALL, spec, f"DiffTPT{plus}", drawn)
        )
        jobs += [begun_at(start, job_) for job_ in rows_] if start else rows_
    return table("prompt_init", jobs)


def begun_at(start: str, job_: Job) -> Job:
    """The same job with a learnt prompt."""
    about = job_[0] | {"few_shot": {"start": start, "shots": SHOTS, **stated(LEARNT[start])}}

    def work() -> Records:
        used, spec = learnt(start), spec_of("far", about["stream"]["n"], "colour_category")
        how = {}
        if "drawn" in about:
            prompts, n = label_set(spec.labels).prompts(), about["settings"]["generated"]
            how["generated"] = drawn_by("variation").views(used, prompts, n)
        method = METHODS[about["method"]].configure(used, settings_of(about), **how)
        return run(method, stream(spec), about=about, **about["how"])

    return about, work
