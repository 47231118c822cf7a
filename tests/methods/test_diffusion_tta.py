"""Diffusion-TTA: the gradient, the cheap exact route, the batched episodes, resets and invariances."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import make_dit, make_family, make_mae

from gentta_utils.common.validate import check_probabilities
from gentta_utils.diffusion.error_table import gram
from gentta_utils.diffusion.feedback import condition_gradient, probabilities
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.diffusion.process import add_noise, diffusion_loss, eps_error
from gentta_utils.methods import diffusion_classifier, diffusion_tta, source
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_tta import Settings, configure, learning_rate
from gentta_utils.models import lora
from gentta_utils.models.classifier import Classifier
from gentta_utils.models.clip import ZeroShot
from gentta_utils.models.copies import PARAM_SETS, Copies, parameter_names
from gentta_utils.world.views import low_pass

S = Settings(lr=0.5, updates=3, pairs=6, window=(100, 800), images_at_once=4, micro_batch=16)
IDS = torch.arange(5) + 40


def draw(denoiser, B=5, n=6):
    return draw_pairs(IDS[:B], n, denoiser.shape, (100, 800))


def weights(module) -> list[torch.Tensor]:
    return [v.clone() for v in module.state_dict().values()]


# --- the gradient ----------------------------------------------------------------------------------------------------


def test_gradient_of_the_logits_is_the_closed_form_on_the_mixture(mixture):
    """dL/dz_i = p_i <g, E_i - c> with g = dL/dc; there c is the mixed mean and dL/dc has a closed form too."""
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    x0, eps = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([200, 400, 600])
    p = z.softmax(1)
    diffusion_loss(mixture, x0, t, eps, p, mixture.alphas_cumprod).sum().backward()
    abar = mixture.alphas_cumprod[t].view(-1, 1, 1, 1)
    slope = -((1 - abar) * abar).sqrt() / (abar * mixture.std**2 + 1 - abar)  # d eps_hat / d c
    eps_hat = mixture(add_noise(x0, t, eps, mixture.alphas_cumprod), t, p.detach())
    g = 2 * (eps_hat - eps) * slope / x0[0].numel()  # dL/dc
    c = (p.detach() @ mixture.means.flatten(1)).view_as(x0)
    expected = p.detach() * (g[:, None] * (mixture.means - c[:, None])).flatten(2).sum(-1)
    torch.testing.assert_close(z.grad, expected)


def test_gradient_of_the_logits_is_the_closed_form_in_the_dit(tiny):
    """In a DiT with one label table c enters as c = p @ table, so dL/dp_i = <g, E_i> and dL/dz_i = p_i <g, E_i - c>.

    g = dL/dc is read off the label embedder's output, which each block and the last layer use."""
    embedder = tiny.denoiser.network.transformer_blocks[0].norm1.emb.class_embedder
    table = embedder.embedding_table.weight.detach()
    seen = []

    def keep(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    handle = embedder.register_forward_hook(keep)
    z = torch.randn(2, 4, requires_grad=True)
    x0, (t, eps) = torch.randn(2, *tiny.denoiser.shape), draw(tiny.denoiser, 2, 1)
    p = z.softmax(1)
    p.retain_grad()
    diffusion_loss(tiny.denoiser, x0, t[:, 0], eps[:, 0], p, tiny.denoiser.alphas_cumprod).sum().backward()
    handle.remove()
    assert len(seen) == 1  # one evaluation serves two blocks and the output layer
    g, c = sum(e.grad for e in seen), p.detach() @ table[:4]
    torch.testing.assert_close(p.grad, g @ table[:4].T, rtol=1e-4, atol=1e-7)
    expected = p.detach() * (g[:, None] * (table[:4] - c[:, None])).sum(-1)
    torch.testing.assert_close(z.grad, expected, rtol=1e-3, atol=1e-7)


def test_one_hot_and_single_class_have_no_gradient(tiny):
    x0, (t, eps) = torch.randn(5, *tiny.denoiser.shape), draw(tiny.denoiser)
    z = (torch.eye(4)[torch.arange(5) % 4] * 200).requires_grad_()
    G, _ = condition_gradient(tiny.denoiser, x0, z.softmax(1), t, eps)
    (z.softmax(1) * G).sum().backward()
    assert G.abs().max() > 0
    assert z.grad.abs().max() == 0
    single = make_dit(classes=1)
    z = torch.randn(5, 1, requires_grad=True)
    G, _ = condition_gradient(single, x0, z.softmax(1), t, eps)
    (z.softmax(1) * G).sum().backward()
    assert G.abs().max() > 0
    assert z.grad.abs().max() == 0


def test_embeddings_matter_only_through_differences(tiny):
    """Adding one vector to all rows and taking it from c changes nothing: here, shift the table and undo it at t's."""
    denoiser = tiny.denoiser
    emb = denoiser.network.transformer_blocks[0].norm1.emb
    x0, (t, eps) = torch.randn(5, *denoiser.shape), draw(denoiser)
    p = torch.rand(5, 4).softmax(1)
    before = condition_gradient(denoiser, x0, p, t, eps)
    shift = torch.randn(emb.class_embedder.embedding_table.weight.shape[1])
    with torch.no_grad():
        emb.class_embedder.embedding_table.weight += shift
        emb.timestep_embedder.linear_2.bias -= shift
    after = condition_gradient(denoiser, x0, p, t, eps)
    torch.testing.assert_close(before[1], after[1])
    centred = [G - (p * G).sum(1, keepdim=True) for G, _ in (before, after)]  # what reaches the logits
    torch.testing.assert_close(centred[0], centred[1], rtol=1e-3, atol=1e-6)


def test_integer_labels_and_their_embeddings_give_equal_outputs(tiny):
    network, x = tiny.denoiser.network, torch.randn(4, *tiny.denoiser.shape)
    t, y = torch.tensor([5, 300, 600, 999]), torch.tensor([0, 1, 2, 3])
    hard = network(x, timestep=t, class_labels=y).sample
    soft = network(x, timestep=t, class_labels=torch.eye(4)[y]).sample
    assert torch.equal(hard, soft)
    null = network(x, timestep=t, class_labels=torch.full((4,), 4)).sample
    assert torch.equal(tiny.denoiser(x, t, None), null)
    assert not torch.equal(null, hard)


def test_one_hot_condition_is_the_diffusion_classifiers_error(tiny):
    denoiser, x0 = tiny.denoiser, torch.randn(5, *tiny.denoiser.shape)
    t, eps = draw(denoiser)
    image = torch.arange(5).repeat_interleave(6)
    errors = (
        gram(denoiser, x0[image], t.flatten(), eps.flatten(0, 1)).diagonal(dim1=1, dim2=2).unflatten(0, (5, 6)).mean(1)
    )
    for k in range(4):
        _, loss = condition_gradient(denoiser, x0, torch.eye(4)[k].expand(5, 4), t, eps)
        torch.testing.assert_close(loss, errors[:, k])


# --- the cheap and exact route ---------------------------------------------------------------------------------------


def naive(models, images, t, eps, temperature, micro):
    """The public loop: classifier in every micro-batch, gradients straight to its weights. One image at a time."""
    denoiser, grads = models.denoiser, []
    for b in range(len(images)):
        task = Copies(models.classifier, "all", None)
        for part in torch.arange(t.shape[1]).split(micro):
            p = (task(images[b : b + 1]) / temperature).softmax(1).expand(len(part), -1)
            x0 = denoiser.encode(images[b : b + 1]).expand(len(part), -1, -1, -1)
            x_t = add_noise(x0, t[b, part], eps[b, part], denoiser.alphas_cumprod)
            (eps_error(denoiser(x_t, t[b, part], p), eps[b, part]).sum() / t.shape[1]).backward()
        grads.append([v.grad for v in task.tensors()])
    return grads


def test_fast_route_equals_the_plain_loop(tiny, images):
    t, eps = draw(tiny.denoiser)
    configure(tiny, S)
    task = Copies(tiny.classifier, "all", 5)
    p = probabilities(task(images), 3.0)
    G, _ = condition_gradient(tiny.denoiser, tiny.denoiser.encode(images), p, t, eps, micro_batch=7)
    (p * G).sum().backward()
    for micro in (1, 4, 6):
        for b, grads in enumerate(naive(tiny, images, t, eps, 3.0, micro)):
            for fast, plain in zip(task.tensors(), grads, strict=True):
                torch.testing.assert_close(fast.grad[b], plain, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "change",
    [
        {}, {"optimizer": "adamw", "lr": 1e-2}, {"view": "low"}, {"top_k": 2},
        {"adapt_denoiser": True, "denoiser_lr": 1e-2}, {"adapt_denoiser": True, "adapt_embeddings": True},
        {"timesteps": "iid", "noise": "antithetic", "temperature": 1.0},
    ],
    ids=["default", "adamw", "low view", "top-k", "with the denoiser", "and its label table", "iid"],
)  # fmt: skip
def test_whole_adaptation_equals_the_plain_loop(tiny, images, change):
    """Three updates with torch.optim on the modules themselves, restored afterwards, image by image."""
    s = replace(S, **change)
    out = configure(tiny, s).adapt(images, IDS)
    module, denoiser = tiny.classifier.network.requires_grad_(True), tiny.denoiser
    named = list(denoiser.named_parameters()) if s.adapt_denoiser else []
    phi = [v for n, v in named if s.adapt_embeddings or "embedding_table" not in n]
    for value in phi:
        value.requires_grad_(True)
    seen = low_pass(images) if s.view == "low" else images
    for b in range(len(images)):
        kept = copy.deepcopy((module.state_dict(), denoiser.state_dict()))
        groups = [{"params": list(module.parameters())}, {"params": phi, "lr": s.denoiser_lr or s.lr}]
        groups = groups if phi else groups[:1]
        sgd = s.optimizer == "sgd"
        optimizer = torch.optim.SGD(groups, s.lr, 0.9) if sgd else torch.optim.AdamW(groups, s.lr, weight_decay=0)
        classes = module((seen[b : b + 1] - 0.5) / 0.5).topk(s.top_k or 4).indices[0]
        for step in range(3):
            t, eps = draw_pairs(
                IDS[b : b + 1], 6, denoiser.shape, s.window, s.timesteps, s.noise, purpose="diffusion_tta", step=step
            )
            z = module((seen[b : b + 1] - 0.5) / 0.5)[0, classes]
            p = torch.zeros(4).index_put((classes,), (z / s.temperature).softmax(0)).expand(6, -1)
            x0 = denoiser.encode(images[b : b + 1]).expand(6, -1, -1, -1)
            loss = diffusion_loss(denoiser, x0, t[0], eps[0], p, denoiser.alphas_cumprod).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(out.loss[step, b].item(), rel=1e-4)
        torch.testing.assert_close(module((seen[b : b + 1] - 0.5) / 0.5)[0], out.logits[b], rtol=1e-3, atol=2e-4)
        module.load_state_dict(kept[0])
        denoiser.load_state_dict(kept[1])


@pytest.mark.parametrize("adapt_denoiser", [False, True])
def test_online_stream_equals_the_plain_loop(tiny, images, adapt_denoiser):
    """One optimiser and one of each network for the whole stream, an image at a time, predicted after its updates."""
    method = configure(tiny, replace(S, online=True, adapt_denoiser=adapt_denoiser))
    streamed = [method.adapt(images[b : b + 1], IDS[b : b + 1]) for b in range(3)]
    module, denoiser = tiny.classifier.network.requires_grad_(True), tiny.denoiser
    phi = [v for n, v in denoiser.named_parameters() if adapt_denoiser and "embedding_table" not in n]
    for value in phi:
        value.requires_grad_(True)
    optimizer = torch.optim.SGD([*module.parameters(), *phi], S.lr, momentum=0.9)
    for b in range(3):
        torch.testing.assert_close(module((images[b : b + 1] - 0.5) / 0.5), streamed[b].before, rtol=1e-3, atol=2e-4)
        for step in range(3):
            t, eps = draw_pairs(IDS[b : b + 1], 6, denoiser.shape, S.window, purpose="diffusion_tta", step=step)
            p = (module((images[b : b + 1] - 0.5) / 0.5) / S.temperature).softmax(1).expand(6, -1)
            x0 = denoiser.encode(images[b : b + 1]).expand(6, -1, -1, -1)
            optimizer.zero_grad()
            diffusion_loss(denoiser, x0, t[0], eps[0], p, denoiser.alphas_cumprod).mean().backward()
            optimizer.step()
        torch.testing.assert_close(module((images[b : b + 1] - 0.5) / 0.5), streamed[b].logits, rtol=1e-3, atol=2e-4)


def test_micro_batches_and_chunks_do_not_matter(tiny, images):
    whole = configure(tiny, replace(S, micro_batch=10_000, images_at_once=5)).adapt(images, IDS)
    for change in ({"micro_batch": 1}, {"micro_batch": 15}, {"images_at_once": 2}):
        other = configure(tiny, replace(S, **change)).adapt(images, IDS)
        torch.testing.assert_close(whole.logits, other.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole.loss, other.loss, rtol=1e-5, atol=1e-6)


def test_twelve_times_fifteen_pairs_are_one_hundred_and_eighty(tiny):
    x0, p = torch.randn(2, *tiny.denoiser.shape), torch.randn(2, 4).softmax(1)
    t, eps = draw_pairs(IDS[:2], 180, tiny.denoiser.shape)
    whole = condition_gradient(tiny.denoiser, x0, p, t, eps, micro_batch=360)
    parts = condition_gradient(tiny.denoiser, x0, p, t, eps, micro_batch=30)
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


def test_gradient_of_the_denoiser_is_autograds(tiny):
    """Also of the embedder that all blocks share, which must be called with the adapted weights everywhere."""
    denoiser, x0, p = tiny.denoiser, torch.randn(2, *tiny.denoiser.shape), torch.randn(2, 4).softmax(1)
    t, eps = draw(denoiser, 2, 3)
    phi = {n: v.detach().clone().requires_grad_() for n, v in denoiser.named_parameters()}
    condition_gradient(denoiser, x0, p, t, eps, micro_batch=4, phi=phi)
    denoiser.requires_grad_(True)
    for j in range(3):
        diffusion_loss(denoiser, x0, t[:, j], eps[:, j], p, denoiser.alphas_cumprod).mean().div(3).backward()
    for name, value in denoiser.named_parameters():
        torch.testing.assert_close(phi[name].grad, value.grad, rtol=1e-3, atol=1e-7)


def test_all_classes_as_top_k_is_the_full_method(tiny, images):
    full = configure(tiny, S).adapt(images, IDS).logits
    assert torch.equal(full, configure(tiny, replace(S, top_k=4)).adapt(images, IDS).logits)
    assert not torch.equal(full, configure(tiny, replace(S, top_k=2)).adapt(images, IDS).logits)


@pytest.mark.parametrize("online", [False, True])
def test_a_tail_predicts_from_the_mean_of_the_last_logits(tiny, images, online):
    """The path is that of runs that stop after one, two and three updates; no evaluation is added."""
    whole = replace(S, updates=3, online=online)
    path = [configure(tiny, replace(whole, updates=n)).adapt(images, IDS).logits for n in (1, 2, 3)]
    for tail, last in ((0.0, 1), (0.3, 1), (0.6, 2), (1.0, 3)):
        out = configure(tiny, replace(whole, tail=tail)).adapt(images, IDS)
        torch.testing.assert_close(out.logits, torch.stack(path[-last:]).mean(0), rtol=1e-5, atol=1e-6)
        assert out.nfe == configure(tiny, whole).adapt(images, IDS).nfe
    assert (path[-1] - path[-2]).abs().max() > 1e-3


def test_prompt_features_and_logits_are_one_under_sgd(tiny, images):
    """Of unit features u a step of the last layer is g u', which moves the logits by g u'u = g."""
    visual = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(images[0].numel(), 6))
    clip = Classifier(ZeroShot(visual, 5 * torch.randn(4, 6)), (0.5,) * 3, (0.5,) * 3, images.shape[-1], 4)
    both = [
        configure(Models(clip, tiny.denoiser), replace(S, lr=50.0, param_set=name, tail=0.5)).adapt(images, IDS)
        for name in ("head", "logits")
    ]
    torch.testing.assert_close(both[0].logits, both[1].logits, rtol=1e-3, atol=1e-4)
    assert (both[0].logits - both[0].before).abs().max() > 1e-2
    assert both[1].nfe["classifier fwd"] == len(images)  # the network sees them once
    assert both[0].nfe["classifier fwd+bwd"] == 3 * len(images)


