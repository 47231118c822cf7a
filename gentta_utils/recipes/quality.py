"""How good a trained model is, for its card: on selection scenes and validation corruptions, never on test ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.randomness import generator
from ..diffusion.error_table import error_table
from ..diffusion.pairs import draw_pairs
from ..diffusion.process import add_noise, diffusion_loss
from ..diffusion.sampling import sample
from ..models import zoo
from ..models.classifier import Classifier
from ..models.denoiser import Denoiser
from ..streams.scenes import SceneSpec
from ..streams.stream import stream
from ..world.severities import VALIDATION
from ..world.views import low_pass


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent, one decimal."""
    return round(100 * (logits.argmax(1) == labels).float().mean().item(), 1)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error in points: |accuracy - confidence| over confidence bins (Guo et al., 2017)."""
    confidence, predicted = logits.softmax(1).max(1)
    bin_of = (confidence * bins).long().clamp_max(bins - 1)
    gaps = [(confidence[bin_of == b] - (predicted == labels)[bin_of == b].float()).sum().abs() for b in range(bins)]
    return round(100 * float(sum(gaps)) / len(labels), 1)


@torch.no_grad()
def of_classifier(classifier: Classifier, n: int = 500) -> dict:
    """Clean accuracy and calibration; accuracy on both views under the validation corruptions, severity 5; percent."""
    clean = stream(SceneSpec(n, split="select", start=1000))
    logits = classifier(clean.images)
    out = {
        "clean": accuracy(logits, clean.labels),
        "clean_low_pass": accuracy(classifier(low_pass(clean.images)), clean.labels),
    }
    out |= {
        "ece": calibration_error(logits, clean.labels),
        "nll": round(F.cross_entropy(logits, clean.labels).item(), 3),
    }
    for name in VALIDATION:
        shifted = stream(SceneSpec(n // 2, name, 5, "select", 1000))
        out[f"{name}_5"] = accuracy(classifier(shifted.images), shifted.labels)
        out[f"{name}_5_low_pass"] = accuracy(classifier(low_pass(shifted.images)), shifted.labels)
    return out


@torch.no_grad()
def of_denoiser(denoiser: Denoiser, n: int = 50, pairs: int = 24, window: tuple[int, int] = (150, 600)) -> dict:
    """Accuracy as a Diffusion Classifier (percent), and the loss with the true, a wrong and the null class."""
    out = {"pairs": pairs, "window": list(window)}
    for name, severity in [("clean", 0), *((name, 5) for name in VALIDATION)]:
        s = stream(SceneSpec(n, name, severity, "select", 1000))
        out[f"{name}_{severity}" if severity else name] = accuracy(
            -error_table(denoiser, s.images, s.ids, pairs, window).scores(), s.labels
        )
    s = stream(SceneSpec(200, split="select", start=1000))
    x0 = denoiser.encode(s.images)
    t, eps = (drawn.flatten(0, 1).to(x0.device) for drawn in draw_pairs(s.ids, 4, denoiser.shape, purpose="quality"))
    x0, labels = x0.repeat_interleave(4, 0), s.labels.to(x0.device).repeat_interleave(4)
    wrong = (labels + 1) % denoiser.classes
    for kind, cond in {
        "true": F.one_hot(labels, denoiser.classes).float(),
        "wrong": F.one_hot(wrong, denoiser.classes).float(),
        "null": None,
    }.items():
        out[f"loss_{kind}_class"] = round(
            diffusion_loss(denoiser, x0, t, eps, cond, denoiser.alphas_cumprod).mean().item(), 5
        )
    return out


@torch.no_grad()
def purified(denoiser: Denoiser, images: Tensor, ids: Tensor, start: int, levels: int = 20, eta: float = 0.0) -> Tensor:
    """Images (B, 3, S, S) diffused to timestep `start` and denoised in `levels` DDIM steps (Nie et al., 2022)."""
    x0, abar = denoiser.encode(images), denoiser.alphas_cumprod
    eps = torch.stack([torch.randn(denoiser.shape, generator=generator(0, i, "purify")) for i in ids.tolist()])
    x_t = add_noise(x0, torch.full((len(x0),), start, device=x0.device), eps.to(x0.device), abar)
    timesteps = torch.linspace(0, start, levels).round().long()
    return denoiser.decode(sample(denoiser, x_t, timesteps, None, abar, eta, ids=ids)).cpu()


@torch.no_grad()
def of_purifier(
    denoiser: Denoiser,
    n: int = 50,
    starts: tuple[int, ...] = (100, 200, 300),
    etas: tuple[float, ...] = (0.0, 1.0),
    classifiers: tuple[str, ...] = ("classifier/resnet", "classifier/vit"),
    levels: int = 20,
    pairs: int = 16,
) -> dict:
    """Accuracy (percent) of shipped classifiers on purified scenes, clean and under each validation corruption,
    severity 5, by start level and eta; that on the scenes as they are and on their low view; and the null loss."""
    networks = {name: zoo.load(name) for name in classifiers}
    out = {}
    for shift, severity in [("clean", 0), *((name, 5) for name in VALIDATION)]:
        s = stream(SceneSpec(n, shift, severity, "select", 1000))
        views = {"source": s.images, "low_pass": low_pass(s.images)}
        for start in starts:
            for eta in etas:
                views[f"t{start}_eta{eta:g}"] = purified(denoiser, s.images, s.ids, start, levels, eta)
        for view, images in views.items():
            for name, network in networks.items():
                out.setdefault(view, {}).setdefault(name, {})[shift] = accuracy(network(images), s.labels)
    s = stream(SceneSpec(n, split="select", start=1000))
    x0 = denoiser.encode(s.images).repeat_interleave(pairs, 0)
    t, eps = (v.flatten(0, 1).to(x0.device) for v in draw_pairs(s.ids, pairs, denoiser.shape, purpose="quality"))
    loss = diffusion_loss(denoiser, x0, t, eps, None, denoiser.alphas_cumprod)
    return out | {"loss": round(loss.mean().item(), 5)}
