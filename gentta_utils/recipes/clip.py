"""CLIPs of the scenes: open_clip networks of a small vocabulary, trained on captions that leave much unsaid.

Loss: InfoNCE in both directions in which every true caption of an image is a positive, not only the one that was
written for it (Yang et al., 2022, "UniCL"): "a photo of a torus" is true of a tenth of the batch.

"clip/small-32" is a control: what the text-conditional diffusion model saw and the other two did not, it sees too.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..common.files import atomic_write, write_json
from ..models import zoo
from ..models.clip import Clip
from ..models.zoo import IMAGE_SIZE
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.severities import VALIDATION
from ..world.views import augment, low_pass
from ..world.words import ATTRIBUTES, LABEL_SETS, UNSAID, LabelSet, captions, choose, is_unseen, mirrored, true_of
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import jittered
from .classifiers import MEAN, STD
from .data import crowded_set, facts_of, training_set
from .quality import accuracy
from .tokenizer import CONTEXT, tokenizer
from .training import Schedule, halved

LARGEST_SCALE = 100.0  # of the logits (Radford et al., 2021)
COLOURED = torch.tensor([name in ("colour", "floor", "wall") for name in ATTRIBUTES])
SHIFT = 2  # pixels: more would move an object from "on the left" to "in the middle"


@dataclass(frozen=True)
class ClipRecipe:
    """One CLIP: the towers in open_clip's own terms, how many scenes it sees, how long it trains.

    Attributes:
        pixels: what it sees of an image. Fewer than 64: the area average, enlarged again, so that the tower, which is
            made for 64 px and would be left with 1 x 1 px to pool at 32, is the same in all its sizes.
        jittered: share of the training images that are changed as the autoencoder's are.
        start: the shipped CLIP whose weights it goes on from; none: it is drawn at random.
    """

    embed_dim: int
    vision: dict
    text: dict
    schedule: Schedule
    scenes: int = 60_000
    crowded: int = 6_000  # scenes of two or three objects
    crowded_share: float = 0.1  # of a batch
    all_said: float = 0.2  # share of captions that say all they may
    pixels: int = IMAGE_SIZE
    jittered: float = 0.0
    start: str = ""

    @property
    def config(self) -> dict:
        """open_clip's description of the network."""
        text = dict(context_length=CONTEXT, vocab_size=len(tokenizer()), hf_tokenizer_name="tokenizer", **self.text)
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": dict(image_size=IMAGE_SIZE, **self.vision),
            "text_cfg": text,
        }

    def build(self) -> nn.Module:
        from open_clip.model import CLIP  # most of what imports this module builds none

        torch.manual_seed(0)
        config = self.config
        network = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        if self.start:
            network.load_state_dict(zoo.load(self.start).network.state_dict())
        return network

    def degraded(self, x: Tensor, true: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images (B, 3, S, S) in [-1, 1] as this CLIP sees them, and what is still true of each (B, A): of a
        changed image no colour, of a texture nothing, for a caption must not be wrong."""
        if self.jittered:
            x, changed, gone = jittered((x + 1) / 2, generator, self.jittered)
            x, unknown = 2 * x - 1, (changed[:, None] & COLOURED) | gone[:, None]
            true = torch.where(unknown, UNSAID, true)
        return (low_pass(x, IMAGE_SIZE // self.pixels) if self.pixels < IMAGE_SIZE else x), true

    def describe(self) -> dict:
        """What the card says, beside the schedule."""
        described = {name: value for name, value in asdict(self).items() if name != "schedule"}
        return described | {"loss": "InfoNCE, every true caption is a positive"}

    def make_batches(self) -> Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]:
        """Load the data; returns what draws a batch: images in [-1, 1], tokens of their captions, and which captions
        (rows) are true of which images."""
        images, facts = training_set(self.scenes)[0], facts_of(self.scenes)
        more, more_facts = crowded_set(self.crowded)
        crowd = round(self.crowded_share * self.schedule.batch)
        words = tokenizer()

        def batch_of(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            rows = torch.randint(0, len(images), (self.schedule.batch - crowd,), generator=generator)
            others = torch.randint(0, len(more), (crowd,), generator=generator)
            x = torch.cat([images[rows], more[others]]).float() / 127.5 - 1
            flip = torch.rand(len(x), generator=generator) < 0.5
            x = augment(torch.where(flip[:, None, None, None], x.flip(-1), x), generator, pad=SHIFT, flips=False)
            x, true = self.degraded(x, mirrored(torch.cat([facts[rows], more_facts[others]]), flip), generator)
            said = choose(true, generator, self.all_said)
            tokens = words(captions(said, generator), padding="max_length", return_tensors="pt").input_ids
            x = x.contiguous(memory_format=torch.channels_last)  # a sixth less time for so few channels
            return x, tokens, true_of(said, true)

        return batch_of

    def make_loss(self, device: str = "cpu") -> Callable[[nn.Module, torch.Generator, int], Tensor]:
        """The loss function of `training.train`, with its data loaded."""
        batch_of = self.make_batches()

        def loss_of(model: nn.Module, generator: torch.Generator, step: int) -> Tensor:
            model.train()
            x, tokens, positive = batch_of(generator)
            with sdpa_kernel(
                SDPBackend.MATH
            ):  # for so few tokens the fused kernel is the slower one, above all backwards
                image = F.normalize(model.encode_image(x.to(device)).float(), dim=-1)
                text = F.normalize(model.encode_text(tokens.to(device)).float(), dim=-1)
            logits = model.logit_scale.exp().clamp_max(LARGEST_SCALE) * text @ image.T  # (M, B)
            return contrastive(logits, positive.to(device))

        return loss_of

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the network and its tokenizer in open_clip's own folder format, weights as float16 safetensors."""
        with torch.no_grad():
            model.logit_scale.clamp_(max=torch.tensor(LARGEST_SCALE).log())
        tensors = {k: halved(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
        atomic_write(folder / "open_clip_model.safetensors", lambda path: save_file(tensors, path))
        shown = {"size": [IMAGE_SIZE] * 2, "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic"}
        if self.pixels < IMAGE_SIZE:
            shown["pixels"] = self.pixels  # not open_clip's: `zoo.load` reads it
        write_json(folder / "open_clip_config.json", {"model_cfg": self.config, "preprocess_cfg": shown})
        tokenizer().save_pretrained(folder)

    def measure(self, model: Clip) -> dict:
        """Zero-shot accuracy of each label set, see `of_clip`."""
        return of_clip(model)


def contrastive(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy of logits (M, B) of texts and images with all positives (M, B) alike, in both directions."""
    return 0.5 * (_one_way(logits, positive) + _one_way(logits.T, positive.T))


def _one_way(logits: Tensor, positive: Tensor) -> Tensor:
    """Rows without a positive do not count; a text is true of its own image, so here there is none."""
    share = positive.float()
    share = share / share.sum(1, keepdim=True).clamp_min(1)
    return -(share * logits.log_softmax(1)).sum() / positive.any(1).sum()


_SCHEDULE = Schedule(2000, batch=256, lr=2e-3, warmup=200, weight_decay=0.1, betas=(0.9, 0.98), ema=0.999)
RECIPES = {
    "clip/small": ClipRecipe(
        embed_dim=96,
        vision=dict(layers=(1, 1, 1, 1), width=12, head_width=32),
        text=dict(width=64, heads=2, layers=2),
        schedule=_SCHEDULE,
    ),
    "clip/small-32": ClipRecipe(
        embed_dim=96,
        vision=dict(layers=(1, 1, 1, 1), width=12, head_width=32),
        text=dict(width=64, heads=2, layers=2),
        schedule=replace(_SCHEDULE, steps=1200, lr=1e-3),
        pixels=AUTOENCODERS["autoencoder/f4"].pixels,
        jittered=AUTOENCODERS["autoencoder/f4"].jittered,
        start="clip/small",
    ),
    "clip/large": ClipRecipe(
        embed_dim=128,
        vision=dict(layers=(1, 2, 2, 1), width=16, head_width=32),
        text=dict(width=96, heads=3, layers=3),
        schedule=_SCHEDULE,
    ),
}


@torch.no_grad()
def of_clip(model: Clip, n: int = 400, start: int = 1000) -> dict:
    """Zero-shot accuracy (percent) of each label set on clean selection scenes with its single prompt, and of
    "category" under the validation corruptions at severity 5.

    "seen" and "unseen" are the scenes whose class training captions name or not; "seen_wording" is the accuracy with
    the first template that training captions use, where the single prompt is another."""
    clean = SceneSpec(n, split="select", start=start)
    out = {name: _zero_shot(model, asked, clean) for name, asked in LABEL_SETS.items()}
    shifts = {f"category_{name}_5": replace(clean, shift=name, severity=5) for name in VALIDATION}
    return out | {name: _zero_shot(model, LABEL_SETS["category"], spec) for name, spec in shifts.items()}


def _zero_shot(model: Clip, asked: LabelSet, spec: SceneSpec) -> dict:
    s = stream(replace(spec, labels=asked.name.replace(" ", "_")))
    known = torch.tensor(asked.seen)[s.labels]
    template = next(t for t in asked.templates if not is_unseen(t.format("x")))
    logits = model.zero_shot(asked.classes, asked.templates[:1])(s.images)
    out = {"all": accuracy(logits, s.labels), "classes": len(asked.classes)}
    if not known.all():
        out |= {"seen": accuracy(logits[known], s.labels[known]), "unseen": accuracy(logits[~known], s.labels[~known])}
    if template != asked.templates[0]:
        out["seen_wording"] = accuracy(model.zero_shot(asked.classes, (template,))(s.images), s.labels)
    return out
