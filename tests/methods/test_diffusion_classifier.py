"""The Diffusion Classifier on the mixture, its stages and posterior; the naive ensemble's limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gentta_utils.diffusion.error_table import ErrorTable, error_table, gram
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.evaluation.statistics import paired_interval
from gentta_utils.methods import diffusion_classifier, ensemble
from gentta_utils.methods.base import Models
from gentta_utils.methods.diffusion_classifier import log_posterior, read_staged, staged, staged_cost


@pytest.fixture
def table(mixture):
    """200 images of the mixture, 48 stratified pairs."""
    labels = torch.arange(200) % 4
    x0 = mixture.sample(labels, torch.Generator().manual_seed(5))
    return x0, labels, error_table(mixture, x0, torch.arange(200), 48)


def test_decision_is_bayes_rule_on_the_mixture(mixture, table):
    x0, _, errors = table
    bayes = mixture.posterior(x0).argmax(1)
    assert (errors.scores().argmin(1) == bayes).float().mean() > 0.97
    many = error_table(mixture, x0, torch.arange(200), 192).scores().argmin(1)
    assert (many == bayes).float().mean() >= (errors.thin(6).scores().argmin(1) == bayes).float().mean()


def test_one_stage_is_the_argmin_and_stages_agree_with_it(table):
    _, _, errors = table
    plain = errors.scores().argmin(1)
    assert torch.equal(staged(errors, (48,), (1,)), plain)
    assert (staged(errors, (12, 48), (2, 1)) == plain).float().mean() > 0.95


def test_stages_average_over_all_pairs_seen_so_far(mixture, table):
    _, _, errors = table
    stages = ((6, 3), (12, 2), (24, 1))
    fast = staged(errors, *zip(*stages, strict=True))
    for image in range(200):
        alive, seen = [0, 1, 2, 3], set()
        for n, kept in stages:
            seen |= {48 // n // 2 + i * (48 // n) for i in range(n)}
            score = {k: errors.error[image, sorted(seen), k].mean().item() for k in alive}
            alive = sorted(alive, key=score.get)[:kept]
        assert fast[image] == alive[0]
    assert len(seen) > 24  # the grids are not nested: the last score rests on more than the last grid
    some = ErrorTable(errors.gram[..., [3, 1], :][..., [3, 1]], errors.t, torch.tensor([3, 1]).expand(200, 2))
    assert set(staged(some, (48,), (1,)).tolist()) <= {1, 3}


def test_the_cost_of_stages_counts_unseen_pairs_of_remaining_classes():
    assert staged_cost((48,), (1,), 48, 10) == 480
    assert staged_cost((4, 12), (3, 1), 12, 10) == 4 * 10 + 8 * 3  # the first grid is part of the second
    assert staged_cost((6, 12, 24), (3, 2, 1), 48, 4) == 6 * 4 + 12 * 3 + 24 * 2  # these grids share no pair


@pytest.mark.parametrize("stages", [((4, 12), (2, 1)), ((6, 12, 24), (3, 2, 1)), ((12,), (1,))])
def test_reading_in_stages_says_what_the_table_says_and_asks_for_less(tiny, images, stages):
    denoiser, ids = tiny.denoiser, torch.arange(5)
    for classes in (None, torch.tensor([[3, 1, 0, 2]]).expand(5, -1)):
        how = dict(window=(100, 800), seed=3, classes=classes)
        whole = error_table(denoiser, images, ids, stages[0][-1], **how)
        before = denoiser.count["fwd"]
        said = read_staged(denoiser, images, ids, *stages, **how)
        assert torch.equal(said, staged(whole, *stages))
        cost = staged_cost(*stages, stages[0][-1], whole.classes.shape[1])
        assert denoiser.count["fwd"] - before == 5 * cost


@pytest.mark.parametrize("stages", [((4, 2), (12, 1)), ((6, 3), (12, 2), (24, 1)), ((12, 2),)])
def test_the_method_reads_in_stages_at_the_stated_cost(tiny, images, stages):
    """Who was kept longer has the larger log p, all finite; the decision and the cost are those of `read_staged`."""
    ids, pairs = torch.arange(5) + 3, tuple(n for n, _ in stages)
    keep = tuple(k for _, k in stages)
    s = diffusion_classifier.Settings(window=(100, 800), seed=3, stages=stages)
    out = diffusion_classifier.configure(tiny, s).adapt(images, ids)
    assert out.nfe["denoiser fwd"] == 5 * staged_cost(pairs, keep, pairs[-1], 4)
    assert out.logits.isfinite().all()
    torch.testing.assert_close(out.logits.exp().sum(1), torch.ones(5))
    said = read_staged(tiny.denoiser, images, ids, pairs, keep, (100, 800), seed=3)
    assert torch.equal(out.logits.argmax(1), said)
    whole = error_table(tiny.denoiser, images, ids, pairs[-1], (100, 800), seed=3)
    for b in range(5):
        alive, seen, left = [0, 1, 2, 3], set(), []  # by hand: the first to go is the last in the list
        for n, kept in stages:
            seen |= {pairs[-1] // n // 2 + i * (pairs[-1] // n) for i in range(n)}
            score = {k: whole.error[b, sorted(seen), k].mean().item() for k in alive}
            order = sorted(alive, key=score.get)
            alive, left = order[:kept], order[kept:] + left
        assert out.logits[b].argsort(descending=True).tolist() == alive + left
    pruned = diffusion_classifier.configure(tiny, diffusion_classifier.Settings(prune=3, stages=stages[-1:]))
    assert (pruned.adapt(images, ids).logits.isinf().sum(1) == 1).all()


def test_one_stage_of_all_pairs_is_no_elimination(tiny, images):
    s = diffusion_classifier.Settings(pairs=6, window=(100, 800))
    plain = diffusion_classifier.configure(tiny, s).adapt(images, torch.arange(5)).logits
    one = diffusion_classifier.configure(tiny, replace(s, stages=((6, 1),))).adapt(images, torch.arange(5)).logits
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [((4, 1), (6, 1)), ((4, 1), (8, 2)), ((0, 1),), ((4, 0),), (4, 1), ((4, 1, 1),), ((4.0, 1),), [(4, 1)]]
)
def test_stages_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"stages=.*: choose \(\(pairs, keep\), ...\) above 0"):
        diffusion_classifier.Settings(stages=wrong)


def test_paired_differences_are_less_noisy_than_unpaired(mixture):
    """Over draws of the noise: with classes this close the errors of a pair go up and down together."""
    close = GaussianMixture(mixture.means * 0.2, mixture.std)
    labels = torch.arange(40) % 4
    x0 = close.sample(labels, torch.Generator().manual_seed(5))
    tables = [error_table(close, x0, torch.arange(40), 12, seed=seed).scores() for seed in range(12)]
    true = torch.stack([s.gather(1, labels[:, None]) for s in tables])  # (seeds, images, 1)
    wrong = torch.stack([s.gather(1, (labels[:, None] + 1) % 4) for s in tables])
    paired, unpaired = (wrong - true).std(0), (wrong - true.roll(1, 0)).std(0)
    assert (unpaired > 2 * paired).float().mean() > 0.95


@pytest.mark.parametrize("loss, power", [("l2", 2), ("l1", 1)])
def test_the_loss_is_the_mean_power_of_the_error(tiny, images, loss, power):
    """Written out: -dims / tau times the mean over pairs and dimensions of |eps_phi(x_t, t, k) - eps| ** power."""
    denoiser, ids = tiny.denoiser, torch.arange(3) + 7
    s = diffusion_classifier.Settings(pairs=4, window=(100, 900), temperature=2.0, seed=5, loss=loss)
    found = diffusion_classifier.configure(tiny, s).adapt(images[:3], ids).logits
    x0 = denoiser.encode(images[:3])
    t, eps = draw_pairs(ids, 4, denoiser.shape, (100, 900), seed=5, purpose="table")
    error = torch.zeros(3, 4, dtype=torch.float64)
    for pair in range(4):
        abar = denoiser.alphas_cumprod[t[:, pair]].view(-1, 1, 1, 1)
        x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps[:, pair]
        for k in range(4):
            with torch.no_grad():
                d = denoiser(x_t, t[:, pair], torch.eye(4)[k].expand(3, 4)) - eps[:, pair]
            error[:, k] += d.double().abs().pow(power).flatten(1).mean(1) / 4
    expected = (-x0[0].numel() / 2.0 * error).log_softmax(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)


def test_absolute_errors_decide_otherwise_and_keep_the_draws(mixture, table):
    x0, labels, errors = table
    absolute = error_table(mixture, x0, torch.arange(200), 48, loss="l1")
    assert torch.equal(absolute.t, errors.t)
    assert absolute.error.isfinite().all()
    assert absolute.gram[..., 0, 1].isnan().all()  # no mix of classes can be read off it
    assert (absolute.error <= errors.error.sqrt() + 1e-5).all()  # a mean is at most the root of the mean square
    assert not torch.allclose(absolute.error, errors.error)
    assert (absolute.scores().argmin(1) == labels).float().mean() > 0.5
    with pytest.raises(ValueError, match="loss='l3': choose one of l2, l1"):
        error_table(mixture, x0[:1], torch.arange(1), 48, loss="l3")
    with pytest.raises(ValueError, match="loss='l3': choose one of l2, l1"):
        diffusion_classifier.Settings(loss="l3")


def test_permuting_classes_permutes_the_scores(mixture, table):
    x0, _, errors = table
    order = torch.tensor([2, 0, 3, 1])
    permuted = GaussianMixture(mixture.means[order], mixture.std)
    scores = error_table(permuted, x0, torch.arange(200), 48).scores()
    torch.testing.assert_close(scores, errors.scores()[:, order])


def test_some_classes_cost_and_say_what_all_say(mixture, table):
    x0, _, errors = table
    some = torch.tensor([3, 1]).expand(200, 2)
    mixture.count["fwd"] = 0
    part = error_table(mixture, x0, torch.arange(200), 48, classes=some)
    assert mixture.count["fwd"] == 200 * 48 * 2
    torch.testing.assert_close(part.error, errors.error[..., [3, 1]])
    torch.testing.assert_close(part.gram[..., 0, 1], errors.gram[..., 3, 1])


def test_posterior_ignores_a_constant_and_sharpens_with_temperature():
    error = torch.tensor([[0.10, 0.11, 0.13]])
    torch.testing.assert_close(log_posterior(error, 100, 1.0), log_posterior(error + 5, 100, 1.0), atol=1e-4, rtol=1e-4)
    top = [log_posterior(error, 100, tau).exp().max().item() for tau in (0.01, 1.0, 100.0)]
    assert top[0] == pytest.approx(1)
    assert top[0] > top[1] > top[2] > 1 / 3


def test_gram_is_a_quadratic_form_in_p(tiny):
    """p' Gram p is the error of the mixed prediction, for any p, and its diagonal the error of each class."""
    denoiser = tiny.denoiser
    x0, (t, eps) = torch.randn(3, *denoiser.shape), draw_pairs(torch.arange(3), 1, denoiser.shape)
    t, eps = t[:, 0], eps[:, 0]
    g = gram(denoiser, x0, t, eps)
    assert g.dtype == torch.float32
    abar = denoiser.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    with torch.no_grad():
        each = torch.stack([denoiser(x_t, t, torch.eye(4)[k].expand(3, 4)) for k in range(4)], 1)
    p = torch.rand(3, 4).softmax(1)
    mixed = ((p[..., None, None, None] * each).sum(1) - eps).square().flatten(1).mean(1)
    torch.testing.assert_close((p[:, None] @ g @ p[..., None]).flatten(), mixed)


