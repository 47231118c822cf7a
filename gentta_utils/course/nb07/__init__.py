"""Notebook 07: every method on one stream, at equal cost. `TABLES`: how each table is measured and shown."""

from . import digits

TABLES = {  # name -> (measure it, show its records)
    "digits": (digits.digits, digits.show),
}
