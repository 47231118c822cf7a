"""Networks behind two contracts, a `Classifier` and a `Denoiser`, and where each comes from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["hub", "zoo"])
