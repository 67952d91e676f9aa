"""Every number on a Markdown page, filled in from the JSON files in benchmarks/results."""

from asymcir_benchmarks.pages.emojicir_tables import (
    emojicir_figures,
    format_goals,
    format_recalls,
    format_split,
    goals_by_scope,
    recall_figures,
)

__all__ = [
    "emojicir_figures",
    "format_goals",
    "format_recalls",
    "format_split",
    "goals_by_scope",
    "recall_figures",
]
