"""GenTTA: generative test-time adaptation, built step by step."""

from .torchvision_shim import ensure_torchvision

__version__ = "0.1.0"
TORCHVISION = ensure_torchvision()  # before anything that imports torchvision: "native" or "shim"
