"""The image-variation model: a `StableDiffusionImageVariationPipeline` behind `eps_hat = denoiser(x_t, t, embedding)`.

In place of a prompt the U-Net is told one token, the embedding of an image; its unconditional prediction is that at
zeros, as in the library's pipeline (docs/methods/variations.md).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionImageVariationPipeline
from jaxtyping import Float
from torch import Tensor

from ..common.types import Images, Index, Probs
from .latent_unet import LatentUNet, load_parts


class VariationUNet(LatentUNet):
    """The pipeline's parts as they are: image tower, U-Net, autoencoder, schedule. There are no classes.

    Args:
        pipeline: with its `feature_extractor`, which says how the tower's images are normalised.
        image_size: side of the task model's images.
    """

    def __init__(self, pipeline: StableDiffusionImageVariationPipeline, image_size: int = 64, precision: str = "fp32"):
        super().__init__(pipeline, 0, image_size, precision)
        self.image_encoder = pipeline.image_encoder.eval()
        shown = pipeline.feature_extractor
        for name in ("mean", "std"):
            value = torch.tensor(getattr(shown, f"image_{name}")).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D"]:
        """What the tower says of task images (B, 3, S, S) in [0, 1], not normalised, as the pipeline takes it.

        Images of another side than the tower's are resized as those that the published weights were trained on: bicubic
        and, by the authors' own account, without antialiasing."""
        x, side = images.to(self.mean.device), self.image_encoder.config.image_size
        if x.shape[-1] != side:
            x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False)
        return self.image_encoder((x - self.mean) / self.std).image_embeds.float()

    def forward(self, x_t: Images, t: Index, cond: Probs | None = None) -> Images:
        """eps_hat (B, C, H, W) float32 for x_t (B, C, H, W), t (B,) int64 and embeddings (B, D), or None for zeros.

        Raises ValueError for embeddings of another width."""
        width = self.network.config.cross_attention_dim
        if cond is not None and cond.shape != (len(x_t), width):
            raise ValueError(f"the condition must be embeddings ({len(x_t)}, {width}), it is {tuple(cond.shape)}")
        return self.evaluate(self.predict, x_t, t, cond)

    def predict(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if cond is None:
            cond = x_t.new_zeros(len(x_t), self.network.config.cross_attention_dim)
        return self.predict_from(x_t, t, cond[:, None])


def load_variation_pipeline(where: str | Path, local_files_only: bool = True, **how):
    """The `StableDiffusionImageVariationPipeline` in a folder or repository, float32, silent and without its filter of
    images; `how` goes to the library's own call."""
    return load_parts(StableDiffusionImageVariationPipeline, where, torch.float32, local_files_only, **how)
