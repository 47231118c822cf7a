"""What all baselines that adapt a classifier alone have in common."""

import pytest
import torch
from conftest import bad_images

from gentta_utils.methods import METHODS


@pytest.mark.parametrize("name", ["bn_adapt", "tent", "memo", "cotta", "tta_averaging"])
@pytest.mark.parametrize("kind", ["size", "range", "nan", "dtype", "shape"])
def test_bad_images_are_refused(tiny, name, kind):
    with pytest.raises(ValueError, match="image"):
        METHODS[name].configure(tiny).adapt(bad_images(kind), torch.arange(2))
