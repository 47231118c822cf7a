"""Notebooks without a browser: one run, a grid of runs, publication."""
