"""Notebook 04: segmentation and depth by generative feedback."""

from . import exercises, live, pictures  # noqa: F401
