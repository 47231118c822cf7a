"""DiffTPT: generated views beside the crops, near ones among them, confident ones among those."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_refused

from gentta_utils.diffusion.entropy import entropy
from gentta_utils.methods import METHODS, difftpt, mta, tpt, zero
from gentta_utils.methods.difftpt import Settings, configure
from gentta_utils.methods.many_views import FILTERS, nearest, select
from gentta_utils.world.views import image_views

IDS = torch.arange(5) + 40
S = Settings(views=5, generated=4, rho_c=0.5, rho_h=0.4, lr=1.0, images_at_once=2)


def darker(images, ids):
    """Five "generated" views of each image, by its id alone."""
    steps = torch.linspace(0.3, 0.9, 5).view(1, 5, 1, 1, 1)
    return images[:, None] * steps


def test_published_counts():
    """128 views, 101 of 127 near enough and view 0, 30 of those 102."""
    s, g = Settings(), torch.Generator().manual_seed(0)
    features, logits = torch.randn(2, 128, 6, generator=g), torch.randn(2, 128, 9, generator=g)
    assert s.views + s.generated == 128
    assert nearest(logits, s.rho_c).shape == (2, 102)
    assert select(features, logits, s).shape == (2, 30)
    assert select(features, logits, replace(s, filter="entropy")).shape == (2, 38)
    assert select(features, logits, replace(s, filter="cosine")).shape == (2, 102)
    assert select(features, logits, replace(s, filter="none")).shape == (2, 128)
    assert select(features, logits, replace(s, filter="parallel_features")).shape == (2, 19 + 15)


def test_the_sequential_filter_by_a_plain_loop():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(3, 20, 5, generator=g) * 3
    s = replace(S, views=12, generated=8)
    for b, chosen in enumerate(select(torch.empty(3, 20, 2), z, s)):
        cosine = [float(F.cosine_similarity(z[b, 0], z[b, v], dim=0)) for v in range(1, 20)]
        near = [0, *sorted(range(1, 20), key=lambda v: -cosine[v - 1])[:9]]
        h = entropy(z[b])
        assert sorted(chosen.tolist()) == sorted(sorted(near, key=lambda v: float(h[v]))[:4])


def test_the_parallel_filter_by_a_plain_loop():
    """Crops pass by entropy alone; generated views by the cosine of features first."""
    g = torch.Generator().manual_seed(0)
    f, z = torch.randn(3, 20, 4, generator=g), torch.randn(3, 20, 5, generator=g) * 3
    s = replace(S, views=12, generated=8, filter="parallel_features")
    for b, chosen in enumerate(select(f, z, s)):
        h = entropy(z[b])
        crops = sorted(range(12), key=lambda v: float(h[v]))[:4]
        cosine = {v: float(F.cosine_similarity(f[b, 0], f[b, v], dim=0)) for v in range(12, 20)}
        near = sorted(cosine, key=lambda v: -cosine[v])[:4]
        assert sorted(chosen.tolist()) == sorted(crops + sorted(near, key=lambda v: float(h[v]))[:1])


def test_without_a_cosine_filter_it_is_the_entropy_filter():
    z = torch.randn(3, 20, 5)
    one, two = (select(z, z, replace(S, filter=f, rho_c=1.0)) for f in ("sequential_logits", "entropy"))
    assert torch.equal(one.sort(1).values, two.sort(1).values)


def test_view_0_passes_the_cosine_stage_and_may_fail_the_other():
    z = torch.randn(2, 10, 4)
    z[:, 0] *= 0.01  # near the others' directions or not, and sure of nothing
    assert (nearest(z, 0.5)[:, 0] == 0).all()
    assert (select(z, z, replace(S, rho_h=0.3)) != 0).all()


def test_a_generated_view_that_drifted_is_filtered():
    """Confident, but of another class than the image: only the cosine keeps it away."""
    z = torch.tensor([[[3.0, 0, 0], [2.5, 0, 0], [2.0, 0.1, 0], [0, 9.0, 0]]])
    assert 3 in select(z, z, replace(S, views=3, generated=1, filter="entropy", rho_h=0.5))[0]
    assert 3 not in select(z, z, replace(S, views=3, generated=1, rho_c=0.67, rho_h=0.67))[0]


def test_without_generated_views_and_with_one_step_it_is_tpt(clip_models, images64):
    same = dict(views=8, rho_h=0.3, lr=1.0, updates=1, images_at_once=2)
    ours = configure(clip_models, Settings(**same, generated=0, rho_c=1.0)).adapt(images64, IDS)
    other = tpt.configure(clip_models, tpt.Settings(**same)).adapt(images64, IDS)
    torch.testing.assert_close(ours.logits, other.logits, rtol=1e-5, atol=1e-5)  # the mean is over another order
    torch.testing.assert_close(ours.loss, other.loss, rtol=1e-5, atol=1e-6)


def test_generated_views_stand_behind_the_others(clip_models, images64):
    method = configure(clip_models, S, darker)
    features, logits = method.encode(images64[:2], IDS[:2])
    assert features.shape[:2] == logits.shape[:2] == (2, 9)
    crops = torch.stack([image_views(x, int(i), 5) for x, i in zip(images64[:2], IDS, strict=False)])
    views = torch.cat([crops, darker(images64[:2], IDS[:2])[:, :4]], 1)
    expected = torch.stack([clip_models.classifier(v) for v in views])
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-3)


def test_the_views_of_the_first_step_count_at_every_step(clip_models, images64):
    seen = []

    def loss_of(logits):
        seen.append(logits.detach())
        return tpt.marginal_entropy(logits)

    method = configure(clip_models, replace(S, updates=4), darker)
    features, logits = method.encode(images64[:2], IDS[:2])
    method.tune(features, IDS[:2], loss_of)
    chosen = select(features, logits, method.settings)
    assert len(seen) == 4
    first = logits.gather(1, chosen[..., None].expand(-1, -1, 10))
    torch.testing.assert_close(seen[0], first, rtol=1e-4, atol=1e-3)
    before = entropy(logits).gather(1, chosen)
    assert not torch.allclose(entropy(seen[3]), before)  # the same views, other predictions


@pytest.mark.parametrize("module", [tpt, zero, mta], ids=["tpt", "zero", "mta"])
def test_other_methods_take_its_views_and_its_filter(clip_models, images64, module):
    own = {name: getattr(S, name) for name in ("views", "generated", "filter", "rho_c", "rho_h")}
    method = module.configure(clip_models, module.Settings(**own), darker)
    ours = configure(clip_models, S, darker)
    one, two = (m.counting(*m.encode(images64, IDS)) for m in (method, ours))
    assert torch.equal(one[0], two[0])
    assert one[0].shape[1] == 2  # int(.4 * 5) of the five near ones
    assert torch.isfinite(method.adapt(images64, IDS).logits).all()


def test_results_are_bit_equal_whatever_order_and_company(clip_models, images64):
    method, order = configure(clip_models, S, darker), torch.tensor([3, 0, 4, 1, 2])
    whole = method.adapt(images64, IDS)
    again = method.adapt(images64[order], IDS[order])
    assert torch.equal(whole.logits[order], again.logits)
    assert whole.nfe == {"classifier fwd": 5 * 9, "text fwd+bwd": 5 * 4 * 10, "text fwd": 5 * 10}


def test_generated_views_that_do_not_fit_are_refused(clip_models, images64):
    for made, words in (
        (lambda x, i: darker(x, i)[:, :2], "image 40 has 2 such views"),
        (lambda x, i: darker(x, i)[..., :32], r"must be \(B, 3, 64, 64\)"),
        (lambda x, i: 255 * darker(x, i), "divide by 255"),
    ):
        with pytest.raises(ValueError, match=words):
            configure(clip_models, S, made).adapt(images64, IDS)


@pytest.mark.parametrize("change", [{"filter": "paper"}, {"rho_c": -0.5}, {"generated": 1.5}])
def test_wrong_settings_are_refused_in_one_sentence(change):
    assert_refused(S, change)


def test_presets_are_settings_and_the_method_has_its_name():
    assert METHODS["difftpt"] is difftpt
    assert Settings(**difftpt.PUBLISHED) == Settings()
    assert set(FILTERS) >= {"none", "entropy", "cosine", "sequential_logits"}
