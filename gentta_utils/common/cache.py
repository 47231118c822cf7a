"""Images that are slow to make, kept in parts as soon as they are done: purified test images, synthetic sets."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .files import atomic_write, read_tensors
from .progress import progress
from .types import Images, Index


@dataclass(frozen=True)
class ImageSet:
    """B images with what they cost.

    Attributes:
        ids: (B,). images: (B, 3, S, S) in [0, 1]. seconds: per image, on average.
        nfe: evaluations of the denoiser per image, by kind.
    """

    ids: Index
    images: Images
    seconds: float
    nfe: dict[str, float]

    def by_id(self) -> dict[int, Tensor]:
        """id -> image (3, S, S)."""
        return dict(zip(self.ids.tolist(), self.images, strict=True))


def in_parts(
    work: Callable[[Tensor], dict], ids: Index, folder: Path | None, chunk: int, desc: str, unit: str = "part"
) -> list[dict[str, Tensor]]:
    """`work(rows)` over the rows of ids (B,), `chunk` at a time; each part is kept in `folder` as soon as it is done.

    A part of other ids is made again. The caller names the folder after all that the tensors depend on
    (`fingerprint`)."""
    parts = []
    for part, rows in enumerate(progress(torch.arange(len(ids)).split(chunk), desc=desc, unit=unit, leave=False)):
        path = None if folder is None else Path(folder) / f"{part:04d}.safetensors"
        kept = None if path is None else read_tensors(path)
        of = (kept or {}).get("ids", (kept or {}).get("id"))
        if of is None or not torch.equal(of, ids[rows]):
            kept = {"ids": ids[rows].contiguous(), **work(rows)}
            if path is not None:
                atomic_write(path, lambda temporary, kept=kept: save_file(kept, temporary))
        parts.append(kept)
    return parts


def make_images(
    work: Callable[[Tensor], Tensor], ids: Index, denoiser, folder: Path, chunk: int, desc: str = "images"
) -> ImageSet:
    """`work(rows)` (rows (M,) -> images (M, 3, S, S)) over all of ids (B,), `chunk` at a time.

    Each part is kept in `folder`, as `in_parts` does it."""

    def timed(rows: Tensor) -> dict[str, Tensor]:
        start, before = time.perf_counter(), dict(denoiser.count)
        images = work(rows).cpu().contiguous()
        cost = [time.perf_counter() - start, *(denoiser.count[k] - before[k] for k in ("fwd", "fwd+bwd"))]
        return {"images": images, "cost": torch.tensor(cost, dtype=torch.float64)}

    parts = in_parts(timed, ids, folder, chunk, desc)
    seconds, fwd, both = (sum(p["cost"] for p in parts) / len(ids)).tolist()
    nfe = {f"denoiser {kind}": n for kind, n in (("fwd", fwd), ("fwd+bwd", both)) if n}
    return ImageSet(ids, torch.cat([p["images"] for p in parts]), seconds, nfe)


VERSION = 1  # raise it when a change of code changes numbers: no older run is then taken up again


# --- records on disk -------------------------------------------------------------------------------------------------


def fingerprint(content: dict) -> str:
    """Hash of a description and of VERSION, independent of the order of its keys."""
    text = json.dumps({**content, "version": VERSION}, sort_keys=True, default=plain_json)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def plain_json(value):
    """For `json.dumps`: a dataclass as a dictionary. Raises TypeError for anything else."""
    if is_dataclass(value):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
