"""The gradient of the diffusion loss with respect to the condition p: all that adapts a task model."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call

from ..common.resize import resized
from ..common.types import Answers, Images, PerImage
from ..common.validate import Count, Positive, checked
from .error_table import gram
from .process import Conditioned, add_noise, diffusion_loss, eps_error

MIXINGS = ("embedding", "output")


@checked
def probabilities(logits: Answers, temperature: Positive, dropped: Bool[Tensor, "B K *map"] | None = None) -> Answers:
    """p = softmax(z / T) over the classes that are not dropped (B, K), renormalised; of a map at each pixel."""
    z = logits / temperature
    return (z if dropped is None else z.masked_fill(dropped, -torch.inf)).softmax(1)


@checked
def condition_gradient(
    denoiser: Conditioned,
    x0: Images,
    p: Answers,
    t: Int[Tensor, "B n"],
    eps: Float[Tensor, "B n C H W"],
    mixing: Literal[MIXINGS] = "embedding",
    micro_batch: Count = 48,
    phi: dict[str, Tensor] | None = None,
    classes: Int[Tensor, "B k"] | None = None,
) -> tuple[Answers, PerImage]:
    """G = dL/dp, of the shape of p, and L (B,) of each image: the mean diffusion error over its n pairs.

    Args:
        x0: (B, C, H, W); t: (B, n); eps: (B, n, C, H, W).
        p: (B, K) or a map (B, K, h, w), of depth (B, 1, h, w), detached here.
        micro_batch: rows of the denoiser at once; each micro-batch holds the same number of pairs of every image, at
            least one.
        phi: adapted parameters of the denoiser, whose .grad is added to (batch mean of L); None keeps it frozen.
        classes: (B, k) where p is not 0, all that output mixing evaluates; None for all K.
    """
    (B, n), p, abar = t.shape, p.detach().requires_grad_(), denoiser.alphas_cumprod
    G, loss = torch.zeros_like(p), x0.new_zeros(B)
    if classes is None:
        classes = torch.arange(p.shape[1], device=x0.device).expand(B, -1)
    by_gram = mixing == "output" and phi is None and p.ndim == 2
    width = classes.shape[1] if mixing == "output" and not by_gram else 1  # rows of a pair; `gram` splits its own
    for pairs in torch.arange(n, device=x0.device).split(max(1, micro_batch // (B * width))):
        k = len(pairs)
        x0_k, t_k, eps_k = x0.repeat_interleave(k, 0), t[:, pairs].flatten(), eps[:, pairs].flatten(0, 1)
        p_k, classes_k = p.repeat_interleave(k, 0), classes.repeat_interleave(k, 0)
        if by_gram:  # L = p' Gram p, so dL/dp = 2 Gram p: only forward evaluations
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
    p: Answers,
    mixing: str,
    phi: dict[str, Tensor] | None,
    classes: Int[Tensor, "B k"],
) -> Images:
    """eps_hat (B, C, H, W) of the mixed condition, or the mix sum_k p_k eps_hat_k over `classes`; of a map p each pixel
    of the noise has a mix of its own."""

    def predict(*inputs: Tensor) -> Tensor:
        # the embedder is one module in all blocks: torch must not tie its weights a second time
        return denoiser(*inputs) if phi is None else functional_call(denoiser, phi, inputs, tie_weights=False)

    if mixing == "embedding":
        return predict(x_t, t, p)
    k = classes.shape[1]
    one_hot = F.one_hot(classes.flatten(), p.shape[1]).to(p.dtype)  # (B * k, K)
    if denoiser.target == "classes":
        one_hot = one_hot[..., None, None]  # this class everywhere
    with torch.set_grad_enabled(phi is not None):  # the predictions themselves do not depend on p
        each = predict(x_t.repeat_interleave(k, 0), t.repeat_interleave(k), one_hot).unflatten(0, (-1, k))
    if p.ndim == 2:
        return (p.gather(1, classes)[..., None, None, None] * each).sum(1)
    chosen = p.gather(1, classes[..., None, None].expand(-1, -1, *p.shape[2:]))
    return (resized(chosen, x_t.shape[-1])[:, :, None] * each).sum(1)


@torch.no_grad()
def map_errors(
    denoiser,
    x0: Images,
    maps: Float[Tensor, "B K h w"],
    t: Int[Tensor, "B n"],
    eps: Float[Tensor, "B n C H W"],
    micro_batch: Count = 48,
) -> Float[Tensor, "B n"]:
    """The diffusion error of each image x0 (B, C, H, W) under its map, for given pairs (B, n); forward alone."""
    each, out = torch.arange(len(x0)).repeat_interleave(t.shape[1]), []
    for rows in torch.arange(len(each)).split(micro_batch):
        b, draws = each[rows], (t.flatten()[rows], eps.flatten(0, 1)[rows])
        draws = (v.to(x0.device) for v in draws)
        out.append(diffusion_loss(denoiser, x0[b], *draws, maps[b].to(x0.device), denoiser.alphas_cumprod).cpu())
    return torch.cat(out).view_as(t)
