"""Random draws that belong to an image: the same whatever its neighbours, the batch size, the order or the device.

Every draw comes from a generator seeded by (seed, image id, purpose, step), on the CPU, and is then moved. Two methods
that use the same purpose see the same (t, eps) pairs.
"""

import hashlib
from numbers import Integral

import numpy as np
import torch


def _hash(seed: int, image_id: int, purpose: str, step: int) -> int:
    """32 bits, which is all that torch's CPU generator uses of a seed."""
    numbers = (seed, image_id, step)
    if any(isinstance(n, bool) or not isinstance(n, Integral) for n in numbers):  # 3.0 would have other draws than 3
        raise ValueError(f"seed={seed!r}, id={image_id!r}, step={step!r}: choose whole numbers")
    text = f"{seed}|{image_id}|{purpose}|{step}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def generator(seed: int, image_id: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one image, purpose and step. Raises ValueError for numbers that are not whole."""
    return torch.Generator().manual_seed(_hash(seed, image_id, purpose, step))


def numpy_generator(seed: int, image_id: int, purpose: str, step: int = 0) -> np.random.Generator:
    """The same for code in numpy."""
    return np.random.default_rng(_hash(seed, image_id, purpose, step))
