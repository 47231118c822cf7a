"""CoTTA: teacher, averaged pseudo-labels, stochastic restoration."""

from dataclasses import replace

import pytest
import torch
from conftest import FAMILIES, assert_refused, make_classifier, make_family, same, weights

from gentta_utils.evaluation import evaluate
from gentta_utils.methods import METHODS, bn_adapt, cotta, source
from gentta_utils.methods.cotta import Settings, configure, consistency
from gentta_utils.streams.stream import Stream
from gentta_utils.world.views import jitter

S = Settings(lr=1e-2, views=3, threshold=1.0, teacher_momentum=0.9, restore=0.1)
SGD = replace(S, optimizer="sgd", lr=0.1)
IDS = torch.arange(6) + 40
BATCHES = torch.tensor([0, 1, 2, 3, 4, 0]).split(2)


def drift(copies, classifier) -> float:
    """The largest distance of a weight from the source."""
    named = dict(classifier.named_parameters())
    return max((v.detach() - named[n]).abs().max().item() for n, v in copies.values.items())


def run(method, images) -> torch.Tensor:
    return torch.cat([method.adapt(images[r], IDS[r]).logits for r in BATCHES])


# --- the limits ------------------------------------------------------------------------------------------------------


def test_restoring_everything_keeps_the_student_at_the_source(tiny, images):
    method = configure(tiny, replace(S, restore=1.0))
    run(method, images)
    student, teacher, _ = method.state
    assert drift(student, tiny.classifier) == 0
    assert drift(teacher, tiny.classifier) > 1e-4  # it followed before the restoration
    other = configure(tiny, replace(S, restore=0.0))
    run(other, images)
    assert drift(other.state[0], tiny.classifier) > 1e-3


def test_a_momentum_of_one_keeps_the_teacher_at_the_source(tiny, images):
    method = configure(tiny, replace(S, teacher_momentum=1.0, threshold=0.0))
    logits = run(method, images)
    assert drift(method.state[1], tiny.classifier) == 0
    plain = bn_adapt.configure(tiny)
    expected = torch.cat([plain.adapt(images[r], IDS[r]).logits for r in BATCHES])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    averaged = configure(tiny, replace(S, teacher_momentum=1.0))
    run(averaged, images)
    assert drift(averaged.state[0], tiny.classifier) > 1e-3  # the student does move


@pytest.mark.parametrize("s", [S, SGD])
def test_without_restoration_and_momentum_it_is_plain_self_training(tiny, images, s):
    """One network in train mode that learns its own averaged predictions."""
    method = configure(tiny, replace(s, restore=0.0, teacher_momentum=0.0))
    twin = make_classifier()
    twin.load_state_dict(tiny.classifier.state_dict())
    twin.network.bn.train()
    sgd = s.optimizer == "sgd"
    optimizer = (torch.optim.SGD if sgd else torch.optim.Adam)(
        twin.parameters(), s.lr, **dict(momentum=0.9) if sgd else {}
    )
    for rows in BATCHES:
        out, x = method.adapt(images[rows], IDS[rows]), images[rows]
        with torch.no_grad():
            target = sum(twin(jitter(x, IDS[rows], v)) for v in range(3)) / 3
        torch.testing.assert_close(out.logits, target, rtol=1e-3, atol=1e-3)
        loss = -(target.softmax(1) * twin(x).log_softmax(1)).sum(1)
        torch.testing.assert_close(out.loss[0], loss.detach(), rtol=1e-3, atol=1e-3)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()


def test_learning_ones_own_plain_predictions_changes_nothing(tiny, images):
    """Without averaging the teacher says what the student says: CE(p, p) has no gradient."""
    method = configure(tiny, replace(SGD, restore=0.0, teacher_momentum=0.0, threshold=0.0))
    run(method, images)
    assert drift(method.state[0], tiny.classifier) < 1e-5


# --- the pieces ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_to_the_teacher():
    z, target = torch.randn(2, 5, 4, dtype=torch.float64)
    one = -(target.softmax(1) * z.softmax(1).log()).sum(1)
    other = -(z.softmax(1) * target.softmax(1).log()).sum(1)
    torch.testing.assert_close(consistency(z, target), one)
    torch.testing.assert_close(consistency(z, target, symmetric=True), (one + other) / 2)
    torch.testing.assert_close(consistency(target, z, symmetric=True), (one + other) / 2)


def test_the_symmetric_loss_is_used_where_asked(tiny, images):
    one, both = (configure(tiny, replace(S, symmetric=s)).adapt(images, IDS[:5]) for s in (False, True))
    assert torch.equal(one.logits, both.logits)
    assert not torch.allclose(one.loss, both.loss)


