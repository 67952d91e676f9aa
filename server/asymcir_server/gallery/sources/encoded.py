"""What was made of pictures before, by the digest of their files: so that no picture is encoded twice.

Two places are asked: the gallery's current snapshot, and `GALLERY/.building/encoded.sqlite`, which keeps what the build
that runs, or one that was interrupted, has encoded. A batch is one transaction of SQLite there, so a build that is
killed loses at most the batch that it was at. What was made by another encoder is not taken.
"""

import hashlib
import json
import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from asymcir_common import BundleError, read_manifest
from asymcir_common.manifest import GALLERY
from numpy.typing import NDArray

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.gallery.changes.delta import ChangesReader
from asymcir_server.gallery.changes.table import changes_path, digest_base
from asymcir_server.gallery.metadata import METADATA_NAME
from asymcir_server.gallery.snapshots import BUILDING_NAME, current_snapshot
from asymcir_server.gallery.sources.near_duplicates import HASHES_NAME
from asymcir_server.gallery.sources.thumbnails import THUMBNAILS_NAME, ThumbnailReader
from asymcir_server.gallery.tables import opening_table
from asymcir_server.gallery.vectors_file import VECTORS_NAME

ENCODED_NAME = "encoded.sqlite"

_VERSION = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a build makes of each picture.

    Attributes:
        encoder: digest of what makes the vectors; see `encoder_digest`.
        width: E.
        thumbnail_side: longest side of a thumbnail in pixels; 0: none.
        picture_hash: whether near duplicates are looked for.
    """

    encoder: str
    width: int
    thumbnail_side: int = 0
    picture_hash: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """What is known of a picture; None: not yet.

    Attributes:
        vector: [E], float32, its target representation.
        thumbnail: a WebP file.
        picture_hash: 64 bits, alike for pictures that look alike.
    """

    vector: NDArray[np.float32] | None = None
    thumbnail: bytes | None = None
    picture_hash: int | None = None

    def needs_pixels(self, wanted: Wanted) -> bool:
        """Whether the picture has to be decoded for what is wanted."""
        return (
            self.vector is None
            or (wanted.thumbnail_side > 0 and self.thumbnail is None)
            or (wanted.picture_hash and self.picture_hash is None)
        )

    def or_else(self, other: "Encoded") -> "Encoded":
        """Return this, with what it lacks from another."""
        return Encoded(
            vector=other.vector if self.vector is None else self.vector,
            thumbnail=other.thumbnail if self.thumbnail is None else self.thumbnail,
            picture_hash=other.picture_hash if self.picture_hash is None else self.picture_hash,
        )


def encoder_digest(bundle: ServerBundle, target: str) -> str:
    """Return what identifies everything that a vector depends on beside the picture: the bundle's files and the target.

    A target space names a model; this tells its fp16 and int8 bundles apart too, whose vectors differ slightly.
    """
    files = sorted((name, entry.sha256) for name, entry in bundle.manifest.files.items())
    record = [_VERSION, target, bundle.target_space(target), bundle.preprocessing.to_json(), files]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


class PictureMemory(Protocol):
    """What was made of pictures, by the digest of their files. Safe to share between threads."""

    def find(self, digest: bytes) -> Encoded:
        """Return what is known of a picture."""

    def add(self, pictures: Iterable[tuple[bytes, Encoded]]) -> None:
        """Keep what was made of pictures."""


class EncodedPictures:
    """Finds and keeps what was made of pictures. Safe to share between threads; one of them adds."""

    def __init__(self, folder: Path, wanted: Wanted, before: "SnapshotPictures | None" = None) -> None:
        """Begin; the file is opened where there is one, and made at the first `add` otherwise.

        Args:
            folder: GALLERY/.building.
            wanted: what the build makes; a file of another encoder is removed.
            before: the current snapshot, as far as it can be used.
        """
        self._folder, self._wanted, self._before = folder, wanted, before
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if folder.exists():
            try:
                self._open()
            except (sqlite3.Error, ValueError) as exc:
                _log.warning("what an interrupted build kept in %s is not used: %s", folder, exc)
                shutil.rmtree(folder, ignore_errors=True)

    def find(self, digest: bytes) -> Encoded:
        """Return what is known of a picture."""
        found = Encoded()
        with self._lock:
            if self._connection is not None:
                row = self._connection.execute(
                    "SELECT vector, thumbnail, side, picture_hash FROM encoded WHERE digest = ?", (digest,)
                ).fetchone()
                if row is not None:
                    found = Encoded(
                        vector=np.frombuffer(row[0], "<f4"),
                        thumbnail=row[1] if row[2] == self._wanted.thumbnail_side else None,
                        picture_hash=None if row[3] is None else row[3] % 2**64,
                    )
        if self._before is not None and found.needs_pixels(self._wanted):
            found = found.or_else(self._before.find(digest))
        return found

    def add(self, pictures: Iterable[tuple[bytes, Encoded]]) -> None:
        """Keep what was made of pictures, all of it or nothing; on disk as far as another process can see."""
        rows = [
            (
                digest,
                picture.vector.astype("<f4").tobytes(),
                picture.thumbnail,
                self._wanted.thumbnail_side,
                None if picture.picture_hash is None else _signed(picture.picture_hash),
            )
            for digest, picture in pictures
            if picture.vector is not None
        ]
        if not rows:
            return
        with self._lock:
            if self._connection is None:
                self._open()
            assert self._connection is not None
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("INSERT OR REPLACE INTO encoded VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file; what it holds stays for the next build."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._before is not None:
                self._before.close()
                self._before = None

    def clear(self) -> None:
        """Remove the file: a published snapshot holds what it held."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        self._folder.mkdir(exist_ok=True)
        connection = sqlite3.connect(self._folder / ENCODED_NAME, isolation_level=None, check_same_thread=False)
        try:
            # After a power failure the last transactions may be missing, and those that are there are whole.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS encoder (digest TEXT NOT NULL UNIQUE, width INTEGER)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS encoded (digest BLOB PRIMARY KEY, vector BLOB NOT NULL, thumbnail BLOB, "
                "side INTEGER NOT NULL, picture_hash INTEGER)"
            )
            held = connection.execute("SELECT digest, width FROM encoder").fetchall()
            mine = (self._wanted.encoder, self._wanted.width)
            if not held:
                connection.execute("INSERT INTO encoder VALUES (?, ?)", mine)
            elif held != [mine]:
                raise ValueError("it was made by another encoder")
        except BaseException:
            connection.close()
            raise
        self._connection = connection


