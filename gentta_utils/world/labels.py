"""Names of the scenes world: classes, colours, prompts and templates; they live with the data, in labels.json."""

import json

from ..common.paths import DATA

VOCABULARY = json.loads((DATA / "scenes" / "labels.json").read_text(encoding="utf-8"))
CLASSES: list[str] = VOCABULARY["classes"]
COLOURS: list[str] = list(VOCABULARY["colours"])
MATERIALS: list[str] = VOCABULARY["materials"]
