"""How well a map-conditioned model reads maps, for its card: selection scenes, clean and validation corruptions."""

import torch
from torch import Tensor

from ..common.paths import MODELS
from ..evaluation.dense import WINDOWS, reading
from ..models import zoo
from ..models.dense import DenseModel, enlarged
from ..models.map_unet import MapUNet, at_map
from ..world import maps
from ..world.scenes import scene_ids
from ..world.severities import VALIDATION
from ..world.shifts import shifted

JUDGED = {"classes": "segmentor/resnet", "depth": "depth/densenet"}  # whose maps the truth has to beat


def wrong_maps(made: maps.Maps, target: str, source: DenseModel, images: Tensor) -> dict[str, Tensor]:
    """Maps (B, K, h, w) that are not true of these scenes: "source" of the task network that sees `images`; of classes
    "swapped" (two of them) and "dilated" by 2 px, of depth "rescaled" (objects by 20%) and "moved" (edges by 2 px)."""
    answer = enlarged(source(images), images.shape[-1])
    if target == "depth":
        return {
            "source": answer,
            "rescaled": maps.rescaled(made.depth, made.classes, made.id)[:, None],
            "moved": maps.grown(made.depth)[:, None],
        }
    K = len(maps.MAP_CLASSES)
    changed = {"swapped": maps.swapped(made.classes, made.id), "dilated": maps.dilated(made.classes)}
    return {"source": answer.softmax(1)} | {name: at_map(target, v, K) for name, v in changed.items()}


@torch.no_grad()
def of_map_model(
    model: MapUNet, n: int = 40, pairs: int = 12, start: int = 1000, windows: tuple = WINDOWS, judged: str = ""
) -> dict:
    """Share of n scenes (percent) whose true map has a lower loss than each of `wrong_maps`, by window of t, and by how
    much the loss under the wrong map is higher, in percent of that under the true one (mean over scenes): clean, and
    under the validation corruptions at severity 3. The loss is always that of the image as it came in.

    Raises FileNotFoundError where the task network is missing (`judged`, or that of JUDGED)."""
    name = judged or JUDGED[model.target]
    folder = MODELS / "candidates" if (MODELS / "candidates" / name / "card.json").is_file() else MODELS
    if not (folder / name).is_dir():
        raise FileNotFoundError(f"maps are held against those of {name}: run `python -m gentta_utils train {name}`")
    source = zoo.load(name, folder=folder)
    made = maps.make(scene_ids(n, "select", start))
    true = at_map(model.target, made.classes if model.target == "classes" else made.depth, model.classes)
    out = {"scenes": n, "pairs": pairs, "windows": [list(w) for w in windows], "judged": name}
    for shift, severity in [("clean", 0), *((name, 3) for name in VALIDATION)]:
        images = shifted(made.image, shift, severity, made.id)
        gaps = reading(model, images, made.id, true, wrong_maps(made, model.target, source, images), pairs, windows)
        out[shift] = {
            name: {
                "read": [round(100 * float((row > 0).float().mean())) for row in rows],
                "gap": [round(100 * float(row.mean()), 1) for row in rows],
            }
            for name, rows in gaps.items()
        }
    return out
