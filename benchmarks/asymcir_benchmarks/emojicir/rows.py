"""Rows of a data set's JSON-lines files, checked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asymcir_benchmarks.errors import BenchmarkError


def read_rows(path: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Read JSON objects, one a line.

    Args:
        path: the file.
        texts: fields that every row must hold as a text.

    Raises:
        BenchmarkError: no such file, no rows, or a line that is not such a row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise BenchmarkError(f"cannot read {path}: {reason}; `make demo-assets` writes EmojiCIR's files") from exc
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise BenchmarkError(f"{path}:{number} is not JSON ({exc}): expected an object a line") from exc
        lacking = [name for name in texts if not isinstance(row, dict) or not isinstance(row.get(name), str)]
        if lacking:
            raise BenchmarkError(
                f"{path}:{number} lacks {', '.join(lacking)} as a text: expected an object with {', '.join(texts)}"
            )
        rows.append(row)
    if not rows:
        raise BenchmarkError(f"{path} holds no row: expected objects with {', '.join(texts)}, one a line")
    return rows
