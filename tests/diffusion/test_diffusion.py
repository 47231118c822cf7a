"""Forward process, loss and samplers against closed forms and against the library."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel

from gentta_utils.diffusion import process, sampling
from gentta_utils.models.dit import PixelDiT
from gentta_utils.recipes import dit

ABAR = process.alphas_cumprod_of(process.linear_betas())


def test_the_linear_schedule_has_the_published_levels():
    expected = [0.99990, 0.89514, 0.52142, 0.07780, 0.00330, 0.00004]
    assert ABAR[[0, 100, 250, 500, 750, 999]].tolist() == pytest.approx(expected, abs=1e-5)


def test_forward_process_has_the_right_mean_and_variance():
    x0, t = torch.full((100_000, 1, 1, 1), 0.7), torch.full((100_000,), 300)
    x_t = process.add_noise(x0, t, torch.randn(x0.shape), ABAR.float())
    assert x_t.mean().item() == pytest.approx(0.7 * ABAR[300].sqrt().item(), abs=0.01)
    assert x_t.var().item() == pytest.approx(1 - ABAR[300].item(), abs=0.015)


def test_single_steps_compose_to_the_closed_form():
    betas = process.linear_betas()
    mean, variance = 1.0, 0.0
    for beta in betas[:200].tolist():  # x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) n
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    assert mean == pytest.approx(ABAR[199].sqrt().item(), abs=1e-12)
    assert variance == pytest.approx(1 - ABAR[199].item(), abs=1e-12)


def test_conversions_round_trip():
    x0, eps = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 10, 100, 300, 500, 700, 900, 999])
    x_t = process.add_noise(x0, t, eps, ABAR)
    torch.testing.assert_close(process.eps_to_x0(eps, x_t, t, ABAR), x0)
    torch.testing.assert_close(process.x0_to_eps(x0, x_t, t, ABAR), eps)
    v = process.eps_to_v(eps, x0, t, ABAR)
    torch.testing.assert_close(process.v_to_eps(v, x_t, t, ABAR), eps)
    for kind, output in {"epsilon": eps, "v_prediction": v, "sample": x0}.items():
        torch.testing.assert_close(process.to_eps(output, x_t, t, ABAR, kind), eps)
    with pytest.raises(ValueError, match="prediction_type"):
        process.to_eps(eps, x_t, t, ABAR, "noise")


def test_half_precision_images_keep_a_full_precision_schedule():
    """bf16 rounds abar_0 = .9999 to 1: taken there, no noise would be added at all."""
    x0, eps = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16), torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)
    x_t = process.add_noise(x0, torch.tensor([0, 1]), eps, ABAR.float())
    assert x_t.dtype == torch.bfloat16
    assert x_t[0, 0, 0, 0].item() == pytest.approx((1 - ABAR[0].item()) ** 0.5, rel=0.01)


def test_v_is_the_librarys():
    x0, eps = torch.randn(2, 3, 3, 4, 4)
    t = torch.tensor([5, 400, 990])
    library = DDPMScheduler(beta_schedule="linear")
    torch.testing.assert_close(library.get_velocity(x0, eps, t), process.eps_to_v(eps, x0, t, ABAR))
    torch.testing.assert_close(library.add_noise(x0, eps, t), process.add_noise(x0, t, eps, ABAR))


def test_optimal_error_for_standard_normal_data_is_abar():
    for t in (0, 100, 500, 900):
        x0, eps = torch.randn(2, 50_000, 1, 1, 1)
        step = torch.full((len(x0),), t)
        best = lambda x_t, t, cond: (1 - ABAR[t].float()).sqrt().view(-1, 1, 1, 1) * x_t  # noqa: E731
        error = process.diffusion_loss(best, x0, step, eps, None, ABAR.float()).mean().item()
        assert error == pytest.approx(ABAR[t].item(), abs=0.02)
    assert ABAR.mean().item() == pytest.approx(0.2755, abs=1e-4)


def test_mixture_denoiser_is_optimal(mixture):
    """No perturbation of the closed form has a lower error, and a class's error is abar s^2 / (abar s^2 + 1 - abar)."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(3000)
    x0 = mixture.sample(labels, g)
    eps = torch.randn(x0.shape, generator=g, dtype=torch.float64)
    t = torch.full((len(x0),), 400)
    cond = torch.eye(4, dtype=torch.float64)[labels]
    error = process.diffusion_loss(mixture, x0, t, eps, cond, ABAR).mean().item()
    a = ABAR[400].item()
    assert error == pytest.approx(a * 0.25 / (a * 0.25 + 1 - a), rel=0.02)
    unconditional = process.diffusion_loss(mixture, x0, t, eps, None, ABAR).mean().item()
    for factor in (0.97, 1.03):
        worse = lambda x, t, c, f=factor: f * mixture(x, t, c)  # noqa: E731
        assert process.diffusion_loss(worse, x0, t, eps, None, ABAR).mean().item() > unconditional > error


