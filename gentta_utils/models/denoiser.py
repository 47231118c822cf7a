"""Diffusion networks behind one signature: `eps_hat = denoiser(x_t, t, cond)`."""

import copy
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from jaxtyping import Float
from torch import Tensor, nn

from ..common.evaluations import Evaluations
from ..common.types import Images, Index, Levels, Probs
from ..common.validate import check_probabilities, check_subset

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


class Denoiser(nn.Module):
    """Base of the wrappers: precision, counting of evaluations, the schedule.

    Attributes:
        alphas_cumprod: (T,) float32, never halved.
        classes: the width of the condition: K, or that of the subset.
        all_classes: K, how many the network knows.
        image_size: side of the task model's images that `encode` takes.
        shape: (C, H, W) of the network's own input.
        precision: "fp32", or "bf16" or "fp16" for autocast of the network alone.
        count: evaluations so far.
        subset: which of the network's classes the condition is over, in their order; None: all, see `restrict`.
        target: what the condition is: the "class" of the image, or a map of "classes" or of "depth" (`MapUNet`).
        wordings: M, where the classes are K in M wordings, in blocks of K: see `TextUNet.for_wordings`.
    """

    subset: tuple[int, ...] | None = None
    wordings: int = 1
    target: str = "class"

    def __init__(self, alphas_cumprod: Levels, classes: int, image_size: int, shape: tuple, precision: str):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.classes = self.all_classes = classes
        self.image_size, self.shape, self.precision = image_size, tuple(shape), precision
        self.count = Evaluations()

    def restrict(self, classes: tuple[int, ...]) -> "Denoiser":
        """The same network, not a copy, whose condition p (B, k) is over k of its classes, in this order.

        The other label rows get no mass and no gradient; the unconditional prediction stays what it is. Of classes in
        several wordings these are k of each. It counts its own evaluations. Raises ValueError as `check_subset`."""
        K = self.classes // self.wordings
        check_subset(classes, K, self.subset)
        part = self.sharing()
        part.subset = tuple(m * K + k for m in range(self.wordings) for k in classes)
        part.classes = len(part.subset)
        return part

    def sharing(self) -> "Denoiser":
        """Another wrapper of the same networks, not a copy of them, with buffers and a count of its own."""
        other = copy.copy(self)
        other._buffers, other.count = dict(self._buffers), Evaluations()
        return other

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
        self.count.add(len(x_t), x_t, cond, *self.parameters())
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


def write_out_attention(network: nn.Module) -> nn.Module:
    """Attention without the fused kernel, in place: in bf16 on a CPU that kernel is slower, above all backwards."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return network


def to_float32(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    """A forward hook: the output (any shape) as float32."""
    return output.float()
