"""Bundle manifests: what a folder holds, where it came from, and proof that nothing in it changed.

A bundle is a folder with a `manifest.json` that lists every file with its SHA-256 and size. A folder that does not
match its manifest does not load: a changed byte or a missing file is an error, never a slightly different answer.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from asymcir_common.errors import BundleError
from asymcir_common.files import write_atomically

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
DEVICE_BUNDLE = "asymcir.device-bundle"
SERVER_BUNDLE = "asymcir.server-bundle"
GALLERY = "asymcir.gallery"

UNCHECKED_FILES: Mapping[str, frozenset[str]] = {GALLERY: frozenset({"duplicates.jsonl", "quarantine.jsonl"})}
"""By format, what is written for people to read, and changes no answer: neither hashed nor checked."""

SAMPLED_ABOVE_BYTES = 64 << 20
"""A larger file of a gallery is checked by its sample digest when the gallery is opened."""

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 32 << 20
_TAIL_BYTES = 1 << 20
_SAMPLE_BLOCKS = 512
_SAMPLE_BLOCK_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a bundle."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not isinstance(self.size_bytes, int):
            raise TypeError(f"expected a digest and a size, got {self.sha256!r} and {self.size_bytes!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        format: DEVICE_BUNDLE, SERVER_BUNDLE or GALLERY.
        version: of the format; a reader refuses a version it does not know.
        files: relative POSIX path -> digest and size, for every file but the manifest itself and UNCHECKED_FILES.
        properties: what the reader of this format needs (shapes, spaces, preprocessing, ...).
        sources: where the contents came from, one mapping with `name` and `licence` (and `url`) each.
        parity: what was measured when the bundle was written.
        samples: relative POSIX path -> sample digest (`digest_sample`), of large files of a gallery.
    """

    format: str
    version: int = FORMAT_VERSION
    files: Mapping[str, FileEntry]
    properties: Mapping[str, Any]
    sources: Sequence[Mapping[str, str]] = field(default_factory=list)
    parity: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, str] = field(default_factory=dict)

    def require(self, key: str) -> Any:
        """Return a property, or raise BundleError that names it."""
        if key not in self.properties:
            raise BundleError(f"the {self.format} manifest has no property {key!r}: export it again with this version")
        return self.properties[key]


def digest_file(path: str | Path) -> FileEntry:
    """Hash one file in bounded memory."""
    path = Path(path)
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
    return FileEntry(sha256=sha256.hexdigest(), size_bytes=path.stat().st_size)


def digest_sample(path: str | Path) -> str:
    """Hash the size, the first 32 MiB, the last 1 MiB and 512 blocks of 16 KiB at even distances of one file.

    It takes the same time whatever the size. It finds another file, a cut one and a lost extent; a changed byte only
    in what it reads. The head holds the structure of an index: what FAISS follows, and not only scores with.
    """
    path = Path(path)
    size_bytes = path.stat().st_size
    sha256 = hashlib.sha256(f"{size_bytes}\n".encode())
    step = max(1, size_bytes // _SAMPLE_BLOCKS)
    parts = [(0, _HEAD_BYTES), (max(0, size_bytes - _TAIL_BYTES), _TAIL_BYTES)]
    parts += [(number * step, _SAMPLE_BLOCK_BYTES) for number in range(_SAMPLE_BLOCKS)]
    with path.open("rb", buffering=0) as stream:
        for start, length in parts:
            stream.seek(start)
            while length > 0 and (chunk := stream.read(min(length, _CHUNK_BYTES))):
                sha256.update(chunk)
                length -= len(chunk)
    return sha256.hexdigest()


def write_manifest(
    folder: str | Path,
    *,
    format: str,
    properties: Mapping[str, Any],
    sources: Sequence[Mapping[str, str]] = (),
    parity: Mapping[str, Any] | None = None,
    sampled: bool = False,
) -> Manifest:
    """Hash every file below `folder` but UNCHECKED_FILES and write its manifest last, atomically.

    A folder whose writing was interrupted has no manifest, and so does not load. With `sampled`, files above
    SAMPLED_ABOVE_BYTES get a sample digest too, so that they can be opened without being read whole.
    """
    folder = Path(folder)
    unchecked = {MANIFEST_NAME, *UNCHECKED_FILES.get(format, ())}
    files = {
        name: digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in unchecked
    }
    large = [name for name, entry in files.items() if sampled and entry.size_bytes > SAMPLED_ABOVE_BYTES]
    manifest = Manifest(
        format=format,
        files=files,
        properties=properties,
        sources=list(sources),
        parity=parity or {},
        samples={name: digest_sample(folder / name) for name in large},
    )
    record = asdict(manifest)
    if not manifest.samples:
        del record["samples"]
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST_NAME, text)
    return manifest


def read_manifest(folder: str | Path, *, format: str, sampled: bool = False) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Args:
        folder: the bundle.
        format: the format expected: DEVICE_BUNDLE, SERVER_BUNDLE or GALLERY.
        sampled: check a file that has a sample digest by size and that digest, and do not read it whole.

    Raises:
        BundleError: no such folder, no manifest, another format or version, a missing or changed file.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(f"expected a folder of format {format} at {folder}, found none: check the path")
    if not path.is_file():
        raise BundleError(f"{folder} has no {MANIFEST_NAME}: it is not a {format}, or writing it was interrupted")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(
            format=record["format"],
            version=record["version"],
            files={name: FileEntry(**entry) for name, entry in record["files"].items()},
            properties=dict(record["properties"].items()),
            sources=record.get("sources", []),
            parity=record.get("parity", {}),
            samples=dict(record.get("samples", {}).items()),
        )
    except OSError as exc:
        raise BundleError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError(f"{path} is damaged ({type(exc).__name__}: {exc}): export or download it again") from exc
    if manifest.format != format:
        raise BundleError(f"expected an {format} at {folder}, got an {manifest.format}: pass the right folder")
    if manifest.version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} is of format version {manifest.version}, this asymcir reads {FORMAT_VERSION}: "
            "export it again, or install the asymcir version that wrote it"
        )
    for name, entry in manifest.files.items():
        if name in UNCHECKED_FILES.get(format, ()):
            continue  # snapshots of before list them
        _check_file(folder, name, entry, manifest.samples.get(name) if sampled else None)
    return manifest


def _check_file(folder: Path, name: str, entry: FileEntry, sample: str | None) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BundleError(f"{folder / MANIFEST_NAME} names {name!r}, a path outside the bundle: do not use this bundle")
    if not path.is_file():
        raise BundleError(f"{folder} lacks {name}, which its manifest lists: copy or export it again")
    try:
        if sample is not None and path.stat().st_size == entry.size_bytes:
            if digest_sample(path) == sample:
                return
            raise BundleError(
                f"{path} is not the file its manifest describes (its sample digest differs): copy it again"
            )
        found = digest_file(path)
    except OSError as exc:
        raise BundleError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if found != entry:
        raise BundleError(
            f"{path} is not the file its manifest describes (expected {entry.size_bytes} bytes, "
            f"sha256 {entry.sha256[:12]}…; got {found.size_bytes} bytes, {found.sha256[:12]}…): copy or export it again"
        )
