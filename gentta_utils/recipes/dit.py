"""The class-conditional diffusion model of the scenes: a `DiTTransformer2DModel` on 32 px, behind area averaging.

Recipe: eps loss with min-SNR-5 weights (Hang et al., 2023), timesteps stratified within the batch with 60% of them in
the lower two thirds, flips, 10% null class, moving average of the weights.

`WEAK` is the same network after the first 3,000 steps. `SOFT` differs from that in one thing: a quarter of
its samples are conditioned on a mix of classes, of which the scene shows one. What Diffusion-TTA asks is then something
that the model has seen, and the loss a bound for mixtures of classes. The shipped DiT knows single classes, as real
ones do.

`FEW` saw no other scenes than the 1,500 of `classifier/resnet`. `FEW_NULL` has the same labels and the other 58,500
scenes without theirs: every second sample of a batch is drawn from the 1,500, the others from all 60,000, and a scene
beyond the first 1,500 stands under the null class. `FEW_SHORT` and `FEW_NULL_SHORT` are these with the steps of `WEAK`,
for 1,500 images are soon known by heart. `SEEDS` are `WEAK` with another initialisation and other draws. `UNMARKED`
goes on from the shipped weights on the same scenes, of which none carries the watermark.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from ..common.paths import MODELS
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
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCENES = 60_000
NULL_SHARE = 0.1
SCHEDULE = Schedule(steps=24_000, batch=64, lr=1.2e-3, warmup=300, flat=0.5, final=0.02, ema=0.9995)
SHORT = replace(SCHEDULE, steps=3000, flat=1.0)  # the first steps of it, about ten minutes on two cores
MORE = Schedule(steps=500, batch=64, lr=3e-4, warmup=50, flat=0.3, final=0.02, ema=0.9995)  # of trained weights


@dataclass(frozen=True)
class Variant:
    """What one of these models has of its own.

    Attributes:
        scenes: how many it sees. labelled: how many of them, the first, with their class.
        soft_share: of the samples have a mixed condition. marked: whether scenes carry the watermark (`training_set`).
        seed: of the initialisation, and of the draws in training. start: the shipped weights it goes on from."""

    schedule: Schedule = SCHEDULE
    scenes: int = SCENES
    labelled: int = SCENES
    soft_share: float = 0.0
    seed: int = 0
    marked: bool = True
    start: str = ""


DIT, WEAK, SOFT = "denoiser/dit", "denoiser/dit-10min", "denoiser/dit-soft-10min"
FEW, FEW_SHORT = "denoiser/dit-1500", "denoiser/dit-1500-10min"
FEW_NULL, FEW_NULL_SHORT = "denoiser/dit-1500-null", "denoiser/dit-1500-null-10min"
SEEDS = tuple(f"{WEAK}-seed{seed}" for seed in (2, 3))
UNMARKED = "denoiser/dit-unmarked"
VARIANTS = {
    DIT: Variant(),
    WEAK: Variant(SHORT),
    SOFT: Variant(SHORT, soft_share=0.25),
    FEW: Variant(scenes=1500, labelled=1500),
    FEW_SHORT: Variant(SHORT, scenes=1500, labelled=1500),
    FEW_NULL: Variant(labelled=1500),
    FEW_NULL_SHORT: Variant(SHORT, labelled=1500),
    UNMARKED: Variant(MORE, marked=False, start=DIT),
} | {name: Variant(SHORT, seed=int(name[-1])) for name in SEEDS}


def description(name: str) -> dict:
    """What the card says of a recipe, beside its schedule."""
    made = VARIANTS[name]
    shared = {"scenes": made.scenes, "null_share": NULL_SHARE, "loss": "eps, min-SNR-5", "config": CONFIG}
    own = {"soft_share": made.soft_share, "labelled": made.labelled * (made.labelled < made.scenes), "seed": made.seed}
    own |= {"start": made.start, "unmarked": not made.marked}
    return shared | {key: value for key, value in own.items() if value}  # what the first three never said stays unsaid


def scheduler() -> DDPMScheduler:
    """The schedule that the model is trained with, in the library's own format."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)


def build(seed: int = 0, config: dict = CONFIG, start: str = "") -> DiTTransformer2DModel:
    """A fresh network with adaLN-zero and a zero final layer (Peebles and Xie, 2023), which the diffusers class leaves
    to the recipe; or one with the weights of the model `start`. It takes images (B, 3, 32, 32) in [-1, 1].

    Raises FileNotFoundError where the weights of `start` are not here."""
    torch.manual_seed(seed)
    network = write_out_attention(prepare_dit(share_embedder(DiTTransformer2DModel(**config))))
    nn.init.normal_(network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    zeroed = [network.proj_out_1, network.proj_out_2, *(b.norm1.linear for b in network.transformer_blocks)]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    if start:
        network.load_state_dict(load_file(MODELS / start / "transformer" / WEIGHTS))
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


def make_loss(name: str = DIT, device: str = "cpu", batch: int = SCHEDULE.batch):
    """The loss function of `training.train` for one of `VARIANTS`, with its data loaded."""
    made, home = VARIANTS[name], torch.get_default_device()  # where rows are drawn
    images, labels = (part.to(home) for part in training_set(made.scenes, marked=made.marked))
    K, order = len(CLASSES), labels.argsort(stable=True)
    labels = torch.where(torch.arange(len(labels)) < made.labelled, labels, K)  # nobody looks at the others
    few = made.labelled < made.scenes
    counts = labels.bincount(minlength=K)
    first = counts.cumsum(0) - counts  # of each class in `order`
    alphas_cumprod = alphas_cumprod_of(linear_betas()).float()
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = (snr.clamp_max(5) / snr).to(device)

    def mixed(rows: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows with some replaced, and conditions (B, K + 1): one-hot, or a mix and then a scene of a class of it."""
        p, drawn = mixtures(batch, K, generator)
        soft = (torch.rand(batch, generator=generator) < made.soft_share) & (y < K)
        other = order[first[drawn] + (torch.rand(batch, generator=generator) * counts[drawn]).long()]
        cond = torch.where(soft[:, None], F.pad(p, (0, 1)), F.one_hot(y, K + 1).float())
        return torch.where(soft, other, rows), cond

    def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
        rows = torch.randint(0, len(images), (batch,), generator=generator)
        if few:
            rows = torch.where(torch.arange(batch) % 2 == 0, rows % made.labelled, rows)
        flip = torch.rand(batch, generator=generator) < 0.5
        y = torch.where(torch.rand(batch, generator=generator) < NULL_SHARE, K, labels[rows])
        if made.soft_share:
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
