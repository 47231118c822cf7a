"""Notebook 01: its exercises, and the digits that it shares with notebook 07."""

import lazy_loader

from .. import digits  # noqa: F401

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["exercises"])
