"""Copies of a classifier's adapted parameters, one per image, and which parameters those are."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..common.types import Probs
from .classifier import Classifier

PARAM_SETS = ("all", "logits", "bn", "norm", "head", "lora", "leaf_no_head")


def parameter_names(classifier: Classifier, param_set: str) -> list[str]:
    """Names (within `classifier`) of the parameters that a method may change.

    "all": every one, the default. "bn": scale and shift of batch norm. "norm": of any normalisation. "head": the last
    layer. "leaf_no_head": what the public code of Diffusion-TTA collects, the parameters of modules without children
    except the last such module: position embeddings, class tokens and layer scales are lost. "lora": adapters, which
    `with_lora` must have put in. "logits" has no parameters of the network: a shift of the logits is learnt instead.

    Raises ValueError for an unknown set, or one that is empty for this architecture."""
    if param_set not in PARAM_SETS:
        raise ValueError(f"unknown param_set={param_set!r}: choose one of {', '.join(PARAM_SETS)}")
    named = dict(classifier.named_parameters())
    norms = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
    if param_set == "logits":
        return []
    if param_set == "all":
        names = [n for n in named if "lora_" not in n]
    elif param_set == "lora":
        names = [n for n in named if "lora_" in n]
    elif param_set == "head":
        head = {id(p) for p in classifier.network.get_classifier().parameters()}
        names = [n for n, p in named.items() if id(p) in head]
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


def with_lora(classifier: Classifier, rank: int = 4, seed: int = 0) -> Classifier:
    """A copy of the classifier with low-rank adapters on every linear and convolution layer but the head.

    W' = W + B A with B = 0, so its outputs are those of the original (Hu et al., 2022); A is drawn from `seed`."""
    from peft import LoraConfig, inject_adapter_in_model

    classifier = copy.deepcopy(classifier)
    head = classifier.network.get_classifier()
    targets = [
        n for n, m in classifier.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and m is not head
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
        classifier.network = inject_adapter_in_model(config, classifier.network).eval()
    return classifier


class Copies(nn.Module):
    """The classifier with `n` independent copies of some of its parameters, or with one copy for a whole stream.

    The source is never written to: nothing has to be restored, and dropping the object is the reset. All copies run
    side by side in one call (`torch.func.vmap`); what is not copied is shared.

    Args:
        n: copies, one for each image of the batch; None for one copy that all images share.
    """

    def __init__(self, classifier: Classifier, param_set: str, n: int | None):
        super().__init__()
        self.classifier, self.n = [classifier], n  # in a list: not a submodule, so not among our parameters
        source = dict(classifier.named_parameters())
        lead = () if n is None else (n,)
        self.values = {
            name: source[name].detach().expand(*lead, *source[name].shape).clone().requires_grad_()
            for name in parameter_names(classifier, param_set)
        }
        if param_set == "logits":
            self.values["logits"] = torch.zeros(
                *lead, classifier.classes, device=classifier.mean.device
            ).requires_grad_()

    def tensors(self) -> list[Tensor]:
        """The adapted tensors, each with a leading dimension n unless the copy is shared."""
        return list(self.values.values())

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Probs:
        """Logits (B, K) of images (B, 3, S, S), image b through copy b."""
        classifier = self.classifier[0]
        x = classifier.normalise(images)
        if "logits" in self.values:  # no gradient passes through the network
            classifier.count.add(len(images))
            with torch.no_grad():
                z = classifier.network(x).float()
            return z + self.values["logits"]
        classifier.count.add(len(images), images, *self.values.values())
        values = {name.removeprefix("network."): v for name, v in self.values.items()}
        if self.n is None:
            return functional_call(classifier.network, values, (x,)).float()

        def one(values: dict, x: Tensor) -> Tensor:
            return functional_call(classifier.network, values, (x[None],))[0]

        return vmap(one)(values, x).float()
