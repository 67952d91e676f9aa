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

_CHUNK_BYTES = 1 << 20


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
        files: relative POSIX path -> digest and size, for every file but the manifest itself.
        properties: what the reader of this format needs (shapes, spaces, preprocessing, ...).
        sources: where the contents came from, one mapping with `name` and `licence` (and `url`) each.
        parity: what was measured when the bundle was written.
    """

    format: str
    version: int = FORMAT_VERSION
    files: Mapping[str, FileEntry]
    properties: Mapping[str, Any]
    sources: Sequence[Mapping[str, str]] = field(default_factory=list)
    parity: Mapping[str, Any] = field(default_factory=dict)

    def require(self, key: str) -> Any:
        """Return a property, or raise BundleError that names it."""
        if key not in self.properties:
            raise BundleError(f"the {self.format} manifest has no property {key!r}: export it again with this version")
        return self.properties[key]


def digest_file(path: Path) -> FileEntry:
    """Hash one file in bounded memory."""
    sha256 = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha256.update(chunk)
    return FileEntry(sha256=sha256.hexdigest(), size_bytes=path.stat().st_size)


def write_manifest(
    folder: Path,
    *,
    format: str,
    properties: Mapping[str, Any],
    sources: Sequence[Mapping[str, str]] = (),
    parity: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash every file below `folder` and write its manifest last, atomically.

    A folder whose writing was interrupted has no manifest, and so does not load.
    """
    files = {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_NAME
    }
    manifest = Manifest(format=format, files=files, properties=properties, sources=list(sources), parity=parity or {})
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / MANIFEST_NAME, text)
    return manifest


def read_manifest(folder: Path, *, format: str) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Args:
        folder: the bundle.
        format: the format expected: DEVICE_BUNDLE, SERVER_BUNDLE or GALLERY.

    Raises:
        BundleError: no such folder, no manifest, another format or version, a missing or changed file.
    """
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
        _check_file(folder, name, entry)
    return manifest


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BundleError(f"{folder / MANIFEST_NAME} names {name!r}, a path outside the bundle: do not use this bundle")
    if not path.is_file():
        raise BundleError(f"{folder} lacks {name}, which its manifest lists: copy or export it again")
    try:
        found = digest_file(path)
    except OSError as exc:
        raise BundleError(f"cannot read {path}: {exc.strerror or exc}") from exc
    if found != entry:
        raise BundleError(
            f"{path} is not the file its manifest describes (expected {entry.size_bytes} bytes, "
            f"sha256 {entry.sha256[:12]}…; got {found.size_bytes} bytes, {found.sha256[:12]}…): copy or export it again"
        )