def test_top_k_is_renormalised_and_drops_the_rest():
    z = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    p = probabilities(z, 1.0, torch.tensor([[False, True, False, True]]))
    assert p[0, [1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(p[0, [0, 2]], torch.tensor([3.0, 2.0]).softmax(0))


def test_output_mixing_is_the_gram_form_and_equals_embedding_mixing_on_the_mixture(mixture):
    """On the mixture the prediction is linear in c, so both kinds of mixing are one."""
    x0, (t, eps) = torch.randn(5, 3, 4, 4).double(), draw_pairs(IDS, 6, (3, 4, 4), (100, 800))
    p = torch.randn(5, 4).double().softmax(1)
    mixture.alphas_cumprod = mixture.alphas_cumprod.double()
    results = []
    for mixing in ("embedding", "output"):
        G, loss = condition_gradient(mixture, x0, p, t, eps.double(), mixing)
        results.append((G - (p * G).sum(1, keepdim=True), loss))
    torch.testing.assert_close(results[0], results[1])


def test_output_mixing_gradient_equals_autograd(tiny):
    denoiser, x0 = tiny.denoiser, torch.randn(5, *tiny.denoiser.shape)
    t, eps = draw(denoiser)
    p = torch.randn(5, 4).softmax(1).requires_grad_()
    G, loss = condition_gradient(denoiser, x0, p, t, eps, "output")
    total = 0
    for j in range(6):
        x_t = add_noise(x0, t[:, j], eps[:, j], denoiser.alphas_cumprod)
        each = torch.stack([denoiser(x_t, t[:, j], torch.eye(4)[k].expand(5, 4)) for k in range(4)], 1).detach()
        total = total + eps_error((p[..., None, None, None] * each).sum(1), eps[:, j]) / 6
    (grad,) = torch.autograd.grad(total.sum(), p)
    torch.testing.assert_close(loss, total.detach(), rtol=1e-4, atol=1e-6)
    centre = lambda g: g - g.mean(1, keepdim=True)  # noqa: E731  (p sums to 1: a constant in G is no gradient)
    torch.testing.assert_close(centre(G), centre(grad), rtol=1e-3, atol=1e-5)


def test_output_mixing_with_an_adapted_denoiser_has_the_same_gradient_and_that_of_the_denoiser(tiny):
    denoiser, x0 = tiny.denoiser, torch.randn(2, *tiny.denoiser.shape)
    t, eps = draw(denoiser, 2, 3)
    p = torch.randn(2, 4).softmax(1)
    frozen = condition_gradient(denoiser.requires_grad_(False), x0, p, t, eps, "output")
    phi = {n: v.detach().clone().requires_grad_() for n, v in denoiser.named_parameters()}
    start = dict(denoiser.count)
    G, loss = condition_gradient(denoiser, x0, p, t, eps, "output", micro_batch=8, phi=phi)
    spent = {kind: n - start[kind] for kind, n in denoiser.count.items()}
    assert spent == {"fwd": 0, "fwd+bwd": 2 * 3 * 4}
    torch.testing.assert_close(loss, frozen[1], rtol=1e-4, atol=1e-6)
    centre = lambda g: g - g.mean(1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(centre(G), centre(frozen[0]), rtol=1e-3, atol=1e-5)
    denoiser.requires_grad_(True)
    for j in range(3):
        x_t = add_noise(x0, t[:, j], eps[:, j], denoiser.alphas_cumprod)
        each = torch.stack([denoiser(x_t, t[:, j], torch.eye(4)[k].expand(2, 4)) for k in range(4)], 1)
        eps_error((p[..., None, None, None] * each).sum(1), eps[:, j]).mean().div(3).backward()
    for name, value in denoiser.named_parameters():
        torch.testing.assert_close(phi[name].grad, value.grad, rtol=1e-3, atol=1e-6)


def test_output_mixing_over_some_classes_is_the_same_where_the_others_have_no_probability(tiny):
    denoiser, x0 = tiny.denoiser, torch.randn(2, *tiny.denoiser.shape)
    t, eps = draw(denoiser, 2, 3)
    classes = torch.tensor([[0, 2], [1, 3]])
    p = torch.zeros(2, 4).scatter(1, classes, torch.tensor([[0.3, 0.7], [0.9, 0.1]]))
    G, loss = condition_gradient(denoiser, x0, p, t, eps, "output")
    start = denoiser.count["fwd"]
    some, same_loss = condition_gradient(denoiser, x0, p, t, eps, "output", classes=classes)
    assert denoiser.count["fwd"] - start == 2 * 3 * 2
    torch.testing.assert_close(same_loss, loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(some.gather(1, classes), G.gather(1, classes), rtol=1e-4, atol=1e-6)


def test_frozen_networks_compute_no_weight_gradients(tiny, images):
    before = weights(tiny.classifier) + weights(tiny.denoiser)
    configure(tiny, S).adapt(images, IDS)
    assert all(p.grad is None for m in (tiny.classifier, tiny.denoiser) for p in m.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(before, weights(tiny.classifier) + weights(tiny.denoiser), strict=True)
    )


def test_the_classifier_runs_once_an_update(tiny, images):
    out = configure(tiny, S).adapt(images, IDS)
    assert out.nfe == {"classifier fwd+bwd": 5 * 3, "classifier fwd": 5, "denoiser fwd+bwd": 5 * 3 * 6}
    assert out.loss.shape == (3, 5)


def test_zeroed_output_layers_give_zero_gradient_to_the_classifier(tiny, images):
    for layer in (
        tiny.denoiser.network.proj_out_2,
        *(b.norm1.linear for b in tiny.denoiser.network.transformer_blocks),
    ):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    out = configure(tiny, S).adapt(images, IDS)
    assert torch.equal(out.logits, out.before)


# --- episodes, streams, resets ---------------------------------------------------------------------------------------


def test_episodic_results_do_not_depend_on_order_or_company(tiny, images):
    method = configure(tiny, S)
    whole = method.adapt(images, IDS)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = method.adapt(images[order], IDS[order])
    torch.testing.assert_close(whole.logits[order], shuffled.logits, rtol=1e-4, atol=1e-5)
    alone = torch.cat([method.adapt(images[i : i + 1], IDS[i : i + 1]).logits for i in range(5)])
    torch.testing.assert_close(whole.logits, alone, rtol=1e-4, atol=1e-5)
    repeated = method.adapt(images, IDS)
    assert torch.equal(whole.logits, repeated.logits)


def test_fixed_chunks_are_bit_equal_whatever_the_batch(tiny, images):
    method = configure(tiny, replace(S, fixed_chunk=True))
    whole = method.adapt(images, IDS)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(whole.logits[order], method.adapt(images[order], IDS[order]).logits)
    for size in (1, 2, 3):
        parts = [method.adapt(images[r], IDS[r]).logits for r in torch.arange(5).split(size)]
        assert torch.equal(whole.logits, torch.cat(parts))


def test_before_is_the_source_and_the_source_survives(tiny, images):
    kept = weights(tiny.classifier)
    out = configure(tiny, S).adapt(images, IDS)
    torch.testing.assert_close(out.before, source.configure(tiny).adapt(images, IDS).logits, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(tiny.classifier), strict=True))


def test_online_starts_as_episodic_carries_state_and_resets(tiny, images):
    episodic = configure(tiny, S).adapt(images[:1], IDS[:1])
    online = configure(tiny, replace(S, online=True))
    first = online.adapt(images[:1], IDS[:1])
    torch.testing.assert_close(first.logits, episodic.logits, rtol=1e-4, atol=1e-5)
    second = online.adapt(images[1:2], IDS[1:2])
    assert not torch.allclose(second.before, source.configure(tiny).adapt(images[1:2], IDS[1:2]).logits)
    online.reset()
    assert torch.equal(online.adapt(images[:1], IDS[:1]).logits, first.logits)


@pytest.mark.parametrize("change", [{}, {"adapt_denoiser": True}, {"mixing": "output", "adapt_denoiser": True}])
def test_reset_restores_every_parameter_bit_by_bit(tiny, images, change):
    method = configure(tiny, replace(S, online=True, **change))
    first = method.adapt(images[:2], IDS[:2])
    task, phi, _ = method.state
    sources = dict(tiny.classifier.named_parameters()), dict(tiny.denoiser.named_parameters())
    assert not all(torch.equal(v, sources[0][n]) for n, v in task.values.items())
    assert not phi or not all(torch.equal(v, sources[1][n]) for n, v in phi.items())
    method.reset()
    task, phi, optimizer = method._fresh(None)
    assert all(torch.equal(v, sources[0][n]) for n, v in task.values.items())
    assert all(torch.equal(v, sources[1][n]) for n, v in (phi or {}).items())
    assert not optimizer.state
    assert torch.equal(method.adapt(images[:2], IDS[:2]).logits, first.logits)


@pytest.mark.parametrize("mixing", ["embedding", "output"])
def test_online_with_the_denoiser_starts_as_episodic(tiny, images, mixing):
    s = replace(S, adapt_denoiser=True, mixing=mixing)
    episodic = configure(tiny, s).adapt(images[:1], IDS[:1])
    online = configure(tiny, replace(s, online=True))
    torch.testing.assert_close(online.adapt(images[:1], IDS[:1]).logits, episodic.logits, rtol=1e-4, atol=1e-5)
    alone = configure(tiny, s).adapt(images[1:2], IDS[1:2])
    assert not torch.allclose(online.adapt(images[1:2], IDS[1:2]).loss[0], alone.loss[0], rtol=1e-4)


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.5), ("adamw", 1e-3)])
@pytest.mark.parametrize("online", [False, True])
def test_adapting_the_denoiser_leaves_the_source_and_changes_the_loss(tiny, images, optimizer, lr, online):
    kept = weights(tiny.denoiser)
    s = replace(S, optimizer=optimizer, lr=lr, online=online, denoiser_lr=1e-2)
    frozen = configure(tiny, s).adapt(images[:2], IDS[:2])
    method = configure(tiny, replace(s, adapt_denoiser=True))
    both = method.adapt(images[:2], IDS[:2])
    torch.testing.assert_close(both.loss[0], frozen.loss[0])
    assert (both.loss[-1] < frozen.loss[-1]).all()
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(tiny.denoiser), strict=True))
    if not online:
        again = method.adapt(images[1:2], IDS[1:2])
        torch.testing.assert_close(again.logits, both.logits[1:2], rtol=1e-4, atol=1e-5)


