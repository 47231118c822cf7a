"""What the methods share that adapt by the feedback of a diffusion model: Diffusion-TTA, DUSA and the adapted reader.

    G = dL/dp  with the probabilities detached, then one backward of (p * G).sum() through the classifier

Two ways to mix classes, on the same draws: "embedding" conditions the denoiser on sum_k p_k E_k, "output" takes
sum_k p_k eps_phi(x_t, t, E_k).

Cards: docs/methods/diffusion_tta.md, docs/methods/dusa.md, docs/methods/lora.md
"""

import re
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..common.types import Answers, PerImage
from ..diffusion.feedback import condition_gradient, probabilities
from ..models import lora
from ..models.classifier import Classifier
from ..models.copies import Copies, parameter_names
from ..models.denoiser import Denoiser
from .base import Models, check_classes

DENOISER_SETS = Literal["all", "lora"]
ATTENTION = re.compile(r"\.to_(q|k|v|out\.0)\.weight$")  # what Stable Diffusion's adapters are put on


def attention_weights(denoiser: Denoiser) -> dict[str, Tensor]:
    """The query, key, value and output weights of the network's attention, by their names within the denoiser.

    Raises ValueError where there are none."""
    named = {f"network.{n}": v for n, v in denoiser.network.named_parameters()}
    weights = {n: named[n] for n in (f"network.{n}" for n in lora.targets(denoiser.network)) if ATTENTION.search(n)}
    if not weights:
        raise ValueError("this denoiser has no attention layers by diffusers' names: choose denoiser_set='all'")
    return weights


def check_attention(denoiser: Denoiser) -> None:
    """Raise ValueError where the prediction does not read a weight of `attention_weights`."""
    device = denoiser.alphas_cumprod.device
    x, t = torch.zeros(1, *denoiser.shape, device=device), torch.zeros(1, dtype=torch.long, device=device)
    p = denoiser.widen(torch.full((1, denoiser.classes), 1 / denoiser.classes, device=device))
    p = p if denoiser.target == "class" else p[..., None, None]
    predict = lambda d: d.predict(x, t, p)  # noqa: E731
    lora.check_read(attention_weights(denoiser), lambda w: lora.with_weights(denoiser, w, predict))


def fresh_denoiser(denoiser: Denoiser, s) -> lora.Values:
    """What settings `s` adapt of the denoiser, at the source's values."""
    if s.denoiser_set == "lora":
        pairs = lora.init(attention_weights(denoiser), s.rank, s.seed).items()
        return {n: (A.requires_grad_(), B.requires_grad_()) for n, (A, B) in pairs}
    return {  # of the network alone: a VAE around it has no part in the loss
        f"network.{n}": v.detach().clone().requires_grad_()
        for n, v in denoiser.network.named_parameters()
        if s.adapt_embeddings or "embedding_table" not in n
    }


def make_steps(s, groups: list[dict]) -> Optimizer:
    """The optimiser of settings `s` over these groups of tensors, SGD with its momentum or AdamW; no weight decay."""
    if s.optimizer == "sgd":
        return torch.optim.SGD(groups, s.lr, momentum=s.momentum)
    return torch.optim.AdamW(groups, s.lr, weight_decay=0.0)


def fresh_copies(models: Models, s, copies: int | None) -> tuple[Copies, lora.Values | None, Optimizer]:
    """Copies of the source's parameters that settings `s` adapt, of the denoiser too or None, with their optimiser."""
    task, phi = Copies(models.classifier, s.param_set, copies, s.rank, s.seed), None
    groups = [{"params": task.tensors()}]
    if s.adapt_denoiser:
        phi = fresh_denoiser(models.denoiser, s)
        groups.append({"params": lora.flat(phi), "lr": s.denoiser_lr or s.lr})
    return task, phi, make_steps(s, groups)


def feedback(denoiser, phi: lora.Values | None, *inputs, **how) -> tuple[Answers, PerImage]:
    """G = dL/dp, of the shape of p, and L (B,) as `condition_gradient(denoiser, *inputs, **how)` gives them.

    phi: what is adapted of the denoiser, whose .grad is added to, or None. Adapters get theirs from dL/dW', which is
    gathered over all pairs first."""
    if phi is None:
        return condition_gradient(denoiser, *inputs, **how)
    weights = lora.merged(dict(denoiser.named_parameters()), phi)
    leaves = {n: w if w.is_leaf else w.detach().requires_grad_() for n, w in weights.items()}
    found = condition_gradient(denoiser, *inputs, phi=leaves, **how)
    for name, w in weights.items():
        if not w.is_leaf:
            w.backward(leaves[name].grad)
    return found


def told(classifier: Classifier, answer: Answers, temperature: float, dropped: Tensor | None = None) -> Answers:
    """What the denoiser is told of the classifier's answer: softmax(z / T), of a map at each pixel; depth as it is."""
    return answer if classifier.target == "depth" else probabilities(answer, temperature, dropped)


def takes_steps(denoiser) -> bool:
    """Whether the denoiser's weights can be adapted: half precision would round small steps away, and blocks that are
    computed again on the way back would be computed with the source's weights."""
    exact = denoiser.precision != "fp16" and all(v.dtype == torch.float32 for v in denoiser.parameters())
    return exact and not getattr(denoiser.network, "is_gradient_checkpointing", False)


def check_denoiser(models: Models, last: int, wordings: int = 1) -> None:
    """Raise ValueError without a denoiser, or if it lacks timestep `last` or the classifier's classes."""
    if models.denoiser is None:
        raise ValueError("this method needs a denoiser: Models(classifier, denoiser)")
    if last >= len(models.denoiser.alphas_cumprod):
        raise ValueError(
            f"t={last}: this denoiser has {len(models.denoiser.alphas_cumprod)} timesteps, choose a lower t"
        )
    check_classes(models, wordings)


def check_condition(models: Models, mixing: str) -> None:
    """Raise ValueError unless the denoiser can be told what the classifier answers."""
    answers, knows = models.classifier.target, models.denoiser.target
    if answers == "depth" and mixing == "output":
        raise ValueError("mixing='output': depth has no classes to mix, choose 'embedding'")
    if answers != knows and not (answers == "classes" and knows == "class" and mixing == "output"):
        raise ValueError(
            f"the task network answers with {answers!r} and the denoiser is conditioned on {knows!r}: give both the "
            "same, or a segmentor, a denoiser of classes and mixing='output'"
        )


def prepare(models: Models, s, last: int, wordings: int = 1) -> Models:
    """The models, frozen here so that they never compute weight gradients.

    Raises ValueError where settings `s` do not fit them; `last` is the largest timestep in use."""
    check_denoiser(models, last, wordings)
    check_condition(models, s.mixing)
    if s.adapt_denoiser:
        if not takes_steps(models.denoiser):
            raise ValueError("adapt_denoiser=True: load the denoiser with precision='fp32' and low_memory=False")
        if s.denoiser_set == "lora":
            check_attention(models.denoiser)
    parameter_names(models.classifier, s.param_set)
    freeze(models)
    return models


def freeze(models: Models) -> None:
    """No weight gradients in either network."""
    for net in (models.classifier, models.denoiser):
        if isinstance(net, torch.nn.Module):
            net.requires_grad_(False)
