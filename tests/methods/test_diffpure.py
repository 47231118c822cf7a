"""DiffPure, and the loop that all input methods share: start, levels, draws, chunks, costs, errors."""

from dataclasses import replace

import pytest
import torch
from conftest import assert_refused, bad_images, same, weights

from gentta_utils.common.randomness import generator
from gentta_utils.diffusion.process import add_noise
from gentta_utils.diffusion.reverse import levels_of, noise_for, walk
from gentta_utils.diffusion.sampling import respaced, sample
from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, dda, diffpure
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffpure import Settings, configure, purify
from gentta_utils.streams.stream import Stream

S = Settings(start=200, steps=10)
PLAIN = replace(S, clip=False)
IDS = torch.arange(6) + 40


def scenes_of(mixture, n=40):
    labels = torch.arange(n) % 4
    return mixture.sample(labels, torch.Generator().manual_seed(3)), labels, torch.arange(n)


# --- DiffPure --------------------------------------------------------------------------------------------------------


def test_a_start_at_the_clean_image_is_the_identity(mixture):
    x, _, ids = scenes_of(mixture)
    assert torch.equal(purify(mixture, x, ids, replace(S, start=-1)), x)
    low = purify(mixture, x, ids, replace(PLAIN, start=0, steps=1))
    assert (low - x).abs().max() < 0.1


def test_at_the_end_of_the_schedule_nothing_of_the_input_is_left(mixture):
    x, _, ids = scenes_of(mixture)
    late, early = replace(PLAIN, start=999, steps=50), replace(PLAIN, start=100, steps=50)
    other = x.flip(0)
    assert (purify(mixture, x, ids, late) - purify(mixture, other, ids, late)).abs().max() < 0.1
    assert (purify(mixture, x, ids, early) - purify(mixture, other, ids, early)).abs().max() > 1


