"""LoRA as a change of weights: equal to peft's, felt by whatever reads a weight, exact at its start."""

import open_clip
import pytest
import torch
from conftest import make_classifier, make_family
from open_clip.modified_resnet import AttentionPool2d
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.func import functional_call

from gentta_utils.models import lora
from gentta_utils.models.classifier import Classifier
from gentta_utils.models.clip import Clip
from gentta_utils.models.copies import Copies, parameter_names


def pooled(width: int = 3) -> nn.Sequential:
    """A convolution, open_clip's attention pooling, a linear layer: what peft adapts in part."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(width, 8, 4, 4), AttentionPool2d(4, 8, 2, 8), nn.Linear(8, 4))


def chosen(network: nn.Module) -> dict[str, torch.Tensor]:
    named = dict(network.named_parameters())
    return {name: named[name] for name in lora.targets(network)}


def filled(adapters: dict, number: float = 0.5) -> dict:
    return {name: (A, torch.full_like(B, number)) for name, (A, B) in adapters.items()}


def with_peft(network: nn.Module, names: list[str], rank: int) -> nn.Module:
    """Adapters by peft on the layers that hold these weights; alpha = rank."""
    torch.manual_seed(0)
    layers = [name.removesuffix(".weight") for name in names]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    return inject_adapter_in_model(config, network).eval()


# --- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_it_is_pefts_on_linear_and_convolution_layers(rank):
    """The same draw of A, and with the same B the same outputs and gradients."""

    def network():
        torch.manual_seed(1)
        convolutions = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, (1, 3), bias=False)]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(6 * 4 * 2, 5), nn.ReLU(), nn.Linear(5, 4)).double()

    ours, x = network(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    theirs = with_peft(network(), list(chosen(ours)), rank).double()
    adapters = lora.init({n: w.float() for n, w in chosen(ours).items()}, rank)
    wraps = {f"{name}.weight": m for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert list(wraps) == list(adapters)
    leaves = {}
    for name, (A, _) in adapters.items():
        peft_A, peft_B = wraps[name].lora_A["default"].weight, wraps[name].lora_B["default"].weight
        assert torch.equal(A.double(), peft_A.flatten(1))
        assert (peft_B == 0).all()
        nn.init.normal_(peft_B)
        leaves[name] = (A.double().requires_grad_(), peft_B.detach().flatten(1).clone().requires_grad_())
    out = functional_call(ours, lora.merged(chosen(ours), leaves), (x,))
    torch.testing.assert_close(out, theirs(x), rtol=0, atol=1e-6)
    out.square().sum().backward()
    theirs(x).square().sum().backward()
    for name, (A, B) in leaves.items():
        wrap = wraps[name]
        torch.testing.assert_close(A.grad, wrap.lora_A["default"].weight.grad.flatten(1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(B.grad, wrap.lora_B["default"].weight.grad.flatten(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "layer, sizes",
    [
        (nn.Linear(5, 7), (5, 7)),
        (nn.Conv2d(3, 8, 4), (3 * 16, 8)),
        (nn.Conv2d(8, 12, 3, groups=4), (2 * 9, 12)),
        (nn.MultiheadAttention(8, 2), [(8, 24), (8, 8)]),
        (nn.MultiheadAttention(8, 2, kdim=6, vdim=4), [(8, 8), (6, 8), (4, 8), (8, 8)]),
    ],
    ids=["linear", "convolution", "grouped", "attention", "attention of three widths"],
)
def test_trainable_parameters_are_rank_times_both_sides(layer, sizes):
    weights = chosen(layer)
    sizes = sizes if isinstance(sizes, list) else [sizes]
    expected = sum(3 * (d_in + d_out) for d_in, d_out in sizes)
    assert lora.size(weights, 3) == expected
    adapters = lora.init(weights, 3)
    assert sum(v.numel() for v in lora.flat(adapters)) == expected
    changed = lora.merged(weights, filled(adapters))
    for name, w in weights.items():
        assert changed[name].shape == w.shape
        assert torch.linalg.matrix_rank((changed[name] - w).flatten(1), atol=1e-4) <= 3
    assert all(torch.equal(v, weights[n]) for n, v in lora.merged(weights, adapters).items())  # B = 0


def test_a_b_and_scale_make_the_weight():
    w = torch.zeros(2, 3)
    A, B = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0], [10.0]])
    changed = lora.merged({"w": w}, {"w": (A, B)}, scale=0.5)["w"]
    assert changed.tolist() == [[0.5, 1.0, 1.5], [5.0, 10.0, 15.0]]


def test_a_is_drawn_from_the_seed_alone():
    weights = chosen(pooled())
    torch.manual_seed(5)
    one, two, other = lora.init(weights, 2), lora.init(weights, 2), lora.init(weights, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(lora.flat(one), lora.flat(two), strict=True))
    assert not any(torch.equal(one[n][0], other[n][0]) for n in weights)


# --- what reads a weight directly ------------------------------------------------------------------------------------


def test_attention_pooling_moves_with_each_of_its_adapters():
    """The smallest case in which peft's adapters are silently left out: the pooling hands its weights over itself."""
    network, x = pooled().eval(), torch.rand(2, 3, 16, 16)
    weights = chosen(network)
    assert list(weights) == [
        "0.weight", "1.k_proj.weight", "1.q_proj.weight", "1.v_proj.weight", "1.c_proj.weight", "2.weight",
    ]  # fmt: skip
    base, adapters = network(x), filled(lora.init(weights, 4))
    for name in weights:
        out = functional_call(network, lora.merged(weights, {name: adapters[name]}), (x,))
        assert (out - base).abs().max() > 1e-3, name
    pooling = [n for n in weights if n.startswith("1.")]
    moved = functional_call(network, lora.merged(weights, {n: adapters[n] for n in pooling}), (x,)) - base
    assert moved.abs().max().item() == pytest.approx(0.124, abs=0.002)
    theirs = with_peft(pooled().eval(), pooling, 4)
    for module in theirs.modules():
        if hasattr(module, "lora_B"):
            nn.init.constant_(module.lora_B["default"].weight, 0.5)
    assert torch.equal(theirs(x), base)