def test_mixture_denoiser_is_the_posterior_mean_of_the_classes(mixture):
    x_t, t = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.full((6,), 250)
    posterior = mixture.posterior_t(x_t, t)
    each = torch.stack([mixture(x_t, t, torch.eye(4, dtype=torch.float64)[k].expand(6, 4)) for k in range(4)], 1)
    torch.testing.assert_close(mixture(x_t, t), (posterior[..., None, None, None] * each).sum(1))


def test_library_dit_is_not_zero_initialised_and_the_recipe_makes_it_so():
    torch.manual_seed(0)
    fresh = DiTTransformer2DModel(**dit.CONFIG).eval()
    x, t = torch.randn(4, 3, 32, 32), torch.tensor([10, 200, 500, 900])
    with torch.no_grad():
        assert fresh(x, timestep=t, class_labels=torch.arange(4)).sample.std() > 0.1
    denoiser = PixelDiT(dit.build(), ABAR)
    p = torch.full((4, 10), 0.1, requires_grad=True)
    eps = torch.randn(x.shape)
    loss = process.diffusion_loss(denoiser, x, t, eps, p, denoiser.alphas_cumprod)
    loss.sum().backward()
    assert denoiser(x, t, p).abs().max() == 0
    assert loss.mean().item() == pytest.approx(1, abs=0.05)
    assert p.grad.abs().max() == 0


# --- samplers --------------------------------------------------------------------------------------------------------


def test_respacing_keeps_the_published_levels():
    assert sampling.respaced(10).tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert sampling.respaced(50)[[0, 1, 2, 3, -2, -1]].tolist() == [0, 20, 41, 61, 979, 999]
    hundred = sampling.respaced(100)
    assert hundred[[48, 49, 50, 51]].tolist() == [484, 494, 505, 515]
    assert ABAR[hundred[49]].item() == pytest.approx(0.0826, abs=1e-4)
    assert ABAR[hundred[50]].item() == pytest.approx(0.0739, abs=1e-4)
    assert sampling.respaced(250)[[0, 1, 2, -2, -1]].tolist() == [0, 4, 8, 995, 999]
    assert torch.equal(sampling.respaced(1000), torch.arange(1000))
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match="choose 1 to 1000"):
            sampling.respaced(wrong)


def test_respaced_chain_has_the_full_chains_levels():
    """alpha' = abar / abar_prev multiplies back to abar at every kept level."""
    for n in (10, 50, 100, 250, 1000):
        kept = sampling.respaced(n)
        levels = [sampling._levels(ABAR, t, sampling.previous(kept, t), ABAR) for t in kept.tolist()]
        product = torch.cumprod(torch.stack([a / b for a, b in levels]), 0)
        assert (product - ABAR[kept]).abs().max() < 1e-12