def test_returned_is_the_teacher_before_its_update(tiny, images):
    method = configure(tiny, replace(S, threshold=0.0))
    run(method, images)
    teacher = {n: v.detach().clone() for n, v in method.state[1].values.items()}
    out = method.adapt(images, IDS[:5])
    twin = make_classifier()
    twin.load_state_dict({**tiny.classifier.state_dict(), **teacher})
    twin.network.bn.train()
    torch.testing.assert_close(out.logits, twin(images).detach(), rtol=1e-3, atol=1e-4)
    assert drift(method.state[1], twin) > 1e-5


def test_the_teacher_follows_by_m(tiny, images):
    method = configure(tiny, replace(S, restore=0.0))
    method.adapt(images, IDS[:5])
    student, teacher, _ = method.state
    for name, value in tiny.classifier.named_parameters():
        expected = 0.9 * value + 0.1 * student.values[name]
        torch.testing.assert_close(teacher.values[name].detach(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_about_a_share_r_of_the_weights_returns(images32):
    models = make_family("vit")
    method = configure(models, replace(S, restore=0.3))
    method.adapt(images32, IDS)
    named = dict(models.classifier.named_parameters())
    back = torch.cat([(v == named[n]).flatten() for n, v in method.state[0].values.items()])
    assert back.float().mean().item() == pytest.approx(0.3, abs=0.03)
    again = configure(models, replace(S, restore=0.3, seed=1))
    again.adapt(images32, IDS)
    other = torch.cat([(v == named[n]).flatten() for n, v in again.state[0].values.items()])
    assert not torch.equal(back, other)


@pytest.mark.parametrize("threshold, teacher", [(0.0, 1), (1.0, 3)])
def test_it_averages_only_where_the_source_is_unsure(tiny, images, threshold, teacher):
    out = configure(tiny, replace(S, threshold=threshold)).adapt(images, IDS[:5])
    assert out.nfe == {"classifier fwd+bwd": 5, "classifier fwd": 5 * (1 + teacher)}
    assert out.loss.shape == (1, 5)


def test_the_sources_mean_confidence_decides(tiny, images):
    confidence = bn_adapt.configure(tiny).adapt(images, IDS[:5]).logits.softmax(1).amax(1).mean().item()
    for threshold, count in ((confidence - 0.01, 10), (confidence + 0.01, 20)):
        out = configure(tiny, replace(S, threshold=threshold)).adapt(images, IDS[:5])
        assert out.nfe["classifier fwd"] == count


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_adapted_and_the_source_survives(images32, family):
    models = make_family(family)
    kept, method = weights(models.classifier), configure(models, replace(S, restore=0.0))
    inside = weights(method.source)
    method.adapt(images32, IDS)
    assert same(kept, weights(models.classifier))
    assert same(inside, weights(method.source))
    assert all(p.grad is None for p in [*models.classifier.parameters(), *method.source.parameters()])
    student = method.state[0].values
    named = dict(models.classifier.named_parameters())
    assert set(student) == set(named)  # class token, position, layer scale and all
    assert sum(not torch.equal(v, named[n]) for n, v in student.items()) > 0.9 * len(named)


@pytest.mark.parametrize("s", [S, SGD])
def test_reset_restores_student_teacher_moments_and_draws(tiny, images, s):
    method = configure(tiny, s)
    first, carried = run(method, images), run(method, images)
    method.reset()
    assert (method.state, method.batches) == (None, 0)
    torch.manual_seed(99)
    assert torch.equal(first, run(method, images))
    assert not torch.equal(first, carried)


def test_before_is_the_frozen_source_also_later_in_the_stream(tiny, images):
    method, frozen = configure(tiny, S), source.configure(tiny).adapt(images, IDS[:5]).logits
    for _ in range(2):
        assert torch.equal(method.adapt(images, IDS[:5]).before, frozen)


def test_the_protocol_has_to_fit(tiny, images):
    stream = Stream(images, torch.zeros(5, dtype=torch.long), IDS[:5], {"shift": "clean"})
    assert evaluate.run(configure(tiny, S), stream, reset="never", batch=2).about["protocol"]["predict"] == "before"
    with pytest.raises(ValueError, match="online"):
        evaluate.run(configure(tiny, S), stream, reset="per_image")


def test_divergence_is_named(tiny, images):
    method = configure(tiny, replace(SGD, lr=1e38))
    with pytest.raises(FloatingPointError, match=r"to image 4[0-4] diverged at update [12]: lower the learning rate"):
        run(method, images)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0}, {"views": 0}, {"optimizer": "adamw"}, {"teacher_momentum": 1.1}, {"restore": -0.1},
        {"threshold": 2.0}, {"momentum": -1.0},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["cotta"] is cotta
    assert Settings(**cotta.PUBLISHED_CIFAR) == Settings()
    imagenet = Settings(**cotta.PUBLISHED_IMAGENET)
    assert (imagenet.restore, imagenet.threshold, imagenet.symmetric, imagenet.lr) == (0.001, 0.1, True, 1e-2)