def test_table_resumes_and_is_the_same(mixture, tmp_path):
    x0 = mixture.sample(torch.arange(8) % 4, torch.Generator().manual_seed(1))
    whole = error_table(mixture, x0, torch.arange(8), 6, cache=tmp_path, chunk=2)
    (tmp_path / "0002.safetensors").unlink()
    mixture.count["fwd"] = 0
    again = error_table(mixture, x0, torch.arange(8), 6, cache=tmp_path, chunk=2)
    assert mixture.count["fwd"] == 2 * 6 * 4  # only what was missing
    assert torch.equal(whole.gram, again.gram)
    assert torch.equal(whole.t, again.t)


def test_windows_and_thinning():
    t = torch.arange(0, 1000, 100).expand(2, 10)
    table = ErrorTable(torch.rand(2, 10, 3, 3), t, torch.arange(3).expand(2, 3))
    torch.testing.assert_close(table.scores((200, 500)), table.error[:, 2:5].mean(1))
    assert table.thin(5).t[0].tolist() == [100, 300, 500, 700, 900]
    with pytest.raises(ValueError, match="divisor"):
        table.thin(3)
    with pytest.raises(ValueError, match="widen it"):
        table.scores((950, 1000))


def test_pruning_keeps_the_classifiers_best(tiny, images):
    plain = diffusion_classifier.configure(tiny, diffusion_classifier.Settings(pairs=4))
    pruned = diffusion_classifier.configure(tiny, diffusion_classifier.Settings(pairs=4, prune=2))
    out = pruned.adapt(images, torch.arange(5))
    kept = out.before.topk(2).indices
    assert (out.logits.argmax(1, keepdim=True) == kept).any(1).all()
    assert (out.logits.isinf().sum(1) == 2).all()
    assert out.nfe["denoiser fwd"] == plain.adapt(images, torch.arange(5)).nfe["denoiser fwd"] / 2


