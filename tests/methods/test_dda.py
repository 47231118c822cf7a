"""DDA and its GDA-like term: the low-pass, the guidance, its published switches, the ensembles."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused

from gentta_utils.diffusion import process, reverse, sampling
from gentta_utils.diffusion.entropy import entropy, marginal_entropy
from gentta_utils.diffusion.guidance import bicubic_low_pass, resize_matrix, structure_energy
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.diffusion.process import add_noise
from gentta_utils.diffusion.reverse import noise_for
from gentta_utils.methods import METHODS, dda
from gentta_utils.methods.dda import ENSEMBLES, Settings, align, combine, configure
from gentta_utils.world import views as world_views

S = Settings(steps=10, start=300, factor=4)
IDS = torch.arange(6) + 40
CHECKERBOARD = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2 - 1.0)[None, None]


@pytest.fixture
def world():
    """Two classes of 3 x 16 x 16 images that differ in their low frequencies, and images of them."""
    ramp = torch.linspace(-1, 1, 16, dtype=torch.float64).expand(3, 16, 16)
    mixture = GaussianMixture(torch.stack([ramp, -ramp]), 0.3)
    return mixture, mixture.sample(torch.arange(6) % 2, torch.Generator().manual_seed(0))


def test_a_push_may_be_cut(world, monkeypatch):
    """Never longer than so many w; where it is shorter nothing changes."""
    mixture, x = world
    seen = []
    step = reverse.ddim_step
    monkeypatch.setattr(reverse, "ddim_step", lambda *a: seen.append(step(*a)) or seen[-1])

    def lengths(s: Settings) -> torch.Tensor:
        after = []
        keep = lambda x_prev, *_: after.append(x_prev) or x_prev  # noqa: E731
        energies = {"scale": structure_energy(x, s.scale, s.factor)}
        seen.clear()
        reverse.walk(mixture, x, IDS, s, energies, keep, longest=s.longest * s.scale)
        return torch.stack([(a - b).flatten(1).norm(dim=1) for a, b in zip(seen, after, strict=True)]) / s.scale

    s = Settings(steps=5, start=700, factor=4, scale=0.5, clip=False)
    free, cut = lengths(s), lengths(replace(s, longest=0.3))
    assert free.max() > 0.4
    assert cut.max() <= 0.3 + 1e-4
    torch.testing.assert_close(lengths(replace(s, longest=100.0)), free)
    assert torch.equal(align(mixture, x / 2 + 0.5, IDS, replace(s, longest=100.0)), align(mixture, x / 2 + 0.5, IDS, s))


# --- Phi_D -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_low_pass_is_torchs_antialiased_bicubic_down_and_up(factor):
    x = torch.randn(2, 3, 32, 64)
    small = F.interpolate(x, (32 // factor, 64 // factor), mode="bicubic", antialias=True)
    expected = F.interpolate(small, (32, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(bicubic_low_pass(x, factor), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_stays_and_factor_one_is_the_identity():
    constant, x = torch.full((1, 3, 32, 32), 0.7, dtype=torch.float64), torch.randn(2, 3, 32, 32)
    assert (bicubic_low_pass(constant, 4) - constant).abs().max() < 2e-7
    assert torch.equal(bicubic_low_pass(x, 1), x)


def test_norms_of_the_filter():
    matrix = resize_matrix(64, 256) @ resize_matrix(256, 64)
    assert torch.linalg.matrix_norm(matrix, 2).item() ** 2 == pytest.approx(1.01, abs=0.005)
    once = bicubic_low_pass(torch.randn(1, 1, 256, 256, dtype=torch.float64), 4)
    assert ((bicubic_low_pass(once, 4) - once).norm() / once.norm()).item() == pytest.approx(0.28, abs=0.01)
    assert bicubic_low_pass(CHECKERBOARD, 4).abs().max() < 0.008


def test_the_published_resizer_darkens_the_border():
    ones = torch.ones(1, 1, 256, 256, dtype=torch.float64)
    low = bicubic_low_pass(ones, 4, "zero")[0, 0]
    assert low[0, 0].item() == pytest.approx(0.357, abs=1e-3)
    assert low[0, 128].item() == pytest.approx(0.597, abs=1e-3)
    assert low[1, 128].item() == pytest.approx(0.84, abs=2e-3)
    down = resize_matrix(256, 64, "zero")
    small = down @ ones[0, 0] @ down.T
    assert (small[0, 0].item(), small[0, 32].item()) == pytest.approx((0.852, 0.923), abs=1e-3)
    x = torch.randn(1, 1, 256, 256, dtype=torch.float64)
    gap = (bicubic_low_pass(x, 4) - bicubic_low_pass(x, 4, "zero")).abs()[0, 0]
    assert gap[16:-16, 16:-16].max() < 2e-7
    assert gap.max() > 0.1


def test_a_wrong_filter_is_refused():
    with pytest.raises(ValueError, match="factor=3: choose a divisor"):
        bicubic_low_pass(torch.zeros(1, 3, 16, 16), 3)
    with pytest.raises(ValueError, match="pad='mirror': choose"):
        bicubic_low_pass(torch.zeros(1, 3, 16, 16), 4, "mirror")


# --- the guidance ----------------------------------------------------------------------------------------------------


def test_a_checkerboard_on_the_reference_leaves_the_guidance_as_it_was():
    x0, estimate = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64).requires_grad_()
    grads = []
    for reference in (x0, x0 + CHECKERBOARD):
        (grad,) = torch.autograd.grad(structure_energy(reference, 1.0, 4)(estimate, 0).sum(), estimate)
        grads.append(grad)
    assert (grads[0] - grads[1]).norm() < 0.03 * grads[0].norm()


def test_the_gradient_has_the_length_of_the_scale_and_is_finite_at_zero():
    x0 = torch.rand(3, 3, 16, 16)
    for scale in (0.5, 2.0):
        estimate = torch.rand(3, 3, 16, 16).requires_grad_()
        (grad,) = torch.autograd.grad(structure_energy(x0, scale, 4)(estimate, 0).sum(), estimate)
        assert (grad.flatten(1).norm(dim=1) <= 1.02 * scale).all()
        assert (grad.flatten(1).norm(dim=1) > 0.5 * scale).all()
    for norm in ("image", "batch"):
        same = x0.clone().requires_grad_()
        (grad,) = torch.autograd.grad(structure_energy(x0, 1.0, 4, norm=norm)(same, 0).sum(), same)
        assert torch.equal(grad, torch.zeros_like(grad))


def test_a_batch_norm_divides_every_step_by_the_root_of_the_batch():
    """For equal distances exactly 1/sqrt(B): .5 in batches of 4, .32 of 10."""
    for B, expected in ((4, 0.5), (10, 0.316)):
        x0 = torch.rand(1, 3, 16, 16).expand(B, -1, -1, -1)
        estimate = torch.rand(1, 3, 16, 16).repeat(B, 1, 1, 1).requires_grad_()
        one, all_ = (
            torch.autograd.grad(structure_energy(x0, 1.0, 4, norm=norm)(estimate, 0).sum(), estimate)[0]
            for norm in ("image", "batch")
        )
        assert (all_.norm() / one.norm()).item() == pytest.approx(expected, abs=1e-3)


def test_the_loop_is_the_papers_step_by_step(world):
    """Written out once more, with the gradient through the denoiser."""
    mixture, x = world
    s = replace(S, steps=4, scale=0.7, clip=False)
    abar, ids = mixture.alphas_cumprod, IDS
    x_t = add_noise(x, torch.full((6,), 300), noise_for(ids, x.shape[1:], s, "reverse/start", 300).double(), abar)
    for t, t_prev in ((300, 200), (200, 100), (100, 0), (0, -1)):
        noise = noise_for(ids, x.shape[1:], s, "reverse", t).double()
        each = []
        for b in range(6):
            x_b = x_t[b : b + 1].clone().requires_grad_()
            eps = mixture(x_b, torch.tensor([t]))
            x0_hat = (x_b - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            d = bicubic_low_pass(x[b : b + 1], 4) - bicubic_low_pass(x0_hat, 4)
            (grad,) = torch.autograd.grad(d.square().sum().sqrt(), x_b)
            mean = sampling.ddim_step(x_b, eps, t, t_prev, abar, 1.0, noise[b : b + 1], clip=False)
            each.append((mean - 0.7 * grad).detach())
        x_t = torch.cat(each)
    torch.testing.assert_close(align(mixture, x, ids, s), x_t)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_guidance_brings_the_low_frequencies_closer(world, eta):
    mixture, x = world
    plain = replace(S, scale=0.0, clip=False, eta=eta, start=600)
    gaps = [
        bicubic_low_pass(align(mixture, x, IDS, replace(plain, scale=scale)) - x, 4).flatten(1).norm(dim=1)
        for scale in (0.0, 0.5, 1.5)
    ]
    assert (gaps[1] < gaps[0]).all()
    assert gaps[2].mean() < gaps[1].mean() < 0.7 * gaps[0].mean()


def test_no_gradient_is_stored_on_weights(tiny, images):
    method = configure(tiny, replace(S, entropy_scale=0.1, entropy_views=2))
    for net in (tiny.classifier, tiny.denoiser):
        assert not any(p.requires_grad for p in net.parameters())
    method.adapt(images, IDS[:5])
    assert all(p.grad is None for net in (tiny.classifier, tiny.denoiser) for p in net.parameters())


def test_a_clipped_estimate_has_no_gradient_where_it_is_clipped_a_raw_one_has(world):
    mixture, x = world
    far = replace(S, steps=2, scale=1.0)
    one, other = (align(mixture, 3 * x, IDS, replace(far, guide_on=on)) for on in ("clipped", "raw"))
    assert not torch.allclose(one, other)


# --- the published switches ------------------------------------------------------------------------------------------


def test_the_published_start_is_noised_one_level_higher_than_the_first_evaluation(world, monkeypatch):
    mixture, x = world
    levels, noise = [], process.add_noise
    monkeypatch.setattr(
        reverse, "add_noise", lambda x0, t, eps, abar: levels.append(int(t[0])) or noise(x0, t, eps, abar)
    )
    published = Settings(of=100, clip=False, scale=0.0)
    one = align(mixture, x, IDS, published)
    other = align(mixture, x, IDS, replace(published, start_level="published"))
    align(mixture, x, IDS, replace(published, of=None, start_level="published"))
    assert levels == [494, 505, 504]
    assert not torch.allclose(one, other)
    abar = mixture.alphas_cumprod[[494, 505]]
    assert abar.tolist() == pytest.approx([0.0826, 0.0739], abs=1e-4)


def test_a_norm_over_the_batch_makes_neighbours_matter(tiny, images):
    method = configure(tiny, replace(S, norm="batch"))
    whole, alone = method.adapt(images, IDS[:5]), method.adapt(images[:1], IDS[:1])
    assert not torch.allclose(whole.images[:1], alone.images, atol=1e-4)
    with pytest.raises(ValueError, match="fixed_chunk=True: choose"):
        replace(S, norm="batch", fixed_chunk=True)


def test_jpeg_and_padding_change_the_image_a_little(tiny, images):
    plain = configure(tiny, S).adapt(images, IDS[:5]).images
    for change in ({"jpeg": 75}, {"pad": "zero"}):
        changed = configure(tiny, replace(S, **change)).adapt(images, IDS[:5]).images
        assert 0 < (changed - plain).abs().mean() < 0.1
    smooth = F.interpolate(torch.rand(2, 3, 2, 2), (16, 16), mode="bilinear")
    kept = dda.as_jpeg(smooth, 95)
    assert kept.shape == smooth.shape
    assert (kept - smooth).abs().mean() < 0.03
    assert (dda.as_jpeg(smooth, 10) - smooth).abs().mean() > (kept - smooth).abs().mean()


def test_the_published_preset():
    s = Settings(**dda.PUBLISHED)
    assert reverse.levels_of(s)[-1] == 494
    assert (s.scale, s.norm, s.pad, s.jpeg, s.start_level, s.images_at_once) == (6, "batch", "zero", 75, "published", 4)
    assert (dda.scale_at(32), dda.scale_at(64), dda.scale_at(256)) == (0.375, 0.75, 3.0)


# --- GDA-like --------------------------------------------------------------------------------------------------------


def test_the_entropy_term_is_memos_loss_on_the_estimate(tiny, images):
    energy = dda.entropy_energy(tiny.classifier, lambda x0: x0, IDS[:5], 2.0, 3)
    views = [world_views.jitter(images, IDS[:5], 7 * 3 + v) for v in range(3)]
    expected = 2 * marginal_entropy(torch.stack([tiny.classifier(v) for v in views], 1))
    torch.testing.assert_close(energy(images, 7), expected)


def test_the_entropy_term_lowers_the_entropy(tiny, images):
    plain = replace(S, scale=0.0, eta=0.0, ensemble="purified")
    out = configure(tiny, plain).adapt(images, IDS[:5])
    sharp = configure(tiny, replace(plain, entropy_scale=20.0)).adapt(images, IDS[:5])
    assert entropy(sharp.logits).mean() < entropy(out.logits).mean()
    assert sharp.nfe["denoiser fwd+bwd"] == 50
    assert sharp.nfe["classifier fwd+bwd"] == 5 * 10 * 4
    with pytest.raises(ValueError, match="entropy_scale=1: choose 0"):
        align(tiny.denoiser, images, IDS[:5], replace(S, entropy_scale=1.0))


# --- the ensemble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ENSEMBLES)
def test_two_equal_inputs_are_the_single_prediction(mode):
    z = torch.randn(5, 4)
    torch.testing.assert_close(combine(z, z, mode).softmax(1), z.softmax(1))


def test_ensembles():
    x, hat = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    p, q = x.softmax(1), hat.softmax(1)
    torch.testing.assert_close(combine(x, hat).exp(), (p + q) / 2)
    torch.testing.assert_close(combine(x, hat, "purified").exp(), q)
    torch.testing.assert_close(combine(x, hat, "calibrated", 2.0).exp(), ((x / 2).softmax(1) + q) / 2)
    a, b = (-entropy(x)).exp(), (-entropy(hat)).exp()
    torch.testing.assert_close(combine(x, hat, "entropy").exp(), (a * p + b * q) / (a + b))
    a, b = p.max(), q.max()
    torch.testing.assert_close(combine(x, hat, "confidence").exp(), (a * p + b * q) / (a + b))
    assert combine(x, hat).argmax() == 0  # the sure one drowns the other
    assert combine(x, hat, "calibrated", 20.0).argmax() == 1


def test_costs_and_before(tiny, images):
    out = configure(tiny, S).adapt(images, IDS[:5])
    assert out.nfe == {"denoiser fwd+bwd": 50, "classifier fwd": 10}
    torch.testing.assert_close(out.before, tiny.classifier(images), rtol=1e-4, atol=1e-5)
    z = tiny.classifier(out.images)
    torch.testing.assert_close(out.logits.exp(), (z.softmax(1) + out.before.softmax(1)) / 2, rtol=1e-4, atol=1e-5)
    alone = configure(tiny, replace(S, ensemble="purified")).adapt(images, IDS[:5])
    assert torch.equal(alone.images, out.images)
    assert alone.nfe == {"denoiser fwd+bwd": 50, "classifier fwd": 5}


@pytest.mark.parametrize(
    "change",
    [
        {"scale": -1.0}, {"factor": 0}, {"start_level": "higher"}, {"norm": "pixel"}, {"pad": "mirror"},
        {"jpeg": 120}, {"guide_on": "noise"}, {"entropy_scale": -1.0}, {"entropy_views": 0}, {"ensemble": "max"},
        {"temperature": 0.0}, {"steps": 302},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_what_is_not_finite_is_named_with_what_helps(tiny, images, monkeypatch):
    """Each advice, followed, helps; the last one of another fault does not."""

    def raises(says: str, **change) -> None:
        with pytest.raises(FloatingPointError, match=rf"purification of image 40 diverged at t=\d+: {says}") as error:
            configure(tiny, replace(S, **change)).adapt(images, IDS[:5])
        assert "\n" not in str(error.value)

    raises("the term of scale is too large: lower it", scale=1e39)
    raises(r"guidance had pushed the sample to .*e\+\d+: lower scale", scale=1e30, clip=False)
    raises(r"guidance had pushed .*: lower scale and entropy_scale", scale=1e30, clip=False, entropy_scale=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(dda, "jitter", lambda x, *_: (x - x.detach()).abs() ** 0.5 + x)  # of infinite slope
        no_gradient = (
            "the term of entropy_scale has no gradient at this image: set entropy_scale=0, a lower one does not"
        )
        raises(no_gradient, entropy_scale=1.0)
        raises(no_gradient, entropy_scale=1e-6)
        configure(tiny, replace(S, entropy_scale=0.0)).adapt(images, IDS[:5])
        patch.setattr(dda, "jitter", lambda x, *_: x / 0 * 0)
        raises("the term of entropy_scale has no value at this image: set entropy_scale=0", entropy_scale=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.denoiser), "predict", lambda self, x_t, t, cond: x_t / 0)
        raises("the noise that the diffusion model estimates is not finite: look at its weights", scale=0.75)
        tiny.denoiser.precision = "bf16"
        raises("the noise .* is not finite: load it with precision='fp32'", scale=0.0)


def test_the_method_has_its_name():
    assert METHODS["dda"] is dda
