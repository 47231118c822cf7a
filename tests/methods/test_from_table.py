"""Output mixing from an error table: the very updates of Diffusion-TTA, without the diffusion model."""

from dataclasses import replace

import pytest
import torch

from gentta_utils.diffusion.error_table import error_table
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.methods import diffusion_tta, from_table
from gentta_utils.methods.diffusion_tta import Settings

S = Settings(lr=0.5, updates=3, pairs=2, window=(100, 800), mixing="output")
IDS = torch.arange(5) + 40


@pytest.fixture
def table(tiny, images):
    return error_table(tiny.denoiser, images, IDS, 6, S.window)


@pytest.mark.parametrize("change", [{}, {"optimizer": "adamw", "lr": 1e-2}, {"view": "low"}, {"temperature": 1.0}])
def test_it_equals_diffusion_tta_with_the_draws_of_the_table(tiny, images, table, change, monkeypatch):
    def of_table(ids, n, shape, window, timesteps, noise, seed, purpose, step):
        t, eps = draw_pairs(ids, 6, shape, window, purpose="table")
        return t[:, step::3], eps[:, step::3]

    monkeypatch.setattr(diffusion_tta, "draw_pairs", of_table)
    s = replace(S, **change)
    plain = diffusion_tta.configure(tiny, s).adapt(images, IDS)
    before = dict(tiny.denoiser.count)
    out = from_table.configure(tiny, s, table, IDS).adapt(images, IDS)
    assert tiny.denoiser.count == before
    torch.testing.assert_close(out.logits, plain.logits, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(out.before, plain.before, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(out.loss, plain.loss, rtol=1e-4, atol=1e-6)
    assert (out.logits - out.before).abs().max() > 1e-3


def test_images_are_found_by_their_ids(tiny, images, table):
    method = from_table.configure(tiny, S, table, IDS)
    whole, some = method.adapt(images, IDS), torch.tensor([3, 1])
    again = method.adapt(images[some], IDS[some]).logits
    torch.testing.assert_close(again, whole.logits[some], rtol=1e-3, atol=2e-4)  # three long steps enlarge roundings
    assert (again - whole.logits[:2]).abs().max() > 0.01
    with pytest.raises(ValueError, match="does not hold"):
        method.adapt(images[:1], torch.tensor([7]))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"mixing": "embedding"}, "output"),
        ({"online": True}, "image by image"),
        ({"tail": 0.5}, "tail=0"),
        ({"pairs": 3}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, table, change, said):
    with pytest.raises(ValueError, match=said):
        from_table.configure(tiny, replace(S, **change), table, IDS)
