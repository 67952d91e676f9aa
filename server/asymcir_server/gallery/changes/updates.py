"""New metadata for pictures, from lines of JSON."""

from pathlib import Path
from typing import Any

from asymcir_common.places.lists import parse_record, refuse_utf16

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.sources.entries import read_metadata


def read_updates(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a file of updates: id, and keys with their new values.

    Raises:
        GalleryBuildError: it cannot be read, or a line cannot be used.
    """
    updates = list[tuple[str, dict[str, Any]]]()
    try:
        with path.open("rb") as stream:
            refuse_utf16(path, stream.read(4))
            stream.seek(0)
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    updates.append(parse_update(line))
                except ValueError as exc:
                    raise GalleryBuildError(f"line {number} of {path} cannot be used: {exc}") from exc
    except OSError as exc:
        raise GalleryBuildError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return updates


def parse_update(line: bytes) -> tuple[str, dict[str, Any]]:
    """Read one update, {"id": "sku-1", "price": 9.5}; `path` names the picture where there is no `id`.

    Raises:
        ValueError: it names no picture, or its metadata cannot be sent in an answer.
    """
    record = parse_record(line)
    identity = record.get("id", record.get("path"))
    if not isinstance(identity, str) or not identity:
        raise ValueError("expected the picture's id as a text in `id`")
    return identity, parse_update_keys(line)


def parse_update_keys(line: bytes) -> dict[str, Any]:
    """Read keys with their new values; what names a picture is none of them.

    Raises:
        ValueError: it is no JSON object, or cannot be sent in an answer.
    """
    return read_metadata(line)
