"""The tables of notebook 04: segmentation and depth under the paper's six corruptions (K8) and under all fifteen,
beside every control; mixing, ablations, where it fails. Settings are those that `nb04.choose.select_maps` chose.

Scenes come in blocks (`BLOCK`), so that a longer table takes up what a shorter one has measured.
"""

from dataclasses import replace

from ...evaluation.chosen import map_controls, maps_choice, tuned_maps
from ...evaluation.map_rows import METRICS
from ...evaluation.records import Records
from ...evaluation.tables import Job, table
from ...methods import diffusion_tta
from ...models import zoo
from ...streams.maps import MapSpec
from ...world.severities import TEST
from ..trials import TEXT
from . import by_window, rows
from .rows import NETWORKS, map_job, source_job, target_of
from .where import where_job

SIX = ("gaussian_noise", "fog", "frost", "snow", "contrast", "shot_noise")  # of the paper
FIVE = ("gaussian_noise", "fog", "pixelate", "snow", "contrast")  # of the smaller tables
SCENES = dict(test=90_000, clean=94_000)  # first scene of each; a corruption has 200
BLOCK = {"classes": 3, "depth": 1}
PAIRS = {"classes": (1, 4, 48), "depth": (1, 4, 24)}
WINDOWS = ((20, 150), (150, 300), (300, 500), (500, 700), (0, 1000))


def blocks(n: int, shift: str, severity: int, target: str, size: int | None = None) -> list[MapSpec]:
    """n test scenes under a shift, in blocks of `size` (else `BLOCK`); a corruption has scenes of its own, the
    same at every severity."""
    first = SCENES["clean"] if shift == "clean" else SCENES["test"] + 200 * TEST.index(shift)
    size = size or BLOCK[target]
    return [MapSpec(min(size, n - k), shift, severity, start=first + k, target=target) for k in range(0, n, size)]


def k8_specs(target: str, n: int, clean: int, size: int | None = None) -> list[MapSpec]:
    """Clean scenes, and the paper's six corruptions at severities 3 and 5."""
    found = blocks(clean, "clean", 0, target, size)
    return found + [spec for name in SIX for severity in (3, 5) for spec in blocks(n, name, severity, target, size)]


def chosen_networks(target: str) -> list[str]:
    """The networks of this target for which settings were chosen."""
    return [name for name in NETWORKS[target] if name in maps_choice()["settings"]]


def ours(network: str, spec: MapSpec, label: str = rows.OURS, **changes) -> Job:
    """Diffusion-TTA as chosen, with changes."""
    return map_job("diffusion_tta", tuned_maps(network, **changes), network, spec, label)


def bold_rows(network: str) -> dict[str, diffusion_tta.Settings]:
    """Row -> settings of the variant that gains most, and of what it is made of where it starts from anything but the
    source."""
    bold = tuned_maps(network, "bold")
    if bold.view == "full" and not bold.statistics:
        return {rows.BOLD: bold}
    judged = rows.PARTS if bold.trust else {rows.START: rows.PARTS[rows.START]}
    return {rows.BOLD: bold} | {row: replace(bold, **changes) for row, changes in judged.items()}


def k8_rows(network: str, spec: MapSpec) -> list[Job]:
    """Every row on one stream: the source, ours and its parts, the controls, placebos, who knows more."""
    jobs = [source_job(network, spec), ours(network, spec)]
    jobs += [map_job("diffusion_tta", s, network, spec, label) for label, s in bold_rows(network).items()]
    jobs += [map_job(m, s, network, spec, row) for row, (m, s) in map_controls(network).items()]
    jobs += [ours(network, spec, label, feedback_from=label.split(": ")[1].split()[0]) for label in rows.PLACEBOS]
    for label in (rows.CEILING, rows.INFORMED):
        if (name := rows.beside(network, label)) in zoo.names():
            jobs.append(source_job(name, spec, label=label))
    return jobs


def k8(target: str, n: int, clean: int, second: tuple[int, int] | None = None) -> list[Job]:
    """All rows, all networks of a target; the second network on so many scenes of its own, one by one."""
    first, *others = chosen_networks(target)
    jobs = [j for spec in k8_specs(target, n, clean) for j in k8_rows(first, spec)]
    specs = k8_specs(target, *(second or (n, clean)), size=1)
    return jobs + [j for c in others for spec in specs for j in k8_rows(c, spec)]


def classes(n: int = 12, clean: int = 24, second: tuple[int, int] = (3, 9)) -> list[Records]:
    """Segmentation (K8)."""
    return table("maps_classes", k8("classes", n, clean, second))


def depth(n: int = 6, clean: int = 18) -> list[Records]:
    """Depth (K8)."""
    return table("maps_depth", k8("depth", n, clean))


