"""Names of the scenes world: classes, colours, prompts and templates; they live with the data, in labels.json."""

from ..common.files import read_json
from ..common.paths import SCENES

VOCABULARY = read_json(SCENES / "labels.json", "run `git checkout -- data/scenes`")
CLASSES: list[str] = VOCABULARY["classes"]
COLOURS: list[str] = list(VOCABULARY["colours"])
MATERIALS: list[str] = VOCABULARY["materials"]