@pytest.mark.parametrize("clip", [False, True])
def test_ddim_with_eta_one_is_ddpm(clip):
    x, eps, noise = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64)
    for t, t_prev in ((999, 888), (500, 480), (20, 0), (0, -1)):
        ddpm = sampling.ddpm_step(x, eps, t, t_prev, ABAR, noise, clip)
        ddim = sampling.ddim_step(x, eps, t, t_prev, ABAR, 1.0, noise, clip)
        assert (ddpm - ddim).abs().max() < 1e-12 * max(1, ddpm.abs().max())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_are_the_librarys(eta):
    library = DDIMScheduler(beta_schedule="linear", clip_sample=True, set_alpha_to_one=True, timestep_spacing="leading")
    library.set_timesteps(50)
    x, eps, noise = torch.randn(3, 2, 3, 8, 8)
    for t in (980, 500, 20, 0):
        theirs = library.step(eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        ours = sampling.ddim_step(x, eps, t, t - 20 if t else -1, ABAR, eta, noise, clip=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "eta, stds",
    [(0.0, [0.1807, 0.2500, 0.2745, 0.2870, 0.2947, 0.2985]), (1.0, [0.1636, 0.2237, 0.2522, 0.2718, 0.2870, 0.2963])],
)
def test_sampling_a_gaussian_has_the_exact_spread(eta, stds):
    """Data N(.5, .3^2): every step is linear, so mean and variance are propagated without sampling error."""
    for n, expected in zip((10, 25, 50, 100, 250, 1000), stds, strict=True):
        kept, mean, variance = sampling.respaced(n), 0.0, 1.0
        for t in reversed(kept.tolist()):
            a = ABAR[t]
            slope = (1 - a).sqrt() / (a * 0.09 + 1 - a)
            step = lambda x, t=t, a=a, slope=slope: sampling.ddim_step(  # noqa: E731
                x,
                slope * (x - a.sqrt() * 0.5),
                t,
                sampling.previous(kept, t),
                ABAR,
                eta,
                torch.zeros_like(x),
                clip=False,
            )
            zero, one = (step(torch.tensor(float(v), dtype=torch.float64)) for v in (0, 1))
            gain = one - zero
            noise = 0.0
            if eta and sampling.previous(kept, t) >= 0:
                unit = sampling.ddim_step(
                    torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), t,
                    sampling.previous(kept, t), ABAR, eta, torch.ones((), dtype=torch.float64), clip=False,
                )  # fmt: skip
                noise = unit**2
            mean, variance = zero + gain * mean, gain**2 * variance + noise
        assert float(variance) ** 0.5 == pytest.approx(expected, abs=1e-4)
        assert float(mean) == pytest.approx(0.5, abs=1.5e-3)


def test_sampling_is_deterministic_without_noise_and_stays_near_a_clean_start(mixture):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    runs = [sampling.sample(mixture, x, sampling.respaced(20), None, ABAR) for _ in range(2)]
    assert torch.equal(*runs)
    near = sampling.sample(mixture, x, torch.tensor([0]), None, ABAR, clip=False)
    assert (near - x).abs().max() < 0.1


def test_noisy_samples_belong_to_their_image(mixture):
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    ids = torch.tensor([5, 6, 7, 8])
    whole = sampling.sample(mixture, x, sampling.respaced(10), None, ABAR, eta=1.0, ids=ids)
    alone = sampling.sample(mixture, x[2:3], sampling.respaced(10), None, ABAR, eta=1.0, ids=ids[2:3])
    torch.testing.assert_close(whole[2:3], alone)
    assert not torch.allclose(
        whole, sampling.sample(mixture, x, sampling.respaced(10), None, ABAR, eta=1.0, ids=ids, seed=1)
    )
    deterministic = sampling.sample(mixture, x, sampling.respaced(10), None, ABAR)
    assert not torch.allclose(whole, deterministic)


def test_samples_of_the_mixture_are_of_the_asked_class(mixture):
    labels = torch.arange(80) % 4
    x = torch.randn(80, 3, 4, 4, dtype=torch.float64)
    x0 = sampling.sample(mixture, x, sampling.respaced(50), torch.eye(4, dtype=torch.float64)[labels], ABAR, clip=False)
    assert (mixture.posterior(x0).argmax(1) == labels).float().mean() > 0.97
