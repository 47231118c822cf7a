"""`python -m gentta_utils doctor`: is everything here that the course needs, and how to fix what is not."""

import os
import shutil
from collections.abc import Callable
from importlib.metadata import version

import torch

from ..common.devices import available, precision_on
from ..common.files import check_file, read_json
from ..common.paths import MODELS, RESULTS, ROOT, SCENES
from ..common.torchvision_shim import ensure_torchvision
from ..common.versions import COMPUTING, versions
from ..evaluation.records import load
from ..models import zoo
from ..world import scenes

FREE_GB = 2.0  # rendered training scenes take 0.8, runs and caches the rest
PINNED = (*COMPUTING, "nbval")


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.lower(): wanted for name, _, wanted in (line.partition("==") for line in lines if "==" in line)}


def _versions() -> tuple[bool, str, str]:
    pins, here = _pins(), {name: found.split("+")[0] for name, found in versions(PINNED).items()}
    wrong = [
        f"{name} {found} (wanted {pins[name.lower()]})" for name, found in here.items() if found != pins[name.lower()]
    ]
    return (
        not wrong,
        ", ".join(wrong) or f"torch {torch.__version__} and {len(PINNED) - 1} more as pinned",
        ("pip install -c constraints.txt -e ."),
    )


def _shim() -> tuple[bool, str, str]:
    how = ensure_torchvision()
    return True, f"torchvision {version('torchvision').split('+')[0]} imports ({how})", ""


def _device() -> tuple[bool, str, str]:
    cpu, *more = available().values()
    return True, f"{cpu} and {', '.join(more)}" if more else f"{cpu} (all that the scenes profile needs)", ""


def _threads() -> tuple[bool, str, str]:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    return threads <= cores, f"{threads} of {cores} cores", f"set OMP_NUM_THREADS={cores} before Python starts"


def _bf16() -> tuple[bool, str, str]:
    fast = precision_on("cpu") == "bf16"
    return (
        True,
        "fast bf16: used for the diffusion model" if fast else "no fast bf16: float32, about 3 times slower",
        "",
    )


def _models() -> tuple[bool, str, str]:
    try:
        for name in zoo.shipped():
            for file in zoo.files_of(name):
                check_file(MODELS / file, zoo.checksums()[file])
    except (OSError, ValueError) as error:
        return False, str(error), "git checkout -- data/models"
    return True, f"{len(zoo.shipped())} models with the right checksums", ""


def _data() -> tuple[bool, str, str]:
    fix = "git checkout -- data"
    try:
        read_json(SCENES / "labels.json", fix)
        scenes.shipped()
        settings = [read_json(path, fix) for path in sorted(RESULTS.glob("*.json"))]
        tables = [load(path) for path in sorted(RESULTS.glob("*.npz"))]
    except (OSError, ValueError) as error:
        return False, str(error), fix
    return True, f"scenes, {len(tables)} tables and {len(settings)} files of settings can be read", ""


def _disk() -> tuple[bool, str, str]:
    free = shutil.disk_usage(ROOT).free / 1e9
    return free > FREE_GB, f"{free:.0f} GB free", f"free at least {FREE_GB:g} GB, or delete data/cache"


CHECKS: dict[str, Callable[[], tuple[bool, str, str]]] = {
    "versions": _versions,
    "torchvision": _shim,
    "device": _device,
    "threads": _threads,
    "bf16": _bf16,
    "models": _models,
    "data": _data,
    "disk": _disk,
}


def environment() -> str:
    """One line: versions and device, for the top of a notebook."""
    names = ("torch", "diffusers", "timm")
    return " | ".join([f"gentta {version('gentta')}", *(f"{n} {version(n)}" for n in names), _device()[1], _bf16()[1]])


def doctor() -> bool:
    """Print one line per check, OK or FAIL with the fix; True if all are OK."""
    good = True
    for name, check in CHECKS.items():
        try:
            ok, says, fix = check()
        except Exception as error:  # a broken installation can fail in any way
            ok, says, fix = False, f"{type(error).__name__}: {error}", "make the environment again: make clean course"
        good &= ok
        print(f"{'OK  ' if ok else 'FAIL'}  {name:<12} {says}" + ("" if ok else f"  ->  {fix}"))
    return good
