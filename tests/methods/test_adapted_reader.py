"""The adapted reader, and adapters of the denoiser in the other methods that adapt one."""

from dataclasses import replace

import pytest
import torch
from conftest import same, weights

from gentta_utils.diffusion.feedback import condition_gradient
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.methods import adapted_reader, diffusion_classifier, diffusion_tta, dusa
from gentta_utils.methods.adapted_reader import Settings, configure
from gentta_utils.methods.base import Models
from gentta_utils.methods.feedback import attention_weights, check_attention, feedback, fresh_denoiser
from gentta_utils.models import lora

READER = diffusion_classifier.Settings(pairs=4, window=(100, 800))
S = Settings(lr=0.3, updates=3, pairs=4, window=(100, 800), micro_batch=16, reader=READER)
TTA = diffusion_tta.Settings(
    lr=0.3, updates=3, pairs=4, window=(100, 800), adapt_denoiser=True, denoiser_set="lora", rank=2
)
IDS = torch.arange(5) + 7


def test_before_is_the_reader_and_after_another_one(tiny, images):
    kept = weights(tiny.classifier) + weights(tiny.denoiser)
    out = configure(tiny, S).adapt(images, IDS)
    plain = diffusion_classifier.configure(tiny, READER).adapt(images, IDS)
    torch.testing.assert_close(out.before, plain.logits, rtol=1e-4, atol=1e-4)
    assert (out.logits - out.before).abs().amax(1).min() > 1e-4
    assert out.loss.shape == (3, 5)
    assert same(kept, weights(tiny.classifier) + weights(tiny.denoiser))
    assert out.nfe == {"classifier fwd": 10, "denoiser fwd": 2 * 5 * 4 * 4, "denoiser fwd+bwd": 5 * 3 * 4}


def test_the_loss_falls(tiny, images):
    """Below what it is on the same pairs where the adapters hardly move."""
    s = replace(S, updates=8, pairs=16)
    loss, still = (configure(tiny, replace(s, lr=lr)).adapt(images, IDS).loss for lr in (0.3, 1e-9))
    torch.testing.assert_close(loss[0], still[0])
    assert (loss[-1] < still[-1]).all()


def test_an_image_does_not_depend_on_others_and_resets_are_exact(tiny, images):
    method = configure(tiny, S)
    whole = method.adapt(images, IDS)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(method.adapt(images[order], IDS[order]).logits, whole.logits[order])
    method.reset()
    assert torch.equal(method.adapt(images[2:3], IDS[2:3]).logits, whole.logits[2:3])


def test_it_can_be_read_in_stages(tiny, images):
    staged = replace(S, reader=replace(READER, stages=((2, 3), (4, 1))))
    out = configure(tiny, staged).adapt(images, IDS)
    assert out.nfe["denoiser fwd"] == 2 * 5 * diffusion_classifier.staged_cost((2, 4), (3, 1), 4, 4)


# --- adapters of the denoiser ----------------------------------------------------------------------------------------


