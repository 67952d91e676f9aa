"""The gRPC service GalleryAdmin: changes to the galleries of a running server, found by its searches at once."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import grpc
from asymcir_common.places import Rejected
from asymcir_common.places.rules import check_id
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.errors import GalleryBuildError, OverloadedError, RequestError, UnavailableError
from asymcir_server.gallery import AddConfig, Editor, Gallery, ShardedGallery, compact_gallery, edit_gallery
from asymcir_server.gallery.changes.adding import Adder, Encoder, KnownPictures
from asymcir_server.gallery.changes.editor import ADDED, REJECTED, REPLACED, UNCHANGED, Outcome
from asymcir_server.gallery.changes.updates import parse_update_keys
from asymcir_server.gallery.indexes import KINDS
from asymcir_server.gallery.sources.entries import Entry, read_metadata
from asymcir_server.serve.service import RetrievalService
from asymcir_server.serve.status import to_status

MAX_PICTURE_MESSAGE_BYTES = 32 * 1024 * 1024
"""What the server receives in one message where it takes pictures."""

MAX_IDS = 100_000
"""Of one Remove or UpdateMetadata."""

MAX_ADMIN_REQUESTS = 4
"""At a time; each holds a thread of the server. One more is turned away."""

_BATCH_SIZE = 16
_WAIT_S = 10.0  # for another writer, where the caller's deadline allows it
_RETRY_AFTER_MS = 1000
_IDLE_POLL_S = 0.5
_STATUSES = {
    ADDED: retrieval_pb2.AddPicturesResponse.ADDED,
    REPLACED: retrieval_pb2.AddPicturesResponse.REPLACED,
    UNCHANGED: retrieval_pb2.AddPicturesResponse.UNCHANGED,
    REJECTED: retrieval_pb2.AddPicturesResponse.REJECTED,
}

_Request = retrieval_pb2.AddPicturesRequest
Authorize = Callable[[grpc.ServicerContext], None]
"""Raises where the caller may not change galleries."""


class GalleryAdminService(retrieval_pb2_grpc.GalleryAdminServicer):
    """Changes what a `RetrievalService` answers from. Several may call at a time; one writes."""

    def __init__(self, bundle: ServerBundle, service: RetrievalService, authorize: Authorize | None = None) -> None:
        """Prepare; the visual tower is opened when the first picture comes.

        Args:
            bundle: makes the vectors.
            service: whose galleries are changed.
            authorize: asked before every call; None: everyone may.
        """
        self._bundle, self._service = bundle, service
        self._authorize = authorize
        self._turns = threading.BoundedSemaphore(MAX_ADMIN_REQUESTS)
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._known: dict[str, KnownPictures] = {}

    def AddPictures(
        self, request_iterator: Iterator[_Request], context: grpc.ServicerContext
    ) -> Iterator[retrieval_pb2.AddPicturesResponse]:
        """Add a stream of pictures."""
        with self._call(context):
            for batch in _read_batches(request_iterator, self._check_running):
                name = batch[0].gallery
                with self._editing(name, context) as editor:
                    config = AddConfig(batch_size=_BATCH_SIZE, replace=batch[0].replace)
                    adder = Adder(editor, self._open_encoder(), config, self._find_known(editor))
                    outcomes = [outcome for done in adder.add(_to_entries(batch)) for outcome in done]
                    version = editor.gallery.full_version
                self._show(name)
                yield from _to_responses(outcomes, version)

    def Remove(
        self, request: retrieval_pb2.RemoveRequest, context: grpc.ServicerContext
    ) -> retrieval_pb2.RemoveResponse:
        """Remove pictures."""
        with self._call(context):
            if request.HasField("filter") == bool(request.ids):
                raise RequestError("expected either ids or a filter")
            if len(request.ids) > MAX_IDS:
                raise RequestError(f"expected at most {MAX_IDS} ids, got {len(request.ids)}")
            with self._editing(request.gallery, context) as editor:
                by_filter = request.HasField("filter")
                removed, missing = editor.remove(editor.select(request.filter) if by_filter else request.ids)
                version = editor.gallery.full_version
            self._show(request.gallery)
            return retrieval_pb2.RemoveResponse(removed=removed, missing=missing, gallery_version=version)
        raise AssertionError("the call was ended")  # by `_call`, which raises

    def UpdateMetadata(
        self, request: retrieval_pb2.UpdateMetadataRequest, context: grpc.ServicerContext
    ) -> retrieval_pb2.UpdateMetadataResponse:
        """Set metadata keys."""
        with self._call(context):
            if not 1 <= len(request.updates) <= MAX_IDS:
                raise RequestError(f"expected 1 to {MAX_IDS} updates, got {len(request.updates)}")
            updates = []
            for update in request.updates:
                try:
                    updates.append((update.id, parse_update_keys(update.metadata_json.encode())))
                except ValueError as exc:
                    raise RequestError(f"the metadata for {update.id!r} cannot be used: {exc}") from exc
            with self._editing(request.gallery, context) as editor:
                report, version = editor.update(updates), editor.gallery.full_version
            self._show(request.gallery)
            return retrieval_pb2.UpdateMetadataResponse(
                updated=report.updated, unchanged=report.unchanged, missing=report.missing, gallery_version=version
            )
        raise AssertionError("the call was ended")

    def Compact(
        self, request: retrieval_pb2.CompactRequest, context: grpc.ServicerContext
    ) -> retrieval_pb2.CompactResponse:
        """Merge the changes into a new snapshot."""
        with self._call(context):
            if request.index_kind and request.index_kind not in (*KINDS, "auto"):
                raise RequestError(f"expected an index kind of auto, {', '.join(KINDS)}, got {request.index_kind!r}")
            with self._lease(request.gallery) as gallery:
                report = compact_gallery(
                    gallery.folder, index=request.index_kind or None, wait_s=_patience_s(context), opened=gallery
                )
            self._show(request.gallery)
            return retrieval_pb2.CompactResponse(
                gallery_version=report.version,
                size=report.size,
                added=report.added,
                removed=report.removed,
                updated=report.updated,
                index_kind=report.index_kind,
                index_recall_at_10=report.index_recall_at_10,
            )
        raise AssertionError("the call was ended")

    @contextlib.contextmanager
    def _call(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Check who calls, take a turn, and turn errors into status codes: every call passes here."""
        try:
            if self._authorize is not None:
                self._authorize(context)
            self._check_running()
            if not self._turns.acquire(blocking=False):
                raise OverloadedError(
                    f"{MAX_ADMIN_REQUESTS} changes are under way, the limit: try again in {_RETRY_AFTER_MS} ms",
                    retry_after_ms=_RETRY_AFTER_MS,
                )
            try:
                yield
            finally:
                self._turns.release()
        except Exception as exc:  # mapped, all of it, in one place
            status = to_status(exc)
            if status.trailing_metadata:
                context.set_trailing_metadata(status.trailing_metadata)
            context.abort(status.code, status.message)

    def _check_running(self) -> None:
        if self._service.admission.draining:
            raise UnavailableError("the server is shutting down: what it has not acknowledged may be sent again")

    @contextlib.contextmanager
    def _lease(self, name: str) -> Iterator[Gallery]:
        with self._service.lease_gallery(name) as (found, gallery):
            if isinstance(gallery, ShardedGallery):
                raise GalleryBuildError(
                    f"the gallery {found} is in {len(gallery.shards)} shards: change the shard that a picture belongs "
                    "to, with `asymcir gallery add` and its like; this server finds the change by itself"
                )
            yield gallery

    @contextlib.contextmanager
    def _editing(self, name: str, context: grpc.ServicerContext) -> Iterator[Editor]:
        with (
            self._lease(name) as gallery,
            edit_gallery(gallery.folder, "serve --admin", opened=gallery, wait_s=_patience_s(context)) as editor,
        ):
            yield editor

    def _show(self, name: str) -> None:
        """Let searches find what was written, before it is acknowledged."""
        with self._service.lease_gallery(name) as (found, _gallery):
            pass
        self._service.followers[found].refresh()

    def _open_encoder(self) -> Encoder:
        with self._lock:
            if self._encoder is None:
                self._encoder = Encoder(self._bundle)
            return self._encoder

    def _find_known(self, editor: Editor) -> KnownPictures:
        """Return what is known of pictures by their files, opened once for a snapshot."""
        key = str(editor.gallery.folder)
        with self._lock:
            held = self._known.get(key)
            if held is None or held.identity != editor.gallery.identity:
                if held is not None:
                    held.close()
                held = self._known[key] = KnownPictures.open(editor, self._bundle)
            return held


