"""A classifier that can also fill in missing patches: a masked autoencoder (He et al., CVPR 2022) with a head.

The encoder is timm's ViT. In timm's registry as "masked_autoencoder", so it is built, saved and loaded like any other.
"""

import torch
from jaxtyping import Float, Int
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..common.types import Images, Probs

default_cfgs = generate_default_cfgs(
    {"masked_autoencoder": {"classifier": "head.linear", "first_conv": "encoder.patch_embed.proj"}}
)


class TransformerHead(nn.Module):
    """Blocks of its own over the encoder's tokens, then a linear layer on the class token."""

    def __init__(self, width: int, depth: int, heads: int, classes: int):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Float[Tensor, "B n D"]) -> Probs:
        return self.linear(self.norm(self.blocks(tokens)[:, 0]))


class MaskedAutoencoder(nn.Module):
    """Encoder f, decoder g and head h: `network(x)` are the logits h(f(x)), `network(x, keep)` is g(f(masked x)).

    Args:
        img_size, patch_size: of square images and patches, in pixels.
        embed_dim, depth, num_heads: of the encoder; the head has its width and number of heads.
        decoder_dim, decoder_depth, head_depth: width and blocks of the decoder, blocks of the head.
    """

    def __init__(
        self,
        num_classes: int = 10,
        img_size: int = 64,
        patch_size: int = 8,
        embed_dim: int = 96,
        depth: int = 6,
        num_heads: int = 3,
        decoder_dim: int = 64,
        decoder_depth: int = 2,
        head_depth: int = 2,
        in_chans: int = 3,
    ):
        super().__init__()
        self.num_classes, self.patch_size = num_classes, patch_size
        self.encoder = VisionTransformer(
            img_size, patch_size, in_chans, num_classes=0, embed_dim=embed_dim, depth=depth, num_heads=num_heads
        )
        self.patches = self.encoder.patch_embed.num_patches  # L
        self.decoder = nn.ModuleDict(
            {
                "embed": nn.Linear(embed_dim, decoder_dim),
                "blocks": nn.Sequential(*(Block(decoder_dim, 4, qkv_bias=True) for _ in range(decoder_depth))),
                "norm": nn.LayerNorm(decoder_dim),
                "pixels": nn.Linear(decoder_dim, in_chans * patch_size**2),
            }
        )
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder_dim))
        self.position = nn.Parameter(0.02 * torch.randn(self.patches, decoder_dim))  # of the decoder
        self.head = TransformerHead(embed_dim, head_depth, num_heads, num_classes)

    def get_classifier(self) -> nn.Linear:
        """The last layer, as timm's own models have it."""
        return self.head.linear

    def forward(self, x: Images, keep: Int[Tensor, "B v"] | None = None) -> Tensor:
        """Logits (B, K) of normalised images (B, 3, S, S), or, where only the patches `keep` (B, v) are seen, the
        prediction (B, L, D) of all L patches, D numbers each, as `targets` has them."""
        if keep is None:
            return self.head(self.encoder.forward_features(x))
        tokens = self.decoder["embed"](self.encode(x, keep))  # (B, 1 + v, decoder_dim)
        at = keep[..., None].expand(-1, -1, tokens.shape[-1])
        all_tokens = self.mask_token.to(tokens.dtype).expand(len(x), self.patches, -1).scatter(1, at, tokens[:, 1:])
        tokens = torch.cat([tokens[:, :1], all_tokens + self.position], 1)
        return self.decoder["pixels"](self.decoder["norm"](self.decoder["blocks"](tokens)[:, 1:]))

    def encode(self, x: Images, keep: Int[Tensor, "B v"]) -> Float[Tensor, "B n D"]:
        """Class token and visible tokens (B, 1 + v, D) of the encoder that sees the patches `keep` alone."""
        f = self.encoder
        tokens = f.patch_embed(x) + f.pos_embed[:, 1:]  # (B, L, D)
        seen = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        first = (f.cls_token + f.pos_embed[:, :1]).expand(len(x), -1, -1)
        return f.norm(f.blocks(torch.cat([first, seen], 1)))


@register_model
def masked_autoencoder(pretrained: bool = False, **options) -> MaskedAutoencoder:
    """The entry in timm's registry."""
    return build_model_with_cfg(MaskedAutoencoder, "masked_autoencoder", pretrained, **options)


def draw_masks(n: int, patches: int, ratio: float, generator: torch.Generator) -> Int[Tensor, "n v"]:
    """Which patches are seen: n random choices (n, v) of v = L - round(ratio L) out of L patches, in rising order.

    Raises ValueError where none would be seen, or none hidden."""
    hidden = round(ratio * patches)
    if not 0 < hidden < patches:
        raise ValueError(f"ratio={ratio} hides {hidden} of {patches} patches: choose a number between 0 and 1")
    return torch.rand(n, patches, generator=generator).argsort(1)[:, hidden:].sort(1).values


def targets(x: Images, patch: int) -> Float[Tensor, "B L D"]:
    """The patches (B, L, D) of images (B, C, H, W) as rows, each less its own mean, over its own deviation."""
    B, C, H, W = x.shape
    rows = x.view(B, C, H // patch, patch, W // patch, patch).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return (rows - rows.mean(2, keepdim=True)) / (rows.var(2, keepdim=True) + 1e-6).sqrt()


def masked_error(
    predicted: Float[Tensor, "B L D"], x: Images, keep: Int[Tensor, "B v"], patch: int
) -> Float[Tensor, " B"]:
    """Mean squared error (B,) over the patches that were not seen: that one can copy what is seen says nothing."""
    hidden = torch.ones(predicted.shape[:2], device=x.device).scatter(1, keep, 0.0)  # (B, L)
    return ((predicted - targets(x, patch)).square().mean(2) * hidden).sum(1) / hidden.sum(1)
