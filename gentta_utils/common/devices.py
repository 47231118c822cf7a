"""What to compute on, and in which precision: the one place that decides it."""

import os

import torch


def available() -> dict[str, str]:
    """The devices of this machine, as `device` parameters name them, each in words."""
    found = {"cpu": "cpu"}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        found["mps"] = "mps (Apple's graphics)"
    return found


def check_device(device: str) -> str:
    """The device. Raises ValueError, with the choices, for one that this machine does not have."""
    kind, _, number = str(device).partition(":")
    there = kind in available() and (not number or (number.isdigit() and int(number) < _how_many(kind)))
    if not there or str(device).endswith(":"):
        raise ValueError(f"device {str(device)!r} is not here: choose one of {', '.join(available())}")
    return device


def _how_many(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else 1


def precision_on(device: str, precision: str = "auto", published: bool = False) -> str:
    """What "auto" means for a denoiser on a device, "fp32", "bf16" or "fp16"; anything else is returned as it is.

    | device | shipped models | published ones (`published`), which are a hundred times larger |
    |---|---|---|
    | cpu | bf16 where it is fast | fp32 |
    | cuda | bf16 where it is fast | bf16 where it is fast, else fp16 (before Ampere) |
    | others | fp32 | fp32 |

    The environment variable GENTTA_PRECISION=fp32 makes it fp32 everywhere, to see what a machine without fast bf16
    does; raises ValueError for other values than "fp32", "auto" and nothing."""
    wanted = os.environ.get("GENTTA_PRECISION", "auto")
    if wanted not in ("", "auto", "fp32"):
        raise ValueError(f"GENTTA_PRECISION={wanted}: set it to fp32 (no half precision) or to auto")
    if precision != "auto":
        return precision
    kind = str(device).partition(":")[0]
    if wanted == "fp32" or kind not in ("cpu", "cuda") or (kind == "cpu" and published):
        return "fp32"
    if _has_fast_bf16(kind):
        return "bf16"
    return "fp16" if published else "fp32"


def autocast(device: str) -> torch.autocast:
    """A context in which a shipped model is trained on a device: in bf16 where `precision_on` says so."""
    return torch.autocast(str(device).partition(":")[0], torch.bfloat16, enabled=precision_on(device) == "bf16")


def _has_fast_bf16(kind: str) -> bool:
    """Whether the CUDA device multiplies bf16 itself, or this processor has the instructions."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
