"""Files that are replaced whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str, *, mode: int | None = None) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old or the new content and nothing between.

    Args:
        path: the file.
        text: its content, written as UTF-8.
        mode: permissions of the file from its first byte on; None: the process's default.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if mode is not None:
        temporary.touch(mode=mode)
        temporary.chmod(mode)
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
