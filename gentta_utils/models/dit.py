"""Foreign networks behind one signature: `eps_hat = denoiser(x_t, t, cond)`.

The outer condition `cond` is always p, float (B, K) with rows that sum to 1 (a class is its one-hot), or None for the
unconditional prediction. A wrapper turns p into what its network needs, converts v or x0 predictions to noise, and
knows how an image of the task model becomes the network's own input (`encode`) and back (`decode`).
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.models.activations import GELU
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings
from jaxtyping import Float
from torch import Tensor, nn

from ..common.types import Images, Levels
from ..diffusion.process import to_eps
from .denoiser import Denoiser, to_float32, write_out_attention


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
        network.pos_embed.register_forward_hook(to_float32)
    return network.eval()


def share_embedder(network: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Let all blocks use the first one's timestep MLP and label table, in place."""
    for block in network.transformer_blocks:
        block.norm1.emb = network.transformer_blocks[0].norm1.emb
    return network


def use_erf_gelu(network: nn.Module) -> nn.Module:
    """Compute the tanh form of GELU by its erf form, in place: they differ by less than bf16 rounds in the same
    layer, and on a CPU the erf kernel is the faster one."""
    for module in network.modules():
        if isinstance(module, GELU):
            module.approximate = "none"
    return network


class LatentDiT(PixelDiT):
    """`DiTTransformer2DModel` on the latents of an `AutoencoderKL` (Peebles and Xie, 2023).

    Soft labels, schedule and the learned variance that is dropped are those of `PixelDiT`; what differs is the way from
    the task model's pixels to the network's input. The VAE computes in its own weights' precision, float32 from `zoo`:
    it runs once per image, the network hundreds of times.

    Args:
        network: class-conditional, C latent channels, on its device; its weights may be half precision, see `halve`.
        vae: C latent channels, a latent's side is that of the pixels / 2^(blocks - 1).
        image_size: side of the task model's images, 224.
        low_memory: compute each block again on the way back instead of keeping what is inside it, a third more time,
            and let the VAE take one image at a time.

    Raises ValueError if the VAE's latents are not what the network takes."""

    def __init__(
        self,
        network: DiTTransformer2DModel,
        vae: AutoencoderKL,
        alphas_cumprod: Levels,
        image_size: int = 224,
        prediction_type: str = "epsilon",
        precision: str = "fp32",
        low_memory: bool = False,
    ):
        super().__init__(network, alphas_cumprod, image_size, prediction_type, precision)
        if vae.config.latent_channels != self.shape[0]:
            raise ValueError(f"the VAE has {vae.config.latent_channels} latent channels, the network {self.shape[0]}")
        self.vae = vae.eval()
        self.pixels = self.shape[-1] * 2 ** (len(vae.config.block_out_channels) - 1)  # 256
        if low_memory:
            network.enable_gradient_checkpointing()
            network.transformer_blocks[0].norm1.emb.keeps = False
            vae.enable_slicing()

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Images:
        """Latents (B, C, H, W) of task images (B, 3, S, S): the same crop at 256 px in [-1, 1], the mean of the VAE's
        posterior (no draw), times its scaling factor (.18215)."""
        pixels = F.interpolate(images.to(self.vae.device), (self.pixels,) * 2, mode="bilinear", align_corners=False)
        mean = self.vae.encode((pixels * 2 - 1).to(self.vae.dtype)).latent_dist.mean
        return mean.float() * self.vae.config.scaling_factor

    def decode(self, x0: Images) -> Float[Tensor, "B 3 S S"]:
        """Task images (B, 3, S, S) in [0, 1] of latents (B, C, H, W)."""
        pixels = self.vae.decode((x0 / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
        size = (self.image_size,) * 2
        shown = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        return (shown / 2 + 0.5).clamp(0, 1)


def halve(network: DiTTransformer2DModel, dtype: torch.dtype) -> DiTTransformer2DModel:
    """Weights in half precision, in place, for autocast: half the memory.

    Timestep MLP, label table and position embedding stay float32, because what the method reads are small differences
    between classes; they hold less than a hundredth of the weights."""
    nn.Module.to(network, dtype)  # diffusers' own `to` would warn of what follows
    network.pos_embed.float()
    for block in network.transformer_blocks:
        block.norm1.emb.float()
    return network