# --- the naive ensemble ----------------------------------------------------------------------------------------------


def test_ensemble_limits():
    p_theta = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    error = torch.tensor([[0.11, 0.10, 0.13], [0.30, 0.31, 0.29]])
    flat, sharp = (log_posterior(error, 100, tau).exp() for tau in (1e6, 1e-6))
    assert torch.equal(ensemble.mix(p_theta, flat).argmax(1), p_theta.argmax(1))
    assert torch.equal(ensemble.mix(p_theta, sharp).argmax(1), error.argmin(1))
    assert torch.equal(ensemble.mix(p_theta, sharp, 0.0), p_theta)
    assert torch.equal(ensemble.mix(p_theta, sharp, 1.0), sharp)


def test_ensemble_at_its_ends_is_a_single_model(tiny, images):
    ids, reader_settings = torch.arange(5), diffusion_classifier.Settings(pairs=4)
    reader = diffusion_classifier.configure(tiny, reader_settings).adapt(images, ids)
    for weight, single in ((0.0, reader.before), (1.0, reader.logits)):
        out = ensemble.configure(tiny, ensemble.Settings(weight, reader_settings)).adapt(images, ids)
        assert torch.equal(out.logits.argmax(1), single.argmax(1))
    with pytest.raises(ValueError, match="from 0 to 1"):
        ensemble.configure(tiny, ensemble.Settings(1.5))
    with pytest.raises(ValueError, match="needs a denoiser"):
        ensemble.configure(Models(tiny.classifier))


