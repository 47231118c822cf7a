"""Text, image and group score of pairs of images and captions (Winoground; Thrush et al., CVPR 2022).

S (N, 2, 2) holds how well image i of a pair goes with its caption j; the right ones are on the diagonal. A tie is
wrong.

Card: docs/methods/composition.md
"""

import numpy as np
from jaxtyping import Bool, Float

CHANCE = {"text": 25.0, "image": 25.0, "group": 100 / 6}  # percent of pairs, where all 24 orders are equally likely


def text_right(S: Float[np.ndarray, "N 2 2"]) -> Bool[np.ndarray, " N"]:
    """Whether both images of a pair prefer their own caption."""
    return (S[:, 0, 0] > S[:, 0, 1]) & (S[:, 1, 1] > S[:, 1, 0])


def image_right(S: Float[np.ndarray, "N 2 2"]) -> Bool[np.ndarray, " N"]:
    """Whether both captions of a pair prefer their own image."""
    return text_right(S.transpose(0, 2, 1))


def group_right(S: Float[np.ndarray, "N 2 2"]) -> Bool[np.ndarray, " N"]:
    """Whether both hold."""
    return text_right(S) & image_right(S)


RIGHT = {"text": text_right, "image": image_right, "group": group_right}


def centred(S: Float[np.ndarray, "N 2 2"]) -> Float[np.ndarray, "N 2 2"]:
    """S without each pair's mean, which no score depends on: records round to a few digits."""
    return S - S.mean((1, 2), keepdims=True)
