"""How a user names pictures: one path, or several by braces and globs."""

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from asymcir_training.errors import DataError

KINDS = "a folder, a .zip, an uncompressed .tar (with {000..012} and * for several), or a .jsonl list"
"""What pictures come from, for errors."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")


def expand_spec(spec: str | Path) -> list[Path]:
    """Expand braces and globs; a name that exists as it stands is taken as it stands.

    Raises:
        DataError: nothing there for one of the names.
    """
    text = str(spec)
    if isinstance(spec, Path) or Path(text).exists():
        return [Path(spec)]
    found: list[Path] = []
    for name in _expand_braces(text):
        if Path(name).exists() or not glob.has_magic(name):
            found.append(Path(name))
            continue
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise DataError(f"no file matches {name}: expected {KINDS}")
        found += [Path(match) for match in matches]
    missing = [path for path in found if not path.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"no pictures at {missing[0]}{more}, from {text}: expected {KINDS}")
    return found


def _expand_braces(text: str) -> Iterator[str]:
    """Expand {000..012} and {a,b}, as a shell does; the width of the first number holds for all."""
    parts: list[list[str]] = []
    end = 0
    for match in _BRACES.finditer(text):
        numbers = _RANGE.match(match[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            step = 1 if first <= last else -1
            choices = [str(i).zfill(len(numbers[1])) for i in range(first, last + step, step)]
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        parts += [[text[end : match.start()]], choices]
        end = match.end()
    for chosen in itertools.product(*parts, [text[end:]]):
        yield "".join(chosen)
