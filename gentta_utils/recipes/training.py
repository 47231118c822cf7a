"""The one training loop of all recipes: resumable to the bit, with a moving average and a bar that shows the loss.

A run's randomness is a function of (seed, step), so an interrupted run, resumed, ends where an uninterrupted one does.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..common.devices import autocast
from ..common.files import atomic_write, check_file
from ..common.progress import progress


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: number of optimiser steps.
        batch: samples per step.
        lr: largest learning rate of AdamW.
        warmup: steps of linear rise.
        flat: share of the steps before the cosine fall begins.
        final: learning rate at the end, as a share of `lr`.
        weight_decay, betas, clip: AdamW's, and the largest gradient norm.
        ema: decay of the moving average of the weights, 0 for none.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    flat: float = 0.0
    final: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.0

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear rise, flat part, cosine fall to `final`."""
        done = step / self.steps
        fall = 0.0 if done < self.flat else 0.5 * (1 - math.cos(math.pi * (done - self.flat) / (1 - self.flat)))
        return self.lr * min(1, (step + 1) / max(self.warmup, 1)) * (1 - (1 - self.final) * fall)


def _meta(path: Path) -> dict:
    """What a checkpoint says of its run. Raises ValueError if it is damaged."""
    fix = "start from the beginning with --scratch"
    check_file(path, fix=fix)
    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get("run")
    if said is None:
        raise ValueError(f"{path} is no checkpoint of a training: {fix}")
    return json.loads(said)


class Run:
    """Weights, optimiser moments and moving average of a training run, with one file that holds them all."""

    def __init__(self, model: nn.Module, schedule: Schedule, folder: Path, device: str, identity: str = ""):
        self.identity, self.updating = identity, False
        self.model, self.schedule, self.folder, self.device = model.to(device), schedule, folder, device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
        )
        self.average = [p.detach().clone() for p in model.parameters()] if schedule.ema else []
        self.step, self.seconds, self.loss = 0, 0.0, math.nan

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def tensors(self) -> dict[str, Tensor]:
        names = [n for n, _ in self.model.named_parameters()]
        out = {f"model.{n}": v for n, v in self.model.state_dict(keep_vars=True).items() if n in names}
        out |= {f"buffer.{n}": v for n, v in self.model.named_buffers()}
        out |= {f"average.{n}": v for n, v in zip(names, self.average, strict=False)}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                out[f"{key}.{name}"] = value
        return {k: v.detach().cpu().contiguous() for k, v in out.items()}

    def save(self, path: Path | None = None) -> None:
        meta = {"step": self.step, "seconds": self.seconds, "loss": self.loss, "steps": self.schedule.steps}
        meta["identity"] = self.identity
        tensors = self.tensors()
        atomic_write(path or self.checkpoint, lambda p: save_file(tensors, p, metadata={"run": json.dumps(meta)}))

    def load(self, path: Path | None = None) -> None:
        """Continue from a checkpoint. Raises ValueError if it is damaged or was begun with another recipe."""
        path = path or self.checkpoint
        meta = _meta(path)
        with safe_open(path, framework="pt", device="cpu") as file, torch.no_grad():
            if meta["identity"] != self.identity:
                raise ValueError(f"{path} was begun with another recipe or length: --scratch, or the same --minutes")
            keys = set(file.keys())
            for i, (name, p) in enumerate(self.model.named_parameters()):
                p.copy_(file.get_tensor(f"model.{name}"))
                if self.average:
                    self.average[i].copy_(file.get_tensor(f"average.{name}"))
                state = {
                    k: file.get_tensor(f"{k}.{name}")
                    for k in ("exp_avg", "exp_avg_sq", "step")
                    if f"{k}.{name}" in keys
                }
                if state:
                    self.optimizer.state[p] = {k: v.to(self.device) for k, v in state.items()}
            for name, buffer in self.model.named_buffers():
                buffer.copy_(file.get_tensor(f"buffer.{name}"))
        self.step, self.seconds, self.loss = meta["step"], meta["seconds"], meta["loss"]

    @staticmethod
    def steps_of(folder: Path) -> int | None:
        """Length of the schedule that the checkpoint in `folder` was begun with; None where there is none."""
        path = folder / "checkpoint.safetensors"
        if not path.is_file():
            return None
        return _meta(path)["steps"]

    def update(self, loss: Tensor) -> None:
        """One optimiser step; `updating` is set while weights, moments and step count do not belong together."""
        self.updating = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        if self.average:
            decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.updating = False

    def use_average(self) -> nn.Module:
        """The model with its averaged weights, if there are any."""
        with torch.no_grad():
            for p, average in zip(self.model.parameters(), self.average, strict=False):
                p.copy_(average)
        return self.model


def halved(weights: Tensor | nn.Module) -> Tensor | nn.Module:
    """A floating tensor of any shape, or a module (changed in place), in float16 with 8 significant bits: as many as
    bf16 has, in which a CPU computes. A repository packs the zeros in the last bits away: about a quarter of a file."""
    return weights.bfloat16().half()


LossFunction = Callable[[nn.Module, torch.Generator, int], Tensor]


def train(
    model: nn.Module,
    loss_of: LossFunction,
    schedule: Schedule,
    folder: Path,
    device: str = "cpu",
    scratch: bool = False,
    seed: int = 0,
    save_every: float = 120.0,
    identity: str = "",
) -> Run:
    """Train `model` to the end of its schedule, going on from the checkpoint in `folder` if there is one.

    Args:
        loss_of: (model, generator of this step, step) -> scalar loss.
        scratch: forget the checkpoint.
        identity: what the recipe depends on; a checkpoint of another one is refused.
        save_every: seconds between checkpoints.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    run = Run(model, schedule, folder, device, identity)
    if scratch:
        for path in folder.glob("*.safetensors"):
            path.unlink()
    if run.checkpoint.is_file():
        run.load()
    generator = torch.Generator()
    amp = autocast(device)
    bar = progress(total=schedule.steps, initial=run.step, desc=folder.name, unit="step")
    saved = time.monotonic()
    try:
        while run.step < schedule.steps:
            start = time.monotonic()
            generator.manual_seed((seed * 1_000_003 + run.step) % 2**32)
            with amp:
                loss = loss_of(model, generator, run.step)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of {folder.name} is {float(loss.detach())} at step {run.step}: lower the learning rate; "
                    f"the last checkpoint is {run.checkpoint}"
                )
            run.update(loss)
            value = float(loss.detach())
            run.loss = value if math.isnan(run.loss) else 0.99 * run.loss + 0.01 * value
            run.seconds += time.monotonic() - start
            if time.monotonic() - saved > save_every or run.step == schedule.steps:
                run.save()
                saved = time.monotonic()
            bar.update()
            bar.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
    except KeyboardInterrupt:
        if not run.updating:  # else the last checkpoint stands
            run.save()
        raise
    bar.close()
    return run


def training_speed(model: nn.Module, loss_of: LossFunction, schedule: Schedule, device: str, steps: int = 10) -> float:
    """Steps per second here, measured on a copy of the model."""
    run = Run(copy.deepcopy(model), schedule, Path(), device)
    amp = autocast(device)
    for step in range(steps):
        if step == 2:  # the first two warm up
            start = time.monotonic()
        with amp:
            loss = loss_of(run.model, torch.Generator().manual_seed(step), step)
        run.update(loss)
    return (steps - 2) / (time.monotonic() - start)