def test_adapters_get_the_gradient_of_the_whole_loss(tiny):
    """dL/dW' gathered first and chained once is what autograd gives through A and B."""
    denoiser = tiny.denoiser
    x0, p = torch.randn(2, *denoiser.shape), torch.randn(2, 4).softmax(1)
    t, eps = draw_pairs(IDS[:2], 3, denoiser.shape)
    phi, direct = (fresh_denoiser(denoiser, TTA) for _ in range(2))
    for (_, B), (_, other) in zip(phi.values(), direct.values(), strict=True):
        torch.nn.init.normal_(B)
        other.data.copy_(B)
    _, loss = feedback(denoiser, phi, x0, p, t, eps, "embedding", 4)
    named = dict(denoiser.named_parameters())
    leaves = lora.flat(direct)
    total = torch.zeros(())
    for j in range(3):
        x_t = denoiser.alphas_cumprod[t[:, j]].view(-1, 1, 1, 1)
        x_t = x_t.sqrt() * x0 + (1 - x_t).sqrt() * eps[:, j]
        merged = lora.merged(named, direct)
        eps_hat = lora.with_weights(denoiser, merged, lambda d, x_t=x_t, j=j: d(x_t, t[:, j], p))
        total = total + (eps_hat - eps[:, j]).square().flatten(1).mean(1).mean() / 3
    for value, grad in zip(lora.flat(phi), torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(value.grad, grad, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(loss.mean(), total.detach())
    frozen = feedback(denoiser, None, x0, p, t, eps)
    whole = condition_gradient(denoiser, x0, p, t, eps)
    assert all(torch.equal(a, b) for a, b in zip(frozen, whole, strict=True))


def test_they_are_on_attention_alone_and_start_at_the_base(tiny):
    denoiser = tiny.denoiser
    named = dict(denoiser.named_parameters())
    found = attention_weights(denoiser)
    assert len(found) == 2 * 4  # two blocks: query, key, value and output
    assert all(found[n] is named[n] for n in found)
    phi = fresh_denoiser(denoiser, TTA)
    assert sum(v.numel() for v in lora.flat(phi)) == lora.size(found, 2)
    assert all(torch.equal(w, named[n]) for n, w in lora.merged(named, phi).items())
    check_attention(denoiser)


@pytest.mark.parametrize("change", [{}, {"mixing": "output"}, {"optimizer": "adamw", "lr": 1e-2}, {"online": True}])
def test_diffusion_tta_with_adapters_of_the_denoiser(tiny, images, change):
    kept = weights(tiny.classifier) + weights(tiny.denoiser)
    s = replace(TTA, **change)
    frozen = diffusion_tta.configure(tiny, replace(s, adapt_denoiser=False)).adapt(images[:2], IDS[:2])
    method = diffusion_tta.configure(tiny, s)
    both = method.adapt(images[:2], IDS[:2])
    torch.testing.assert_close(both.loss[0], frozen.loss[0])
    assert not torch.allclose(both.loss[-1], frozen.loss[-1], rtol=1e-6)
    assert same(kept, weights(tiny.classifier) + weights(tiny.denoiser))
    method.reset()
    assert torch.equal(method.adapt(images[:2], IDS[:2]).logits, both.logits)
    if not s.online:
        alone = method.adapt(images[1:2], IDS[1:2])
        torch.testing.assert_close(alone.logits, both.logits[1:], rtol=1e-4, atol=1e-5)
    _, phi, optimizer = method._fresh(1)
    adapted = {id(v) for group in optimizer.param_groups for v in group["params"]}
    assert adapted >= {id(v) for v in lora.flat(phi)}


def test_both_sides_by_adapters(tiny, images):
    out = diffusion_tta.configure(tiny, replace(TTA, param_set="lora")).adapt(images, IDS)
    assert (out.logits - out.before).abs().amax(1).min() > 1e-5


def test_dusa_with_adapters_of_the_denoiser(tiny, images):
    s = dusa.Settings(lr=1e-2, optimizer="sgd", predict="after", top=2, extra=1, updates=2)
    outs = [
        dusa.configure(tiny, replace(s, adapt_denoiser=on, denoiser_set="lora")).adapt(images, IDS)
        for on in (False, True)
    ]
    torch.testing.assert_close(outs[0].loss[0], outs[1].loss[0])
    assert not torch.equal(outs[0].loss[1], outs[1].loss[1])


def test_the_rank_is_the_settings(tiny, images):
    for rank in (1, 3):
        task, phi, _ = diffusion_tta.configure(tiny, replace(TTA, rank=rank, param_set="lora"))._fresh(2)
        assert {A.shape[0] for A, _ in phi.values()} == {rank}
        assert {A.shape[1] for A, _ in task.values.values()} == {rank}  # after the images
    moved = [
        (o.logits - o.before).abs().mean()
        for rank in (1, 3)
        for o in [diffusion_tta.configure(tiny, replace(TTA, rank=rank, param_set="lora")).adapt(images, IDS)]
    ]
    assert moved[0] != moved[1]


def test_misfits_are_refused(tiny):
    with pytest.raises(ValueError, match="needs a denoiser"):
        configure(Models(tiny.classifier), S)
    with pytest.raises(ValueError, match="1000 timesteps"):
        configure(tiny, replace(S, reader=diffusion_classifier.Settings(window=(0, 1001))))
    with pytest.raises(ValueError, match="rank=0: choose"):
        replace(S, rank=0)
    block = tiny.denoiser.network.transformer_blocks[0]
    block.spare = torch.nn.Module()
    block.spare.to_q = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"no output reads network.transformer_blocks.0.spare.to_q.weight: skip"):
        configure(tiny, S)
    tiny.denoiser.network.transformer_blocks = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="no attention layers"):
        adapted_reader.configure(tiny, S)
