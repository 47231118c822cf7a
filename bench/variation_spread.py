"""Category kept against spread: variations of clean selection scenes by guidance and by noise on the embedding.

python bench/variation_spread.py

A line for each setting: the share of variations in which a judge that knows no generator reads the scene's category,
the mean cosine of their features to the image's, their mean distance to each other, and that of crops at that cosine.
"""

from gentta_utils.common.text import as_table
from gentta_utils.methods.variations import Settings, variations
from gentta_utils.models import zoo
from gentta_utils.recipes.quality import accuracy
from gentta_utils.recipes.variation import AREAS, FEATURES, JUDGES, at_cosine, crops, spread_of
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream

TRIED = ((3, 0), (2, 0), (1.5, 0), (1, 0), (2, 0.3), (2, 0.45), (3, 0.3), (3, 0.45), (3, 0.6))  # guidance, noise
EACH, STEPS = 8, 8  # variations of a scene; steps of each

if __name__ == "__main__":
    s = stream(SceneSpec(25, split="select", start=1000))
    clip, model, judge = zoo.load(FEATURES), zoo.load("denoiser/variation"), zoo.load(JUDGES[0])
    found = {f"{area:g}": spread_of(clip, s.images, crops(s.images, s.ids, EACH, area)) for area in AREAS}
    rows = []
    for guidance, noise in TRIED:
        settings = Settings(start=None, steps=STEPS, guidance=float(guidance), noise=noise)
        views = variations(s.images, EACH, "variation", model, s.ids, settings)  # (25, 8, 3, 64, 64)
        kept = accuracy(judge(views.flatten(0, 1)), s.labels.repeat_interleave(EACH))
        near, apart = spread_of(clip, s.images, views)
        row = {"guidance": guidance, "noise": noise, "category kept, %": f"{kept:.1f}", "cosine": near}
        rows.append(row | {"spread": apart, "crops at this cosine": at_cosine(near, found)})
    print(f"{EACH * len(s)} variations of {len(s)} clean selection scenes, {STEPS} steps")
    print(as_table(rows))