def test_the_input_projection_of_attention_moves_the_output():
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.rand(2, 5, 8)
    weights = chosen(layer)
    assert list(weights) == ["in_proj_weight", "out_proj.weight"]
    for name in weights:
        changed = lora.merged(weights, {name: filled(lora.init(weights, 2))[name]})
        out = functional_call(layer, changed, (x, x, x))[0]
        assert (out - layer(x, x, x)[0]).abs().max() > 1e-3, name


class Unread(nn.Module):
    """A network with a layer that no output reads, and one whose weight is read without a gradient."""

    def __init__(self):
        super().__init__()
        self.body, self.decoder, self.cut, self.fc = (nn.Linear(48, 48) for _ in range(4))

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(self.body(x.flatten(1)) + x.flatten(1) @ self.cut.weight.detach())


def test_an_adapter_that_would_move_nothing_is_refused_by_name():
    classifier = Classifier(Unread(), (0.5,) * 3, (0.5,) * 3, 4, 48)
    with pytest.raises(ValueError, match=r"no output reads network.decoder.weight, network.cut.weight: skip") as error:
        Copies(classifier, "lora", 2)
    assert "\n" not in str(error.value)
    assert lora.targets(classifier, skip=["network.decoder.weight", "network.cut.weight"]) == [
        "network.body.weight",
        "network.fc.weight",
    ]
    with pytest.raises(ValueError, match="no output reads a, b"):
        lora.check_read({"a": torch.ones(2), "b": torch.ones(2)}, lambda w: torch.ones(3))
    lora.check_read({"a": torch.ones(2)}, lambda w: 0 * w["a"])  # a zero after it can still be trained away


def test_a_shared_weight_has_one_adapter():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    assert lora.targets(network) == ["0.weight"]


# --- of a classifier, one per image ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips():
    """CLIPs of both kinds of tower that were never trained: attention pooling, and open_clip's transformer."""
    towers = dict(
        resnet=dict(image_size=32, layers=[1, 1, 1, 1], width=8),
        vit=dict(image_size=32, patch_size=8, layers=2, width=16, head_width=8),
    )
    text = dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
    tokens = lambda texts: torch.tensor([[len(t), 7, 3, 49, 0, 0, 0, 0] for t in texts])  # noqa: E731
    found = {}
    for name, vision in towers.items():
        torch.manual_seed(2)
        network = open_clip.CLIP(16, vision, text)
        for module in network.visual.modules():
            if isinstance(module, nn.BatchNorm2d):  # the last of each block starts at 0, which hides the block
                nn.init.uniform_(module.weight, 0.5, 1.5)
        found[name] = Clip(network.requires_grad_(False), tokens, (0.5,) * 3, (0.5,) * 3, 32, name)
    return found


