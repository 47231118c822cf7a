"""A world with exact answers: a mixture of K isotropic Gaussians, one for each class.

Its forward process, optimal denoiser, class posterior and diffusion loss have closed forms, so every estimator of this
course can be held against the truth. `GaussianMixture` has the signature of all denoisers here.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..common.evaluations import Evaluations
from ..common.types import Images, Index, Levels, Probs
from ..common.validate import Positive, check_subset, checked
from .process import alphas_cumprod_of, expand, linear_betas


class GaussianMixture:
    """Class k is N(means[k], std^2 I), classes equally likely.

    Args:
        means: (K, C, H, W), also the "label table": a soft condition p gives the mean p @ means.
        std: standard deviation within a class, the same for all.
    """

    wordings, precision, target = 1, "fp32", "class"  # as of every denoiser

    @checked
    def __init__(self, means: Float[Tensor, "K C H W"], std: Positive = 0.3, alphas_cumprod: Levels | None = None):
        self.means, self.std = means, std
        self.alphas_cumprod = alphas_cumprod_of(linear_betas()) if alphas_cumprod is None else alphas_cumprod
        self.classes, self.shape = len(means), tuple(means.shape[1:])
        self.image_size = means.shape[-1]
        self.count = Evaluations()

    def __call__(self, x_t: Images, t: Index, cond: Probs | None = None) -> Images:
        """The optimal noise prediction E[eps | x_t, cond], (B, C, H, W); for cond None that of the whole mixture.

        eps*(x_t, t, k) = sqrt(1 - abar) (x_t - sqrt(abar) mu_k) / (abar s^2 + 1 - abar); without a condition the
        mean of these under p(k | x_t). A soft p mixes the means, as a label table mixes rows."""
        if cond is None:
            cond = self.posterior_t(x_t, t)
        self.count.add(len(x_t), x_t, cond)
        mean = (cond.to(x_t.dtype) @ self.means.to(x_t.dtype).flatten(1)).view_as(x_t)
        abar = expand(self.alphas_cumprod, t, x_t)
        return (1 - abar).sqrt() * (x_t - abar.sqrt() * mean) / (abar * self.std**2 + 1 - abar)

    def restrict(self, classes: tuple[int, ...]) -> "GaussianMixture":
        """The mixture of these classes alone, in this order: equally likely, so without a condition it is another one.

        Raises ValueError as `check_subset`."""
        check_subset(classes, self.classes)
        return GaussianMixture(self.means[list(classes)], self.std, self.alphas_cumprod)

    def encode(self, images: Images) -> Images:
        return images

    def decode(self, x0: Images) -> Images:
        return x0

    def posterior_t(self, x_t: Images, t: Index) -> Probs:
        """p(k | x_t), (B, K): x_t given k is N(sqrt(abar) mu_k, abar s^2 + 1 - abar)."""
        abar = expand(self.alphas_cumprod, t, x_t)
        gap = x_t[:, None] - abar[:, None].sqrt() * self.means.to(x_t.dtype)
        variance = (abar * self.std**2 + 1 - abar).flatten(1)
        return (-gap.square().flatten(2).sum(-1) / (2 * variance)).softmax(1)

    def posterior(self, x0: Images) -> Probs:
        """Bayes' rule on the clean image: p(k | x0), (B, K)."""
        gap = x0[:, None] - self.means.to(x0.dtype)
        return (-gap.square().flatten(2).sum(-1) / (2 * self.std**2)).softmax(1)

    def sample(self, labels: Index, generator: torch.Generator) -> Images:
        """Clean images (B, C, H, W) of these classes (B,)."""
        noise = torch.randn(len(labels), *self.shape, generator=generator)
        return self.means[labels] + self.std * noise