def all_corruptions(blocks_of_each: int = 4) -> list[Records]:
    """The 15 test corruptions at severity 3: the source, ours, and the controls and rivals that were best on
    validation."""
    jobs = []
    for target in METRICS:
        for i, network in enumerate(chosen_networks(target)):
            controls, size = map_controls(network), 1 if i else BLOCK[target]
            best = {row for key in ("best", "rival") for row in maps_choice()[key][network].values()}
            for spec in (s for name in TEST for s in blocks(size * blocks_of_each, name, 3, target, size)):
                jobs += [source_job(network, spec), ours(network, spec)]
                jobs += [map_job(m, s, network, spec, row) for row, (m, s) in controls.items() if row in best]
    return table("maps_all", jobs)


def small_grid(n: int, target: str = "classes") -> list[MapSpec]:
    """n scenes under each of five corruptions at severity 3, and n clean ones, one by one."""
    return [spec for name in (*FIVE, "clean") for spec in blocks(n, name, 0 if name == "clean" else 3, target, 1)]


def mixing(n: int = 4) -> list[Records]:
    """The map as condition against predictions that are mixed per pixel, by the same model and by text prompts, on the
    same pairs, each map taken as it is. Three classes cost as many evaluations as ours, one with a backward pass
    counted as three."""
    jobs, (network, *_) = [], chosen_networks("classes")
    three = tuned_maps(network, "mixing")
    options = {
        "map as condition": (tuned_maps(network, trust=0), {}),
        "mixed, 3 classes": (three, {}),
        "mixed, all classes": (replace(three, map_classes=0), {}),
        "mixed, 3 classes, text prompts": (three, {"denoiser": TEXT}),
    }
    for spec in small_grid(n):
        jobs.append(source_job(network, spec))
        for label, (s, how) in options.items():
            jobs.append(map_job("diffusion_tta", s, network, spec, label, **how))
    return table("maps_mixing", jobs)


def ablated(network: str) -> dict[str, tuple[diffusion_tta.Settings, dict]]:
    """Row -> settings that differ in one thing from the chosen ones, and what else the job needs; of class maps also a
    free map, in each window."""
    now, target = tuned_maps(network), target_of(network)
    found = {rows.OURS: (now, {})}
    found |= {f"{n} pairs": (replace(now, pairs=n), {}) for n in PAIRS[target] if n != now.pairs}
    found |= {f"t {a}..{b}": (replace(now, window=(a, b)), {}) for a, b in WINDOWS}
    # a rounding error would be larger than its steps
    adapted = replace(now, adapt_denoiser=True, denoiser_lr=0.1), {"precision": "fp32"}
    if target == "classes":
        found |= {f"T {t:g}": (replace(now, temperature=t), {}) for t in (1.0, 3.0, 10.0) if t != now.temperature}
        found |= {f"{n} updates": (replace(now, updates=n), {}) for n in (1, 3)}
        found |= {
            f"{what} alone": (replace(now, param_set=s), {}) for what, s in (("decoder", "head"), ("norms", "norm"))
        }
        found |= {"no judge": (replace(now, trust=0), {})} if now.trust else {}
        free = tuned_maps(network, "free")
        found |= {"free map": (free, {})}
        found |= {f"free map, t {a}..{b}": (replace(free, window=(a, b)), {}) for a, b in WINDOWS}
    return found | {"phi adapted too": adapted}


def ablations(n: int = 3) -> list[Records]:
    """One thing changed at a time, the first network of each target."""
    jobs = []
    for target in METRICS:
        for network in chosen_networks(target)[:1]:
            for spec in small_grid(n, target):
                jobs.append(source_job(network, spec))
                for label, (s, how) in ablated(network).items():
                    jobs.append(map_job("diffusion_tta", s, network, spec, label, **how))
    return table("maps_ablations", jobs)


def where(n: int = 4) -> list[Records]:
    """Where it fails: the chosen settings and a free map by the same loss."""
    jobs = []
    for target in METRICS:
        for i, network in enumerate(chosen_networks(target)):
            for spec in small_grid(n, target):
                jobs.append(where_job(network, spec, tuned_maps(network), "shared weights"))
                if i == 0:
                    jobs.append(where_job(network, spec, tuned_maps(network, "free"), "free map"))
    return table("maps_where", jobs)


def windows(n: int = 4) -> list[Records]:
    """What the loss says by window of t, before any update."""
    jobs = []
    for target in METRICS:
        for network in chosen_networks(target)[:1]:
            jobs += by_window.jobs(network, small_grid(n, target), WINDOWS)
    return table("maps_windows", jobs)
