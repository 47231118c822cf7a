"""Names for the shapes that recur. The tests enforce them (jaxtyping with beartype): a call that torch would broadcast
silently raises there. Letters mean the same in one signature: B images, n or N pairs, K classes, T timesteps.
"""

from jaxtyping import Float, Int
from torch import Tensor

Batch = Float[Tensor, "B *dims"]  # images or latents, whatever their dimensions
Images = Float[Tensor, "B C H W"]
Probs = Float[Tensor, "B K"]  # logits, probabilities, errors: one number per class
Answers = Float[Tensor, "B K"] | Float[Tensor, "B K h w"]  # the same, or a map of them; of depth K is 1
PerImage = Float[Tensor, " B"]
Index = Int[Tensor, " B"]  # timesteps, labels, ids: one per image
Levels = Float[Tensor, " T"]  # betas, alphas_cumprod
Number = float | int
