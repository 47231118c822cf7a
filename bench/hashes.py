"""requirements-hashed.txt from constraints.txt: the checksums of every locked package, for `pip --require-hashes`.

    python -m pip install --dry-run --no-deps --ignore-installed --report report.json -r constraints.txt
    python bench/hashes.py report.json [MORE.json ...]

The checksums are those of the wheels for Linux on x86-64 that pip chose; each report adds its own, as of torch once for
the CPU and once from the package index.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(reports: list[str]) -> None:
    """Write requirements-hashed.txt from reports of pip."""
    known = defaultdict(set)
    for report in reports:
        for found in json.loads(Path(report).read_text(encoding="utf-8"))["install"]:
            name, version = found["metadata"]["name"], found["metadata"]["version"].split("+")[0]
            known[f"{name}=={version}"].add(found["download_info"]["archive_info"]["hashes"]["sha256"])
    lines = [" ".join([what, *(f"--hash=sha256:{h}" for h in sorted(hashes))]) for what, hashes in known.items()]
    (ROOT / "requirements-hashed.txt").write_text("\n".join(sorted(lines, key=str.lower)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