def _patience_s(context: grpc.ServicerContext) -> float:
    left_s = context.time_remaining()
    return _WAIT_S if left_s is None else max(0.0, min(_WAIT_S, left_s - 0.5))


def _read_batches(requests: Iterable[_Request], check: Callable[[], None]) -> Iterator[list[_Request]]:
    """Yield what has come, at most _BATCH_SIZE at a time: a caller that waits for an answer is not kept waiting.

    Pictures of one batch are for one gallery and all replace, or none does. `check` is called again and again, and ends
    the stream by raising.
    """
    received: queue.Queue[_Request | Exception | None] = queue.Queue(maxsize=_BATCH_SIZE)
    stopped = threading.Event()

    def put(item: _Request | Exception | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                received.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for request in requests:
                put(request)
                if stopped.is_set():
                    return
            put(None)
        except grpc.RpcError:
            put(UnavailableError("the caller broke the stream off"))
        except Exception as exc:
            put(exc)

    threading.Thread(target=read, name="add-pictures", daemon=True).start()
    try:
        batch = list[_Request]()
        while True:
            check()
            try:
                item = received.get(timeout=0.0 if batch else _IDLE_POLL_S)
            except queue.Empty:
                if batch:
                    yield batch
                batch = []
                continue
            alike = isinstance(item, _Request) and (
                not batch or (batch[0].gallery, batch[0].replace) == (item.gallery, item.replace)
            )
            if batch and (not alike or len(batch) >= _BATCH_SIZE):
                yield batch
                batch = []
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            batch.append(item)
    finally:
        stopped.set()


def _to_entries(batch: Sequence[_Request]) -> Iterator[Entry | Rejected]:
    for request in batch:
        problem = check_id(request.id)
        metadata = {}
        if problem is None:
            try:
                metadata = read_metadata(request.metadata_json.encode() or b"{}")
            except ValueError as exc:
                problem = str(exc)
        if problem is not None:
            yield Rejected(id=request.id, path="", reason=problem)
        else:
            yield Entry(id=request.id, path=request.id, read=partial(bytes, request.image), metadata=metadata)


def _to_responses(outcomes: Sequence[Outcome], version: str) -> Iterator[retrieval_pb2.AddPicturesResponse]:
    for outcome in outcomes:
        yield retrieval_pb2.AddPicturesResponse(
            id=outcome.id, status=_STATUSES[outcome.status], reason=outcome.reason, gallery_version=version
        )
