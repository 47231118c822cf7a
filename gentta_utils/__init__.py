"""GenTTA: generative test-time adaptation, built step by step."""

import os

# Tensors on a CPU come from huge pages: somewhat faster, if set before torch allocates its first one.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from .torchvision_shim import ensure_torchvision

__version__ = "0.1.0"
TORCHVISION = ensure_torchvision()  # before anything that imports torchvision: "native" or "shim"
