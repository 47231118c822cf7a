"""Rows as a plain-text table."""

from tabulate import tabulate


def as_table(rows: list[dict]) -> str:
    """Rows of equal keys as a plain-text (Markdown) table; `|` in a cell is escaped."""
    if not isinstance(rows, list | tuple) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a table is a list of one row or more, each a dictionary of the same keys")
    lines = (rows[0], *(row.values() for row in rows))
    cells = [[str(v).replace("\n", " ").replace("|", "\\|") for v in line] for line in lines]
    table = tabulate(cells, tablefmt="github", disable_numparse=True, preserve_whitespace=True)
    rule, head, *rest = table.splitlines()  # tabulate would widen a column whose head is its longest cell
    return "\n".join([head, rule, *rest])
