"""The wrappers of the networks: bf16 on a CPU, and the embedding that is kept within one forward pass alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_dit
from diffusers.models.activations import GELU
from diffusers.models.attention_processor import Attention, AttnProcessor

from gentta_utils.diffusion.feedback import condition_gradient
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.models import zoo
from gentta_utils.world import scenes


def test_bf16_points_where_float32_does(shipped):
    """dL/dp, and what a softmax passes on of it: bf16 on a CPU also has another attention and another GELU."""
    half = zoo.load("denoiser/dit", precision="bf16")
    assert all(m.approximate == "none" for m in half.network.modules() if isinstance(m, GELU))
    assert all(type(m.processor) is AttnProcessor for m in half.network.modules() if isinstance(m, Attention))
    world = scenes.shipped()
    x0, ids = shipped.denoiser.encode(world.image[:6]), world.id[:6]
    t, eps = draw_pairs(ids, 8, shipped.denoiser.shape, (150, 600))
    with torch.no_grad():
        p = (shipped.classifier(world.image[:6]) / 3).softmax(1)
    (full, loss), (found, half_loss) = (condition_gradient(net, x0, p, t, eps) for net in (shipped.denoiser, half))
    assert not torch.equal(full, found)
    torch.testing.assert_close(half_loss, loss, rtol=0.02, atol=0)
    assert F.cosine_similarity(full, found).min() >= 0.999
    a, b = (p * (G - (p * G).sum(1, keepdim=True)) for G in (full, found))  # dL/dz: differences between classes alone
    assert F.cosine_similarity(a, b).min() >= 0.99


def test_the_two_forms_of_gelu_differ_by_little():
    x = torch.linspace(-8, 8, 10_001, dtype=torch.float64)
    assert (F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max() < 5e-4


@pytest.fixture
def dit():
    return make_dit()


def call(denoiser, seed=0):
    """eps_hat of three images at their own levels, under their own classes."""
    g = torch.Generator().manual_seed(seed)
    x_t, p = torch.randn(3, 3, 8, 8, generator=g), torch.rand(3, 4, generator=g).softmax(1)
    with torch.no_grad():
        return denoiser(x_t, torch.randint(1000, (3,), generator=g), p)


def kept(denoiser):
    return denoiser.network.transformer_blocks[0].norm1.emb.kept


def afresh(denoiser, seed=0):
    """The same from an embedder that keeps nothing: it runs in each block."""
    embedder = denoiser.network.transformer_blocks[0].norm1.emb
    embedder.keeps = False
    try:
        return call(denoiser, seed)
    finally:
        embedder.keeps = True


def test_no_embedding_is_left_for_the_next_pass(dit):
    for seed in (0, 1):
        assert torch.equal(call(dit, seed), afresh(dit, seed))
        assert kept(dit) is None


def test_a_pass_that_raises_leaves_no_embedding_to_the_next(dit):
    """An interrupt between two blocks: the hook after the pass does not run, the one before the next does."""

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = dit.network.transformer_blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(dit, 0)
    handle.remove()
    assert kept(dit) is not None
    assert torch.equal(call(dit, 1), afresh(dit, 1))
    assert kept(dit) is None


def test_a_copy_forgets_for_itself(dit):
    """The hooks of a copy look at the copy: with other weights it gives other embeddings, and the original its own."""
    expected, twin = call(dit, 0), copy.deepcopy(dit)
    assert torch.equal(call(twin, 0), expected)
    embedder = twin.network.transformer_blocks[0].norm1.emb
    assert embedder is not dit.network.transformer_blocks[0].norm1.emb
    assert all(block.norm1.emb is embedder for block in twin.network.transformer_blocks)
    with torch.no_grad():
        embedder.class_embedder.embedding_table.weight.add_(1)
    changed = call(twin, 0)
    assert not torch.equal(changed, expected)
    assert torch.equal(changed, afresh(twin, 0))
    assert torch.equal(call(dit, 0), expected)
    assert kept(dit) is kept(twin) is None
