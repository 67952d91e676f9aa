"""The gRPC service: Describe and Search over one server bundle and its galleries."""

import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
from asymcir_common.arguments import MAX_IN_FLIGHT, MAX_TEXT_BATCH, MAX_THREADS, MAX_TOP_K
from asymcir_common.places.rules import to_nfc
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.composition import MAX_MODIFIER_BYTES
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_server.errors import (
    DeadlineError,
    GalleryNotFoundError,
    ListenError,
    RequestError,
    SpaceMismatchError,
)
from asymcir_server.gallery import AnyGallery, Follower, Gallery, GalleryHolder, ShardedGallery
from asymcir_server.gallery.filters import FILTER_LIMITS
from asymcir_server.serve.admission import Admission
from asymcir_server.serve.batching import LATE, NOTHING_ENCODED, TextBatcher
from asymcir_server.serve.hit_metadata import add_metadata
from asymcir_server.serve.operations import GalleryState, ServerMetrics
from asymcir_server.serve.queries import check_request, compose_prompt, left_out_ids, place_query
from asymcir_server.serve.status import to_status

DEFAULT_TOP_K = 10
MAX_EXCLUDED_IDS = 1000
_SHOWN_IDS = 3
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""What a gRPC peer receives unless it was told otherwise; a larger answer would be lost at the client."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceLimits:
    """What one request may ask for, and how many may ask.

    Attributes:
        max_top_k: hits per answer.
        concurrency: galleries searched at the same time; queries are encoded together, in one run at a time.
        max_in_flight: requests computed or waiting; one more is turned away.
        max_batch: queries that the text encoder runs together, at most MAX_TEXT_BATCH; 1: each alone.
    """

    max_top_k: int = 1000
    concurrency: int = 2
    max_in_flight: int = 64
    max_batch: int = 32

    def __post_init__(self) -> None:
        if min(self.max_top_k, self.concurrency, self.max_batch) < 1:
            raise ListenError(f"expected limits above 0, got {self}")
        for name, most in (
            ("concurrency", MAX_THREADS),
            ("max_in_flight", MAX_IN_FLIGHT),
            ("max_top_k", MAX_TOP_K),
            ("max_batch", MAX_TEXT_BATCH),
        ):
            if getattr(self, name) > most:
                raise ListenError(f"expected {name} of at most {most}, got {getattr(self, name)}")
        if self.max_in_flight < self.concurrency:
            raise ListenError(
                f"expected at least as many requests in flight as are computed at once ({self.concurrency}), "
                f"got {self.max_in_flight}"
            )


