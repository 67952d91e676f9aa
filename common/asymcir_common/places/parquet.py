"""A Parquet file as a place of pictures, one a row, with or without the pictures in it.

| column | what it is |
|---|---|
| `image` | the picture: bytes, or a struct of `bytes` and `path` as Hugging Face's datasets write it |
| `image.bytes` | the picture's bytes, where the struct was flattened |
| `path`, or `image` as text | the picture's path or URL, from the file's folder |
| `id` | a text or a whole number; default: the path, or "FILE/ROW" |
| others | metadata, captions and concept, as in a list; dates as text, empty cells and bytes left out |

A row group is read as a stream, a few rows at a time, so memory stays bounded whatever its size; going back in it reads
it again from its start. So reading in order costs one pass, and training, which reads at random, wants small row
groups. Needs `pyarrow`.
"""

import json
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import ImageError, PlaceError
from asymcir_common.files import MAX_FILE_BYTES
from asymcir_common.installation import how_to_install
from asymcir_common.places.file_reading import MISSING, OpenFiles, stamp_of
from asymcir_common.places.path_reading import PathReader
from asymcir_common.places.rules import Rejected, check_id
from asymcir_common.remote_files import is_url, join_url, read_url

_ROWS = 16
"""Rows that are decoded together."""

_KEPT_BYTES = 128 * 2**20
_KEPT_SLICES = 64
_EXPANDED_BYTES = 256 * 2**20
"""A cell of a dictionary stands in the file once and in memory for every row: fewer rows at a time of a large one."""


class ParquetPlace:
    """The pictures of a Parquet file, by row; see `Place`."""

    def __init__(self, path: Path, files: OpenFiles, prefix: str = "", *, url: str = "") -> None:
        """Read ids and paths of all rows.

        Args:
            path: the file.
            files: reads members of archives that paths lead into.
            prefix: stands before the path in an id that the file does not give.
            url: where the file came from; paths are relative to it.

        Raises:
            PlaceError: it cannot be read, or has no column of pictures; or pyarrow is missing.
        """
        self._path, self._url, self._reader = path, url, PathReader(files)
        self.where, self.label = url or str(path), path.name
        self.passed_over: Mapping[str, int] = {}
        self.passed_over_examples: Mapping[str, str] = {}
        self.left_out: Mapping[str, int] = {}
        _pyarrow_parquet()
        try:
            columns = _read_columns(path)
            picture, named = _find_picture_column(path, columns)
            names = [name for name in ("id", named) if name in columns or name == "image.path"]
            self._set_ids(_Cursor(path, names), named, prefix, whole="id" in columns)
        except _errors() as exc:
            raise PlaceError(f"cannot read the Parquet file {path}: {_first_line(exc)}") from exc
        self._pictures = _Cursor(path, [picture])
        self._picture = picture
        rest = [name for name, kind in columns.items() if name not in (self._picture, "image.path") and kind != "bytes"]
        self._metadata = _Cursor(path, rest) if rest else None
        self.found = f"a Parquet file of {len(self.ids)} rows"

    def _set_ids(self, cursor: "_Cursor", named: str, prefix: str, *, whole: bool) -> None:
        ids, paths, rows, rejected = list[str](), list[str](), list[int](), list[Rejected]()
        for row, record in enumerate(cursor.records()):
            cell = _cell(record, named) if named else None
            path = cell if isinstance(cell, str) and not check_id(cell) else ""
            own = f"{prefix or self.label + '/'}{row}"
            identity = record.get("id") if whole else None
            if isinstance(identity, int) and not isinstance(identity, bool):
                identity = str(identity)
            if identity is None:
                identity = (path if is_url(path) else prefix + path) if path else own
            reason = (
                check_id(identity)
                if isinstance(identity, str)
                else f"expected a text or a whole number as id, got {identity!r}"
            )
            if reason:
                rejected.append(Rejected(id=own, path=path, reason=reason))
                continue
            ids.append(str(identity))
            paths.append(path or own)
            rows.append(row)
        self.ids: Sequence[str] = ids
        self.rejected = tuple(rejected)
        self._paths, self._rows = paths, np.array(rows, np.int64)

    def path(self, row: int) -> str:
        """Return the path that a row gives, or "FILE/ROW"."""
        return self._paths[row]

    def sizes(self) -> NDArray[np.int64]:
        """Return MISSING for each: the file does not say, short of reading all of it."""
        return np.full(len(self.ids), MISSING, np.int64)

    def stamp(self, row: int) -> tuple[str, int, int]:
        """Return where a row lies, MISSING, and when the file changed, in ns."""
        place, _, changed_ns = stamp_of(self._path)
        return f"{self._url or place}/{int(self._rows[row])}", MISSING, changed_ns

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        name = self._paths[row]
        cell = self._pictures.record(int(self._rows[row]), name).get(self._picture)
        if isinstance(cell, dict):
            cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
        if isinstance(cell, bytes):
            if len(cell) > MAX_FILE_BYTES:
                raise ImageError(f"{name} is above {MAX_FILE_BYTES // 2**20} MiB: scale it down first")
            return cell
        if not isinstance(cell, str) or not cell.strip("\0"):
            raise ImageError(f"cannot read {name}: its cell in the column {self._picture} is empty")
        if self._url or is_url(cell):
            return read_url(join_url(self._url, cell), cell, most_bytes=MAX_FILE_BYTES)
        return self._reader.read(self._path.parent / cell, cell)

    def lines(self, row: int) -> list[bytes]:
        """Return the other columns of a row as a line of a list."""
        record = self._metadata.record(int(self._rows[row]), self._paths[row]) if self._metadata else {}
        return [json.dumps(_to_json(record), ensure_ascii=False).encode("utf-8", "replace")]

    def beside(self, row: int) -> tuple[bytes | None, bytes | None]:
        """Return nothing: what is known of a picture stands in its row."""
        del row
        return None, None


