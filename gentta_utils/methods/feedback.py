"""What the methods share that adapt a classifier by the feedback of a diffusion model: Diffusion-TTA and DUSA.

    G = dL/dp  with the probabilities detached, then one backward of (p * G).sum() through the classifier

Two ways to mix classes, on the same draws: "embedding" conditions the denoiser on sum_k p_k E_k, "output" takes
sum_k p_k eps_phi(x_t, t, E_k).

Cards: docs/methods/diffusion_tta.md, docs/methods/dusa.md
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from ..arrays import Images, PerImage, Probs
from ..classifier import Copies, parameter_names, with_lora
from ..diffusion import add_noise, eps_error
from ..errors import gram
from .base import Models

MIXINGS = ("embedding", "output")


def probabilities(logits: Probs, temperature: float, dropped: Bool[Tensor, "B K"] | None = None) -> Probs:
    """p = softmax(z / T) over the classes that are not dropped (B, K), renormalised."""
    z = logits / temperature
    return (z if dropped is None else z.masked_fill(dropped, -torch.inf)).softmax(1)


def condition_gradient(
    denoiser,
    x0: Images,
    p: Probs,
    t: Int[Tensor, "B n"],
    eps: Float[Tensor, "B n C H W"],
    mixing: str = "embedding",
    micro_batch: int = 48,
    phi: dict[str, Tensor] | None = None,
    classes: Int[Tensor, "B k"] | None = None,
) -> tuple[Probs, PerImage]:
    """G = dL/dp (B, K) and L (B,) of each image: the mean diffusion error over its n pairs.

    Args:
        x0: (B, C, H, W); p: (B, K), detached here; t: (B, n); eps: (B, n, C, H, W).
        micro_batch: rows of the denoiser at once; each micro-batch holds the same number of pairs of every image, at
            least one.
        phi: adapted parameters of the denoiser, whose .grad is added to (batch mean of L); None keeps it frozen.
        classes: (B, k) where p is not 0, all that output mixing evaluates; None for all K.
    """
    (B, n), p, abar = t.shape, p.detach().requires_grad_(), denoiser.alphas_cumprod
    G, loss = torch.zeros_like(p), x0.new_zeros(B)
    if classes is None:
        classes = torch.arange(p.shape[1], device=x0.device).expand(B, -1)
    width = classes.shape[1] if mixing == "output" and phi is not None else 1  # rows of a pair; `gram` splits its own
    for pairs in torch.arange(n, device=x0.device).split(max(1, micro_batch // (B * width))):
        k = len(pairs)
        x0_k, t_k, eps_k = x0.repeat_interleave(k, 0), t[:, pairs].flatten(), eps[:, pairs].flatten(0, 1)
        p_k, classes_k = p.repeat_interleave(k, 0), classes.repeat_interleave(k, 0)
        if mixing == "output" and phi is None:  # L = p' Gram p, so dL/dp = 2 Gram p: only forward evaluations
            g = gram(denoiser, x0_k, t_k, eps_k, classes_k, micro_batch).unflatten(0, (B, k)).sum(1) / n
            q = p.detach().gather(1, classes)
            Gq = (g @ q.to(g.dtype)[..., None])[..., 0]
            G, loss = G.scatter_add(1, classes, (2 * Gq).to(G.dtype)), loss + (q * Gq).sum(1)
            continue
        eps_hat = _mixed(denoiser, add_noise(x0_k, t_k, eps_k, abar), t_k, p_k, mixing, phi, classes_k)
        error = eps_error(eps_hat, eps_k)  # (B * k,)
        grad_p, *grad_phi = torch.autograd.grad(error.sum() / n, [p, *(phi or {}).values()])
        G, loss = G + grad_p, loss + error.detach().view(B, k).sum(1) / n
        for value, grad in zip((phi or {}).values(), grad_phi, strict=True):
            value.grad = grad / B if value.grad is None else value.grad + grad / B
    return G, loss


def _mixed(
    denoiser,
    x_t: Images,
    t: Int[Tensor, " B"],
    p: Probs,
    mixing: str,
    phi: dict[str, Tensor] | None,
    classes: Int[Tensor, "B k"],
) -> Images:
    """eps_hat (B, C, H, W) of the mixed condition, or the mix sum_k p_k eps_hat_k over `classes`."""

    def predict(*inputs: Tensor) -> Tensor:
        # the embedder is one module in all blocks: torch must not tie its weights a second time
        return denoiser(*inputs) if phi is None else functional_call(denoiser, phi, inputs, tie_weights=False)

    if mixing == "embedding":
        return predict(x_t, t, p)
    k = classes.shape[1]
    one_hot = F.one_hot(classes.flatten(), p.shape[1]).to(p.dtype)  # (B * k, K)
    each = predict(x_t.repeat_interleave(k, 0), t.repeat_interleave(k), one_hot).unflatten(0, (-1, k))
    return (p.gather(1, classes)[..., None, None, None] * each).sum(1)


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
