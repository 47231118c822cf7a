"""Diffusion-TTA (Prabhudesai et al., NeurIPS 2023; METHODS C9): the diffusion loss of the image itself, through the
classifier's probabilities, as the signal that adapts the classifier.

    p = softmax(f_theta(x) / T),  L = mean over (t, eps) of |eps_phi(x_t, t, p) - eps|^2 / dimensions

No label and no classification loss is involved. The cheap and exact route: gather G = dL/dp over all pairs with p
detached, then one backward of (p * G).sum() through the classifier, which therefore runs once an update.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from ..arrays import Images, PerImage, Probs
from ..classifier import PARAM_SETS, Copies, parameter_names, with_lora
from ..diffusion import add_noise, eps_error
from ..draws import NOISE_MODES, TIMESTEP_MODES, draw_pairs
from ..errors import gram
from ..inputs import check_images
from ..views import VIEWS, view_of
from .base import Models, Output, check_finite, check_settings, spent

MIXINGS = ("embedding", "output")


@dataclass(frozen=True)
class Settings:
    """Defaults are the course's; `PUBLISHED` holds the paper's."""

    lr: float  # of the classifier; `learning_rate` finds it for any backbone
    updates: int = 12  # S optimiser steps an image
    pairs: int = 8  # (t, eps) pairs an update
    window: tuple[int, int] = (150, 600)  # t in [low, high); lower misleads under noise, higher says little
    timesteps: str = "stratified"  # or "even", "iid", "fixed"
    noise: str = "fresh"  # or "antithetic", "shared"
    temperature: float = 3.0  # of p during adaptation: a one-hot p has no gradient
    top_k: int = 0  # keep only the k best classes of the logits that come in, renormalised; 0 keeps all
    mixing: str = "embedding"  # the condition is mixed, or "output": the noise predictions are
    view: str = "full"  # what the classifier sees: "full" or "low"
    optimizer: str = "sgd"  # or "adamw"; both without weight decay
    momentum: float = 0.9  # of SGD
    param_set: str = "all"  # which parameters of the classifier: see `classifier.parameter_names`
    adapt_denoiser: bool = False  # also change the diffusion model
    adapt_embeddings: bool = False  # and its label table
    denoiser_lr: float | None = None  # None: the same as lr
    online: bool = False  # carry the adapted state from batch to batch, instead of a fresh copy for each image
    seed: int = 0
    micro_batch: int = 48  # rows of the denoiser at once: what fits the cache is fastest on a CPU
    images_at_once: int = 32  # copies of the classifier at once, bounds the memory
    fixed_chunk: bool = False  # pad every batch to one shape: results bit-equal whatever the batch size

    def __post_init__(self):
        choices = {
            "timesteps": TIMESTEP_MODES,
            "noise": NOISE_MODES,
            "mixing": MIXINGS,
            "view": VIEWS,
            "optimizer": ("sgd", "adamw"),
            "param_set": PARAM_SETS,
        }
        check_settings(self, choices, ("lr", "updates", "pairs", "temperature", "micro_batch", "images_at_once"))
        if not 0 <= self.window[0] < self.window[1]:
            raise ValueError(f"window={self.window}: choose (low, high) with 0 <= low < high")


# METHODS C9, the "adam" row: classifier and diffusion model together; the other is SGD 5e-3 with momentum .9
PUBLISHED = dict(
    updates=5,
    pairs=180,
    window=(0, 1000),
    timesteps="iid",
    temperature=1.0,
    optimizer="adamw",
    lr=1e-5,
    adapt_denoiser=True,
)


def probabilities(logits: Probs, temperature: float, dropped: Bool[Tensor, "B K"] | None = None) -> Probs:
    """p = softmax(z / T) over the classes that are not dropped (B, K), renormalised."""
    z = logits / temperature
    return (z if dropped is None else z.masked_fill(dropped, -torch.inf)).softmax(1)


def _dropped(logits: Probs, top_k: int) -> Bool[Tensor, "B K"] | None:
    """True for all but the k best classes (B, K); None for k = 0."""
    if not top_k:
        return None
    return torch.ones_like(logits, dtype=torch.bool).scatter(1, logits.topk(top_k).indices, False)


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


@dataclass
class DiffusionTTA:
    predict = "after"
    models: Models
    settings: Settings
    state: tuple | None = field(default=None, repr=False)  # online: (task, phi, optimiser), None is the source

    @property
    def online(self) -> bool:
        return self.settings.online

    def adapt(self, images: Tensor, ids: Tensor) -> Output:
        """Adapt to images (B, 3, S, S) in [0, 1] with these ids (B,) and predict them after the updates.

        Raises ValueError for images of the wrong size or range, FloatingPointError when the loss is not finite."""
        check_images(images, self.models.classifier.image_size)
        if self.settings.online:
            start, self.state = self.models.counts(), self.state or self._fresh(None)
            return Output(*self._adapt(images, ids, *self.state), nfe=spent(self.models, start))
        at_once = 1 if self.settings.adapt_denoiser else self.settings.images_at_once
        chunks = torch.arange(len(images)).split(at_once)
        logits, before, loss, nfe = zip(*(self._episode(images[c], ids[c], at_once) for c in chunks), strict=True)
        total = {kind: sum(n[kind] for n in nfe) for kind in nfe[0]}
        return Output(torch.cat(logits), torch.cat(before), torch.cat(loss, 1), total)

    def reset(self) -> None:
        """Back to the source. The source itself was never written to, so there is nothing to restore."""
        self.state = None

    def _fresh(self, copies: int | None) -> tuple:
        """Copies of the source parameters with a fresh optimiser."""
        return fresh_copies(self.models, self.settings, copies)

    def _episode(self, images: Tensor, ids: Tensor, at_once: int) -> tuple:
        B, start = len(images), self.models.counts()
        if self.settings.fixed_chunk and at_once > B:
            pad = [0] * (at_once - B)
            images, ids = torch.cat([images, images[pad]]), torch.cat([ids, ids[pad]])
        logits, before, loss = self._adapt(images, ids, *self._fresh(len(images)))
        nfe = {kind: n * B // len(images) for kind, n in spent(self.models, start).items()}  # without the padding
        return logits[:B], before[:B], loss[:, :B], nfe

    def _adapt(self, images: Tensor, ids: Tensor, task: Copies, phi: dict | None, optimizer) -> tuple:
        s, denoiser = self.settings, self.models.denoiser
        with torch.no_grad():
            seen, x0 = view_of(images, s.view), denoiser.encode(images)
        before, dropped, losses = None, None, []
        for step in range(s.updates):
            logits = task(seen)  # (B, K)
            if before is None:
                before = logits.detach()
                dropped = _dropped(before, s.top_k)
            p = probabilities(logits, s.temperature, dropped)
            pairs = draw_pairs(
                ids, s.pairs, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "diffusion_tta", step
            )
            t, eps = (v.to(x0.device) for v in pairs)
            optimizer.zero_grad()
            check_finite(p.sum(1), ids, step, s.lr)
            G, loss = condition_gradient(denoiser, x0, p, t, eps, s.mixing, s.micro_batch, phi)
            check_finite(loss, ids, step, s.lr)
            (p * G).sum().div(len(images) if s.online else 1).backward()
            optimizer.step()
            losses.append(loss)
        with torch.no_grad():
            logits = task(seen)
        check_finite(logits.sum(1), ids, s.updates, s.lr)
        return logits.cpu(), before.cpu(), torch.stack(losses).cpu()


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


def configure(models: Models, settings: Settings) -> DiffusionTTA:
    """The classifier's `param_set` is updated, and the denoiser if asked. Raises ValueError for misfits.

    The networks of `models` are frozen here: they never compute weight gradients."""
    models = prepare(models, settings, settings.window[1] - 1)
    if settings.top_k > models.classifier.classes:
        raise ValueError(f"top_k={settings.top_k}: there are {models.classifier.classes} classes")
    return DiffusionTTA(models, settings)


def learning_rate(models: Models, images: Tensor, ids: Tensor, settings: Settings, delta: float = 0.7) -> float:
    """The SGD step that moves the margin by `delta` logits in the first update of the median image (METHODS 1.B).

    lr = delta / median(|d margin / d theta|^2 * |dL/dz|), margin = best logit - second best, with the view, parameters,
    temperature and pairs of `settings`. To first order an SGD step changes a margin by at most lr times that product,
    so one `delta` serves every backbone, where one fixed lr does not.

    Args:
        images: (B, 3, S, S) shifted images (held-out corruptions) with ids (B,).

    Raises ValueError for AdamW, whose step does not depend on the size of the gradient, and where no image has any
    gradient.
    """
    if settings.optimizer != "sgd":
        raise ValueError("the rule is for SGD: AdamW's step does not depend on the size of the gradient")
    method = configure(models, settings)
    rates = []
    for rows in torch.arange(len(images)).split(settings.images_at_once):
        task, _, _ = method._fresh(len(rows))
        seen, x0 = view_of(images[rows], settings.view), models.denoiser.encode(images[rows])
        z = task(seen)
        top = z.topk(2).values
        grads = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), task.tensors())
        squared = sum(g.flatten(1).square().sum(1) for g in grads)  # (B,) |d margin / d theta|^2
        z = z.detach().requires_grad_()
        p = probabilities(z, settings.temperature, _dropped(z.detach(), settings.top_k))
        pairs = draw_pairs(
            ids[rows], settings.pairs, models.denoiser.shape, settings.window, settings.timesteps, settings.noise,
            settings.seed, "learning_rate",
        )  # fmt: skip
        t, eps = (v.to(x0.device) for v in pairs)
        G, _ = condition_gradient(models.denoiser, x0, p, t, eps, settings.mixing, settings.micro_batch)
        slope = torch.autograd.grad((p * G).sum(), z)[0].norm(dim=1)  # (B,) |dL/dz|
        rates.append(squared * slope)
    median = float(torch.cat(rates).median())
    if not median > 0:
        raise ValueError("no gradient reaches the logits of the median image: raise the temperature")
    return delta / median
