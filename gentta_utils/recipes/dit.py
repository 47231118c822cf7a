"""The class-conditional diffusion model of the scenes: a `DiTTransformer2DModel` on 32 px, behind area averaging.

Recipe: eps loss with min-SNR-5 weights (Hang et al., 2023), timesteps stratified within the batch with 60% of them in
the lower two thirds, flips, 10% null class, moving average of the weights.

`WEAK` is the same network after the first 3,000 steps. `SOFT` differs from that in one thing: a quarter of
its samples are conditioned on a mix of classes, of which the scene shows one. What Diffusion-TTA asks is then something
that the model has seen, and the loss a bound for mixtures of classes. The shipped DiT knows single classes, as real
ones do. `UNMARKED` is the shipped model but for its scenes: none carries the watermark.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from ..diffusion.process import add_noise, alphas_cumprod_of, eps_error, linear_betas
from ..models.denoiser import write_out_attention
from ..models.dit import prepare_dit, share_embedder
from ..world.labels import CLASSES
from .data import training_set
from .training import Schedule

CONFIG = dict(
    num_attention_heads=6,
    attention_head_dim=32,
    in_channels=3,
    num_layers=6,
    sample_size=32,
    patch_size=4,
    num_embeds_ada_norm=len(CLASSES),
)
SCENES = 60_000
NULL_SHARE = 0.1
SCHEDULE = Schedule(steps=24_000, batch=64, lr=1.2e-3, warmup=300, flat=0.5, final=0.02, ema=0.9995)
DIT, WEAK, SOFT = "denoiser/dit", "denoiser/dit-10min", "denoiser/dit-soft-10min"
UNMARKED = "denoiser/dit-unmarked"
SHORT = replace(SCHEDULE, steps=3000, flat=1.0)  # the first steps of it, about ten minutes on two cores
SCHEDULES = {DIT: SCHEDULE, WEAK: SHORT, SOFT: SHORT, UNMARKED: SCHEDULE}
SOFT_SHARE = 0.25  # of the samples of SOFT have a mixed condition


def description(name: str) -> dict:
    """What the card says of a recipe, beside its schedule."""
    shared = {"scenes": SCENES, "null_share": NULL_SHARE, "loss": "eps, min-SNR-5", "config": CONFIG}
    return shared | {SOFT: {"soft_share": SOFT_SHARE}, UNMARKED: {"marked": False}}.get(name, {})


def scheduler() -> DDPMScheduler:
    """The schedule that the model is trained with, in the library's own format."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)


def build(seed: int = 0, config: dict = CONFIG) -> DiTTransformer2DModel:
    """A fresh network with adaLN-zero and a zero final layer, which the diffusers class leaves to the recipe."""
    torch.manual_seed(seed)
    network = write_out_attention(prepare_dit(share_embedder(DiTTransformer2DModel(**config))))
    nn.init.normal_(network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    zeroed = [network.proj_out_1, network.proj_out_2, *(b.norm1.linear for b in network.transformer_blocks)]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


def save(network: nn.Module, folder: Path) -> None:
    """Write float16 weights, configuration and schedule in the library's own format."""
    untied = DiTTransformer2DModel(**CONFIG)  # one embedder per block again: safetensors refuses shared storage
    untied.load_state_dict(network.state_dict())
    untied.half().save_pretrained(folder / "transformer", safe_serialization=True)
    scheduler().save_pretrained(folder / "scheduler")


def timesteps(n: int, T: int, generator: torch.Generator) -> Tensor:
    """n timesteps, one in each n-th of the range, 60% of them moved to the lower two thirds: (n,) int64."""
    t = ((torch.arange(n) + torch.rand(n, generator=generator)) / n * T).long().clamp_max(T - 1)
    return torch.where(torch.rand(n, generator=generator) < 0.6, (t * 0.65).long(), t)


def mixtures(n: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sparse p (n, K), uniform over the simplex of 2 to 4 random classes, and a class (n,) drawn from each."""
    count = torch.randint(2, 5, (n, 1), generator=generator)
    among = torch.rand(n, classes, generator=generator).argsort(1).argsort(1) < count  # (n, K)
    weights = torch.empty(n, classes).exponential_(generator=generator) * among
    p = weights / weights.sum(1, keepdim=True)
    return p, torch.multinomial(p, 1, generator=generator)[:, 0]


def make_loss(
    device: str = "cpu",
    scenes: int = SCENES,
    batch: int = SCHEDULE.batch,
    soft_share: float = 0.0,
    marked: bool = True,
):
    """The loss function of `training.train`, with its data loaded; `soft_share` of the samples on mixed conditions;
    `marked`: as of `training_set`."""
    images, labels = training_set(scenes, marked=marked)
    K, order = len(CLASSES), labels.argsort(stable=True)
    counts = labels.bincount(minlength=K)
    first = counts.cumsum(0) - counts  # of each class in `order`
    alphas_cumprod = alphas_cumprod_of(linear_betas()).float()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = (snr.clamp_max(5) / snr).to(device)

    def mixed(rows: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows with some replaced, and conditions (B, K + 1): one-hot, or a mix and then a scene of a class of it."""
        p, drawn = mixtures(batch, K, generator)
        soft = (torch.rand(batch, generator=generator) < soft_share) & (y < K)
        other = order[first[drawn] + (torch.rand(batch, generator=generator) * counts[drawn]).long()]
        cond = torch.where(soft[:, None], F.pad(p, (0, 1)), F.one_hot(y, K + 1).float())
        return torch.where(soft, other, rows), cond

    def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        rows = torch.randint(0, len(images), (batch,), generator=generator)
        flip = torch.rand(batch, generator=generator) < 0.5
        y = torch.where(torch.rand(batch, generator=generator) < NULL_SHARE, K, labels[rows])
        if soft_share:
            rows, y = mixed(rows, y, generator)
        t = timesteps(batch, len(alphas_cumprod), generator)
        x = images[rows].float()
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        x0 = F.avg_pool2d(x / 127.5 - 1, x.shape[-1] // CONFIG["sample_size"])
        eps = torch.randn(x0.shape, generator=generator)
        x0, t, eps, y = x0.to(device), t.to(device), eps.to(device), y.to(device)
        x_t = add_noise(x0, t, eps, alphas_cumprod)
        eps_hat = model(x_t, timestep=t, class_labels=y, return_dict=False)[0]
        return (weights[t] * eps_error(eps_hat.float(), eps)).mean()

    return loss_of
