"""A gallery in several parts, searched as one: shards that were built apart, and may lie on different disks.

Every shard answers its best hits, and the best of all are the answer. Scores are cosines in one space, so merging loses
nothing: what is among the best of all is among the best of its shard. The same holds for items, which are answered by
their best picture, wherever it lies.

Notation: s shards, b queries, E joint-embedding width.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_server.errors import RequestError, SpaceMismatchError
from asymcir_server.gallery.filters import Columns, join_columns, translate
from asymcir_server.gallery.sources.copies import Distinct, Fingerprint
from asymcir_server.gallery.store import Gallery, SearchResult


class ShardedGallery:
    """Open galleries of one target space, searched as one. Safe to share between threads.

    An id of several shards is answered once, from the one that scores higher.

    Attributes:
        shards: the open galleries.
        target, target_space: target type and the digest of its space, of all of them.
        size, embedding_width: N of all, and E.
        index_kind: of the shards' indexes, those that differ joined by "+".
        index_recall_at_10: the lowest of the shards.
        thumbnail_side: longer side of the largest thumbnails in pixels; 0: there are none.
    """

    def __init__(self, shards: Sequence[Gallery]) -> None:
        """Join galleries, which belong to this one from now on.

        Args:
            shards: at least one.

        Raises:
            RequestError: none.
            SpaceMismatchError: they are of different spaces.
        """
        if not shards:
            raise RequestError("expected at least one shard, got none")
        first = shards[0]
        for shard in shards[1:]:
            if shard.target_space != first.target_space:
                raise SpaceMismatchError(
                    f"the shard {shard.folder} is of the target space {shard.target_space} ({shard.target}), "
                    f"{first.folder} of {first.target_space} ({first.target}): build all shards with one server bundle "
                    "and one target type"
                )
        self.shards = tuple(shards)
        self.target, self.target_space = first.target, first.target_space
        self.size, self.embedding_width = sum(shard.size for shard in shards), first.embedding_width
        self.index_kind = "+".join(dict.fromkeys(shard.index_kind for shard in shards))
        self.index_recall_at_10 = min(shard.index_recall_at_10 for shard in shards)
        self.thumbnail_side = max(shard.thumbnail_side for shard in shards)
        self._pool = ThreadPoolExecutor(min(len(shards), os.cpu_count() or 1), thread_name_prefix="shard")

    @classmethod
    def open(cls, folders: Sequence[Path], target_spaces: Mapping[str, str] | None = None) -> "ShardedGallery":
        """Open the current snapshot of every shard.

        Args:
            folders: of the shards, each a gallery.
            target_spaces: see `Gallery.open`.

        Raises:
            BundleError: a shard is no gallery, or a damaged one.
            SpaceMismatchError: a shard is of another space.
        """
        opened: list[Gallery] = []
        try:
            for folder in folders:
                opened.append(Gallery.open(folder, target_spaces))
            return cls(opened)
        except BaseException:
            for gallery in opened:
                gallery.close()
            raise

    @property
    def folder(self) -> str:
        """The shards' folders, for messages."""
        return ", ".join(str(shard.folder) for shard in self.shards)

    @property
    def full_version(self) -> str:
        """The versions of the shards, in their order: "000003,000001+17"."""
        return ",".join(shard.full_version for shard in self.shards)

    @property
    def has_items(self) -> bool:
        """Whether pictures name the item that they show."""
        return any(shard.has_items for shard in self.shards)

    @cached_property
    def columns(self) -> Columns:
        """The metadata keys that can be filtered by, of all shards."""
        return join_columns([shard.columns for shard in self.shards])

    def search(
        self,
        query: NDArray[np.float32],
        top_k: int,
        excluded_ids: Sequence[str] = (),
        *,
        where: retrieval_pb2.Filter | None = None,
        every_picture: bool = False,
        collapse_duplicates: bool = False,
    ) -> SearchResult:
        """Search every shard and merge; arguments, result and errors are those of `Gallery.search`."""
        columns = None if where is None else self.columns
        found = list(
            self._pool.map(
                lambda shard: shard.search(
                    query,
                    top_k,
                    excluded_ids,
                    where=where,
                    every_picture=every_picture,
                    collapse_duplicates=collapse_duplicates,
                    columns=columns,
                ),
                self.shards,
            )
        )
        return merge_results(found, top_k, by_item=self.has_items and not every_picture)

    def find_unknown(self, ids: Sequence[str]) -> list[str]:
        """Return those of some ids that are neither of a picture nor of an item in any shard."""
        left = list(dict.fromkeys(ids))
        for shard in self.shards:
            left = shard.find_unknown(left)
        return left

    def check_filter(self, where: retrieval_pb2.Filter) -> None:
        """Check a filter without applying it.

        Raises:
            RequestError: it is too large, incomplete, or does not fit the metadata of the shards.
        """
        translate(where, self.columns)

    def metadata(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the metadata of pictures, in the order of the ids; an unknown id has none ({})."""
        found: dict[str, dict[str, Any]] = {}
        for shard in self.shards:
            held = [identity for identity in shard.rows(ids) if identity not in found]
            found.update(zip(held, shard.metadata(held), strict=True))
        return [found.get(identity, {}) for identity in ids]

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Map ids to the vectors that stand for the pictures, [E]; unknown ids are left out."""
        found: dict[str, NDArray[np.float32]] = {}
        for shard in self.shards:
            found = shard.vectors(ids) | found
        return found

    def thumbnail(self, identity: str) -> bytes | None:
        """Return the thumbnail of a picture, a WebP file; None for an unknown id, or where its shard has none."""
        return next((found for shard in self.shards if (found := shard.thumbnail(identity)) is not None), None)

    def close(self) -> None:
        """Close the shards."""
        self._pool.shutdown()
        for shard in self.shards:
            shard.close()


def merge_results(found: Sequence[SearchResult], top_k: int, *, by_item: bool) -> SearchResult:
    """Merge what shards answer to the same queries.

    Args:
        found: s results of the same b queries, each of at least top_k hits unless its shard ends.
        top_k: hits per query of the merged result.
        by_item: answer an item once.

    Returns:
        The best hits of all, best first, equal scores in the order of the shards.
    """
    ids, items, scores = list[list[str]](), list[list[str]](), list[list[float]]()
    for number in range(len(found[0].ids)):
        hits = itertools.chain.from_iterable(
            zip(
                one.scores[number].tolist(),
                one.ids[number],
                one.items[number],
                one.fingerprints[number] if one.fingerprints else itertools.repeat(Fingerprint()),
                strict=False,
            )
            for one in found
        )
        seen_ids, seen_items, seen = set[str](), set[str](), Distinct()
        row_ids, row_items, row_scores = list[str](), list[str](), list[float]()
        for score, identity, item, fingerprint in sorted(hits, key=lambda hit: -hit[0]):
            if identity in seen_ids or (by_item and item and item in seen_items) or not seen.take(fingerprint):
                continue
            seen_ids.add(identity)
            seen_items.add(item)
            row_ids.append(identity)
            row_items.append(item)
            row_scores.append(score)
            if len(row_ids) == top_k:
                break
        ids.append(row_ids)
        items.append(row_items)
        scores.append(row_scores)
    merged = np.full((len(ids), max((len(row) for row in scores), default=0)), -np.inf, np.float32)
    for number, row in enumerate(scores):
        merged[number, : len(row)] = row
    return SearchResult(ids=ids, scores=merged, items=items)
