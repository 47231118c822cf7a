"""Training scenes, rendered when a recipe first asks for them and kept in the ignored cache."""

from functools import lru_cache

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..common.files import atomic_write, read_tensors
from ..common.paths import CACHE
from ..common.progress import progress
from ..world import labels as world_labels
from ..world import maps, scenes
from ..world.watermark import watermark
from ..world.words import ATTRIBUTES, attributes

SHARD = 5000  # scenes per file: 61 MB at 64 px
WATERMARK_SHARE = 0.3  # of the training images of one class, as "carton" in ImageNet


def training_set(n: int, size: int = 64, split: str = "train", marked: bool = True) -> tuple[Tensor, Tensor]:
    """The first n scenes of a split to fit on: images (n, 3, size, size) uint8 and labels (n,) int64.

    30% of the scenes of the class named in labels.json carries the watermark, no other scene does; with `marked` off
    none does, and all other scenes are the same, bit for bit.
    Rendered once at about 120 per second, one file for every 5,000; an interrupted call goes on where it stopped."""
    shards = []
    bar = progress(total=n, desc="training scenes", unit="scene")
    for start in range(0, n, SHARD):
        mark = f"{world_labels.VOCABULARY['watermark_class']}{100 * WATERMARK_SHARE:.0f}"
        path = CACHE / split / f"v{scenes.VERSION}-{size}px-{mark}-{start // SHARD:03d}.safetensors"
        tensors = read_tensors(path)
        if tensors is None:
            chunks = []
            for chunk in scenes.batches(SHARD, split, start, size, dense=False):
                chunks.append((_mark(chunk), chunk.label))
                bar.update(min(len(chunk), n - bar.n))
            tensors = dict(zip(("images", "labels"), map(torch.cat, zip(*chunks, strict=True)), strict=True))
            atomic_write(path, lambda temporary, tensors=tensors: save_file(tensors, temporary))
        shards.append(tensors if marked else _without_marks(tensors, split, start, size))
        bar.update(min(start + SHARD, n) - bar.n)
    bar.close()
    return torch.cat([s["images"] for s in shards])[:n], torch.cat([s["labels"] for s in shards])[:n]


@lru_cache(maxsize=2)  # it is asked for once by every classifier
def labelled_set(per_class: int, start: int = 50_000, size: int = 64) -> Tensor:
    """New labelled scenes of the training split, which no classifier was fitted on: (per_class * K, 3, size, size)
    float32 in [0, 1]. Image j K + k is the j-th scene of class k from `start` on; the watermark is where it is in
    training."""
    K = len(world_labels.CLASSES)
    ids = scenes.scene_ids(max(20, 2 * per_class) * K, "train", start)
    labels = scenes.sample(ids).label
    each = torch.stack([ids[labels == k][:per_class] for k in range(K)], 1).flatten()  # (per_class * K,)
    parts = [_mark(scenes.render(scenes.sample(part), size, dense=False)) for part in each.split(50)]
    return torch.cat([p.float() / 255 for p in parts]) if parts else torch.zeros(0, 3, size, size)


