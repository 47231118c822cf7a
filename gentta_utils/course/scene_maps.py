"""What notebook 04 asks of the scenes: their maps, the models that are told maps, settings."""

from ..evaluation import chosen
from ..methods import diffusion_tta
from ..streams import stream as streams_stream
from ..streams.maps import MapSpec
from ..streams.stream import Stream
from ..world import maps


def given(changes: dict) -> dict:
    """The parameters that a notebook was given: None stands for "as chosen"."""
    return {name: value for name, value in changes.items() if value is not None}


class SceneMaps:
    """Rendered scenes of one to three objects, with maps."""

    map_models = {"classes": "maps/classes", "depth": "maps/depth"}

    def map_classes(self) -> tuple[str, ...]:
        """A name for each class of a map."""
        return tuple(maps.MAP_CLASSES)

    def map_stream(
        self,
        n: int,
        target: str = "classes",
        shift: str = "clean",
        severity: int = 0,
        split: str = "test",
        start: int = 0,
    ) -> Stream:
        """n scenes of a split under a shift, from number `start` on; labels are maps of "classes" or of "depth".

        Raises ValueError for a wrong shift, severity or target."""
        return streams_stream.stream(MapSpec(n, shift, severity, split, start, self.seed, target))

    def map_settings(self, network: str, **changes) -> diffusion_tta.Settings:
        """The chosen settings of Diffusion-TTA for a network that answers with maps, with the changes that are not
        None."""
        return chosen.tuned_maps(network, **{"seed": self.seed} | given(changes))

    def map_controls(self, network: str) -> dict[str, tuple]:
        """Row -> (method, settings) of the controls that were chosen for a network."""
        return chosen.map_controls(network)
