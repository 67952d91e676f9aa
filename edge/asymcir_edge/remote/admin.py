"""Changes to the galleries of a running server that was started with `--admin`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from asymcir_protos import parse_filter
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc

from asymcir_edge.remote.client import RetrievalClient
from asymcir_edge.remote.status import to_server_error

DEFAULT_COMPACT_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPicture:
    """A picture to add.

    Attributes:
        id: unique in the gallery.
        image: an encoded picture: JPEG, PNG, WebP, HEIC, ...
        metadata: JSON values.
    """

    id: str
    image: bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedPicture:
    """What became of a picture.

    Attributes:
        id: of the picture.
        status: "added", "replaced", "unchanged" (the gallery holds this id with this file) or "rejected".
        reason: of a rejected one.
        gallery_version: the snapshot's number and, behind a plus, that of the last change.
    """

    id: str
    status: str
    reason: str
    gallery_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactedGallery:
    """What was merged into the snapshot that answers now.

    Attributes:
        gallery_version: its number.
        size: pictures in it.
        added, removed, updated: pictures that the changes concerned.
        index_kind, index_recall_at_10: its index.
    """

    gallery_version: str
    size: int
    added: int
    removed: int
    updated: int
    index_kind: str
    index_recall_at_10: float


class GalleryAdmin:
    """Changes galleries over the connection of a client. What is acknowledged is on disk, and searches find it.

    All methods raise RequestRefusedError where the server does not take the change, and ServerError's other kinds.
    """

    def __init__(self, client: RetrievalClient, gallery: str = "") -> None:
        """Prepare.

        Args:
            client: open.
            gallery: its name; empty for the server's only or first one.
        """
        self._client, self._gallery = client, gallery
        self._stub = retrieval_pb2_grpc.GalleryAdminStub(client.channel)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the client, which then connects anew, and the gallery's name."""
        return GalleryAdmin, (self._client, self._gallery)

    def add(
        self, pictures: Iterable[NewPicture], *, replace: bool = False, timeout_s: float | None = None
    ) -> Iterator[AddedPicture]:
        """Add pictures, and yield what became of each, in any order, once it is durable.

        After an error the same pictures may be sent again: what is there already is "unchanged".

        Args:
            pictures: read as fast as the server takes them.
            replace: a picture takes the place of another one with its id; otherwise it is rejected.
            timeout_s: for all of them; None: no limit.
        """
        requests = (
            retrieval_pb2.AddPicturesRequest(
                gallery=self._gallery,
                id=picture.id,
                image=picture.image,
                metadata_json=json.dumps(picture.metadata),
                replace=replace,
            )
            for picture in pictures
        )
        try:
            for response in self._stub.AddPictures(requests, timeout=timeout_s, metadata=self._client.metadata):
                yield AddedPicture(
                    id=response.id,
                    status=retrieval_pb2.AddPicturesResponse.Status.Name(response.status).lower(),
                    reason=response.reason,
                    gallery_version=response.gallery_version,
                )
        except grpc.RpcError as exc:
            raise to_server_error(exc, address=self._client.address, timeout_s=timeout_s or 0.0) from exc

    def remove(
        self, ids: Sequence[str] = (), *, where: str | retrieval_pb2.Filter | None = None
    ) -> tuple[int, list[str]]:
        """Remove pictures by their ids, or those that satisfy a filter.

        Returns:
            How many there were, and the ids that the gallery does not hold.
        """
        condition = parse_filter(where) if isinstance(where, str) else where
        request = retrieval_pb2.RemoveRequest(gallery=self._gallery, ids=ids, filter=condition)
        response, _ = self._client.call(self._stub.Remove, request)
        return int(response.removed), list(response.missing)

    def update_metadata(self, updates: Mapping[str, Mapping[str, Any]]) -> tuple[int, list[str]]:
        """Set metadata keys.

        Args:
            updates: id -> keys and their new values; None removes a key, keys that are not named stay.

        Returns:
            How many pictures have other metadata now, and the ids that the gallery does not hold.
        """
        request = retrieval_pb2.UpdateMetadataRequest(
            gallery=self._gallery,
            updates=[
                retrieval_pb2.MetadataUpdate(id=identity, metadata_json=json.dumps(keys))
                for identity, keys in updates.items()
            ],
        )
        response, _ = self._client.call(self._stub.UpdateMetadata, request)
        return int(response.updated), list(response.missing)

    def compact(self, *, index_kind: str = "", timeout_s: float = DEFAULT_COMPACT_TIMEOUT_S) -> CompactedGallery:
        """Merge the changes into a new snapshot, which answers from then on.

        Args:
            index_kind: "auto", or a kind; empty: as before.
            timeout_s: it takes as long as a build without its encoding.
        """
        request = retrieval_pb2.CompactRequest(gallery=self._gallery, index_kind=index_kind)
        response, _ = self._client.call(self._stub.Compact, request, timeout_s=timeout_s)
        return CompactedGallery(
            gallery_version=response.gallery_version,
            size=response.size,
            added=response.added,
            removed=response.removed,
            updated=response.updated,
            index_kind=response.index_kind,
            index_recall_at_10=response.index_recall_at_10,
        )
