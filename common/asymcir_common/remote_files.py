"""Files at URLs (http, https, s3, gs), read through fsspec: within a time, a few tries, and a bound on their size.

Where a file system asks for keys, fsspec's own configuration gives them (environment variables, `~/.config/fsspec`).
"""

import atexit
import functools
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from asymcir_common.errors import ImageError, PlaceError
from asymcir_common.installation import how_to_install

PROTOCOLS = frozenset({"gcs", "gs", "http", "https", "memory", "s3", "s3a"})
"""What is read; `memory` is fsspec's own file system of this process, for tests."""

TRIES = 4
BACKOFF_S = 0.5
"""Before the second try, on average; doubled before each further one."""

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
"""To open a connection, and between two parts of an answer."""

PICTURE_TIMEOUT_S = 300.0
"""For a whole picture."""

_CHUNK_BYTES = 1 << 20
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImageError)

_Result = TypeVar("_Result")


def is_url(name: str) -> bool:
    """Whether a name starts as a URL does: `scheme://`."""
    return _URL.match(name) is not None


def check_url(url: str) -> None:
    """Check that a URL is of a kind that is read, and that what reads it is installed.

    Raises:
        PlaceError: it is not; one line.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS:
        raise PlaceError(f"URLs of the kind {protocol}:// are not read: expected http, https, s3 or gs")
    _check_installed(protocol)


def name_of_url(url: str) -> str:
    """Return the last part of a URL's path: the file's name."""
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2] or urlsplit(url).netloc


def join_url(base: str, name: str) -> str:
    """Return the URL of a name that stands in the file at `base`; a URL stays as it is."""
    if is_url(name):
        return name
    if base.startswith(("http://", "https://")):
        return urljoin(base, name)
    return f"{base.rpartition('/')[0]}/{name}"


def read_url(url: str, name: str, *, most_bytes: int) -> bytes:
    """Read a picture's file.

    Args:
        url: where it lies.
        name: how errors call it.
        most_bytes: of a larger one no more is read.

    Raises:
        ImageError: it cannot be read, in TRIES tries where trying again may help, or is larger.
    """

    def read() -> bytes:
        parts, size_bytes = [], 0
        ends_s = time.monotonic() + PICTURE_TIMEOUT_S
        with _open(url) as stream:
            while part := stream.read(min(_CHUNK_BYTES, most_bytes + 1 - size_bytes)):
                parts.append(part)
                size_bytes += len(part)
                if size_bytes > most_bytes:
                    raise ImageError(f"{name} is above {most_bytes // 2**20} MiB: scale it down first")
                if time.monotonic() > ends_s:
                    raise ImageError(f"cannot read {name}: it did not come in {PICTURE_TIMEOUT_S:g} s")
        return b"".join(parts)

    try:
        check_url(url)
        return _try(read)
    except ImageError:
        raise
    except Exception as exc:
        raise ImageError(f"cannot read {name}: {_describe(exc)}") from exc


def download(url: str) -> Path:
    """Copy a list, an archive or a Parquet file to a folder for temporary files, removed when this process ends.

    Returns:
        The copy, under the file's own name, in a folder of its own.

    Raises:
        PlaceError: it cannot be read, in TRIES tries where trying again may help.
    """
    check_url(url)
    path = Path(tempfile.mkdtemp(dir=_download_folder())) / name_of_url(url)

    def copy() -> None:
        file_system, there = _find(url)
        file_system.get_file(there, str(path))

    try:
        _try(copy)
    except Exception as exc:
        raise PlaceError(f"cannot read {url}: {_describe(exc)}") from exc
    return path


def expand_url(pattern: str) -> list[str]:
    """Return the URLs that a pattern with `*` names, sorted; over HTTP, which has no directories, the URL itself.

    Raises:
        PlaceError: none, or they cannot be listed.
    """
    if "*" not in pattern or pattern.lower().startswith("http"):
        return [pattern]
    check_url(pattern)
    try:
        file_system, there = _find(pattern)
        found = sorted(str(file_system.unstrip_protocol(path)) for path in _try(lambda: file_system.glob(there)))
    except Exception as exc:
        raise PlaceError(f"cannot list {pattern}: {_describe(exc)}") from exc
    if not found:
        raise PlaceError(f"no file matches {pattern}")
    return found


def _find(url: str) -> tuple[Any, str]:
    """Return fsspec's file system and the path in it; file systems are kept by fsspec."""
    import fsspec

    options: dict[str, Any] = {}
    if url.lower().startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        options["client_kwargs"] = {"timeout": timeout}
    file_system, path = fsspec.core.url_to_fs(url, **options)
    return file_system, path


def _open(url: str) -> Any:
    file_system, path = _find(url)
    if url.lower().startswith("http"):
        # One request, read as it comes: without a size fsspec would ask for it first, and then for ranges.
        return file_system.open(path, "rb", block_size=0, size=1)
    return file_system.open(path, "rb")


def _try(action: Callable[[], _Result]) -> _Result:
    for number in range(TRIES):
        try:
            return action()
        except Exception as exc:
            status = getattr(exc, "status", None)
            final = isinstance(exc, _FINAL) or (isinstance(status, int) and status not in _TRY_AGAIN)
            if final or number == TRIES - 1:
                raise
        time.sleep(BACKOFF_S * 2**number * random.uniform(0.5, 1.5))
    raise AssertionError("not reached")


def _describe(exc: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(exc, FileNotFoundError):
        return "there is no such file"
    if isinstance(exc, PlaceError):
        return str(exc)
    status = getattr(exc, "status", None)
    if isinstance(status, int):
        return f"the server answers {status} {getattr(exc, 'message', '')}".strip()
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


@functools.cache
def _check_installed(protocol: str) -> None:
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except ImportError as exc:
        raise PlaceError(
            f"{protocol}:// needs packages that are not installed ({exc}): {how_to_install('remote')}"
        ) from exc


@functools.cache
def _download_folder() -> str:
    folder = tempfile.mkdtemp(prefix="asymcir-")
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker ends too
        shutil.rmtree(folder, ignore_errors=True)
