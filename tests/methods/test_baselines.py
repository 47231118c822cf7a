"""What all methods beside the central one have in common."""

import pytest
import torch
from conftest import bad_images, make_mae

from gentta_utils.methods import METHODS


@pytest.mark.parametrize("name", ["bn_adapt", "tent", "memo", "cotta", "tta_averaging", "tea", "dusa", "ttt_mae"])
@pytest.mark.parametrize("kind", ["size", "range", "nan", "dtype", "shape"])
def test_bad_images_are_refused(tiny, name, kind):
    with pytest.raises(ValueError, match="image"):
        METHODS[name].configure(make_mae() if name == "ttt_mae" else tiny).adapt(bad_images(kind), torch.arange(2))
