"""Where things live, relative to the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
MODELS = DATA / "models"
RESULTS = DATA / "results"
SCENES = DATA / "scenes"
CACHE = DATA / "cache"  # ignored by git: rendered training scenes, error tables, unfinished runs
NOTEBOOKS = ROOT / "notebooks"
