"""What words can say of a scene: attributes, captions, and ten label sets over the same pixels.

A text model never sees everything. Here it is known exactly what: no caption that a model of this course was trained on
holds an "unseen" text, that is a pair of category and colour for which `unseen_pair` holds, the material "shiny", or
one of two wordings ("a picture of", "in front of"). Attributes come from a scene's id, so every label is exact.
"""

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from .labels import CLASSES, COLOURS, MATERIALS
from .scenes import Scenes

COUNTS = ["one object", "two objects", "three objects"]
POSES = ["on the left", "in the middle", "on the right"]
SIZES = ["small", "large"]
LEFT, LARGE = 0.115, 0.732  # at the thirds of where objects stand, at the median of how large they look
VALUES = {  # attribute -> its values
    "category": CLASSES, "colour": COLOURS, "material": MATERIALS, "floor": COLOURS, "wall": COLOURS,
    "count": COUNTS, "pose": POSES, "size": SIZES,
}  # fmt: skip
ATTRIBUTES = list(VALUES)
UNSAID = -1  # of an attribute that a caption does not speak of
UNSEEN_MATERIAL = "shiny"
UNSEEN_WORDINGS = ("a picture of", "in front of")


def unseen_pair(category: Int[Tensor, "*n"], colour: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Whether a pair of category and colour, by index, is one of the 27 of 80 that no training caption names."""
    return (category + colour) % 3 == 0


UNSEEN_PAIRS = {f"{c} {k}" for (i, k), (j, c) in product(enumerate(CLASSES), enumerate(COLOURS)) if (i + j) % 3 == 0}


def is_unseen(text: str) -> bool:
    """Whether no training caption says what this text says: an unseen pair, material or wording."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    pairs = {" ".join(pair) for pair in zip(words, words[1:])}
    said = any(w in " ".join(words) for w in UNSEEN_WORDINGS)
    return said or UNSEEN_MATERIAL in words or bool(pairs & UNSEEN_PAIRS)


# --- attributes and captions -----------------------------------------------------------------------------------------


def attributes(world: Scenes) -> Int[Tensor, "B A"]:
    """What is true of each scene's first object, its floor and its wall: indices (B, A) in the order of ATTRIBUTES.

    Pose is where in the picture the object's centre is; size is how large it looks: both by the camera of the scene."""
    _, x, reach = across(world)
    x = x / reach  # -1 to 1
    found = {
        "category": world.label,
        "colour": world.colour[:, 0],
        "material": world.material[:, 0],
        "floor": world.floor,
        "wall": world.wall,
        "count": torch.full_like(world.label, world.classes.shape[1] - 1),
        "pose": 1 + (x > LEFT).long() - (x < -LEFT).long(),
        "size": (world.scale[:, 0] / reach > LARGE).long(),
    }
    return torch.stack([found[name] for name in ATTRIBUTES], 1)


def across(world: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """The camera's unit vector to the right (B, 3), level; how far along it from the picture's middle each scene's
    first object is (B,); and how far the picture's edge is at that depth (B,); metres."""
    axis = F.normalize(world.target - world.camera, dim=-1)  # (B, 3)
    up = axis.new_tensor([[0.0, 1.0, 0.0]]).expand_as(axis)
    right = F.normalize(torch.linalg.cross(up, axis), dim=-1)
    away = world.position[:, 0] - world.camera
    return right, (away * right).sum(-1), (away * axis).sum(-1) * world.tan_half_fov


def mirrored(facts: Int[Tensor, "B A"], flip: Bool[Tensor, " B"]) -> Int[Tensor, "B A"]:
    """The attributes of images some of which were flipped left to right."""
    pose = ATTRIBUTES.index("pose")
    facts = facts.clone()
    facts[:, pose] = torch.where(flip, len(POSES) - 1 - facts[:, pose], facts[:, pose])
    return facts


SHARES = {"category": 0.8, "colour": 0.7, "material": 0.6, "floor": 0.5, "wall": 0.4, "pose": 0.3, "size": 0.3}


def choose(facts: Int[Tensor, "B A"], generator: torch.Generator, all_said: float = 0.0) -> Int[Tensor, "B A"]:
    """What a training caption says of each scene: its attributes (B, A), UNSAID where it is silent.

    Each attribute is named with its probability in SHARES, and all together with probability `all_said`. Never named:
    "shiny", category and colour of an unseen pair (one of both is dropped, at random), and what one of several objects
    is like."""
    B = len(facts)
    column = {name: i for i, name in enumerate(ATTRIBUTES)}
    share = torch.tensor([SHARES.get(name, 1.0) for name in ATTRIBUTES])
    said = torch.rand(B, len(ATTRIBUTES), generator=generator) < share
    said |= torch.rand(B, 1, generator=generator) < all_said
    category, colour = column["category"], column["colour"]
    clash = unseen_pair(facts[:, category], facts[:, colour]) & said[:, category] & said[:, colour]
    first = torch.rand(B, generator=generator) < 0.5
    said[:, category] &= ~(clash & first)
    said[:, colour] &= ~(clash & ~first)
    said[:, column["material"]] &= facts[:, column["material"]] != MATERIALS.index(UNSEEN_MATERIAL)
    several = facts[:, column["count"]] > 0
    for name in ("category", "colour", "material", "pose", "size"):
        said[:, column[name]] &= ~several
    return torch.where(said, facts, UNSAID)


def sentence(said: list[int], wording: int = 0, one: bool = False, stop: bool = False) -> str:
    """A caption that says these attributes, in the order of ATTRIBUTES, UNSAID left out.

    Args:
        wording: 0 "a photo of ... before a green wall", 1 "..., the floor is blue, the wall is green", 2 "this is ...".
        one: "one red torus" instead of "a red torus".
        stop: end with a full stop.
    """
    word = {name: VALUES[name][i] for name, i in zip(ATTRIBUTES, said, strict=True) if i != UNSAID}
    thing = [word.get(name) for name in ("size", "material", "colour")] + [word.get("category", "object")]
    thing = " ".join(["one" if one else "a", *filter(None, thing)])
    if word.get("count", COUNTS[0]) != COUNTS[0]:
        thing = word["count"]
    parts = [("a photo of ", "", "this is ")[wording] + thing]
    parts += [word["pose"]] if "pose" in word else []
    if wording == 1:
        parts += [f", the {name} is {word[name]}" for name in ("floor", "wall") if name in word]
    else:
        places = {"floor": "on a {} floor", "wall": "before a {} wall"}
        parts += [place.format(word[name]) for name, place in places.items() if name in word]
    return " ".join(parts).replace(" ,", ",") + "." * stop


def captions(said: Int[Tensor, "B A"], generator: torch.Generator) -> list[str]:
    """One sentence for each row of `choose`, its wording drawn."""
    wording = torch.randint(0, 3, (len(said),), generator=generator).tolist()
    one, stop = (torch.rand(2, len(said), generator=generator) < torch.tensor([[0.2], [0.5]])).tolist()
    return [sentence(*row) for row in zip(said.tolist(), wording, one, stop, strict=True)]


def true_of(said: Int[Tensor, "M A"], facts: Int[Tensor, "B A"]) -> Bool[Tensor, "M B"]:
    """Which captions (M, A) are true of which scenes (B, A): a silent caption is true of many."""
    return ((said[:, None] == facts) | (said[:, None] == UNSAID)).all(-1)


# --- label sets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelSet:
    """One way to sort the scenes: what is asked, in which words.

    Attributes:
        asks: one attribute, or two whose combinations are the classes.
        templates: with a place for the class name; the first is the single prompt.
    """

    name: str
    asks: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        """Class names, those of the last attribute changing fastest."""
        return [" ".join(names) for names in product(*(VALUES[a] for a in self.asks))]

    def prompts(self, template: int = 0) -> list[str]:
        """One text per class."""
        return [self.templates[template].format(name) for name in self.classes]

    @property
    def seen(self) -> list[bool]:
        """Of each class: whether training captions name it, in whatever wording."""
        return [not is_unseen(name) for name in self.classes]

    def labels(self, facts: Int[Tensor, "B A"]) -> Int[Tensor, " B"]:
        """Labels (B,) of scenes with these attributes (B, A)."""
        label = torch.zeros(len(facts), dtype=torch.long)
        for name in self.asks:
            label = label * len(VALUES[name]) + facts[:, ATTRIBUTES.index(name)]
        return label


_OBJECT = ("a photo of a {} object.", "a {} object", "this is a {} object.")
_THING = ("a photo of a {}.", "a {}", "this is a {}.", "a photo of one {}.")
_SETS = [
    LabelSet("category", ("category",), _THING),
    LabelSet("colour", ("colour",), _OBJECT),
    LabelSet("material", ("material",), _OBJECT),
    LabelSet("floor", ("floor",), ("a photo of a object on a {} floor.", "a object, the floor is {}.")),
    LabelSet(
        "wall", ("wall",), ("a photo of a object in front of a {} wall.", "a photo of a object before a {} wall.")
    ),
    LabelSet("count", ("count",), ("a photo of {}.", "{}", "this is {}.")),
    LabelSet("pose", ("pose",), ("a photo of a object {}.", "a object {}", "this is a object {}.")),
    LabelSet("size", ("size",), ("a picture of a {} object.", *_OBJECT)),
    LabelSet("colour category", ("colour", "category"), _THING),
    LabelSet("material colour", ("material", "colour"), _OBJECT),
]  # fmt: skip
LABEL_SETS = {s.name.replace(" ", "_"): s for s in _SETS}


def label_set(name: str) -> LabelSet:
    """Raises ValueError for an unknown name."""
    if name not in LABEL_SETS:
        raise ValueError(f"unknown label set {name!r}: choose one of {', '.join(LABEL_SETS)}")
    return LABEL_SETS[name]
