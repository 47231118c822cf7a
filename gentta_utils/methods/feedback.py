"""What the methods share that adapt a classifier by the feedback of a diffusion model: Diffusion-TTA and DUSA.

    G = dL/dp  with the probabilities detached, then one backward of (p * G).sum() through the classifier

Two ways to mix classes, on the same draws: "embedding" conditions the denoiser on sum_k p_k E_k, "output" takes
sum_k p_k eps_phi(x_t, t, E_k).

Cards: docs/methods/diffusion_tta.md, docs/methods/dusa.md
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..models.copies import Copies, parameter_names, with_lora
from .base import Models


def fresh_copies(models: Models, s, copies: int | None) -> tuple[Copies, dict[str, Tensor] | None, Optimizer]:
    """Copies of the source's parameters that settings `s` adapt, of the denoiser too or None, with their optimiser."""
    task, phi = Copies(models.classifier, s.param_set, copies), None
    groups = [{"params": task.tensors()}]
    if s.adapt_denoiser:
        phi = {  # of the network alone: a VAE around it has no part in the loss
            f"network.{n}": v.detach().clone().requires_grad_()
            for n, v in models.denoiser.network.named_parameters()
            if s.adapt_embeddings or "embedding_table" not in n
        }
        groups.append({"params": list(phi.values()), "lr": s.denoiser_lr or s.lr})
    if s.optimizer == "sgd":
        return task, phi, torch.optim.SGD(groups, s.lr, momentum=s.momentum)
    return task, phi, torch.optim.AdamW(groups, s.lr, weight_decay=0.0)


def takes_steps(denoiser) -> bool:
    """Whether the denoiser's weights can be adapted: half precision would round small steps away, and blocks that are
    computed again on the way back would be computed with the source's weights."""
    exact = denoiser.precision != "fp16" and all(v.dtype == torch.float32 for v in denoiser.parameters())
    return exact and not getattr(denoiser.network, "is_gradient_checkpointing", False)


def prepare(models: Models, s, last: int) -> Models:
    """The models, frozen here so that they never compute weight gradients, with adapters if `s.param_set` is "lora".

    Raises ValueError where settings `s` do not fit them; `last` is the largest timestep in use."""
    if models.denoiser is None:
        raise ValueError("this method needs a denoiser: Models(classifier, denoiser)")
    if last >= len(models.denoiser.alphas_cumprod):
        raise ValueError(
            f"t={last}: this denoiser has {len(models.denoiser.alphas_cumprod)} timesteps, choose a lower t"
        )
    if s.adapt_denoiser and not takes_steps(models.denoiser):
        raise ValueError("adapt_denoiser=True: load the denoiser with precision='fp32' and low_memory=False")
    if s.param_set == "lora":
        models = Models(with_lora(models.classifier, seed=s.seed), models.denoiser)
    parameter_names(models.classifier, s.param_set)
    for net in (models.classifier, models.denoiser):
        if isinstance(net, torch.nn.Module):
            net.requires_grad_(False)
    return models
