"""Tables in Markdown, and where their figures come from."""

from collections.abc import Mapping, Sequence
from typing import Any


def describe_source(record: Mapping[str, Any]) -> str:
    """Say in one line how and where a result was measured."""
    return f"`{record['command']}`, {record['date']}, {record['machine']}."


def make_table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows, the head first; all columns but the first are numbers."""
    head, *body = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