class RetrievalService(retrieval_pb2_grpc.RetrievalServicer):
    """Answers Describe and Search.

    Args:
        bundle: its word_space is the one that devices must speak.
        galleries: name -> open gallery, or what holds it, at least one; the first answers where a request names none.
        limits: defaults to `ServiceLimits()`.
        metrics: what is counted; a new one by default.

    Attributes:
        holders: name -> what holds the gallery that answers now.
        followers: name -> what brings a gallery to the state on disk, for galleries in a folder.
        metrics: what is counted.
    """

    def __init__(
        self,
        bundle: ServerBundle,
        galleries: Mapping[str, AnyGallery | GalleryHolder],
        limits: ServiceLimits | None = None,
        metrics: ServerMetrics | None = None,
    ) -> None:
        """Open the text tower.

        Raises:
            ListenError: no galleries.
            SpaceMismatchError: a gallery's target space is not the bundle's.
            BundleError: the text tower does not fit.
        """
        if not galleries:
            raise ListenError("expected at least one gallery to serve: pass --gallery")
        self.holders = {
            name: held if isinstance(held, GalleryHolder) else GalleryHolder(held, owned=False)
            for name, held in galleries.items()
        }
        for name, holder in self.holders.items():
            gallery = holder.current
            if gallery.target_space not in bundle.target_spaces.values():
                raise SpaceMismatchError(
                    f"the gallery {name} is of the target space {gallery.target_space}, the server bundle makes "
                    f"{sorted(bundle.target_spaces.values())}: build the gallery again with this bundle"
                )
        self.followers = {
            name: Follower(holder, bundle.target_spaces)
            for name, holder in self.holders.items()
            if isinstance(holder.current, Gallery | ShardedGallery)
        }
        self.limits = limits or ServiceLimits()
        self.admission = Admission(max_in_flight=self.limits.max_in_flight)
        self._bundle = bundle
        self._text_encoder = TextEncoder(bundle)
        self._batcher = TextBatcher(self._text_encoder, max_items=self.limits.max_batch)
        self._searches = threading.BoundedSemaphore(self.limits.concurrency)
        self.metrics = metrics or ServerMetrics()
        self.metrics.watch(
            in_flight=lambda: self.admission.in_flight,
            queue_depth=lambda: self._batcher.queue_depth,
            draining=lambda: self.admission.draining,
            galleries=self._describe_galleries,
        )
        self._version = importlib.metadata.version("asymcir")

    @property
    def word_space(self) -> str:
        """Digest of the space that sentence tokens must live in."""
        return self._bundle.word_space

    def close(self) -> None:
        """End the thread that encodes queries; the galleries stay open."""
        self._batcher.close()

    def warm_up(self) -> None:
        """Run the text tower and every gallery once, so that the first caller does not pay for it."""
        features = self._text_encoder.encode_prompts([self._text_encoder.composer.compose_null()])
        for holder in self.holders.values():
            with holder.lease() as gallery:
                gallery.search(features, 1)

    def Describe(
        self, request: retrieval_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> retrieval_pb2.DescribeResponse:
        """Say what this server holds."""
        with ExitStack() as stack:
            galleries = {name: stack.enter_context(holder.lease()) for name, holder in self.holders.items()}
            return self._describe(galleries)

    def _describe_galleries(self) -> dict[str, GalleryState]:
        return {
            name: GalleryState(
                version=gallery.full_version,
                target=gallery.target,
                index_kind=gallery.index_kind,
                size=gallery.size,
            )
            for name, gallery in ((name, holder.current) for name, holder in self.holders.items())
        }

    def _describe(self, galleries: Mapping[str, AnyGallery]) -> retrieval_pb2.DescribeResponse:
        return retrieval_pb2.DescribeResponse(
            server_version=self._version,
            word_space=self._bundle.word_space,
            word_width=self._bundle.text.word_width,
            limits=retrieval_pb2.Limits(
                max_top_k=self.limits.max_top_k,
                max_sentence_length=self._text_encoder.composer.max_sentence_length,
                max_modifier_bytes=MAX_MODIFIER_BYTES,
                context_length=self._bundle.text.context_length,
                max_excluded_ids=MAX_EXCLUDED_IDS,
                max_filter_conditions=FILTER_LIMITS.max_conditions,
                max_filter_values=FILTER_LIMITS.max_values,
                max_filter_depth=FILTER_LIMITS.max_depth,
            ),
            galleries=[
                retrieval_pb2.Gallery(
                    name=name,
                    version=gallery.full_version,
                    target_space=gallery.target_space,
                    target=gallery.target,
                    size=gallery.size,
                    embedding_width=gallery.embedding_width,
                    index_kind=gallery.index_kind,
                    index_recall_at_10=gallery.index_recall_at_10,
                    has_items=gallery.has_items,
                    columns=[
                        retrieval_pb2.Column(key=column.key, type=column.type)
                        for column in gallery.columns.by_key.values()
                    ],
                )
                for name, gallery in galleries.items()
            ],
        )

    def Search(
        self, request: retrieval_pb2.SearchRequest, context: grpc.ServicerContext
    ) -> retrieval_pb2.SearchResponse:
        """Answer one composed query."""
        try:
            return self.search(request, timeout_s=context.time_remaining(), gone=lambda: not context.is_active())
        except Exception as exc:  # mapped, all of it, in one place
            status = to_status(exc)
            if status.trailing_metadata:
                context.set_trailing_metadata(status.trailing_metadata)
            context.abort(status.code, status.message)
            raise  # abort raises before this line

    def search(
        self,
        request: retrieval_pb2.SearchRequest,
        *,
        timeout_s: float | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> retrieval_pb2.SearchResponse:
        """Check, admit, encode and search; what `Search` does, with errors instead of status codes.

        Args:
            request: the query.
            timeout_s: what is left of the caller's deadline; None: no deadline.
            gone: whether the caller does not wait any more; such a request is not computed.

        Raises:
            RequestError, TokensError, SpaceMismatchError, GalleryNotFoundError: the request's fault.
            UnavailableError, OverloadedError, DeadlineError: not now.
        """
        with self.lease_gallery(request.gallery) as (name, gallery):
            return self._answer(request, name, gallery, timeout_s, gone)

    def _answer(
        self,
        request: retrieval_pb2.SearchRequest,
        name: str,
        gallery: AnyGallery,
        timeout_s: float | None,
        gone: Callable[[], bool] | None,
    ) -> retrieval_pb2.SearchResponse:
        self._check(request, gallery)
        with self.admission.admit(), ExitStack() as stack:
            arrived_s = time.perf_counter()
            prompt = compose_prompt(request, self._text_encoder.composer)
            encoded = NOTHING_ENCODED
            if prompt is not None:
                encoded = self._batcher.encode(prompt, timeout_s=timeout_s, gone=gone)
            queued_s = time.perf_counter()
            patience_s = None
            if timeout_s is not None:
                patience_s = max(0.0, min(timeout_s - (queued_s - arrived_s), threading.TIMEOUT_MAX))
            if not self._searches.acquire(timeout=patience_s):
                raise DeadlineError(LATE)
            stack.callback(self._searches.release)
            encoded_s = time.perf_counter()
            query, missing = place_query(request, None if prompt is None else encoded.embedding, gallery)
            result = gallery.search(
                query[None],
                request.offset + (request.top_k or DEFAULT_TOP_K),
                left_out_ids(request),
                where=request.filter if request.HasField("filter") else None,
                every_picture=request.every_picture,
                collapse_duplicates=request.collapse_duplicates,
            )
            unknown = gallery.find_unknown(request.excluded_ids)
            page = slice(request.offset, None)
            ids, scores, items = result.ids[0][page], result.scores[0][page].tolist(), result.items[0][page]
            if request.HasField("min_score"):
                kept = sum(score >= request.min_score for score in scores[: len(ids)])  # best first
                ids, scores, items = ids[:kept], scores[:kept], items[:kept]
            metadata = gallery.metadata(ids) if request.with_metadata else []
            searched_s = time.perf_counter()
        response = retrieval_pb2.SearchResponse(
            gallery=name,
            gallery_version=gallery.full_version,
            timing=retrieval_pb2.Timing(
                queue_ms=encoded.queue_ms + (encoded_s - queued_s) * 1000.0,
                encode_ms=encoded.run_ms,
                search_ms=(searched_s - encoded_s) * 1000.0,
            ),
        )
        timing = response.timing
        self.metrics.count_search(
            queue_ms=timing.queue_ms, encode_ms=timing.encode_ms, search_ms=timing.search_ms, batch=encoded.batch
        )
        if unknown:
            response.warnings.append(f"excluded ids that the gallery does not hold: {_show(unknown)}")
        if missing:
            response.warnings.append(f"preferences of pictures that the gallery does not hold: {_show(missing)}")
        response.warnings.extend(self._text_encoder.composer.explain_unread(request.text or request.modifier))
        for identity, score, item in zip(ids, scores, items, strict=False):
            response.hits.add(id=identity, score=score, item=item)
        if request.with_metadata:
            add_metadata(response, metadata, most_bytes=MAX_MESSAGE_BYTES)
        if response.ByteSize() > MAX_MESSAGE_BYTES:
            raise RequestError(
                f"the answer has {response.ByteSize()} bytes, a message may have {MAX_MESSAGE_BYTES}: "
                "ask for fewer hits"
            )
        return response

    @contextmanager
    def lease_gallery(self, name: str) -> Iterator[tuple[str, AnyGallery]]:
        """Give the gallery of a request, the same one until the request ends, whatever replaces it meanwhile."""
        name = to_nfc(name) or next(iter(self.holders))
        if name not in self.holders:
            raise GalleryNotFoundError(f"no gallery named {name!r}: this server holds {', '.join(self.holders)}")
        with self.holders[name].lease() as gallery:
            yield name, gallery

    def _check(self, request: retrieval_pb2.SearchRequest, gallery: AnyGallery) -> None:
        """Refuse what cannot be answered, cheapest check first, before it waits in the queue."""
        limits = self.limits
        needs_space = not (request.text or request.start_id)
        if not request.word_space and needs_space:
            raise RequestError("expected the word_space that the tokens live in, from the device bundle's manifest")
        if request.word_space and request.word_space != self._bundle.word_space:
            raise SpaceMismatchError(
                f"the device works in word_space {request.word_space}, this server in {self._bundle.word_space}: "
                "install the device bundle that was exported with this server's bundle, or ask a server of the "
                "device's space"
            )
        if request.target_space and request.target_space != gallery.target_space:
            raise SpaceMismatchError(
                f"the request asks for target_space {request.target_space}, the gallery is of {gallery.target_space} "
                f"({gallery.target}): name another gallery, or leave target_space empty"
            )
        if request.offset + request.top_k > limits.max_top_k:
            and_offset = f" with an offset of {request.offset}" if request.offset else ""
            raise RequestError(f"expected top_k of at most {limits.max_top_k}, got {request.top_k}{and_offset}")
        if len(request.excluded_ids) > MAX_EXCLUDED_IDS:
            raise RequestError(f"expected at most {MAX_EXCLUDED_IDS} excluded ids, got {len(request.excluded_ids)}")
        if request.HasField("filter"):
            gallery.check_filter(request.filter)
        check_request(
            request,
            word_width=self._bundle.text.word_width,
            max_sentence_length=self._text_encoder.composer.max_sentence_length,
        )


def _show(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(repr(one) for one in ids[:_SHOWN_IDS]) + more
