"""Learnable prompts (CoOp, Zhou et al., 2022): the words before the class name become vectors, one set for each image.

The text tower is open_clip's own, run on embeddings instead of tokens. Attention looks back only, so what stands after
a prompt's end is cut off: the features stay the same and a prompt of ten tokens does not pay for 77.

Card: docs/methods/tpt.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..common.evaluations import Evaluations
from ..common.validate import check_subset
from .clip import Clip


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompts of K classes with M learnable context vectors of the text tower's width W; see `make_prompt`.

    Attributes:
        embedded: (K, L, W) token embeddings of the prompts; the context takes the places 1 to M.
        ends: (K,) the place whose output is a prompt's feature.
        init: (M, W) the context before any step.
        std: of the prompts' token embeddings, the unit in which rates are given: CLIPs differ in it. Tokens that no
            caption of a small CLIP held do not count, they stand where they were drawn.
        meta: unit image features (B, D) -> what CoCoOp adds to every context vector (B, W); None: nothing.
        count: prompts encoded so far, one for each class of each image.
    """

    clip: Clip = field(repr=False)
    embedded: Float[Tensor, "K L W"] = field(repr=False)
    ends: Int[Tensor, " K"] = field(repr=False)
    init: Float[Tensor, "M W"] = field(repr=False)
    std: float = 1.0
    meta: nn.Module | None = None
    subset: tuple[int, ...] | None = None
    count: Evaluations = field(default_factory=Evaluations)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.embedded)

    def start(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B M W"]:
        """The context of each image before it is tuned, from its unit features (B, D): `init`, and what `meta` adds."""
        context = self.init.expand(len(features), -1, -1)
        return context if self.meta is None else context + self.meta(features)[:, None]

    def __call__(self, context: Float[Tensor, "B M W"]) -> Float[Tensor, "B K D"]:
        """Unit text features (B, K, D) under the context of each image (B, M, W), all in one call of the tower."""
        network, B, (K, L, _) = self.clip.network, len(context), self.embedded.shape
        M = context.shape[1]
        self.count.add(B * K, context)
        rows = self.embedded.expand(B, -1, -1, -1)  # (B, K, L, W)
        x = torch.cat([rows[:, :, :1], context[:, None].expand(-1, K, -1, -1), rows[:, :, 1 + M :]], 2).flatten(0, 1)
        mask = None if network.attn_mask is None else network.attn_mask[:L, :L]
        x = network.transformer(x + network.positional_embedding[:L], attn_mask=mask)  # (B * K, L, W)
        x = network.ln_final(x[torch.arange(B * K, device=x.device), self.ends.repeat(B)])  # (B * K, W)
        project = network.text_projection
        x = project(x) if isinstance(project, nn.Module) else x if project is None else x @ project
        return F.normalize(x.float(), dim=-1).unflatten(0, (B, K))

    def restrict(self, classes: tuple[int, ...]) -> "Prompt":
        """The same context before k of the classes, in this order. Raises ValueError as `check_subset`."""
        check_subset(classes, self.classes, self.subset)
        keep = torch.tensor(classes, device=self.ends.device)
        some = dict(embedded=self.embedded[keep], ends=self.ends[keep], subset=tuple(classes))
        return replace(self, **some, count=Evaluations())

    def learned(self, init: Float[Tensor, "M W"], meta: nn.Module | None = None) -> "Prompt":
        """The same classes behind another context, e.g. one that `methods.coop` has learnt.

        Raises ValueError for a context of another size."""
        if init.shape != self.init.shape:
            raise ValueError(
                f"a context of {tuple(init.shape)} in the place of {tuple(self.init.shape)}: same template?"
            )
        return replace(self, init=init, meta=meta, count=Evaluations())


@torch.no_grad()
def make_prompt(clip: Clip, names: Sequence[str], template: str = "a photo of a {}.") -> Prompt:
    """The prompts of these class names with the words before the name as context; untrained they are the template's.

    Args:
        template: words, then a place for the class name, then anything. For 16 vectors without words, as CoOp has them:
            "X " * 16 + "{}.", and a context by `Prompt.learned`.

    Raises ValueError without class names, words before the name, or where a prompt is too long for the text tower."""
    from open_clip.transformer import text_global_pool  # late: most notebooks load no CLIP

    words, place, _ = template.partition("{}")
    if not names or not place or not words.strip():
        raise ValueError(f"template={template!r} with {len(names)} class names: give names, and words before the {{}}")
    network, device = clip.network, clip.mean.device
    tokens = clip.tokenizer([words.strip(), *map(template.format, names)]).to(device)  # (1 + K, L)
    kind, eos = network.text_pool_type, getattr(network, "text_eos_id", None)
    places = torch.arange(tokens.shape[1], device=device).expand(tokens.shape)[..., None]
    last = text_global_pool(places, tokens, kind, eos)[:, 0]  # (1 + K,)
    if kind == "last" or network.attn_mask is None:
        raise ValueError(f"the text tower of {clip.name or 'this CLIP'} is not causal: prompts cannot be cut")
    M, said, tokens, ends = int(last[0]) - 1, tokens[0], tokens[1:], last[1:]
    if int(ends.max()) >= network.context_length - 1:
        longest = names[int(ends.argmax())]
        raise ValueError(f"the prompt of {longest!r} fills all {network.context_length} tokens: shorten the template")
    if bool((tokens[:, 1 : 1 + M] != said[1 : 1 + M]).any()):
        raise ValueError(f"template={template!r}: the words before the name must end with a space")
    embedded = network.token_embedding(tokens[:, : int(ends.max()) + 1]).float()  # (K, L, W)
    return Prompt(clip, embedded, ends, embedded[0, 1 : 1 + M].clone(), float(embedded.std()))
