"""Streams of rendered scenes with a map for each: which scenes, under which shift, with the truth of which target."""

from dataclasses import asdict, dataclass

from ..common.validate import Checked
from ..world import maps, scenes
from ..world.severities import ALL
from ..world.shifts import check_shift, in_memory, shifted
from .stream import Stream

TARGETS = ("classes", "depth")


@dataclass(frozen=True)
class MapSpec(Checked):
    """Which scenes of one to three objects, under which corruption, with maps of what.

    The stream's labels are the maps (N, 64, 64): uint8 of `maps.MAP_CLASSES`, or float32 metres.

    Raises ValueError, before anything is rendered, for what is unknown or does not go together."""

    n: int
    shift: str = "clean"  # or a corruption
    severity: int = 0  # 1 to 5 for a corruption, else 0
    split: str = "test"
    start: int = 0
    seed: int = 0  # of the corruption
    target: str = "classes"

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("split", scenes.SPLITS), ("target", TARGETS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        check_shift(self.shift, self.severity, ("clean", *ALL))
        scenes.scene_ids(self.n, self.split, self.start)

    def describe(self) -> dict:
        """For records."""
        return asdict(self) | {"world": scenes.VERSION, "corruptions": in_memory(self.shift, self.severity)}

    def load(self) -> Stream:
        """The scenes, rendered and corrupted, with their maps."""
        made = maps.make(scenes.scene_ids(self.n, self.split, self.start))
        images = shifted(made.image, self.shift, self.severity, made.id, self.seed)
        return Stream(images, getattr(made, self.target), made.id, self.describe())
