"""Names of the scenes world: classes, colours, prompts and templates; they live with the data, in labels.json."""

import json

from ..common.paths import DATA

LABELS = json.loads((DATA / "scenes" / "labels.json").read_text(encoding="utf-8"))
CLASSES: list[str] = LABELS["classes"]
COLOURS: list[str] = list(LABELS["colours"])
MATERIALS: list[str] = LABELS["materials"]
