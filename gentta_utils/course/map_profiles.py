"""What notebook 04 asks of its profile: images with maps, names of their classes, settings. Part of `profiles`."""

from dataclasses import replace

import torch

from ..common.validate import check_choice
from ..evaluation import chosen
from ..methods import consistency, diffusion_tta, map_filters
from ..streams import photo_maps
from ..streams import stream as streams_stream
from ..streams.maps import TARGETS, MapSpec
from ..streams.stream import Stream
from ..world import ade20k, maps
from .trials import SEED_STEP

# Prabhudesai et al. (2023): per image, AdamW 8e-5. The number of updates and pairs is not published: that of images is
# taken. The diffusion model, which they trained, stays as it is
PUBLISHED_MAPS = diffusion_tta.PUBLISHED | dict(lr=8e-5, adapt_denoiser=False, micro_batch=4, images_at_once=1)
# Li et al. (2024), segmentation: t = 100, noise predictions mixed at each pixel over at most 20 classes, AdamW 7.5e-6
PUBLISHED_DUSA = PUBLISHED_MAPS | dict(
    lr=7.5e-6, updates=1, pairs=1, window=(100, 101), mixing="output", map_classes=20, micro_batch=20
)


class SceneMaps:
    """Rendered scenes of one to three objects, with maps."""

    task_models = {"classes": ("segmentor/resnet", "segmentor/segformer"), "depth": ("depth/densenet", "depth/glpn")}
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
        return chosen.tuned_maps(network, **{"seed": self.seed} | _asked(changes))

    def map_controls(self, network: str) -> dict[str, tuple]:
        """Row -> (method, settings) of the controls that were chosen for a network."""
        return chosen.map_controls(network)


class PhotoMaps:
    """ADE20K for classes and NYU Depth v2 for depth. No public diffusion model is told depth as `maps/depth` is; of
    classes there is a ControlNet, which learned from true maps alone."""

    task_models = {"classes": ("segmentor/segformer", "segmentor/segformer-b5"), "depth": ("depth/glpn",)}
    map_models = {"classes": "maps/classes-control"}

    def map_classes(self) -> tuple[str, ...]:
        """A name for each class of a map."""
        return ade20k.CLASSES

    def map_stream(
        self,
        n: int,
        target: str = "classes",
        shift: str = "clean",
        severity: int = 0,
        split: str = "test",
        start: int = 0,
    ) -> Stream:
        """n photographs under a shift, in memory; `start` and `seed` draw them, there is no other `split` than "test".
        Corruptions are made in memory; labels are maps of "classes" or of "depth".

        Raises ValueError for a wrong shift, severity or target, FileNotFoundError or ValueError for files that are
        missing or not what they should be."""
        check_choice("target", target, TARGETS)
        name = next(name for name, how in photo_maps.SETS.items() if how.target == target)
        seed = start + SEED_STEP * self.seed
        spec = photo_maps.PhotoMapSpec(name, str(self._root), n, shift, severity, seed)
        return streams_stream.stream(spec).rows(torch.arange(n))

    def map_settings(self, network: str, **changes) -> diffusion_tta.Settings:
        """The published settings of Diffusion-TTA for any network that answers with maps, with the changes that are not
        None."""
        return published_settings(**{"seed": self.seed} | changes)

    def map_controls(self, network: str) -> dict[str, tuple]:
        """Row -> (method, settings) of the controls that need no tuning."""
        return {
            "low view": ("map_filters", map_filters.Settings(view="low")),
            "median filter": ("map_filters", map_filters.Settings(median=1)),
            "mean of views": ("consistency", consistency.Settings(updates=0, predict="views")),
        }


def published_settings(way: str = "embedding", **changes) -> diffusion_tta.Settings:
    """The published settings for maps, with the changes that are not None: of Diffusion-TTA, whose condition is the
    map, or with way="output" of DUSA, which mixes predictions at each pixel."""
    settings = diffusion_tta.Settings(**{"embedding": PUBLISHED_MAPS, "output": PUBLISHED_DUSA}[way])
    return replace(settings, **_asked(changes))


def _asked(changes: dict) -> dict:
    return {name: value for name, value in changes.items() if value is not None}
