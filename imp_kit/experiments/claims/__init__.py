"""Published benchmark tables: the data with their sources (tables.py), and what can be seen in them (plots.py)."""

from imp_kit.experiments.claims.tables import (
    NAMES,
    SOURCE,
    complete,
    difference,
    dropped,
    interval,
    means,
    percent,
    questions,
    scores,
    sources,
    table,
    unclear,
    wins,
)

__all__ = [
    "NAMES",
    "SOURCE",
    "complete",
    "difference",
    "dropped",
    "interval",
    "means",
    "percent",
    "questions",
    "scores",
    "sources",
    "table",
    "unclear",
    "wins",
]
