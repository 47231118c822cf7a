"""Prompts in several wordings: where p goes, which wording is drawn or read, and what an image's result rests on."""

from dataclasses import replace

import pytest
import torch
from conftest import make_classifier

from gentta_utils.diffusion.feedback import condition_gradient
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.diffusion.process import diffusion_loss
from gentta_utils.methods import diffusion_classifier, diffusion_tta, dusa
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_tta import Settings, configure, learning_rate
from gentta_utils.methods.wordings import block, choose, read, spread

K, M = 4, 3
S = Settings(lr=0.3, updates=3, pairs=4, window=(100, 800), images_at_once=4, micro_batch=16)
IDS = torch.arange(6) + 40
KINDS = ["drawn", "read", "wrong"]


def in_wordings(shifts: tuple[float, ...]) -> GaussianMixture:
    """K classes of 3 x 16 x 16 images, each in one wording for each shift of the means."""
    means = torch.rand(K, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mixture = GaussianMixture(torch.cat([means + shift for shift in shifts]), std=0.5)
    mixture.wordings = len(shifts)
    return mixture


@pytest.fixture
def models():
    return Models(make_classifier(K), in_wordings((0.0, 0.4, -0.6)))


@pytest.fixture
def images():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_p_is_spread_into_one_block_and_its_gradient_comes_back():
    p = torch.rand(2, K).softmax(1).requires_grad_()
    wording = torch.tensor([2, 0])
    q = spread(p, wording, M)
    assert q.shape == (2, M * K)
    torch.testing.assert_close(q[0, 8:], p[0])
    torch.testing.assert_close(q[1, :4], p[1])
    assert torch.equal(q.count_nonzero(1), torch.tensor([K, K]))
    assert torch.equal(q.gather(1, block(wording, K)), p)
    G = torch.rand(2, M * K)
    (q * G).sum().backward()
    assert torch.equal(p.grad, torch.stack([G[0, 8:], G[1, :4]]))
    assert spread(p, wording, 1) is p


def test_a_wording_is_drawn_from_seed_and_update_alone(models):
    p = torch.full((6, K), 1 / K)
    x0 = torch.rand(6, 3, 16, 16)

    def drawn(rows, step, seed=0):
        return choose(models.denoiser, x0[rows], p[rows], IDS[rows], replace(S, seed=seed), step)

    everything = torch.arange(6)
    by_step = [drawn(everything, step) for step in range(12)]
    assert all(len(set(m.tolist())) == 1 for m in by_step)
    assert {int(m[0]) for m in by_step} == {0, 1, 2}
    for step in range(12):
        assert torch.equal(drawn(torch.tensor([4]), step), by_step[step][:1])
        assert torch.equal(drawn(torch.tensor([5, 1]), step), by_step[step][:2])
    assert [int(drawn(everything, s, seed=1)[0]) for s in range(12)] != [int(m[0]) for m in by_step]


def test_the_wording_read_has_the_lowest_error(models, images):
    """Written out, pair by pair; and it is the right one where images were made in one wording."""
    denoiser, s = models.denoiser, replace(S, wording="read", wording_pairs=5)
    p = torch.rand(6, K, generator=torch.Generator().manual_seed(3)).softmax(1)
    t, eps = draw_pairs(IDS, 5, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "wording")
    errors = torch.zeros(6, M)
    for m in range(M):
        mean = torch.zeros(6, M * K)
        mean[:, m * K : (m + 1) * K] = p
        for j in range(5):
            errors[:, m] += diffusion_loss(denoiser, images, t[:, j], eps[:, j], mean, denoiser.alphas_cumprod) / 5
    start = denoiser.count["fwd"]
    assert torch.equal(read(denoiser, images, p, IDS, s), errors.argmin(1))
    assert denoiser.count["fwd"] - start == 6 * M * 5
    made = torch.tensor([0, 1, 2, 2, 1, 0])
    x0 = denoiser.means[made * K + 1]
    assert torch.equal(read(denoiser, x0, torch.eye(K)[[1]].expand(6, -1), IDS, s), made)


def test_the_wrong_wording_is_another_one_drawn_by_image(models, images):
    denoiser, p = models.denoiser, torch.full((6, K), 1 / K)
    read_, wrong = (choose(denoiser, images, p, IDS, replace(S, wording=kind), 0) for kind in ("read", "wrong"))
    assert (read_ != wrong).all()
    ahead = [
        int((choose(denoiser, images[:1], p[:1], torch.tensor([i]), replace(S, wording="wrong"), 0) - read_[0]) % M)
        for i in range(20)
    ]
    assert set(ahead) == {1, 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixing", ["embedding", "output"])
def test_a_result_rests_on_its_image_alone(models, images, kind, mixing):
    method = configure(models, replace(S, wording=kind, mixing=mixing))
    whole = method.adapt(images, IDS)
    assert (whole.logits - whole.before).abs().max() > 1e-3
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    torch.testing.assert_close(
        method.adapt(images[order], IDS[order]).logits, whole.logits[order], rtol=1e-4, atol=1e-5
    )
    alone = torch.cat([method.adapt(images[i : i + 1], IDS[i : i + 1]).logits for i in range(6)])
    torch.testing.assert_close(alone, whole.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(method.adapt(images, IDS).logits, whole.logits)


@pytest.mark.parametrize("kind", ["drawn", "read"])
def test_one_wording_is_the_plain_path(models, images, kind):
    one = Models(models.classifier, in_wordings((0.0,)))
    plain = configure(one, S).adapt(images, IDS)
    other = configure(one, replace(S, wording=kind)).adapt(images, IDS)
    assert torch.equal(other.logits, plain.logits)
    assert other.nfe == plain.nfe == {"classifier fwd+bwd": 18, "classifier fwd": 6, "denoiser fwd+bwd": 72}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_wordings_are_one(models, images, kind):
    """The same prompts three times: whichever is taken, nothing changes, and reading is counted."""
    plain = configure(Models(models.classifier, in_wordings((0.0,))), S).adapt(images, IDS)
    out = configure(Models(models.classifier, in_wordings((0.0,) * M)), replace(S, wording=kind)).adapt(images, IDS)
    torch.testing.assert_close(out.logits, plain.logits, rtol=1e-4, atol=1e-5)
    asked = {} if kind == "drawn" else {"denoiser fwd": 6 * M * 4}
    assert out.nfe == plain.nfe | asked


def test_reading_a_wording_helps_and_the_wrong_one_does_not(models):
    """Images in the last wording: the loss under the wording read is lower from the first update on."""
    images = (models.denoiser.means[-K:].repeat(2, 1, 1, 1)[:6] + 1).clamp(0, 1)  # any images: the losses differ
    loss = {kind: configure(models, replace(S, wording=kind)).adapt(images, IDS).loss[0] for kind in KINDS}
    assert (loss["read"] < loss["wrong"]).all()


def test_the_gradient_is_that_of_the_block(models, images):
    """Conditions of other wordings get no probability, so G there reaches nothing."""
    denoiser, wording = models.denoiser, torch.full((6,), 1)
    p = torch.rand(6, K).softmax(1)
    t, eps = draw_pairs(IDS, 3, denoiser.shape)
    alone = GaussianMixture(denoiser.means[K : 2 * K], denoiser.std)
    G, loss = condition_gradient(denoiser, images, spread(p, wording, M), t, eps)
    expected = condition_gradient(alone, images, p, t, eps)
    torch.testing.assert_close((G.gather(1, block(wording, K)), loss), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param_set", ["logits", "lora"])
def test_the_learning_rate_is_found_in_every_wording(models, images, kind, param_set):
    rate = learning_rate(models, images, IDS, replace(S, wording=kind, param_set=param_set))
    assert 0 < rate < torch.inf
    assert rate == learning_rate(models, images, IDS, replace(S, wording=kind, param_set=param_set))


def test_classes_that_do_not_fit_are_refused_in_one_sentence(models, images):
    three, sentence = make_classifier(3), "denoiser has 12 conditions in 3 wordings, the classifier 3 classes"
    with pytest.raises(ValueError, match=sentence) as error:
        configure(Models(three, models.denoiser), S)
    assert "\n" not in str(error.value)
    for module, settings in ((dusa, dusa.Settings(top=2)), (diffusion_classifier, diffusion_classifier.Settings())):
        with pytest.raises(ValueError, match="same classes, in 1 wordings"):  # these know no wordings
            module.configure(models, settings)
    with pytest.raises(ValueError, match="the classifier 3 classes"):
        diffusion_classifier.configure(Models(three, in_wordings((0.0,))))
    with pytest.raises(ValueError, match="wording='wrong': there is one wording alone"):
        configure(Models(models.classifier, in_wordings((0.0,))), replace(S, wording="wrong"))
    with pytest.raises(ValueError, match="wording='other': choose one of drawn, read, wrong"):
        diffusion_tta.Settings(lr=1.0, wording="other")
