"""Files that are replaced whole or not at all, and text files that people write."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from asymcir_common.errors import PlaceError

MAX_FILE_BYTES = 512 * 2**20
"""Larger files of pictures are not read; also what bounds a zip member that unpacks to gigabytes."""

_OLD_S = 60.0
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def replacing(path: str | Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which takes its place at the end.

    A reader, or a crash, sees the old or the new content and nothing between. After an error there is no temporary
    file; what a process that was killed left of this kind is removed a minute later, by the next one.

    Args:
        path: the file.
        mode: permissions of the file from its first byte on; None: the process's default.

    Raises:
        OSError: the file cannot be written; the old one stays.
    """
    path = Path(path)
    _remove_left(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if mode is not None:
            temporary.touch(mode=mode)
            temporary.chmod(mode)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: str | Path, text: str, *, mode: int | None = None) -> None:
    """Replace `path` by `text`, see `replacing`.

    Args:
        path: the file.
        text: its content, written as UTF-8.
        mode: permissions of the file from its first byte on; None: the process's default.

    Raises:
        OSError: the file cannot be written; the old one stays.
    """
    with replacing(path, mode=mode) as stream:
        stream.write(text.encode("utf-8"))


def read_utf8(path: str | Path) -> str:
    """Read a text file that a person wrote; a mark of UTF-8 at its start is passed over.

    Raises:
        PlaceError: it cannot be read, or is not UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise PlaceError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if data.startswith(_UTF16_MARKS) or b"\0" in data[:4]:
        raise PlaceError(f"{path} is UTF-16: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise PlaceError(f"{path} is not UTF-8 (byte {exc.start}): save it as UTF-8") from exc


def _remove_left(path: Path) -> None:
    """Remove temporary files of processes that are gone."""
    start, end = f".{path.name}.", ".tmp"
    with contextlib.suppress(OSError):
        for left in path.parent.iterdir():
            if not (left.name.startswith(start) and left.name.endswith(end)):
                continue
            number = left.name[len(start) : -len(end)]
            if number.isdecimal() and not _is_running(int(number)) and time.time() - left.stat().st_mtime > _OLD_S:
                left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