class SnapshotPictures:
    """What a published snapshot, and the changes made to it, know of pictures, by digest."""

    def __init__(self, folder: Path, wanted: Wanted, *, sampled: bool = False) -> None:
        """Open a snapshot.

        Args:
            folder: of the snapshot.
            wanted: what is made of pictures.
            sampled: check its large files by a sample only.

        Raises:
            BundleError: it is damaged, or another encoder made it.
        """
        manifest = read_manifest(folder, format=GALLERY, sampled=sampled)
        if manifest.properties.get("encoder") != wanted.encoder:
            raise BundleError("another encoder made it")
        self._encoder = wanted.encoder
        self._changes = ChangesReader(
            changes_path(folder.parent.parent, folder.name),
            digest_base(folder),
            int(manifest.require("size")),
            int(manifest.require("embedding_width")),
        )
        self._lock = threading.Lock()
        with opening_table(folder / METADATA_NAME) as self._connection:
            self._connection.execute("SELECT digest FROM items LIMIT 0")
        self._vectors: NDArray[np.float32] = np.load(folder / VECTORS_NAME, mmap_mode="r", allow_pickle=False)
        self._hashes: NDArray[np.uint64] | None = None
        if wanted.picture_hash and HASHES_NAME in manifest.files:
            self._hashes = np.load(folder / HASHES_NAME, mmap_mode="r", allow_pickle=False)
        self._thumbnails: ThumbnailReader | None = None
        if wanted.thumbnail_side and manifest.properties.get("thumbnail_side") == wanted.thumbnail_side:
            self._thumbnails = ThumbnailReader(folder / THUMBNAILS_NAME)

    def find(self, digest: bytes) -> Encoded:
        """Return what is known of a picture."""
        with self._lock:
            found = self._connection.execute("SELECT row FROM items WHERE digest = ? LIMIT 1", (digest,)).fetchone()
        if found is None:
            if (added := self._changes.find(digest, self._encoder)) is None:
                return Encoded()
            vector, thumbnail, hashed = added
            return Encoded(
                vector=vector,
                thumbnail=None if self._thumbnails is None else thumbnail,
                picture_hash=None if self._hashes is None or hashed is None else hashed % 2**64,
            )
        return Encoded(
            vector=np.array(self._vectors[found[0]]),
            thumbnail=None if self._thumbnails is None else self._thumbnails.read(digest),
            picture_hash=None if self._hashes is None else int(self._hashes[found[0]]),
        )

    def close(self) -> None:
        """Close its files."""
        self._connection.close()
        self._changes.close()
        if self._thumbnails is not None:
            self._thumbnails.close()


def open_encoded(gallery: Path, wanted: Wanted) -> EncodedPictures:
    """Open what earlier builds of a gallery made, as far as it can be used again.

    A snapshot that is damaged, of another encoder, or without digests is not used.
    """
    before: SnapshotPictures | None = None
    try:
        before = SnapshotPictures(current_snapshot(gallery), wanted)
    except (BundleError, OSError, ValueError, sqlite3.Error) as exc:
        _log.debug("the current snapshot of %s gives no vectors: %s", gallery, exc)
    return EncodedPictures(gallery / BUILDING_NAME, wanted, before)


def _signed(value: int) -> int:
    """Return 64 bits as the signed number that SQLite stores."""
    return value - 2**64 if value >= 2**63 else value
