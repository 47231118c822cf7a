"""Every method by name: a new one is one file and one line."""

from importlib import import_module

NAMES = """
    source bn_adapt tent memo cotta tta_averaging
    diffusion_classifier ensemble diffusion_tta dusa
    tea ttt_mae
    diffpure ilvr dda sda
"""
METHODS = {name: import_module(f".{name}", __name__) for name in NAMES.split()}
