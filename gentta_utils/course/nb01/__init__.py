"""Notebook 01: its digits and its exercises."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["digits", "exercises"])
