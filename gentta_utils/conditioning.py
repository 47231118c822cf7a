"""Foreign networks behind one signature: `eps_hat = denoiser(x_t, t, cond)`.

The outer condition `cond` is always p, float (B, K) with rows that sum to 1 (a class is its one-hot), or None for the
unconditional prediction. A wrapper turns p into what its network needs, converts v or x0 predictions to noise, and
knows how an image of the task model becomes the network's own input (`encode`) and back (`decode`).
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from diffusers.models.activations import GELU
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings
from jaxtyping import Float
from torch import Tensor, nn

from .arrays import Images, Index, Levels, Probs
from .diffusion import to_eps
from .inputs import check_probabilities, check_subset

PRECISIONS = ("fp32", "bf16", "fp16")
FP16_SCALE = 2.0**16  # of gradients inside the network; a power of two, so that scaling rounds nothing


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class SoftEmbedding(nn.Embedding):
    """A label table that also takes probabilities: float p (B, K) gives p @ table[:K], the mix of label rows.

    Integer labels (B,) are looked up as ever. Weights and their names are those of `nn.Embedding`."""

    def forward(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point():  # in float32 also under autocast: bf16 would round p to 8 bits
            with torch.autocast("cpu" if labels.is_meta else labels.device.type, enabled=False):
                return labels.to(self.weight.dtype) @ self.weight[: labels.shape[-1]]
        return super().forward(labels)


class SharedEmbedder(CombinedTimestepLabelEmbeddings):
    """Runs once a forward pass of the network, however many blocks ask it the same (28 in DiT-XL/2).

    `keeps = False` lets it run in each block: a block that is computed again on the way back needs its own."""

    kept: Tensor | None = None
    keeps: bool = True

    def forward(self, timestep: Tensor, class_labels: Tensor, hidden_dtype: torch.dtype | None = None) -> Tensor:
        if not self.keeps:
            return super().forward(timestep, class_labels, hidden_dtype=hidden_dtype)
        if self.kept is None:
            self.kept = super().forward(timestep, class_labels, hidden_dtype=hidden_dtype)
        return self.kept


def _forget_embedding(network: nn.Module, *_) -> None:
    """Hook of the network, before and after each forward pass."""
    network.transformer_blocks[0].norm1.emb.kept = None


class Denoiser(nn.Module):
    """Base of the wrappers: precision, counting of evaluations, the schedule.

    Attributes:
        alphas_cumprod: (T,) float32, never halved.
        classes: the width of the condition: K, or that of the subset.
        all_classes: K, how many the network knows.
        image_size: side of the task model's images that `encode` takes.
        shape: (C, H, W) of the network's own input.
        precision: "fp32", or "bf16" or "fp16" for autocast of the network alone.
        count: evaluations so far, {"fwd": n, "fwd+bwd": n}, one for each image of each batch.
        subset: which of the network's classes the condition is over, in their order; None: all, see `restrict`.
    """

    subset: tuple[int, ...] | None = None

    def __init__(self, alphas_cumprod: Levels, classes: int, image_size: int, shape: tuple, precision: str):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.classes = self.all_classes = classes
        self.image_size, self.shape, self.precision = image_size, tuple(shape), precision
        self.count = {"fwd": 0, "fwd+bwd": 0}

    def restrict(self, classes: tuple[int, ...]) -> "Denoiser":
        """The same network, not a copy, whose condition p (B, k) is over k of its classes, in this order.

        The other label rows get no mass and no gradient; the unconditional prediction stays what it is. It counts its
        own evaluations. Raises ValueError as `check_subset`."""
        check_subset(classes, self.classes, self.subset)
        part = copy.copy(self)
        part.subset, part.classes, part.count = tuple(classes), len(classes), {"fwd": 0, "fwd+bwd": 0}
        return part

    def widen(self, p: Float[Tensor, "B k"]) -> Float[Tensor, "B K"]:
        """p (B, k) over the subset as p (B, K) over all classes of the network."""
        if self.subset is None:
            return p
        columns = torch.tensor(self.subset, device=p.device).expand(len(p), -1)
        return p.new_zeros(len(p), self.all_classes).scatter(1, columns, p)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """The network's own output as noise; implemented by each wrapper."""
        raise NotImplementedError

    def forward(self, x_t: Images, t: Index, cond: Probs | None = None) -> Images:
        """eps_hat (B, C, H, W) float32 for x_t (B, C, H, W), t (B,) int64 and p (B, K) or None.

        Raises ValueError unless the rows of p are probabilities."""
        if cond is not None:
            if not cond.is_meta:
                check_probabilities(cond, self.classes)
            cond = self.widen(cond)
        return self.evaluate(self.predict, x_t, t, cond)

    def evaluate(self, predict: Callable[..., Tensor], x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """predict(x_t, t, cond) in the wrapper's precision, counted; float32."""
        inputs = (v for v in (x_t, cond, *self.parameters()) if v is not None)
        differentiated = torch.is_grad_enabled() and any(v.requires_grad for v in inputs)
        self.count["fwd+bwd" if differentiated else "fwd"] += len(x_t)
        kind = "cpu" if x_t.is_meta else x_t.device.type  # shapes alone have no autocast of their own
        if self.precision == "fp16":  # gradients of a mean over thousands of numbers lie below its range
            scaled = [None if v is None else ScaledGradient.apply(v, 1 / FP16_SCALE) for v in (x_t, cond)]
            with torch.autocast(kind, torch.float16):
                eps_hat = predict(scaled[0], t, scaled[1]).float()
            return ScaledGradient.apply(eps_hat, FP16_SCALE)
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            return predict(x_t, t, cond).float()

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """Task images (B, 3, S, S) in [0, 1] to the network's clean input x0 (B, C, H, W)."""
        raise NotImplementedError

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        """x0 (B, C, H, W) to task images (B, 3, S, S) in [0, 1]."""
        raise NotImplementedError


class PixelDiT(Denoiser):
    """`DiTTransformer2DModel` in pixel space with soft class labels (Peebles and Xie, 2023).

    The diffusers class is used as it is: only its label table is exchanged for one that takes probabilities, in place,
    under the same name. The row after the K classes is the null class.

    Args:
        network: class-conditional, `num_embeds_ada_norm` = K classes.
        alphas_cumprod: (T,) of its schedule.
        prediction_type: "epsilon", "v_prediction" or "sample".
        image_size: side of the task model's images; `encode` averages areas down to the network's own size.
    """

    def __init__(
        self,
        network: DiTTransformer2DModel,
        alphas_cumprod: Levels,
        image_size: int = 64,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
    ):
        config = network.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        super().__init__(alphas_cumprod, config.num_embeds_ada_norm, image_size, shape, precision)
        self.network = prepare_dit(network)
        self.prediction_type = prediction_type
        if precision == "bf16" and network.device.type == "cpu":
            use_erf_gelu(write_out_attention(network))

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        labels = torch.full_like(t, self.all_classes) if cond is None else cond
        output = self.network(x_t, timestep=t, class_labels=labels, return_dict=False)[0]
        output = output[:, : x_t.shape[1]]  # a learned variance, if any, comes after the mean
        return to_eps(output.float(), x_t, t, self.alphas_cumprod, self.prediction_type)

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        return F.interpolate(images.to(self.alphas_cumprod.device), self.shape[-2:], mode="area") * 2 - 1

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        size = (self.image_size, self.image_size)
        return F.interpolate(x0 / 2 + 0.5, size, mode="bilinear", align_corners=False).clamp(0, 1)


def prepare_dit(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Make a diffusers DiT take soft labels: one shared embedder as in the original DiT, in eval mode.

    The diffusers class gives each block its own copy of the timestep MLP and label table; published weights hold equal
    copies, so sharing the first changes nothing but the parameter count. In train mode it would drop labels at random,
    independently in each block: it stays in eval mode also while it is trained. Under autocast the residual stream
    stays float32: a bf16 stream doubles the error of the output for an eighth of the time.

    Raises ValueError if the blocks' embedders differ: sharing one would make another function of them."""
    blocks = network.transformer_blocks
    embedder = blocks[0].norm1.emb
    for block in blocks[1:]:
        pairs = zip(embedder.parameters(), block.norm1.emb.parameters(), strict=True)
        if not all(a.is_meta or torch.equal(a, b) for a, b in pairs):
            raise ValueError("the blocks of this DiT have different embedders: `share_embedder` before training")
    share_embedder(network)
    table = embedder.class_embedder.embedding_table
    if not isinstance(table, SoftEmbedding):
        soft = SoftEmbedding(table.num_embeddings, table.embedding_dim, _weight=table.weight)
        soft.weight = table.weight  # the very parameter, not a copy
        embedder.class_embedder.embedding_table = soft
    if not isinstance(embedder, SharedEmbedder):
        embedder.__class__ = SharedEmbedder  # in place: same parameters under the same names
        network.register_forward_pre_hook(_forget_embedding)  # an earlier pass may have raised
        network.register_forward_hook(_forget_embedding)
        network.pos_embed.register_forward_hook(_to_float32)
    return network.eval()


def share_embedder(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Let all blocks use the first one's timestep MLP and label table, in place."""
    for block in network.transformer_blocks:
        block.norm1.emb = network.transformer_blocks[0].norm1.emb
    return network


def write_out_attention(network: nn.Module) -> nn.Module:
    """Attention without the fused kernel, in place: in bf16 on a CPU that kernel is slower, above all backwards."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return network


def use_erf_gelu(network: nn.Module) -> nn.Module:
    """Compute the tanh form of GELU by its erf form, in place: they differ by less than bf16 rounds in the same
    layer, and on a CPU the erf kernel is the faster one."""
    for module in network.modules():
        if isinstance(module, GELU):
            module.approximate = "none"
    return network


def _to_float32(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.float()
