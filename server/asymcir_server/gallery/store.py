"""An open gallery: the current snapshot and the changes made to it, read-only."""

import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import BundleError, read_manifest
from asymcir_common.manifest import GALLERY, Manifest
from asymcir_common.places.rules import to_nfc
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_server.errors import RequestError, SpaceMismatchError
from asymcir_server.gallery.changes.delta import ChangesReader, Delta
from asymcir_server.gallery.changes.merged import MergedMetadata, MergedSelections, search_merged
from asymcir_server.gallery.changes.table import changes_path, digest_base, mark_base
from asymcir_server.gallery.filters import Columns, Selections, search_items, translate
from asymcir_server.gallery.indexes import open_index
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataReader
from asymcir_server.gallery.snapshots import current_snapshot
from asymcir_server.gallery.sources.copies import Fingerprint, search_distinct
from asymcir_server.gallery.sources.near_duplicates import HASHES_NAME
from asymcir_server.gallery.sources.thumbnails import THUMBNAILS_NAME, ThumbnailReader
from asymcir_server.gallery.vectors_file import VECTORS_NAME

_Find = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Searches b queries [b, E] to a depth: scores [b, k] and rows [b, k], -1 where there are fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Hits of b queries, best first.

    Attributes:
        ids: b lists of k ids.
        scores: [b, k], inner products, which are cosines for L2-normalised queries.
        items: b lists of k items, empty for a picture that names none.
        fingerprints: b lists of k, where copies were left out.
    """

    ids: list[list[str]]
    scores: NDArray[np.float32]
    items: list[list[str]]
    fingerprints: list[list[Fingerprint]] = field(default_factory=list)


class _Snapshot:
    """The open files of one snapshot, shared by the galleries that differ in their changes only."""

    def __init__(self, gallery: Path, snapshot: Path) -> None:
        manifest = read_manifest(snapshot, format=GALLERY, sampled=True)
        try:
            self.version = str(manifest.require("version"))
            self.target = str(manifest.require("target"))
            self.target_space = str(manifest.require("target_space"))
            self.size = int(manifest.require("size"))
            self.width = int(manifest.require("embedding_width"))
            self.index_kind = str(manifest.require("index_kind"))
            self.index_recall_at_10 = float(manifest.require("index_recall_at_10"))
            self.thumbnail_side = int(manifest.properties.get("thumbnail_side", 0))
            self.items = int(manifest.properties.get("items", 0))  # snapshots of before have none
        except (TypeError, ValueError) as exc:
            raise BundleError(f"the manifest of {snapshot} cannot be used ({exc}): build the gallery again") from exc
        for name in (VECTORS_NAME, METADATA_NAME):
            if name not in manifest.files:
                raise BundleError(f"{snapshot} has no {name} in its manifest: build the gallery again")
        self.manifest, self.folder = manifest, snapshot
        self.index = open_index(snapshot, snapshot / VECTORS_NAME, manifest)
        self.vectors = ReadOnlyIndex(snapshot / VECTORS_NAME)
        self.metadata = MetadataReader(snapshot / METADATA_NAME)
        self.thumbnails: ThumbnailReader | None = None
        if THUMBNAILS_NAME in manifest.files:
            self.thumbnails = ThumbnailReader(snapshot / THUMBNAILS_NAME)
        self.selections = Selections(snapshot / METADATA_NAME)
        found = (self.index.size, self.index.width, self.metadata.size)
        if found != (self.size, self.width, self.size):
            raise BundleError(
                f"{snapshot}: the manifest says {self.size} x {self.width}, the vectors are "
                f"{found[0]} x {found[1]} and the metadata holds {found[2]} items: build the gallery again"
            )
        self.identity, self.mark = digest_base(snapshot), mark_base(snapshot)
        self.changes = ChangesReader(changes_path(gallery, snapshot.name), self.identity, self.size, self.width)
        self._lock, self._users = threading.Lock(), 0

    @cached_property
    def looks(self) -> tuple[NDArray[np.uint64], NDArray[np.float32]] | None:
        """Hashes [N] and vectors [N, E], mapped, where the build looked for near duplicates."""
        if HASHES_NAME not in self.manifest.files:
            return None
        hashes, vectors = (np.load(self.folder / name, mmap_mode="r") for name in (HASHES_NAME, VECTORS_NAME))
        return hashes, vectors

    def join(self) -> None:
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self.selections.close()
        self.metadata.close()
        self.changes.close()
        if self.thumbnails is not None:
            self.thumbnails.close()


class Gallery:
    """One snapshot with the changes made to it, verified and open for search. Safe to share between threads.

    It stays the same for as long as it is open, whatever is built or changed meanwhile.

    Attributes:
        folder: the gallery.
        version: the snapshot's number.
        change: the number of the last change made to it; 0: none.
        identity, mark: digest and place of the snapshot's manifest, which tell it from every other.
        target, target_space: target type and the digest of its space.
        size, embedding_width: N, changes included, and E.
        index_kind, index_recall_at_10: the index and its measured recall.
        thumbnail_side: longer side of the thumbnails in pixels; 0: there are none.
        columns: the metadata keys that can be filtered by.
    """

    def __init__(
        self, folder: str | Path, snapshot: str | Path, *, shares: "Gallery | None" = None, delta: Delta | None = None
    ) -> None:
        """Verify and open one snapshot; use `open`, which finds the current one and checks its space.

        Args:
            folder: the gallery.
            snapshot: its folder.
            shares: an open gallery of the same snapshot, whose files are used, and not verified again.
            delta: the changes made to it; None reads them.
        """
        folder = Path(folder)
        snapshot = Path(snapshot)
        self._snapshot: _Snapshot = _Snapshot(folder, snapshot) if shares is None else shares._snapshot
        held = self._snapshot
        self._closed = False
        held.join()
        try:
            self._delta: Delta = delta or held.changes.advance(None if shares is None else shares._delta)
        except BaseException:
            self.close()
            raise
        self.folder, self.version = folder, held.version
        self.identity, self.mark = held.identity, held.mark
        self.target, self.target_space = held.target, held.target_space
        self.embedding_width, self.thumbnail_side = held.width, held.thumbnail_side
        self.index_kind, self.index_recall_at_10 = held.index_kind, held.index_recall_at_10
        self.change, self.size = self._delta.change, self._delta.count
        self._index, self._thumbnails = held.index, held.thumbnails
        changed = not self._delta.is_empty
        self._metadata = MergedMetadata(held.metadata, self._delta) if changed else held.metadata
        self._selections = MergedSelections(held.selections, self._delta) if changed else held.selections
        self._has_items = held.items > 0 or any(
            record.item is not None for record in (*self._delta.added.values(), *self._delta.updated.values())
        )

    @property
    def full_version(self) -> str:
        """The snapshot's number, and behind a plus that of the last change made to it: "000003", "000003+17"."""
        return f"{self.version}+{self.change}" if self.change else self.version

    @property
    def snapshot(self) -> Path:
        """The snapshot's folder."""
        return self._snapshot.folder

    @property
    def manifest(self) -> Manifest:
        """The snapshot's manifest."""
        return self._snapshot.manifest

    @property
    def delta(self) -> Delta:
        """The changes made to the snapshot."""
        return self._delta

    @property
    def columns(self) -> Columns:
        """The metadata keys that can be filtered by."""
        return self._selections.columns

    @property
    def has_items(self) -> bool:
        """Whether pictures name the item that they show."""
        return self._has_items

    @cached_property
    def items(self) -> int:
        """Different items that the pictures show; 0 where none names an item."""
        if isinstance(self._metadata, MergedMetadata):
            return self._metadata.count_items(self._snapshot.items)
        return self._snapshot.items

    def describe_changes(self) -> tuple[int, int, int]:
        """Return how many pictures were added to the snapshot, removed from it, and given other metadata."""
        removed = self._delta.removed
        return len(self._delta.added), 0 if removed is None else len(removed), len(self._delta.updated)

    def check_changes(self) -> None:
        """Read and check all that the file of changes holds.

        Raises:
            BundleError: it is damaged.
        """
        self._snapshot.changes.check()

    def refreshed(self) -> "Gallery":
        """Return the same snapshot with the changes made to it until now; this gallery itself where there are none.

        Raises:
            BundleError: the changes cannot be read.
        """
        delta = self._snapshot.changes.advance(self._delta)
        if delta is self._delta:
            return self
        return Gallery(self.folder, self._snapshot.folder, shares=self, delta=delta)

    def reopened(self) -> "Gallery":
        """Return the same gallery once more, to be closed by itself; both share the files."""
        return Gallery(self.folder, self._snapshot.folder, shares=self, delta=self._delta)

    @classmethod
    def open(cls, folder: str | Path, target_spaces: Mapping[str, str] | None = None) -> "Gallery":
        """Open a gallery's current snapshot.

        Args:
            folder: the gallery.
            target_spaces: target type -> space that the server bundle makes; None opens it for a look only.

        Raises:
            BundleError: no gallery, or a damaged one.
            SpaceMismatchError: its target space is none of these.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise BundleError(f"no gallery at {folder}: build one with `asymcir gallery build`, or check the path")
        gallery = cls(folder, current_snapshot(folder))
        if target_spaces is not None and gallery.target_space not in target_spaces.values():
            gallery.close()
            makes = ", ".join(f"{target} {space}" for target, space in target_spaces.items())
            raise SpaceMismatchError(
                f"the gallery {folder} is of the target space {gallery.target_space} ({gallery.target}), the server "
                f"bundle works in {makes}: build the gallery again with this bundle, or serve it with its own"
            )
        return gallery

    def search(
        self,
        query: NDArray[np.float32],
        top_k: int,
        excluded_ids: Sequence[str] = (),
        *,
        where: retrieval_pb2.Filter | None = None,
        every_picture: bool = False,
        collapse_duplicates: bool = False,
        columns: Columns | None = None,
    ) -> SearchResult:
        """Search through the index: exactly, or to the recall that `index_recall_at_10` says.

        Args:
            query: [b, E], L2-normalised.
            top_k: hits per query; fewer come back when the gallery, less what is excluded, holds fewer.
            excluded_ids: never answered; the name of an item excludes all of its pictures; unknown ids are ignored.
            where: answer only pictures whose metadata satisfy this filter.
            every_picture: answer every picture by itself. Otherwise, where pictures name items, an item is answered
                once, by its best picture, and top_k counts items.
            collapse_duplicates: answer a picture that is there more than once by its best copy only: the same file and,
                where the build looked for near duplicates, pictures that look alike; top_k counts what is left.
            columns: what the filter is checked against, where this gallery is one shard of several; a key that only
                other shards have is one that no picture here has. None: its own.

        Raises:
            RequestError: query is not [b, E], top_k is not above 0, or the filter cannot be applied.
        """
        if query.ndim != 2 or query.shape[1] != self.embedding_width:
            raise RequestError(f"expected queries [b, {self.embedding_width}], got {list(query.shape)}")
        if top_k < 1:
            raise RequestError(f"expected top_k above 0, got {top_k}")
        if isinstance(excluded_ids, str):
            raise RequestError(f"expected a list of excluded ids, got the text {excluded_ids!r}")
        selection = None if where is None else self._selections.select(where, columns)
        if selection is not None and len(selection) == self.size:
            selection = None
        excluded = self._find_excluded(list(dict.fromkeys([*excluded_ids, *self.canonical(excluded_ids)])))
        by_item = self.has_items and not every_picture

        def find(asked: NDArray[np.float32], depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            if by_item:
                return self._search_items(asked, depth, excluded, selection)
            return search_merged(self._index, self._delta, asked, depth, excluded, selection)

        if collapse_duplicates:
            scores, rows = self._search_distinct(find, query, top_k)
        else:
            scores, rows = find(query, top_k)
        distinct = np.unique(rows).tolist()
        names, items = self._metadata.ids(distinct), self._metadata.items(distinct) if self.has_items else {}
        return SearchResult(
            ids=[[names[int(row)] for row in found if row >= 0] for found in rows],
            scores=scores,
            items=[[items.get(int(row), "") for row in found if row >= 0] for found in rows],
            fingerprints=[self._fingerprints(found[found >= 0].tolist()) for found in rows]
            if collapse_duplicates
            else [],
        )

    def find_unknown(self, ids: Sequence[str]) -> list[str]:
        """Return those of some ids that are neither of a picture nor of an item."""
        spelled = dict(zip(ids, self.canonical(ids), strict=True))
        held = self._metadata.rows(list(spelled.values()))
        return [
            one
            for one, other in spelled.items()
            if other not in held and not (self.has_items and len(self._metadata.item_rows([one, other])))
        ]

    def canonical(self, ids: Sequence[str]) -> list[str]:
        """Return ids as the gallery spells them: in Unicode's form NFC, but for those of galleries of before."""
        if all(unicodedata.is_normalized("NFC", one) for one in ids):
            return list(ids)
        held = self._metadata.rows(ids)
        return [one if one in held else to_nfc(one) for one in ids]

    def rows(self, ids: Sequence[str]) -> dict[str, int]:
        """Map ids to rows, numbers that only this open gallery gives a meaning; unknown ids are left out."""
        return self._metadata.rows(ids)

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Map ids to the vectors that stand for the pictures, [E], L2-normalised; unknown ids are left out."""
        found = {}
        spelled = dict(zip(ids, self.canonical(ids), strict=True))
        rows = self._metadata.rows(list(spelled.values()))
        for identity, other in spelled.items():
            row = rows.get(other)
            if row is None:
                continue
            if row < self._delta.size:
                found[identity] = self._snapshot.vectors.read_rows(np.array([row]))[0]
            else:
                found[identity] = self._delta.vectors[int(np.searchsorted(self._delta.rows, row))]
        return found

    def digest(self, identity: str) -> bytes | None:
        """Return the SHA-256 of a picture's file; None where it is not known."""
        return self._metadata.digest(*self.canonical([identity]))

    def select(self, where: retrieval_pb2.Filter) -> list[str]:
        """Return the ids of the pictures whose metadata satisfy a filter.

        Raises:
            RequestError: see `check_filter`.
        """
        rows = self._selections.select(where).tolist()
        names = self._metadata.ids(rows)
        return [names[row] for row in rows]

    def check_filter(self, where: retrieval_pb2.Filter) -> None:
        """Check a filter without applying it.

        Raises:
            RequestError: it is too large, incomplete, or does not fit the metadata of this gallery.
        """
        translate(where, self.columns)

    def _find_excluded(self, ids: list[str]) -> NDArray[np.int64]:
        rows = np.array(list(self._metadata.rows(ids).values()), dtype=np.int64)
        if self.has_items:
            rows = np.concatenate([rows, self._metadata.item_rows(ids)])
        return np.unique(rows)

    def _search_items(
        self, query: NDArray[np.float32], top_k: int, excluded: NDArray[np.int64], selection: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = []
        per_item = self._snapshot.size / self._snapshot.items if self._snapshot.items else 1.0
        for number in range(len(query)):

            def search(
                depth: int, without: NDArray[np.int64], one: NDArray[np.float32] = query[number : number + 1]
            ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
                scores, rows = search_merged(self._index, self._delta, one, depth, without, selection)
                return scores[0], rows[0]

            found.append(search_items(search, self._metadata, top_k, excluded, per_item))
        return _stack(found)

    def _search_distinct(
        self, find: _Find, query: NDArray[np.float32], top_k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = []
        for number in range(len(query)):

            def search(
                depth: int, one: NDArray[np.float32] = query[number : number + 1]
            ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
                scores, rows = find(one, depth)
                return scores[0], rows[0]

            found.append(search_distinct(search, self._fingerprints, top_k))
        return _stack(found)

    def _fingerprints(self, rows: Sequence[int]) -> list[Fingerprint]:
        """Return what tells copies; the look of pictures that were added since the build is not known."""
        digests, held = self._metadata.digests(rows), self._snapshot
        looks = held.looks
        return [
            Fingerprint(digest=digests.get(row))
            if looks is None or row >= held.size
            else Fingerprint(digest=digests.get(row), picture_hash=int(looks[0][row]), vector=looks[1][row])
            for row in rows
        ]

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the metadata of items, in the order of the ids; an unknown id has none ({})."""
        found = self._metadata.metadata(ids)
        return [found.get(identity, {}) for identity in ids]

    def thumbnail(self, identity: str) -> bytes | None:
        """Return the thumbnail of a picture, a WebP file; None for an unknown id, or a gallery without thumbnails."""
        (identity,) = self.canonical([identity])
        row = self._metadata.rows([identity]).get(identity)
        if row is not None and row >= self._delta.size:
            return self._snapshot.changes.thumbnail(row)
        if row is None or self._thumbnails is None or (digest := self._metadata.digest(identity)) is None:
            return None
        return self._thumbnails.read(digest)

    def close(self) -> None:
        """Close it; its files stay open while another gallery shares them."""
        if self._closed:
            return
        self._closed = True
        if isinstance(getattr(self, "_selections", None), MergedSelections):
            self._selections.close()
        self._snapshot.leave()


def _stack(
    found: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Stack what queries found; not all of them need find as many."""
    longest = max((len(rows) for _, rows in found), default=0)
    scores = np.full((len(found), longest), -np.inf, np.float32)
    rows = np.full((len(found), longest), -1, np.int64)
    for number, (best, places) in enumerate(found):
        scores[number, : len(best)], rows[number, : len(places)] = best, places
    return scores, rows
