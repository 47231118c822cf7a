"""Which latents does a diffusion model read best: factor 8 on 64 px (8x8x8) or factor 4 on the 32 px average (8x8x4)?

    python bench/autoencoder_race.py            # both, some 35 minutes of one core; goes on where it stopped
    python bench/autoencoder_race.py --only f4

Each autoencoder is trained for about ten minutes of one core, then the same class-conditional DiT on its latents, for
equally many steps, about five minutes. Judged by what decides: the Diffusion Classifier's accuracy on clean selection
scenes and under the validation corruptions; printed beside it: PSNR, and what the classifiers lose through the
autoencoder.
"""

import argparse
from dataclasses import asdict, replace

import torch

from gentta_utils.common.cache import fingerprint
from gentta_utils.common.files import write_json
from gentta_utils.common.paths import MODELS
from gentta_utils.diffusion.error_table import error_table
from gentta_utils.diffusion.process import add_noise, eps_error
from gentta_utils.models.dit import LatentDiT
from gentta_utils.recipes import autoencoder, dit
from gentta_utils.recipes.data import training_set
from gentta_utils.recipes.quality import accuracy
from gentta_utils.recipes.training import Schedule, train
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world.severities import VALIDATION

FOLDER = MODELS / "candidates" / "race"
SCENES = 20_000
SHIPPED = replace(autoencoder.RECIPES["autoencoder/f4"], scenes=SCENES)
COMPARED = {  # 1,200 and 2,100 steps are about ten minutes of one core
    "f8": replace(
        SHIPPED, widths=(16, 32, 64, 128), latent=8, pixels=64, schedule=replace(SHIPPED.schedule, steps=1200)
    ),
    "f4": replace(SHIPPED, widths=(32, 64, 96), latent=4, pixels=32, schedule=replace(SHIPPED.schedule, steps=2100)),
}
DIT = Schedule(1000, batch=64, lr=1.2e-3, warmup=100, flat=0.5, final=0.02, ema=0.998)


def latent_loss(latents: torch.Tensor, labels: torch.Tensor):
    """As of the class-conditional DiT of the course, on latents (n, C, 8, 8)."""
    alphas_cumprod, K = dit.scheduler().alphas_cumprod, 10
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = snr.clamp_max(5) / snr

    def loss_of(model, generator, step):
        rows = torch.randint(0, len(latents), (DIT.batch,), generator=generator)
        null = torch.rand(DIT.batch, generator=generator) < dit.NULL_SHARE
        y, t = torch.where(null, K, labels[rows]), dit.timesteps(DIT.batch, 1000, generator)
        x0 = latents[rows]
        eps = torch.randn(x0.shape, generator=generator)
        eps_hat = model(add_noise(x0, t, eps, alphas_cumprod), timestep=t, class_labels=y, return_dict=False)[0]
        return (weights[t] * eps_error(eps_hat.float(), eps)).mean()

    return loss_of


def run(name: str, n: int, pairs: int) -> dict:
    """Train and judge one of the two."""
    recipe, folder = COMPARED[name], FOLDER / name
    identity = fingerprint({"recipe": recipe.describe(), "schedule": asdict(recipe.schedule), "dit": asdict(DIT)})
    trained = train(recipe.build(), recipe.make_loss(), recipe.schedule, folder / "autoencoder", identity=identity)
    vae = trained.use_average().eval()
    vae.register_to_config(scaling_factor=1 / autoencoder.latent_std(vae))
    images, labels = training_set(SCENES)
    latents = torch.cat([autoencoder.encode(vae, x.float() / 255) for x in images.split(500)])
    config = dit.CONFIG | dict(in_channels=recipe.latent, sample_size=8, patch_size=1)
    prior = train(dit.build(config=config), latent_loss(latents, labels), DIT, folder / "dit", identity=identity)
    denoiser = LatentDiT(prior.use_average(), vae, dit.scheduler().alphas_cumprod, image_size=64, precision="bf16")
    out = autoencoder.of_autoencoder(vae, n)
    for shift, severity in [("clean", 0), *((name, 5) for name in VALIDATION)]:
        s = stream(SceneSpec(n if shift == "clean" else n // 4, shift, severity, "select", 1000))
        out[f"reads_{shift}"] = accuracy(-error_table(denoiser, s.images, s.ids, pairs).scores(), s.labels)
    write_json(folder / "race.json", out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(COMPARED))
    parser.add_argument("-n", type=int, default=200, help="clean selection scenes that are read")
    parser.add_argument("--pairs", type=int, default=24)
    args = parser.parse_args()
    for name in [args.only] if args.only else COMPARED:
        print(name, run(name, args.n, args.pairs), flush=True)


if __name__ == "__main__":
    main()
