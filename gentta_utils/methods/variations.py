"""Variations of an image by a diffusion model: the generated views of DiffTPT (Feng et al., ICCV 2023), one call for
three generators.

    variation        from noise,                            told the embedding of the image, guided away from zeros
    image_to_image   from the image noised to t = start,    told nothing (SDEdit, Meng et al., ICLR 2022)
    prompted         from the image noised to t = start,    told a caption, guided away from the empty one

then DDIM without noise down to t = 0. The first draws what the embedding leaves out from scratch; the other two keep
what the noise leaves of the image, and take a corruption away as DiffPure does. All draws belong to (seed, image,
number of the variation), and the network always sees batches of one size: variation j of an image is the same to the
bit whatever is made beside it.

Card: docs/methods/variations.md
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..common.randomness import generator as generator_of
from ..common.types import Images, Index
from ..common.validate import Checked, Count, Natural, NotNegative, check_images
from ..diffusion.process import add_noise
from ..diffusion.sampling import respaced, sample
from ..diffusion.synthesis import classifier_free
from ..models.denoiser import Denoiser
from ..models.latent_unet import LatentUNet
from ..models.text_unet import TextUNet
from ..models.variation_unet import VariationUNet


@dataclass(frozen=True)
class Settings(Checked):
    """How variations are drawn; what was chosen for each generator is in `CHOSEN` and `CHOSEN_TOLD`."""

    start: Natural | None = None  # original t up to which the image is noised; None: pure noise, nothing of the image
    steps: Count = 20  # levels, even from t = 0 to start
    guidance: NotNegative = 3.0  # classifier-free; 1: none, at half the cost
    noise: NotNegative = 0.0  # on the embedding, in units of its root mean square: variations of one image differ more
    seed: int = 0
    rows_at_once: Count = 50  # variations in a batch of the network, which is always full

    def __post_init__(self):
        super().__post_init__()
        if self.start is not None and self.steps > self.start + 1:
            raise ValueError(f"steps={self.steps}: choose at most {self.start + 1}, or a higher start")


CHOSEN = {
    "variation": Settings(),
    "image_to_image": Settings(start=399, steps=10, guidance=1.0),
    "prompted": Settings(start=399, steps=8, guidance=1.0),  # with the empty prompt, which is not guided
}
CHOSEN_TOLD = Settings(start=599, steps=12, guidance=3.0)  # of "prompted" with captions, which can redraw more
PUBLISHED = dict(start=None, steps=50, guidance=3.0)  # of "variation", in DiffTPT
MODELS_OF = {  # generator -> its model in the scenes profile
    "variation": "denoiser/variation",
    "image_to_image": "unconditional/unet-unshuffle",
    "prompted": "denoiser/text",
}


@torch.no_grad()
def variations(
    images: Float[Tensor, "B 3 S S"],
    n: int,
    generator: str,
    denoiser: Denoiser,
    ids: Index,
    settings: Settings | None = None,
    captions: Sequence[str] | None = None,
    first: int = 0,
) -> Float[Tensor, "B n 3 S S"]:
    """Variations first to first + n - 1 of each image, (B, n, 3, S, S) in [0, 1], on the CPU.

    Args:
        images: (B, 3, S, S) in [0, 1], S the denoiser's `image_size`.
        generator: one of `CHOSEN`.
        denoiser: its model, e.g. `zoo.load(MODELS_OF[generator])`; it counts the evaluations, which are
            `evaluations(...)` per variation and those of padded batches.
        ids: (B,), to which the draws belong.
        settings: as chosen for the generator where None.
        captions: of "prompted", one per image; None: the empty prompt, which is not guided.

    Raises ValueError for an unknown generator, a model, settings or captions that do not fit it, and for images as
    `check_images`."""
    s = settings or usual(generator, captions is not None)
    check_generator(generator, denoiser, s, len(images), captions)
    if not len(images) or n < 1:
        return torch.zeros(len(images), max(n, 0), *images.shape[1:])
    check_images(images, denoiser.image_size)
    model, classes = denoiser, None
    if captions is not None:
        different = list(dict.fromkeys(captions))
        model = denoiser.for_prompts(different)
        model.count = denoiser.count  # what it costs is counted by the denoiser that was given
        classes = F.one_hot(torch.tensor([different.index(c) for c in captions]), len(different)).float()
    out = []
    for rows in torch.arange(len(images) * n).split(s.rows_at_once):
        full = torch.cat([rows, rows[:1].expand(s.rows_at_once - len(rows))])
        image, number = full // n, first + full % n
        cond = None
        if generator == "variation":
            cond = _jolted(denoiser.embed(images[image]), ids[image].tolist(), number.tolist(), s)
        if classes is not None:
            cond = classes[image].to(denoiser.alphas_cumprod.device)
        x0 = _walk(model, images[image], ids[image].tolist(), number.tolist(), s, cond)
        out.append(denoiser.decode(x0)[: len(rows)].cpu())
    return torch.cat(out).unflatten(0, (len(images), n))


def evaluations(generator: str, settings: Settings | None = None, captions: bool = False) -> int:
    """Evaluations of the denoiser per variation; guidance asks it twice a step where there is something to tell it."""
    s = settings or usual(generator, captions)
    told = generator == "variation" or (generator == "prompted" and captions)
    return s.steps * (2 if told and s.guidance != 1 else 1)


def check_generator(
    generator: str, denoiser: Denoiser, settings: Settings, images: int, captions: Sequence[str] | None
) -> None:
    """Raise ValueError unless these make variations of so many images."""
    usual(generator)
    if generator == "variation" and not isinstance(denoiser, VariationUNet):
        raise ValueError("generator 'variation' needs an image-variation model: zoo.load('denoiser/variation')")
    if generator == "prompted" and not isinstance(denoiser, TextUNet):
        raise ValueError("generator 'prompted' needs a text-conditional model: zoo.load('denoiser/text')")
    if generator != "variation" and settings.start is None:
        raise ValueError(f"start=None: generator {generator!r} begins with the image, choose a level, e.g. start=399")
    if settings.start is not None and settings.start >= len(denoiser.alphas_cumprod):
        raise ValueError(f"start={settings.start}: this denoiser has {len(denoiser.alphas_cumprod)} timesteps")
    if captions is not None and (generator != "prompted" or len(captions) != images):
        raise ValueError(f"captions are of generator 'prompted', one per image: give {images}, or None")


def usual(generator: str, captions: bool = False) -> Settings:
    """The chosen settings of a generator, with or without captions. Raises ValueError for an unknown one."""
    if generator not in CHOSEN:
        raise ValueError(f"unknown generator {generator!r}: choose one of {', '.join(CHOSEN)}")
    return CHOSEN_TOLD if generator == "prompted" and captions else CHOSEN[generator]


def _jolted(told: Float[Tensor, "B D"], ids: list[int], numbers: list[int], s: Settings) -> Float[Tensor, "B D"]:
    """Embeddings with noise of their own size times `noise`, each variation its own."""
    if s.noise == 0:
        return told
    draws = [generator_of(s.seed, i, f"embedding/{j}") for i, j in zip(ids, numbers, strict=True)]
    z = torch.stack([torch.randn(told.shape[1], generator=g) for g in draws]).to(told)
    return told + s.noise * told.square().mean(1, keepdim=True).sqrt() * z


def _walk(
    denoiser: Denoiser,
    images: Float[Tensor, "B 3 S S"],
    ids: list[int],
    numbers: list[int],
    s: Settings,
    cond: Tensor | None,
) -> Images:
    """x0 (B, C, H, W) of one full batch of rows, each a variation of an image (3, S, S) with its number."""
    abar = denoiser.alphas_cumprod
    draws = [generator_of(s.seed, i, f"variation/{j}") for i, j in zip(ids, numbers, strict=True)]
    x_t = torch.stack([torch.randn(denoiser.shape, generator=g) for g in draws]).to(abar.device)
    if s.start is not None:
        x_t = add_noise(denoiser.encode(images), torch.full((len(images),), s.start, device=abar.device), x_t, abar)
    highest = len(abar) - 1 if s.start is None else s.start
    levels = respaced(s.steps, highest + 1) if s.steps > 1 else torch.tensor([highest])
    model = denoiser if cond is None else classifier_free(denoiser, s.guidance)
    return sample(model, x_t, levels, cond, abar, clip=not isinstance(denoiser, LatentUNet))
