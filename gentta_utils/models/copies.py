"""Copies of a classifier's adapted parameters, one per image, and which parameters those are."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..common.types import Answers
from . import lora
from .classifier import Classifier

PARAM_SETS = ("all", "logits", "bn", "norm", "head", "lora", "leaf_no_head", "tower")


def parameter_names(classifier: Classifier, param_set: str) -> list[str]:
    """Names (within `classifier`) of the parameters that a method may change.

    "all": every one, the default. "bn": scale and shift of batch norm. "norm": of any normalisation. "head": the last
    layer. "tower": all but that, CLIP's image tower for one. "lora": the weights that have an adapter each, those of
    `lora.targets` without the last layer. "leaf_no_head": what the public code of Diffusion-TTA collects, the
    parameters of modules without children except the last such module: position embeddings, class tokens and layer
    scales are lost. "logits" has no parameters of the network: a shift of the logits (or of a map) is
    learnt instead. Of a network that answers with maps, "head" is all behind the encoder.

    Raises ValueError for an unknown set, one that is empty for this architecture, or "lora" where the logits do not
    read a weight that would be adapted."""
    if param_set not in PARAM_SETS:
        raise ValueError(f"unknown param_set={param_set!r}: choose one of {', '.join(PARAM_SETS)}")
    named = dict(classifier.named_parameters())
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    if param_set == "logits":
        return []
    if param_set == "all":
        names = list(named)
    elif param_set in ("head", "tower", "lora"):
        last = {id(p) for p in classifier.network.get_classifier().parameters()}
        head = [n for n, p in named.items() if id(p) in last]
        names = head if param_set == "head" else [n for n in named if n not in head]
        if param_set == "lora":
            names = lora.targets(classifier, skip=head)
            probe = torch.zeros(1, 3, classifier.image_size, classifier.image_size, device=classifier.mean.device)
            lora.check_read({n: named[n] for n in names}, lambda w: _logits(classifier, w, probe))
    elif param_set == "leaf_no_head":
        leaves = [(n, m) for n, m in classifier.named_modules() if not list(m.children()) and list(m.parameters())]
        names = [f"{n}.{p}" for n, m in leaves[:-1] for p, _ in m.named_parameters()]
    else:
        kind = nn.modules.batchnorm._BatchNorm if param_set == "bn" else norms
        found = [(n, m) for n, m in classifier.named_modules() if isinstance(m, kind)]
        names = [f"{n}.{p}" for n, m in found for p, _ in m.named_parameters()]
    if not names:
        raise ValueError(
            f"param_set={param_set!r} holds no parameter of {classifier.name or 'this network'}: choose another"
        )
    return names


def _logits(classifier: Classifier, weights: dict[str, Tensor], x: Float[Tensor, "B 3 S S"]) -> Answers:
    """The network's answer, logits (B, K) or a map, to normalised images with these weights, named within `classifier`,
    for its own."""
    inside = {name.removeprefix("network."): w for name, w in weights.items()}
    return functional_call(classifier.network, inside, (x,))


class Copies(nn.Module):
    """The classifier with `n` independent copies of some of its parameters, or with one copy for a whole stream.

    The source is never written to: nothing has to be restored, and dropping the object is the reset. All copies run
    side by side in one call (`torch.func.vmap`); what is not copied is shared.

    Args:
        n: copies, one for each image of the batch; None for one copy that all images share.
        rank, seed: of the adapters of "lora", see `lora.init`.

    Attributes:
        values: what is adapted, by the name of the parameter: a tensor, or the pair (A, B) of an adapter.
    """

    def __init__(self, classifier: Classifier, param_set: str, n: int | None, rank: int = 4, seed: int = 0):
        super().__init__()
        self.classifier, self.n = [classifier], n  # in a list: not a submodule, so not among our parameters
        self.known: tuple[Tensor, Answers] | None = None  # images with the network's answer, where these stay
        source = dict(classifier.named_parameters())
        lead = () if n is None else (n,)

        def copied(value: Tensor) -> Tensor:
            return value.detach().expand(*lead, *value.shape).clone().requires_grad_()

        chosen = {name: source[name] for name in parameter_names(classifier, param_set)}
        if param_set == "lora":
            self.values = {name: tuple(map(copied, pair)) for name, pair in lora.init(chosen, rank, seed).items()}
        else:
            self.values = {name: copied(value) for name, value in chosen.items()}
        if param_set == "logits":
            self.values["logits"] = torch.zeros(
                *lead, *classifier.answer, device=classifier.mean.device
            ).requires_grad_()

    def tensors(self) -> list[Tensor]:
        """The adapted tensors, each with a leading dimension n unless the copy is shared."""
        return lora.flat(self.values)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Answers:
        """Logits (B, K), or maps (B, K, h, w), of images (B, 3, S, S), image b by copy b. With "logits" the network
        stays what it is and sees the images of an episode once."""
        classifier = self.classifier[0]
        if "logits" in self.values:
            if self.known is None or self.known[0] is not images:
                with torch.no_grad():
                    self.known = images, classifier(images)
            return self.known[1] + self.values["logits"]
        x = classifier.normalise(images)
        classifier.count.add(len(images), images, *self.tensors())
        source = dict(classifier.named_parameters())

        def one(values: lora.Values, x: Tensor) -> Tensor:
            return _logits(classifier, lora.merged(source, values), x[None])[0]

        if self.n is None:
            return _logits(classifier, lora.merged(source, self.values), x).float()
        return vmap(one)(self.values, x).float()
