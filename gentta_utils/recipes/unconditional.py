"""Three unconditional diffusion models of the scenes, to purify images with: which is the best?

- `unconditional/dit`: the shipped class-conditional DiT, trained on with the null class alone.
- `unconditional/unet`: a `UNet2DModel` in the style of ADM (Dhariwal and Nichol, 2021) on 32 px behind area averaging.
- `unconditional/unet-unshuffle`: the same at 64 px, of which it sees every 2 x 2 pixels as one of 12 channels at 32 px.

Recipe: that of `recipes.dit` without classes: eps loss with min-SNR-5 weights (Hang et al., 2023), timesteps stratified
within the batch, flips, moving average of the weights, linear schedule of 1,000 steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..diffusion.process import add_noise, alphas_cumprod_of, eps_error, linear_betas
from ..models.denoiser import write_out_attention
from ..world.labels import CLASSES
from . import dit, quality
from .data import training_set
from .training import Schedule

UNET = dict(
    sample_size=32,
    in_channels=3,
    out_channels=3,
    block_out_channels=(32, 48, 96, 128),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift",
    downsample_type="resnet",
    upsample_type="resnet",
    attention_head_dim=32,
    norm_num_groups=16,
    attn_norm_num_groups=16,  # else the middle's attention would have no norm
)
SHARED = dict(flat=0.5, final=0.02, ema=0.9995)


@dataclass(frozen=True)
class UnconditionalRecipe:
    """One model: its network's configuration and how long it trains; `start` names shipped weights to go on from."""

    schedule: Schedule
    config: dict = field(default_factory=dict)
    start: str = ""
    scenes: int = dit.SCENES

    @property
    def unshuffle(self) -> bool:
        return self.config["in_channels"] == 12

    def build(self, seed: int = 0) -> nn.Module:
        """A fresh network, each branch of it zero at first as in ADM (the diffusers class leaves that to the recipe),
        or the weights of `start`."""
        if self.start:
            return dit.build(start=self.start)
        torch.manual_seed(seed)
        network = write_out_attention(UNet2DModel(**self.config))
        for name, module in network.named_modules():
            if name.endswith(("conv2", "to_out.0", "conv_out")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        return network

    def describe(self) -> dict:
        """What the card says of it, beside its schedule."""
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in self.config.items()}
        return {"scenes": self.scenes, "loss": "eps, min-SNR-5", "start": self.start, "config": config}

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded."""
        images = training_set(self.scenes)[0].to(torch.get_default_device())  # where rows are drawn
        batch, factor = self.schedule.batch, 2 if self.unshuffle else 1
        side = factor * self.config["sample_size"]
        alphas_cumprod = alphas_cumprod_of(linear_betas()).float()
        snr = alphas_cumprod / (1 - alphas_cumprod)
        weights = (snr.clamp_max(5) / snr).to(device)
        null = {"class_labels": torch.full((batch,), len(CLASSES), device=device)} if self.start else {}

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            rows = torch.randint(0, len(images), (batch,), generator=generator)
            flip = torch.rand(batch, generator=generator) < 0.5
            t = dit.timesteps(batch, len(alphas_cumprod), generator)
            x = images[rows].float()
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
            x0 = F.avg_pool2d(x / 127.5 - 1, x.shape[-1] // side)
            eps = torch.randn(x0.shape, generator=generator)
            x0, t, eps = (
                F.pixel_unshuffle(x0, factor).to(device),
                t.to(device),
                F.pixel_unshuffle(eps, factor).to(device),
            )
            x_t = add_noise(x0, t, eps, alphas_cumprod)
            eps_hat = model(x_t, timestep=t, return_dict=False, **null)[0]
            return (weights[t] * eps_error(eps_hat.float(), eps)).mean()

        return loss_of

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write float16 weights, configuration and schedule in the library's own format."""
        if self.start:
            dit.save(network, folder)
            return
        whole = UNet2DModel(**self.config)  # half of a copy: the run may go on
        whole.load_state_dict(network.state_dict())
        whole.half().save_pretrained(folder / "unet", safe_serialization=True)
        dit.scheduler().save_pretrained(folder / "scheduler")

    def measure(self, model: nn.Module) -> dict:
        """See `quality.of_purifier`."""
        return quality.of_purifier(model)


RECIPES = {
    "unconditional/unet": UnconditionalRecipe(Schedule(8_000, batch=32, lr=1e-3, warmup=200, **SHARED), UNET),
    "unconditional/dit": UnconditionalRecipe(
        Schedule(1_650, batch=64, lr=3e-4, warmup=100, **SHARED | {"flat": 0.3}), dit.CONFIG, dit.DIT
    ),
    "unconditional/unet-unshuffle": UnconditionalRecipe(
        Schedule(8_000, batch=32, lr=1e-3, warmup=200, **SHARED), UNET | dict(in_channels=12, out_channels=12)
    ),
}
SHIPPED = RECIPES["unconditional/unet-unshuffle"]
for steps in (1_000, 2_000, 4_000):  # the first steps of it, all at the largest rate (notebook 05)
    RECIPES[f"unconditional/unet-unshuffle-{steps}"] = UnconditionalRecipe(
        replace(SHIPPED.schedule, steps=steps, flat=1.0), SHIPPED.config
    )