def classifiers(clips) -> dict[str, Classifier]:
    zero_shot = {name: clip.zero_shot(["torus", "a cube", "the cone"], ["{}"]) for name, clip in clips.items()}
    timm = {name: make_family(name).classifier for name in ("vit", "swin")}
    timm["convnext"] = make_family("convnext", ls_init_value=1.0).classifier  # timm's 1e-6 hides the blocks
    return {f"clip {name}": c for name, c in zero_shot.items()} | timm | {"tiny": make_classifier(size=32)}


NAMES = ["clip resnet", "clip vit", "vit", "swin", "convnext", "tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_at_the_start_and_after_a_reset_it_is_the_base_bit_by_bit(clips, images32, name):
    classifier = classifiers(clips)[name].requires_grad_(False)
    say = torch.no_grad()(lambda copies: copies(images32))  # with a gradient attention takes other kernels
    base = say(classifier)
    own = Copies(classifier, "lora", 6)  # with the base's own weights instead of adapters
    own.values = {n: v.expand(6, *v.shape).clone() for n, v in classifier.named_parameters() if n in own.values}
    side_by_side = say(own)
    torch.testing.assert_close(side_by_side, base, rtol=1e-4, atol=1e-4)
    kept = [v.clone() for v in classifier.state_dict().values()]
    for n, expected in ((None, base), (6, side_by_side)):
        copies = Copies(classifier, "lora", n)
        assert torch.equal(say(copies), expected)
        optimizer = torch.optim.SGD(copies.tensors(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            copies(images32).square().sum().backward()
            optimizer.step()
        assert not torch.equal(say(copies), expected)
        assert torch.equal(say(Copies(classifier, "lora", n)), expected)  # the reset: a new object
    assert all(torch.equal(a, b) for a, b in zip(kept, classifier.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_only_adapters_have_gradients_and_each_moves_the_output(clips, images32, name):
    classifier = classifiers(clips)[name].requires_grad_(False)
    copies = Copies(classifier, "lora", 2, rank=2)
    names = parameter_names(classifier, "lora")
    assert list(copies.values) == names
    head = parameter_names(classifier, "head")
    assert not set(names) & set(head)
    named = dict(classifier.named_parameters())
    per_image = sum(v[0].numel() for v in copies.tensors())
    assert per_image == lora.size({n: named[n] for n in names}, 2)
    z = copies(images32[:2])
    z.square().sum().backward()
    assert all(v.grad is not None for v in copies.tensors())
    assert all(v.grad is None for v in classifier.parameters())
    for changed in names:
        one = Copies(classifier, "lora", 2, rank=2)
        with torch.no_grad():
            one.values[changed][1].normal_()  # one number for all would be a shift, which layer norm takes out
            assert (one(images32[:2]) - z).abs().max() > 1e-5, changed


def test_images_have_adapters_of_their_own(clips, images32):
    classifier = classifiers(clips)["clip resnet"].requires_grad_(False)
    copies = Copies(classifier, "lora", 6)
    base = copies(images32).detach()
    with torch.no_grad():
        for _, B in copies.values.values():
            B[2].normal_()
    moved = (copies(images32) - base).abs().amax(1) > 0
    assert moved.tolist() == [False, False, True, False, False, False]
    shared = Copies(classifier, "lora", None)
    for name, (_, B) in shared.values.items():
        B.data.copy_(copies.values[name][1][2])
    torch.testing.assert_close(shared(images32[2:3]), copies(images32)[2:3], rtol=1e-4, atol=1e-4)


def test_other_weights_stand_only_while_the_work_is_done():
    network, x = pooled().eval(), torch.rand(1, 3, 16, 16)
    weights, base = chosen(network), network(x)
    changed = lora.merged(weights, filled(lora.init(weights, 2)))
    inside = lora.with_weights(network, changed, lambda m: m(x))
    torch.testing.assert_close(inside, functional_call(network, changed, (x,)))
    assert not torch.equal(inside, base)
    assert torch.equal(network(x), base)