def test_ensemble_is_bound_by_the_oracle_for_two_classes_only():
    """With K = 2 the mean can only side with one of the two; with K = 3 it can be right where both are wrong."""
    p, q = torch.rand(2, 500, 2).softmax(-1)
    mixed = ensemble.mix(p, q).argmax(1)
    assert ((mixed == p.argmax(1)) | (mixed == q.argmax(1))).all()
    p, q = torch.tensor([[0.5, 0.4, 0.1]]), torch.tensor([[0.1, 0.4, 0.5]])
    assert ensemble.mix(p, q).argmax(1).item() == 1


def test_interval_is_over_scenes_and_paired():
    """Each scene counted twice must not narrow the interval; identical predictions have no spread."""
    g = torch.Generator().manual_seed(0)
    after, before = (torch.rand(2, 80, generator=g) > 0.4).numpy()
    once = paired_interval(after, before, np.arange(80))
    twice = paired_interval(np.tile(after, 2), np.tile(before, 2), np.tile(np.arange(80), 2))
    assert twice.mean == pytest.approx(once.mean)
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.05)
    naive = paired_interval(np.tile(after, 2), np.tile(before, 2), np.arange(160))
    assert naive.high - naive.low < 0.8 * (once.high - once.low)
    same = paired_interval(after, after, np.arange(80))
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert once.low < once.mean < once.high
    assert once.mean == pytest.approx(100 * (after.mean() - before.mean()))
