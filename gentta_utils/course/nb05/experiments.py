"""The tables of notebook 05: input adaptation and synthetic-domain alignment.

Images are purified once (`course.purified`, kept in data/cache) and then read by every classifier and every ensemble.
Everything is chosen before, on the validation corruptions (`choose`).
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from ...diffusion.synthesis import Synthesis
from ...evaluation.chosen import rival, selection
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import dda, memo
from ...recipes.aligned import ALIGNER, BACKBONES, Data, chosen
from ...streams.scenes import SceneSpec
from ...world.severities import TEST
from ..purified import ENSEMBLES, input_job, ours, small_table
from ..trials import CLASSIFIERS, clean_spec, job, source_jobs

THREE = ("classifier/resnet", "classifier/swin", "classifier/convnext")  # of the paper's ablations
FAULTY = ("gaussian_noise", "fog", "pixelate")
SYNTHESIS = Synthesis(steps=100)
STEPS = [(50, 1.0), *((n, eta) for n in (20, 10, 5) for eta in (1.0, 0.0))]
ORDERS = ("iid", "correlated", "mixed", "mixed correlated")


def input_jobs(rows: dict[str, tuple], classifiers: Iterable[str], specs: list) -> list[Job]:
    """Label -> (method, settings), or (method, settings, set), over streams (each is rendered once) and classifiers."""
    return [
        input_job(method, settings, c, spec, label, *((data, chosen(c)[1]) for data in more))
        for spec in specs
        for label, (method, settings, *more) in rows.items()
        for c in classifiers
    ]


# --- what was chosen -------------------------------------------------------------------------------------------------


def set_of(**changes) -> Data:
    """The chosen set of aligned synthetic images, with changes."""
    return replace(chosen(BACKBONES[0])[0], **changes)


def main_rows() -> dict[str, tuple]:
    """The rows of every large table, under the published ensemble and the one chosen on validation corruptions."""
    rows = {"diffpure": ("diffpure", ours("diffpure"))}
    for ensemble in ("sum", "chosen"):
        rows[f"dda, {ensemble}"] = ("dda", ours("dda", ensemble))
        rows[f"sda, {ensemble}"] = ("sda", ours("sda", ensemble), set_of())
    return rows


def at_levels(s: dda.Settings, steps: int, eta: float) -> dda.Settings:
    """The same settings at other levels; the guided steps are as long together as before."""
    return replace(s, steps=steps, eta=eta, scale=s.scale * s.steps / steps)


# --- measuring -------------------------------------------------------------------------------------------------------


def table_specs(names: Iterable[str] = TEST) -> list[SceneSpec]:
    """100 scenes under each of these of the 15 corruptions at severity 5, the same in all tables of this notebook."""
    return [SceneSpec(100, name, 5, "test", 30_000 + 100 * TEST.index(name)) for name in names]


def watermark_specs() -> list[SceneSpec]:
    """200 scenes with the watermark."""
    return [SceneSpec(200, "watermark", 0, "test", 32_000)]


def corruptions() -> list[Records]:
    """Guo et al. (2025), Table 1: all methods, the 15 corruptions, six backbones (GDA-like: three and two)."""
    specs = table_specs()
    jobs = source_jobs(specs, BACKBONES)
    memos = {c: memo.Settings(lr=selection()["memo"][c]) for c in BACKBONES}
    jobs += [job("memo", s, c, spec, "memo", None, batch=25) for spec in specs for c, s in memos.items()]
    jobs += input_jobs(main_rows(), BACKBONES, specs)
    gda = replace(ours("dda"), entropy_scale=selection()["entropy_scale"])
    return small_table(
        "sda_corruptions", jobs + input_jobs({"gda-like": ("dda", gda)}, CLASSIFIERS, table_specs(FAULTY))
    )


def clean() -> list[Records]:
    """What it costs on clean scenes."""
    specs = [clean_spec()]
    return small_table("sda_clean", source_jobs(specs, BACKBONES) + input_jobs(main_rows(), BACKBONES, specs))


def watermark() -> list[Records]:
    """Table 2: the watermark, and clean scenes beside it that show what the shortcut costs."""
    specs = [*watermark_specs(), SceneSpec(200, split="test", start=32_200)]
    return small_table("sda_watermark", source_jobs(specs, BACKBONES) + input_jobs(main_rows(), BACKBONES, specs))


def _of_sets(name: str, sets: dict[str, Data]) -> list[Records]:
    """DDA beside SDA with other sets, three backbones, on the scenes of `corruptions` and `watermark`."""
    specs, jobs = [*table_specs(), *watermark_specs()], []
    for spec in specs:
        jobs += input_jobs({"dda, sum": ("dda", ours("dda"))}, THREE, [spec])
        for label, data in sets.items():
            jobs += [input_job("sda", ours("sda"), c, spec, label, (data, chosen(c)[1])) for c in THREE]
    return small_table(name, source_jobs(specs, THREE) + jobs)


def components() -> list[Records]:
    """Table 4: synthesis alone, then alignment; and as many real labelled scenes."""
    sets = {"+ synthetic": set_of(aligned=False), "+ synthetic, aligned (sda)": set_of()}
    sets |= {"+ real": set_of(kind="real", aligned=False), "+ real, aligned": set_of(kind="real")}
    return _of_sets("sda_parts", sets)


def number() -> list[Records]:
    """Table 5: how many synthetic images per class; none is DDA. As published in 15 epochs: of few images few updates
    (`controls.sets` has equal ones)."""
    return _of_sets("sda_number", {f"sda, {n} a class": set_of(per_class=n) for n in (0, 1, 10, 50)})


def guided() -> list[Records]:
    """Table 6: classifier-free guidance of the synthesis."""
    return _of_sets(
        "sda_cfg", {f"sda, cfg {s:g}": set_of(synthesis=replace(SYNTHESIS, cfg=s)) for s in (1.0, 1.5, 4.0)}
    )


def order() -> list[Records]:
    """Table 8: TENT in four orders and two batch sizes beside methods that depend on neither; MEMO on 20 scenes of each
    corruption."""
    specs, jobs = table_specs(("gaussian_noise", "fog", "pixelate", "snow", "contrast")), []
    for c in CLASSIFIERS:
        for how in ({"order": o, "batch": b} for o in ORDERS for b in (1, 64)):
            at = [tuple(specs)] if "mixed" in how["order"] else specs
            label = f"tent/{how['order']}, batch {how['batch']}"
            jobs += [job("tent", rival("tent", c), c, s, label, None, reset="per_shift", **how) for s in at]
        few = [replace(spec, n=20) for spec in specs]
        jobs += [job("memo", memo.Settings(lr=selection()["memo"][c]), c, s, "memo", None, batch=25) for s in few]
    rows = {label: row for label, row in main_rows().items() if label in ("diffpure", "dda, sum", "sda, sum")}
    return small_table("sda_order", source_jobs(specs, CLASSIFIERS) + input_jobs(rows, CLASSIFIERS, specs) + jobs)


def faults() -> list[Records]:
    """Each published deviation alone and all together. A norm over a batch comes twice: with w as it is, and with twice
    that, which makes up for four images; and twice w alone."""
    s, specs = ours("dda"), table_specs(FAULTY)
    batch = dict(norm="batch", scale=2 * s.scale)
    together = dict(start_level="published", pad="zero", jpeg=75, images_at_once=4, **batch)
    changes = {
        "ours": {},
        "start noised too far": dict(start_level="published"),
        "one norm for 4 images, same w": dict(norm="batch", images_at_once=4),
        "twice w": dict(scale=2 * s.scale),
        "one norm for 4 images": batch | dict(images_at_once=4),
        "one norm for 10 images": batch | dict(images_at_once=10),
        "zero padding": dict(pad="zero"),
        "jpeg 75": dict(jpeg=75),
        "all of them": together,
    }
    rows = {
        f"{label}, {e}": ("dda", replace(s, **change, **ENSEMBLES[e]))
        for label, change in changes.items()
        for e in ("sum", "purified")
    }
    return small_table("sda_faults", source_jobs(specs, BACKBONES) + input_jobs(rows, BACKBONES, specs))


def steps() -> list[Records]:
    """Accuracy against evaluations: 50 to 5 levels, with and without noise in each step, for SDA with noise; half the
    scenes."""
    specs, rows = [replace(spec, n=50) for spec in table_specs()], {}
    for n, eta in STEPS:
        rows[f"dda, {n} eta {eta:g}"] = ("dda", at_levels(ours("dda"), n, eta))
        if eta == 1:
            data = set_of(alignment=at_levels(ours("sda"), n, eta))
            rows[f"sda, {n} eta {eta:g}"] = ("sda", data.alignment, data)
    return small_table("sda_steps", source_jobs(specs, THREE) + input_jobs(rows, THREE, specs))


def batches() -> list[Records]:
    """20 scenes together and one by one: per image, with chunks of one shape, and with the published norm; then two
    methods without a state, MEMO and DiffPure, in the orders of TENT, on ten scenes under each of two corruptions."""
    spec, c = SceneSpec(20, "gaussian_noise", 5, "test", 32_400), CLASSIFIERS[0]
    kinds = {"per image": {}, "fixed chunk": dict(fixed_chunk=True), "batch norm": dict(norm="batch")}
    jobs = source_jobs([spec], (c,))
    for label, change in kinds.items():
        s = replace(ours("dda", "purified"), images_at_once=20, **change)
        jobs += [job("dda", s, c, spec, f"{label}, batch {b}", denoiser=ALIGNER, batch=b) for b in (20, 1)]
    few = [SceneSpec(10, name, 5, "test", 32_420 + 10 * i) for i, name in enumerate(FAULTY[:2])]
    for c, how in product(CLASSIFIERS, ORDERS):
        rows = {"memo": (memo.Settings(lr=selection()["memo"][c]), None), "diffpure": (ours("diffpure"), ALIGNER)}
        for at in [tuple(few)] if "mixed" in how else few:
            jobs += [job(m, s, c, at, f"{m}, {how}", net, order=how, batch=25) for m, (s, net) in rows.items()]
    return table("sda_batches", jobs)