class _Cursor:
    """Reads rows of some columns, a slice at a time; what was read last is kept. Picklable, safe between threads."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path, self._columns = path, list(columns)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_columns": self._columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_path"], state["_columns"])  # type: ignore[misc]

    def _reset(self) -> None:
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._kept: deque[tuple[int, Any]] = deque()
        self._file: Any = None
        self._batches: Iterator[Any] = iter(())
        self._next = self._end = 0  # the row that comes next, and where the open row group ends

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every row, in order."""
        if not self._columns:
            yield from ({} for _ in range(_open(self._path).metadata.num_rows))
            return
        for batch in _open(self._path).iter_batches(1024, columns=self._columns, use_threads=False):
            yield from batch.to_pylist()

    def record(self, row: int, name: str) -> dict[str, Any]:
        """Return one row; ImageError when it cannot be read."""
        if self._owner != os.getpid():  # a forked worker shares neither position nor lock with its parent
            self._reset()
        try:
            with self._lock:
                start, batch = self._find(row)
                found: dict[str, Any] = batch.slice(row - start, 1).to_pylist()[0]
                return found
        except _errors() as exc:
            self._batches, self._next, self._end = iter(()), 0, 0
            raise ImageError(f"cannot read {name}: {_first_line(exc)}") from exc

    def _find(self, row: int) -> tuple[int, Any]:
        for start, batch in self._kept:
            if start <= row < start + len(batch):
                return start, batch
        if not self._next <= row < self._end:
            self._open_group(row)
        while True:
            batch = next(self._batches)
            self._kept.append((self._next, batch))
            self._next += len(batch)
            kept_bytes = sum(kept.nbytes for _, kept in self._kept)
            while len(self._kept) > 2 and (kept_bytes > _KEPT_BYTES or len(self._kept) > _KEPT_SLICES):
                kept_bytes -= self._kept.popleft()[1].nbytes
            if row < self._next:
                return self._kept[-1]

    def _open_group(self, row: int) -> None:
        if self._file is None:
            self._file = _open(self._path)
        metadata, start = self._file.metadata, 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if row < start + group.num_rows:
                break
            start += group.num_rows
        outer = {name if "." not in name else name.partition(".")[0] for name in self._columns} | {*self._columns}
        columns = [
            column
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema in outer or column.path_in_schema.partition(".")[0] in outer
        ]
        if sum(column.total_uncompressed_size for column in columns) > MAX_FILE_BYTES * group.num_rows:
            raise ImageError(f"its rows unpack to more than {MAX_FILE_BYTES // 2**20} MiB each")
        dictionaries = (
            column.total_uncompressed_size
            for column in columns
            if any("DICTIONARY" in encoding for encoding in column.encodings)
        )
        rows = max(1, min(_ROWS, _EXPANDED_BYTES // max(1, *dictionaries, 1)))
        self._batches = self._file.iter_batches(rows, row_groups=[number], columns=self._columns, use_threads=False)
        self._next, self._end = start, start + group.num_rows


def _open(path: Path) -> Any:
    parquet = _pyarrow_parquet()
    return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


def _read_columns(path: Path) -> dict[str, str]:
    """Return the name and the kind of each column: "text", "bytes", "struct" of a picture, or "other"."""
    import pyarrow

    def kind(data_type: Any) -> str:
        types = pyarrow.types
        if types.is_dictionary(data_type):
            return kind(data_type.value_type)
        if types.is_string(data_type) or types.is_large_string(data_type):
            return "text"
        if types.is_binary(data_type) or types.is_large_binary(data_type) or types.is_fixed_size_binary(data_type):
            return "bytes"
        if types.is_struct(data_type) and "bytes" in {field.name for field in data_type}:
            return "struct"
        return "other"

    return {field.name: kind(field.type) for field in _open(path).schema_arrow}


def _find_picture_column(path: Path, columns: Mapping[str, str]) -> tuple[str, str]:
    """Return the column of the pictures, and the one that names them ("" for none)."""
    if columns.get("image") == "struct":
        return "image", "path" if columns.get("path") == "text" else "image.path"
    for name, kind in (("image", "bytes"), ("image.bytes", "bytes"), ("path", "text"), ("image", "text")):
        if columns.get(name) == kind:
            if kind == "text":
                return name, name
            return name, next((other for other in ("path", "image.path") if columns.get(other) == "text"), "")
    raise PlaceError(
        f"the Parquet file {path} has no column of pictures: expected `image` (bytes, or bytes and path), "
        f"`image.bytes` or `path`, found {', '.join(columns) or 'none'}"
    )


def _cell(record: Mapping[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    outer = record.get(name.partition(".")[0])
    return outer.get(name.partition(".")[2]) if isinstance(outer, dict) else None


def _to_json(value: Any) -> Any:
    """Return a cell as JSON has it; what it has nothing for becomes text, and bytes, NaN and empty cells go."""
    if isinstance(value, dict):
        found = ((str(key), _to_json(item)) for key, item in value.items())
        return {key: item for key, item in found if item is not None}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bytes):
        return None
    if isinstance(value, str | bool | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as exc:
        raise PlaceError(f"Parquet files need pyarrow: {how_to_install('parquet')}") from exc
    return pyarrow.parquet


def _errors() -> tuple[type[Exception], ...]:
    """Return what reading a damaged file may raise."""
    import pyarrow

    return (ImageError, OSError, ValueError, StopIteration, pyarrow.ArrowException)


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
