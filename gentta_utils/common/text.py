"""Rows as a plain-text table."""


def as_table(rows: list[dict]) -> str:
    """Rows of equal keys as a plain-text (Markdown) table."""
    cells = [list(rows[0]), *[[str(v).replace("\n", " ").replace("|", "/") for v in row.values()] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
