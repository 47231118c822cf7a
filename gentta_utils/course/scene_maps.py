"""What notebook 04 asks of the scenes: task networks that answer with maps, scenes with their maps, settings."""

from ..evaluation import chosen
from ..methods import diffusion_tta
from ..methods.base import Models
from ..streams import stream as streams_stream
from ..streams.maps import MapSpec
from ..streams.stream import Stream
from ..world import maps


def given(changes: dict) -> dict:
    """The parameters that a notebook was given: None stands for "as chosen"."""
    return {name: value for name, value in changes.items() if value is not None}


class SceneMaps:
    """The part of the scenes' profile that is about maps; `seed` and `load` are the profile's."""

    def map_models(self, task: str, **how) -> Models:
        """A task network that answers with maps, and the diffusion model that is told maps of its target; `how` goes
        to the denoiser's `load`. Raises ValueError for a name that is no such network."""
        if not task.startswith(("segmentor/", "depth/")):
            raise ValueError(f"{task!r} does not answer with maps: choose a model named segmentor/... or depth/...")
        target = "depth" if task.startswith("depth/") else "classes"
        return Models(self.load(task), self.load(f"maps/{target}", **how))

    def map_stream(
        self,
        n: int,
        shift: str = "clean",
        severity: int = 0,
        target: str = "classes",
        split: str = "test",
        start: int = 0,
    ) -> Stream:
        """n scenes of one to three objects under a shift, their labels maps (n, S, S) of a target; `seed` draws the
        corruption. Raises ValueError for a wrong shift, severity or target."""
        return streams_stream.stream(MapSpec(n, shift, severity, split, start, self.seed, target))

    def map_classes(self) -> tuple[str, ...]:
        """A name for each class of a map."""
        return tuple(maps.MAP_CLASSES)

    def map_settings(self, task: str, **changes) -> diffusion_tta.Settings:
        """The chosen settings of Diffusion-TTA for a task network, with the changes that are not None."""
        return chosen.tuned_maps(task, **{"seed": self.seed} | given(changes))
