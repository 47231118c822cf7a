"""Notebook 04: segmentation and depth by generative feedback."""

from . import exercises, pictures  # noqa: F401
