"""Models among some of their classes: logits, conditions and what an adaptation changes."""

import copy

import pytest
import torch
from conftest import make_family, same, weights

from gentta_utils.diffusion.error_table import error_table
from gentta_utils.methods import bn_adapt, cotta, diffusion_classifier, diffusion_tta, memo, source, tent
from gentta_utils.methods.base import Models
from gentta_utils.models.copies import PARAM_SETS, Copies, parameter_names

SUBSET = (3, 0, 2)  # in no order
SETTINGS = diffusion_tta.Settings(lr=1e-2, updates=2, pairs=4, window=(0, 1000))


def test_logits_are_those_of_the_subset(tiny, images):
    part = tiny.classifier.restrict(SUBSET)
    assert (part.classes, part.subset, part.name, part.image_size) == (3, SUBSET, "tiny", 16)
    with torch.no_grad():
        assert torch.equal(part(images), tiny.classifier(images)[:, list(SUBSET)])
        assert torch.equal(
            Copies(part, "all", len(images))(images), Copies(tiny.classifier, "all", 5)(images)[:, [3, 0, 2]]
        )
    assert part.count["fwd"] == 10
    shared = zip(part.parameters(), tiny.classifier.parameters(), strict=True)
    assert all(a is b for a, b in shared)  # not a copy


@pytest.mark.parametrize("param_set", [s for s in PARAM_SETS if s not in ("logits", "lora")])
def test_a_parameter_set_is_that_of_the_whole_network(tiny, param_set):
    part = tiny.classifier.restrict(SUBSET)
    found = [n.removeprefix("network.") for n in parameter_names(part, param_set)]
    assert found == parameter_names(tiny.classifier, param_set)


def test_adapters_keep_the_logits_and_spare_the_head(images32):
    part = make_family("vit").classifier.restrict(SUBSET)
    with torch.no_grad():
        assert torch.equal(Copies(part, "lora", None)(images32), part(images32))
    names = parameter_names(part, "lora")
    assert names
    assert not any("head" in name for name in names)


def test_gradients_reach_the_rows_of_the_subset_alone(tiny, images):
    method = diffusion_tta.configure(tiny.restrict(SUBSET), SETTINGS)
    task, *_ = method.state = method._fresh(len(images))
    method.episode(images, torch.arange(5))
    moved = task.values["network.network.fc.bias"].detach() - tiny.classifier.network.fc.bias
    assert (moved[:, list(SUBSET)] != 0).all()
    assert (moved[:, 1] == 0).all()


def test_adapting_in_the_subset_is_adapting_where_the_others_have_no_mass(tiny, images):
    """The whole classifier with a logit of -1e4 for the class left out, and the whole diffusion model."""
    pushed = copy.deepcopy(tiny.classifier)
    pushed.network.fc.bias.data[1] = -1e4
    ids = torch.arange(5)
    whole = diffusion_tta.configure(Models(pushed, tiny.denoiser), SETTINGS).adapt(images, ids)
    kept = weights(tiny.classifier), weights(tiny.denoiser)
    part = diffusion_tta.configure(tiny.restrict(SUBSET), SETTINGS).adapt(images, ids)
    torch.testing.assert_close(part.logits, whole.logits[:, list(SUBSET)], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(part.loss, whole.loss)
    assert same(kept[0], weights(tiny.classifier))
    assert same(kept[1], weights(tiny.denoiser))


@pytest.mark.parametrize("adapt_embeddings", [False, True])
def test_the_diffusion_model_is_adapted_through_the_subset(tiny, images, adapt_embeddings):
    changed = diffusion_tta.Settings(
        lr=1e-2, updates=2, pairs=4, window=(0, 1000), adapt_denoiser=True, adapt_embeddings=adapt_embeddings
    )
    method = diffusion_tta.configure(tiny.restrict(SUBSET), changed)
    _, phi, _ = method.state = method._fresh(1)
    method.episode(images[:1], torch.arange(1))
    tables = [n for n in phi if "embedding_table" in n]
    assert bool(tables) == adapt_embeddings
    for name in tables:
        source_table = dict(tiny.denoiser.named_parameters())[name]
        assert (phi[name] != source_table).any(1).tolist() == [True, False, True, True, False]  # the last: no class


def test_reading_in_the_subset(tiny, images):
    """Scores of the subset are columns of the scores of all; the class is the label within the subset."""
    ids = torch.arange(5)
    whole, part = (error_table(net, images, ids, pairs=6) for net in (tiny.denoiser, tiny.denoiser.restrict(SUBSET)))
    torch.testing.assert_close(part.scores(), whole.scores()[:, list(SUBSET)])
    out = diffusion_classifier.configure(tiny.restrict(SUBSET), diffusion_classifier.Settings(6, (0, 1000))).adapt(
        images, ids
    )
    assert torch.equal(out.logits.argmax(1), part.read())


def test_a_mixture_of_some_classes(mixture):
    part = mixture.restrict(SUBSET)
    x_t, t = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.tensor([100, 500])
    for i, k in enumerate(SUBSET):
        few, many = torch.eye(3).double()[[i, i]], torch.eye(4).double()[[k, k]]
        assert torch.equal(part(x_t, t, few), mixture(x_t, t, many))
    among = mixture.posterior(x_t)[:, list(SUBSET)]
    torch.testing.assert_close(part.posterior(x_t), among / among.sum(1, keepdim=True))


@pytest.mark.parametrize("method", [source, bn_adapt, tent, memo, cotta], ids=lambda m: m.__name__.split(".")[-1])
def test_the_baselines_take_restricted_models(tiny, images, method):
    out = method.configure(tiny.restrict(SUBSET)).adapt(images, torch.arange(5))
    assert out.logits.shape == (5, 3)
    with torch.no_grad():
        torch.testing.assert_close(out.before, tiny.classifier(images)[:, list(SUBSET)])


def test_wrong_subsets(tiny, mixture):
    assert tiny.restrict(None) is tiny
    for wrong in ((), (0, 0), (4,), (-1, 2)):
        for model in (tiny.classifier, tiny.denoiser, mixture):
            with pytest.raises(ValueError, match=r"from 0 to 3: take `Stream.classes`"):
                model.restrict(wrong)
    for model in (tiny.classifier, tiny.denoiser):
        with pytest.raises(ValueError, match="restricted to 3 classes already"):
            model.restrict(SUBSET).restrict((0, 1))