def test_label_table_is_adapted_only_when_asked(tiny):
    fresh = lambda **k: configure(tiny, replace(S, adapt_denoiser=True, **k))._fresh(1)[1]  # noqa: E731
    assert not [n for n in fresh() if "embedding_table" in n]
    assert [n for n in fresh(adapt_embeddings=True) if "embedding_table" in n]


# --- parameter sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("param_set", PARAM_SETS)
def test_parameter_sets_adapt(tiny, images, param_set):
    out = configure(tiny, replace(S, param_set=param_set)).adapt(images, IDS)
    assert not torch.equal(out.logits, out.before)
    torch.testing.assert_close(out.before, source.configure(tiny).adapt(images, IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("param_set", PARAM_SETS)
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_parameter_sets_adapt_real_networks(images32, family, param_set, online):
    """Only what the set names moves, image by image or shared, and the source survives bit by bit."""
    models = Models(make_family(family).classifier, make_dit(image_size=32))
    s = replace(S, param_set=param_set, online=online, lr=5.0, temperature=1.0)
    if (family, param_set) == ("vit", "bn"):
        with pytest.raises(ValueError, match="holds no parameter"):
            configure(models, s)
        return
    kept, method = weights(models.classifier), configure(models, s)
    out = method.adapt(images32[:2], IDS[:2])
    assert all(torch.equal(a, b) for a, b in zip(kept, weights(models.classifier), strict=True))
    task, phi, _ = method._fresh(None if online else 2)
    assert phi is None
    chosen = set(parameter_names(method.models.classifier, param_set)) or {"logits"}
    assert set(task.values) == chosen
    assert (out.logits - out.before).abs().amax(1).min() > 1e-4
    if online:
        values, sources = method.state[0].values, dict(method.models.classifier.named_parameters())
        values = lora.merged(sources | {"logits": torch.zeros(4)}, values)
        moved = [n for n, v in values.items() if n == "logits" or not torch.equal(v, sources[n])]
        assert len(moved) > 0.7 * len(values)  # a bias before batch norm of 1 x 1 maps may stay


def test_parameter_sets_hold_what_they_say(tiny):
    names = {s: {n.removeprefix("network.") for n in parameter_names(tiny.classifier, s)} for s in PARAM_SETS}
    assert names["all"] == {
        "scale",
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "norm.weight",
        "norm.bias",
        "fc.weight",
        "fc.bias",
    }
    assert names["bn"] == {"bn.weight", "bn.bias"}
    assert names["norm"] == names["bn"] | {"norm.weight", "norm.bias"}
    assert names["head"] == {"fc.weight", "fc.bias"}
    assert names["leaf_no_head"] == names["all"] - {"scale", "fc.weight", "fc.bias"}
    assert names["tower"] == names["all"] - names["head"]
    assert names["lora"] == {"conv.weight"}
    assert names["logits"] == set()


def test_parameter_sets_that_do_not_fit_are_refused(tiny):
    with pytest.raises(ValueError, match="choose one of all"):
        parameter_names(tiny.classifier, "everything")
    tiny.classifier.network.bn = torch.nn.Identity()
    with pytest.raises(ValueError, match="holds no parameter"):
        parameter_names(tiny.classifier, "bn")


# --- learning rate, settings, bad input ------------------------------------------------------------------------------


def test_learning_rate_moves_the_margin_by_delta(tiny, images):
    """A first SGD step of that size changes the median margin by no more than delta, and by much of it at best."""
    s = replace(S, param_set="head", pairs=64)
    lr = learning_rate(tiny, images, IDS, s, delta=0.1)
    assert lr == pytest.approx(2 * learning_rate(tiny, images, IDS, s, delta=0.05))
    out = configure(tiny, replace(s, lr=lr, updates=1)).adapt(images, IDS)
    top = out.before.topk(2).indices
    margin = lambda z: (z.gather(1, top[:, :1]) - z.gather(1, top[:, 1:]))[:, 0]  # noqa: E731
    moved = (margin(out.logits) - margin(out.before)).abs()
    assert 0 < moved.median() < 0.15


def test_learning_rate_is_the_rule_where_it_has_a_closed_form(tiny, images):
    """With a shift of the logits as the only parameter |d margin|^2 is 2, so lr = delta / (2 median |dL/dz|)."""
    s = replace(S, param_set="logits", temperature=2.0)
    lr = learning_rate(tiny, images, IDS, s, delta=0.4)
    t, eps = draw_pairs(IDS, s.pairs, tiny.denoiser.shape, s.window, purpose="learning_rate")
    z = tiny.classifier(images).detach().requires_grad_()
    G, _ = condition_gradient(tiny.denoiser, tiny.denoiser.encode(images), (z / 2.0).softmax(1), t, eps)
    ((z / 2.0).softmax(1) * G).sum().backward()
    assert lr == pytest.approx(0.4 / (2 * z.grad.norm(dim=1).median().item()), rel=1e-4)


def test_parameters_that_the_logits_do_not_use_have_no_part(tiny, images):
    """A masked autoencoder's decoder: the rule leaves it out, and adaptation leaves it as it is."""
    models = Models(make_mae().classifier, tiny.denoiser)
    rate = learning_rate(models, images, IDS, S)
    assert 0 < rate < torch.inf
    method = configure(models, replace(S, lr=rate, online=True))
    out = method.adapt(images, IDS)
    assert (out.logits - out.before).abs().max() > 1e-3
    decoder = {n: v for n, v in method.state[0].values.items() if "decoder" in n}
    source_values = dict(models.classifier.named_parameters())
    assert decoder
    assert all(torch.equal(v, source_values[n]) for n, v in decoder.items())


def test_learning_rate_refuses_what_it_has_no_meaning_for(tiny, images):
    with pytest.raises(ValueError, match="is for SGD"):
        learning_rate(tiny, images, IDS, replace(S, optimizer="adamw"))
    with pytest.raises(ValueError, match="raise the temperature"):
        learning_rate(tiny, images, IDS, replace(S, top_k=1))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"updates": -1}, {"pairs": -1}, {"temperature": 0.0}, {"window": (600, 150)},
        {"timesteps": "random"}, {"noise": "pink"}, {"mixing": "both"}, {"view": "half"}, {"optimizer": "adam"},
        {"param_set": "most"},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    with pytest.raises(ValueError) as error:
        replace(S, **change)
    assert "\n" not in str(error.value)
    assert ": " in str(error.value)


def test_settings_that_do_not_fit_the_models_are_refused(tiny):
    with pytest.raises(ValueError, match="1000 timesteps"):
        configure(tiny, replace(S, window=(0, 1001)))
    with pytest.raises(ValueError, match="4 classes"):
        configure(tiny, replace(S, top_k=5))
    with pytest.raises(ValueError, match="needs a denoiser"):
        configure(Models(tiny.classifier), S)
    with pytest.raises(TypeError, match="unexpected keyword"):
        Settings(lr=1.0, learning_rate=2.0)


@pytest.mark.parametrize("kind", ["size", "range", "nan", "dtype", "shape"])
def test_bad_images_are_refused_by_every_method(tiny, images, kind):
    bad = {
        "size": torch.rand(2, 3, 15, 15),
        "range": images[:2] * 255,
        "nan": images[:2].clone().index_fill_(0, torch.tensor([1]), float("nan")),
        "dtype": (images[:2] * 255).byte(),
        "shape": images[0],
    }[kind]
    methods = [configure(tiny, S), source.configure(tiny)]
    methods.append(diffusion_classifier.configure(tiny, diffusion_classifier.Settings(pairs=2)))
    for method in methods:
        with pytest.raises(ValueError, match="image") as error:
            method.adapt(bad, IDS[:2])
        assert "\n" not in str(error.value)


def test_exploding_adaptation_is_named_also_at_the_last_update(tiny, images):
    with pytest.raises(FloatingPointError, match=r"the prediction in the .* diverged at update 1"):
        configure(tiny, replace(S, lr=1e38, updates=1)).adapt(images, IDS)
    with pytest.raises(FloatingPointError, match=r"to image 4[0-4] diverged at update 1: lower the learning rate"):
        configure(tiny, replace(S, lr=1e38, updates=4)).adapt(images, IDS)


def test_probabilities_are_checked():
    check_probabilities(torch.full((2, 4), 0.25), 4)
    for wrong in (
        torch.full((2, 4), 0.3),
        torch.full((2, 3), 1 / 3),
        torch.tensor([[1.5, -0.5, 0, 0]]),
        torch.eye(4).long(),
    ):
        with pytest.raises(ValueError, match="condition"):
            check_probabilities(wrong, 4)


def test_published_settings_are_settings():
    s = Settings(**diffusion_tta.PUBLISHED)
    assert (s.updates, s.pairs, s.window, s.temperature, s.optimizer) == (5, 180, (0, 1000), 1.0, "adamw")
