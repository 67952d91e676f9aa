"""An open gallery: the current snapshot, read-only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import BundleError, read_manifest
from asymcir_common.manifest import GALLERY
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_server.errors import RequestError, SpaceMismatchError
from asymcir_server.gallery.filters import Selections, search_items, translate
from asymcir_server.gallery.indexes import open_index
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataReader
from asymcir_server.gallery.snapshots import current_snapshot
from asymcir_server.gallery.sources.thumbnails import THUMBNAILS_NAME, ThumbnailReader
from asymcir_server.gallery.vectors_file import VECTORS_NAME


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Hits of b queries, best first.

    Attributes:
        ids: b lists of k ids.
        scores: [b, k], inner products, which are cosines for L2-normalised queries.
        items: b lists of k items, empty for a picture that names none.
    """

    ids: list[list[str]]
    scores: NDArray[np.float32]
    items: list[list[str]]


class Gallery:
    """One snapshot, verified and open for search. Safe to share between threads.

    It stays the same snapshot for as long as it is open, whatever is built meanwhile.

    Attributes:
        folder: the gallery.
        version: the snapshot's number.
        target, target_space: target type and the digest of its space.
        size, embedding_width: N and E.
        index_kind, index_recall_at_10: the index and its measured recall.
        thumbnail_side: longer side of the thumbnails in pixels; 0: there are none.
        items: different items that the pictures show; 0 where none names an item.
        columns: the metadata keys that can be filtered by.
    """

    def __init__(self, folder: Path, snapshot: Path) -> None:
        """Verify and open one snapshot; use `open`, which finds the current one and checks its space."""
        manifest = read_manifest(snapshot, format=GALLERY, sampled=True)
        self.folder = folder
        try:
            self.version = str(manifest.require("version"))
            self.target = str(manifest.require("target"))
            self.target_space = str(manifest.require("target_space"))
            self.size = int(manifest.require("size"))
            self.embedding_width = int(manifest.require("embedding_width"))
            self.index_kind = str(manifest.require("index_kind"))
            self.index_recall_at_10 = float(manifest.require("index_recall_at_10"))
            self.thumbnail_side = int(manifest.properties.get("thumbnail_side", 0))
            self.items = int(manifest.properties.get("items", 0))  # snapshots of before have none
        except (TypeError, ValueError) as exc:
            raise BundleError(f"the manifest of {snapshot} cannot be used ({exc}): build the gallery again") from exc
        for name in (VECTORS_NAME, METADATA_NAME):
            if name not in manifest.files:
                raise BundleError(f"{snapshot} has no {name} in its manifest: build the gallery again")
        self._index = open_index(snapshot, snapshot / VECTORS_NAME, manifest)
        self._metadata = MetadataReader(snapshot / METADATA_NAME)
        self._thumbnails: ThumbnailReader | None = None
        if THUMBNAILS_NAME in manifest.files:
            self._thumbnails = ThumbnailReader(snapshot / THUMBNAILS_NAME)
        self._selections = Selections(snapshot / METADATA_NAME)
        self.columns = self._selections.columns
        found = (self._index.size, self._index.width, self._metadata.size)
        if found != (self.size, self.embedding_width, self.size):
            raise BundleError(
                f"{snapshot}: the manifest says {self.size} x {self.embedding_width}, the vectors are "
                f"{found[0]} x {found[1]} and the metadata holds {found[2]} items: build the gallery again"
            )

    @classmethod
    def open(cls, folder: Path, target_spaces: Mapping[str, str] | None = None) -> "Gallery":
        """Open a gallery's current snapshot.

        Args:
            folder: the gallery.
            target_spaces: target type -> space that the server bundle makes; None opens it for a look only.

        Raises:
            BundleError: no gallery, or a damaged one.
            SpaceMismatchError: its target space is none of these.
        """
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
    ) -> SearchResult:
        """Search through the index: exactly, or to the recall that `index_recall_at_10` says.

        Args:
            query: [b, E], L2-normalised.
            top_k: hits per query; fewer come back when the gallery, less what is excluded, holds fewer.
            excluded_ids: never answered; the name of an item excludes all of its pictures; unknown ids are ignored.
            where: answer only pictures whose metadata satisfy this filter.
            every_picture: answer every picture by itself. Otherwise, where pictures name items, an item is answered
                once, by its best picture, and top_k counts items.

        Raises:
            RequestError: query is not [b, E], top_k is not above 0, or the filter cannot be applied.
        """
        if query.ndim != 2 or query.shape[1] != self.embedding_width:
            raise RequestError(f"expected queries [b, {self.embedding_width}], got {list(query.shape)}")
        if top_k < 1:
            raise RequestError(f"expected top_k above 0, got {top_k}")
        selection = None if where is None else self._selections.select(where)
        if selection is not None and len(selection) == self.size:
            selection = None
        excluded = self._find_excluded(list(dict.fromkeys(excluded_ids)))
        if self.items and not every_picture:
            scores, rows = self._search_items(query, top_k, excluded, selection)
        else:
            scores, rows = self._index.search(query, top_k, excluded if len(excluded) else None, selection)
        distinct = np.unique(rows).tolist()
        names, items = self._metadata.ids(distinct), self._metadata.items(distinct) if self.items else {}
        return SearchResult(
            ids=[[names[int(row)] for row in found if row >= 0] for found in rows],
            scores=scores,
            items=[[items.get(int(row), "") for row in found if row >= 0] for found in rows],
        )

    def check_filter(self, where: retrieval_pb2.Filter) -> None:
        """Check a filter without applying it.

        Raises:
            RequestError: it is too large, incomplete, or does not fit the metadata of this gallery.
        """
        translate(where, self.columns)

    def _find_excluded(self, ids: list[str]) -> NDArray[np.int64]:
        rows = np.array(list(self._metadata.rows(ids).values()), dtype=np.int64)
        if self.items:
            rows = np.concatenate([rows, self._metadata.item_rows(ids)])
        return np.unique(rows)

    def _search_items(
        self, query: NDArray[np.float32], top_k: int, excluded: NDArray[np.int64], selection: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = []
        for number in range(len(query)):

            def search(
                depth: int, without: NDArray[np.int64], one: NDArray[np.float32] = query[number : number + 1]
            ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
                scores, rows = self._index.search(one, depth, without if len(without) else None, selection)
                return scores[0], rows[0]

            found.append(search_items(search, self._metadata, top_k, excluded, self.size / self.items))
        longest = max((len(rows) for _, rows in found), default=0)
        scores = np.full((len(query), longest), -np.inf, np.float32)  # not all queries need find as many
        rows = np.full((len(query), longest), -1, np.int64)
        for number, (best, places) in enumerate(found):
            scores[number, : len(best)], rows[number, : len(places)] = best, places
        return scores, rows

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the metadata of items, in the order of the ids; an unknown id has none ({})."""
        found = self._metadata.metadata(ids)
        return [found.get(identity, {}) for identity in ids]

    def thumbnail(self, identity: str) -> bytes | None:
        """Return the thumbnail of a picture, a WebP file; None for an unknown id, or a gallery without thumbnails."""
        if self._thumbnails is None or (digest := self._metadata.digest(identity)) is None:
            return None
        return self._thumbnails.read(digest)

    def close(self) -> None:
        """Close the metadata, the filters and the thumbnails."""
        self._selections.close()
        self._metadata.close()
        if self._thumbnails is not None:
            self._thumbnails.close()