def test_it_is_dda_without_guidance(mixture):
    x, _, ids = scenes_of(mixture)
    plain = {"start": 200, "steps": 10, "clip": False}
    assert torch.equal(purify(mixture, x, ids, PLAIN), dda.align(mixture, x, ids, dda.Settings(scale=0.0, **plain)))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_small_perturbation_changes_the_output_less_than_the_input(mixture, eta):
    x, _, ids = scenes_of(mixture)
    board = ((torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2 - 1).double() * 0.1
    s = replace(PLAIN, eta=eta)
    change = purify(mixture, x + board, ids, s) - purify(mixture, x, ids, s)
    assert change.norm() < 0.8 * (board.expand_as(x)).norm()


def test_what_is_kept_and_lost_is_exact_for_a_gaussian():
    """One class N(mu, s^2): the purified image is mu + g (x - mu) plus noise, with g in [0, 1] falling in the start."""
    from gentta_utils.diffusion.mixture import GaussianMixture

    world = GaussianMixture(torch.full((1, 3, 2, 2), 0.3, dtype=torch.float64), 0.5)
    x, ids = torch.randn(400, 3, 2, 2, dtype=torch.float64), torch.arange(400)
    kept = []
    for start in (50, 200, 400):
        s = Settings(start=start, steps=start + 1, eta=0.0, clip=False)
        change = purify(world, x + 1, ids, s) - purify(world, x, ids, s)
        assert change.std() < 1e-9  # linear: the same for every image and pixel
        kept.append(float(change.mean()))
    a = world.alphas_cumprod[[50, 200, 400]]
    exact = a.sqrt() * 0.5 / (a * 0.25 + 1 - a).sqrt()  # the probability flow maps one Gaussian to the other
    assert kept == pytest.approx(exact.tolist(), rel=0.01)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_it_is_the_sampler_from_a_noised_start(mixture):
    x, _, ids = scenes_of(mixture, 6)
    for eta in (0.0, 1.0):
        s = replace(PLAIN, eta=eta)
        eps = noise_for(ids, x.shape[1:], s, "reverse/start", 200).double()
        x_t = add_noise(x, torch.full((6,), 200), eps, mixture.alphas_cumprod)
        ours = walk(mixture, x, ids, s, purpose="reverse")
        if eta == 0:
            theirs = sample(mixture, x_t, respaced(10, 201), None, mixture.alphas_cumprod, clip=False)
            torch.testing.assert_close(ours, theirs)
        else:
            assert not torch.allclose(ours, walk(mixture, x, ids, replace(s, seed=1)))


def test_levels():
    published = levels_of(dda.Settings(of=100))
    assert torch.equal(published, respaced(100)[:50])
    assert (int(published[0]), int(published[-1]), len(published)) == (0, 494, 50)
    assert levels_of(Settings(**diffpure.PUBLISHED_IMAGENET)).tolist() == list(range(150))
    few = levels_of(Settings(start=494, steps=5))
    assert (int(few[0]), int(few[-1]), len(few)) == (0, 494, 5)
    assert levels_of(Settings(start=494, steps=1)).tolist() == [494]
    assert levels_of(Settings(start=-1)).tolist() == []
    with pytest.raises(ValueError, match=r"start=1000: choose at most 999"):
        levels_of(Settings(start=1000))
    with pytest.raises(ValueError, match=r"start=500: choose 494"):
        levels_of(Settings(start=500, of=100))


def test_draws_belong_to_seed_image_and_level():
    s = Settings()
    noise = noise_for(IDS, (3, 4, 4), s, "reverse", 149)
    assert torch.equal(noise[2], torch.randn(3, 4, 4, generator=generator(0, 42, "reverse", 149)))
    for other in (replace(s, seed=1), s):
        t = 149 if other is not s else 148
        assert not torch.equal(noise, noise_for(IDS, (3, 4, 4), other, "reverse", t))


def test_the_model_is_called_without_a_condition_at_original_levels_and_counted(tiny, images, monkeypatch):
    calls, forward = [], tiny.denoiser.forward
    monkeypatch.setattr(tiny.denoiser, "forward", lambda x, t, cond: calls.append((t, cond)) or forward(x, t, cond))
    out = configure(tiny, S).adapt(images, IDS[:5])
    assert [t.tolist() for t, _ in calls] == [[t] * 5 for t in reversed(respaced(10, 201).tolist())]
    assert all(cond is None for _, cond in calls)
    assert out.nfe == {"denoiser fwd": 50, "classifier fwd": 5}


def test_what_it_returns(tiny, images):
    method = configure(tiny, S)
    kept = [weights(net) for net in (tiny.classifier, tiny.denoiser)]
    out = method.adapt(images, IDS[:5])
    assert out.images.shape == images.shape
    assert out.images.min() >= 0
    assert out.images.max() <= 1
    assert out.loss.shape == (0, 5)
    torch.testing.assert_close(out.logits, tiny.classifier(out.images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.before, tiny.classifier(images), rtol=1e-4, atol=1e-5)
    assert all(same(a, weights(b)) for a, b in zip(kept, (tiny.classifier, tiny.denoiser), strict=True))
    method.reset()
    assert torch.equal(out.logits, method.adapt(images, IDS[:5]).logits)
    twice = configure(tiny, replace(S, repeats=2)).adapt(images, IDS[:5])
    assert twice.nfe["denoiser fwd"] == 100
    assert not torch.allclose(twice.images, out.images, atol=1e-3)


@pytest.mark.parametrize("module", [diffpure, dda, METHODS["ilvr"]], ids=["diffpure", "dda", "ilvr"])
def test_images_do_not_know_of_each_other(tiny, images, module):
    small = {"start": 999 if module is METHODS["ilvr"] else 300, "steps": 5}
    small |= {"stop": -1} if module is METHODS["ilvr"] else {}
    method = module.configure(tiny, module.Settings(**small))
    whole = method.adapt(images, IDS[:5])
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(whole.images[order], method.adapt(images[order], IDS[order]).images)
    alone = [method.adapt(images[i : i + 1], IDS[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(whole.images, torch.cat([o.images for o in alone]))
    torch.testing.assert_close(whole.logits, torch.cat([o.logits for o in alone]), rtol=1e-4, atol=1e-5)

    padded = module.configure(tiny, module.Settings(**small, fixed_chunk=True, images_at_once=4))
    whole = padded.adapt(images, IDS[:5])
    alone = [padded.adapt(images[i : i + 1], IDS[i : i + 1]) for i in range(5)]
    assert torch.equal(whole.images, torch.cat([o.images for o in alone]))
    assert torch.equal(whole.logits, torch.cat([o.logits for o in alone]))
    assert torch.equal(whole.before, torch.cat([o.before for o in alone]))
    assert whole.nfe == method.adapt(images, IDS[:5]).nfe  # the padding is not counted


def test_images_purified_before_are_not_purified_again(tiny, images):
    out = configure(tiny, S).adapt(images, IDS[:5])
    again = configure(tiny, S, dict(zip(IDS[:5].tolist(), out.images, strict=True)))
    other = again.adapt(images, IDS[:5])
    assert torch.equal(out.logits, other.logits)
    assert other.nfe == {"classifier fwd": 5}


def test_it_fits_every_protocol(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    runs = [evaluate.run(configure(tiny, S), stream, reset, batch=2) for reset in evaluate.RESETS]
    assert all((r.after == runs[0].after).all() for r in runs)
    assert runs[0].about["protocol"]["predict"] == "after"


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"start": -2}, {"steps": 0}, {"steps": 202}, {"eta": 1.5}, {"images_at_once": 0}, {"repeats": 0}],
)
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_misfits_are_refused(tiny):
    with pytest.raises(ValueError, match="needs a denoiser"):
        configure(Models(tiny.classifier))
    with pytest.raises(ValueError, match="start=1200: choose at most 999"):
        configure(tiny, Settings(start=1200))


@pytest.mark.parametrize("kind", ["size", "range", "nan", "dtype", "shape"])
def test_bad_images_are_refused(tiny, kind):
    with pytest.raises(ValueError, match="image"):
        configure(tiny, S).adapt(bad_images(kind), IDS[:2])


def test_a_broken_denoiser_is_named_with_its_image(mixture):
    x, _, _ = scenes_of(mixture, 4)
    broken = lambda x_t, t, cond: x_t / torch.tensor([1.0, 1.0, 0.0, 1.0]).view(-1, 1, 1, 1)  # noqa: E731
    broken.alphas_cumprod = mixture.alphas_cumprod
    with pytest.raises(FloatingPointError, match=r"image 42 diverged at t=200: the noise that .* look at") as error:
        walk(broken, x, IDS[:4], replace(PLAIN, steps=3))
    assert "\n" not in str(error.value)


def test_the_method_has_its_name_and_presets_are_settings():
    assert METHODS["diffpure"] is diffpure
    assert Settings(**diffpure.PUBLISHED_CIFAR).start == 99
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    assert abar[Settings(**diffpure.PUBLISHED_IMAGENET).start].item() == pytest.approx(0.7883, abs=1e-4)
