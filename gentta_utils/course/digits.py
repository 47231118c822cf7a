"""The real pictures of notebooks 01 and 07: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, and a diffusion
model of them that trains live, in seconds on two cores.

`DigitDenoiser` obeys the contract of all denoisers here, so loss and error table take it as it is.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..common.progress import progress
from ..common.randomness import generator
from ..common.types import Images, Index
from ..diffusion.pairs import draw_timesteps
from ..diffusion.process import add_noise, alphas_cumprod_of, eps_error, linear_betas
from ..models.denoiser import Denoiser
from ..models.dit import SoftEmbedding

CLASSES = 10
TEST = 397  # the rest, 1,400, is for training
SHIFTS = ("clean", "noise 0.5", "noise 0.8", "pale", "blur")
NULL = 0.1  # part of the labels that training drops


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) float32 in [-1, 1], labels (N,) and ids (N,): positions in scikit-learn's own order."""

    images: Float[Tensor, "B 1 8 8"]
    labels: Index
    ids: Index

    def __len__(self) -> int:
        return len(self.ids)


def load(split: str = "train") -> Digits:
    """The digits of a split, "train" or "test": a fixed random split, the same for everybody.

    Raises ValueError for another name."""
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: choose train or test")
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    ids = (order[TEST:] if split == "train" else order[:TEST]).sort().values
    images = torch.from_numpy(raw.images).float()[ids, None] / 8 - 1  # grey levels 0 to 16
    return Digits(images, torch.from_numpy(raw.target).long()[ids], ids)


def shifted(images: Images, name: str, ids: Index, seed: int = 0) -> Images:
    """Digits (B, 1, 8, 8) with these ids (B,) under a shift of `SHIFTS`. Raises ValueError for another name."""
    if name not in SHIFTS:
        raise ValueError(f"unknown shift {name!r}: choose one of {', '.join(SHIFTS)}")
    if name.startswith("noise"):
        drawn = [torch.randn(images.shape[1:], generator=generator(seed, i, "digit noise")) for i in ids.tolist()]
        return images + float(name.split()[1]) * torch.stack(drawn)
    if name == "pale":
        return (images + 1) * 0.4 - 1
    return nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False) if name == "blur" else images


def time_features(t: Index, width: int, longest: float = 10_000.0) -> Float[Tensor, "B width"]:
    """Sines and cosines of t (B,) at width / 2 frequencies, as in transformers: (B, width)."""
    rates = torch.exp(-math.log(longest) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = t[:, None].float() * rates
    return torch.cat([angle.sin(), angle.cos()], 1)


class Block(nn.Module):
    """Residual layer whose scale and shift come from time and class: h + W2 silu(norm(h) (1 + a) + b)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.modulate = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "B W"], code: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        scale, shift = self.modulate(code).chunk(2, 1)
        return h + self.outer(nn.functional.silu(self.inner(self.norm(h) * (1 + scale) + shift)))


class DigitDenoiser(Denoiser):
    """Class-conditional noise prediction of digits by a residual MLP; the last row of the table is the null class."""

    def __init__(self, width: int = 192, blocks: int = 3, T: int = 1000):
        super().__init__(alphas_cumprod_of(linear_betas(T)), CLASSES, 8, (1, 8, 8), "fp32")
        self.table = SoftEmbedding(CLASSES + 1, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))
        self.width = width

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        labels = torch.full_like(t, CLASSES) if cond is None else cond
        code = nn.functional.silu(self.time(time_features(t, self.width)) + self.table(labels))  # (B, W)
        h = self.first(x_t.flatten(1))
        for block in self.blocks:
            h = block(h, code)
        return self.last(h).view_as(x_t)

    def encode(self, images: Images) -> Images:
        return images.to(self.alphas_cumprod.device)

    def decode(self, x0: Images) -> Images:
        return x0


def training_loss(model: DigitDenoiser, images: Images, labels: Index, batch: int, g: torch.Generator) -> Tensor:
    """The mean loss of a random batch of digits (N, 1, 8, 8): a level for each, spread evenly over the schedule, fresh
    noise, and a tenth of the labels replaced by the null class."""
    rows = torch.randint(len(images), (batch,), generator=g).to(images.device)
    t = draw_timesteps(batch, (0, len(model.alphas_cumprod)), "stratified", g).to(images.device)
    eps = torch.randn(batch, 1, 8, 8, generator=g).to(images.device)
    null = (torch.rand(batch, generator=g) < NULL).to(images.device)
    x_t = add_noise(images[rows], t, eps, model.alphas_cumprod)
    return eps_error(model.predict(x_t, t, labels[rows].where(~null, CLASSES)), eps).mean()


def train(model, images, labels, steps, batch=128, lr=2e-3, decay=0.995, seed=0):
    """Train `model` in place on images (N, 1, 8, 8) and labels (N,), then freeze it with the moving average of its
    weights; returns the losses (steps,). AdamW, its rate falling to 0 as a cosine."""
    g = torch.Generator().manual_seed(seed)
    weights = list(model.requires_grad_(True).parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in progress(range(steps), desc="digits", unit="step", leave=False):
        loss = training_loss(model, images, labels, batch, g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        with torch.no_grad():  # the average of the weights starts quickly and then follows slowly
            torch._foreach_lerp_(average, weights, 1 - min(decay, step / (step + 10)))
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    model.requires_grad_(False)
    return torch.tensor(losses)