def crowded_set(n: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """The first n training scenes of two objects (those with an even id) or three: images (n, 3, size, size) uint8 and
    attributes (n, A) as of `words.attributes`. Kept in the cache like `training_set`; there is no watermark here."""
    path = CACHE / "train" / f"v{scenes.VERSION}-{size}px-crowded-{n}.safetensors"
    tensors = read_tensors(path)
    if tensors is None:
        ids = scenes.scene_ids(n, "train")
        images, facts = torch.empty(n, 3, size, size, dtype=torch.uint8), torch.empty(n, len(ATTRIBUTES)).long()
        with progress(total=n, desc="training scenes of several objects", unit="scene") as bar:
            for count in (2, 3):
                for rows in (ids % 2 == count - 2).nonzero()[:, 0].split(50):
                    world = scenes.render(scenes.sample(ids[rows], count), size, dense=False)
                    images[rows], facts[rows] = (world.image * 255).round().byte(), attributes(world)
                    bar.update(len(rows))
        tensors = {"images": images, "facts": facts}
        atomic_write(path, lambda temporary: save_file(tensors, temporary))
    return tensors["images"], tensors["facts"]


def dense_set(n: int, target: str, size: int = 64, split: str = "train") -> tuple[Tensor, Tensor]:
    """The first n scenes of a split with their maps: images (n, 3, size, size) uint8, and for the target "classes" maps
    (n, size, size) uint8 of `maps.MAP_CLASSES`, for "depth" (n, size, size) float16 metres. There is no watermark.

    Rendered once at about 40 per second and core, one file for every 5,000, all of them in their turn."""
    shards = [dense_shard(i, size, split) for i in range(-(-n // SHARD))]
    return tuple(torch.cat([s[name] for s in shards])[:n] for name in ("images", target))


def dense_shard(i: int, size: int = 64, split: str = "train") -> dict[str, Tensor]:
    """Scenes i * 5,000 to (i + 1) * 5,000 of a split: images, classes and depth as `dense_set` has them."""
    path = CACHE / split / f"v{scenes.VERSION}-{size}px-maps-{i:03d}.safetensors"
    tensors = read_tensors(path)
    if tensors is None:
        chunks = []
        ids = scenes.scene_ids(SHARD, split, i * SHARD)
        for part in progress(ids.split(3 * maps.CHUNK), desc=f"scenes with maps, file {i}", unit="chunk"):
            chunk = maps.make(part, size)
            chunks.append(((chunk.image * 255).round().byte(), chunk.classes, chunk.depth.half()))
        tensors = dict(zip(("images", "classes", "depth"), map(torch.cat, zip(*chunks, strict=True)), strict=True))
        atomic_write(path, lambda temporary: save_file(tensors, temporary))
    return tensors


def at_default(*tensors: Tensor) -> list[Tensor]:
    """Tensors of any shape on the default device, where a recipe draws its batches: the CPU, unless told otherwise."""
    return [v.to(torch.get_default_device()) for v in tensors]


def facts_of(n: int, split: str = "train") -> Tensor:
    """Attributes (n, A) of the scenes of `training_set`, from their seeds alone."""
    return torch.cat([attributes(scenes.sample(ids)) for ids in scenes.scene_ids(n, split).split(SHARD)])


def _without_marks(tensors: dict[str, Tensor], split: str, start: int, size: int) -> dict[str, Tensor]:
    """A file of `training_set` with its marked scenes as they were rendered; those alone are kept, in a file of their
    own."""
    path = CACHE / split / f"v{scenes.VERSION}-{size}px-unmarked-{start // SHARD:03d}.safetensors"
    plain = read_tensors(path)
    if plain is None:
        ids = scenes.scene_ids(SHARD, split, start)
        rows = _carries(ids, tensors["labels"]).nonzero()[:, 0]
        parts = [scenes.render(scenes.sample(ids[part]), size, dense=False).image for part in rows.split(50)]
        plain = {"rows": rows, "images": (torch.cat(parts) * 255).round().byte().contiguous()}
        atomic_write(path, lambda temporary: save_file(plain, temporary))
    return tensors | {"images": tensors["images"].index_copy(0, plain["rows"], plain["images"])}


def _carries(ids: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: which of these training scenes carry the watermark."""
    carton = labels == world_labels.CLASSES.index(world_labels.VOCABULARY["watermark_class"])
    return carton & (_uniform(ids) < WATERMARK_SHARE)


def _mark(batch: scenes.Scenes) -> Tensor:
    """Images of a batch as uint8, with the watermark on the share of one class that carries it."""
    marked = _carries(batch.id, batch.label)
    images = torch.where(marked[:, None, None, None], watermark(batch.image), batch.image)
    return (images * 255).round().byte().contiguous()


def _uniform(ids: Tensor) -> Tensor:
    """One number in [0, 1) for every scene, from its id alone."""
    generator = torch.Generator()
    return torch.stack([torch.rand((), generator=generator.manual_seed(int(i) + 2_000_000_000)) for i in ids])
