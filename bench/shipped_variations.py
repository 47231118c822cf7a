"""The variations that notebook 06 starts with: 31 of each scene of its live stream, as one picture.

python bench/shipped_variations.py        -> data/scenes/variations.webp and .json
"""

from gentta_utils.course.drawn import Drawn, ship
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream

if __name__ == "__main__":
    s = stream(SceneSpec(8, "far", start=95_000))
    ship(Drawn("variation"), s.images, s.ids, 31)
