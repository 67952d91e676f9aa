"""Sentence tokens and a typed change to a server, hits back, over gRPC."""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from asymcir_common.errors import AsymcirError
from asymcir_protos import pack_tokens, parse_filter
from asymcir_protos.tokens import TokenEncoding
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from google.protobuf.message import Message
from numpy.typing import NDArray

from asymcir_edge.errors import RequestRefusedError
from asymcir_edge.remote.answers import SearchResult, ServerDescription, read_description, read_search_result
from asymcir_edge.remote.channels import DEFAULT_TIMEOUT_S, check_connection, options_for
from asymcir_edge.remote.credentials import Credentials
from asymcir_edge.remote.status import to_server_error

_MAX_UINT32 = 2**32 - 1
DEFAULT_AT_ONCE = 16
_MAX_AT_ONCE = 256


class RetrievalClient:
    """A connection to one server, kept open from call to call.

    Use it as a context manager, or call `close`. Thread-safe. Connecting happens at the first call. A search or
    describe that finds the server UNAVAILABLE or full (RESOURCE_EXHAUSTED) is sent again, at most three times, after
    short waits with jitter or as long as the server says, within `timeout_s`; no other call is repeated. It can be
    pickled: the copy connects anew, and raises what is said below where it cannot.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        token_encoding: TokenEncoding = "fp16",
        credentials: Credentials | None = None,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            address: HOST:PORT, [IPV6]:PORT or unix:PATH.
            timeout_s: for each call, repeating included.
            token_encoding: how sentence tokens travel: "fp16", or "int8" at half the size.
            credentials: the key, and TLS; None: neither.

        Raises:
            AddressError: the address is of none of these forms.
            RequestRefusedError: timeout_s is not above 0, or infinite.
            TokensError: the token encoding is unknown.
            CredentialsError: a file cannot be read, or the key would travel unencrypted.
        """
        check_connection(address, timeout_s, token_encoding)
        credentials = credentials or Credentials()
        credentials.check_address(address)
        self._credentials = credentials
        self.address = address
        self.timeout_s = timeout_s
        self.token_encoding: TokenEncoding = token_encoding
        secret = credentials.channel_credentials()
        self.metadata = credentials.metadata()
        if secret is None:
            self._channel = grpc.insecure_channel(address, options=options_for(address))
        else:
            self._channel = grpc.secure_channel(address, secret, options=options_for(address))
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how the connection is made, the key included; a copy opens a connection of its own."""
        return _connect, (self.address, self.timeout_s, self.token_encoding, self._credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls that are under way end with an error."""
        self._channel.close()

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for other services of the same server; calls send `metadata` too."""
        return self._channel

    def describe(self) -> ServerDescription:
        """Ask what the server holds: spaces, galleries, limits.

        Raises:
            ServerError: one of its kinds; see `asymcir_edge.errors`.
        """
        response, _ = self.call(self._stub.Describe, retrieval_pb2.DescribeRequest())
        return read_description(response)

    def search(
        self,
        tokens: NDArray[np.float32],
        word_space: str,
        modifier: str = "",
        gallery: str = "",
        top_k: int = 10,
        excluded_ids: Iterable[str] = (),
        with_metadata: bool = False,
        where: str | retrieval_pb2.Filter | None = None,
        every_picture: bool = False,
        collapse_duplicates: bool = False,
        preferences: Mapping[str, float] | None = None,
        min_score: float | None = None,
        offset: int = 0,
    ) -> SearchResult:
        """Search a gallery by sentence tokens and a typed change.

        Args:
            tokens: [L, D], as `QueryEncoder.encode_image` returns them.
            word_space: the space of the tokens, from the device bundle.
            modifier: the change, such as "is blue"; empty for none.
            gallery: its name; empty for the server's only or first one.
            top_k: hits at most.
            excluded_ids: what must not be answered, as a rule the picture that the query started from; the name of an
                item excludes all of its pictures.
            with_metadata: ask for the metadata of the hits too.
            where: answer only pictures whose metadata satisfy this filter; as text, `price < 20 and exists colour`, in
                the grammar of `asymcir_protos.filter_text`.
            every_picture: answer every picture by itself; otherwise, in a gallery whose pictures name items, an item
                is answered once, by its best picture, and top_k counts items.
            collapse_duplicates: answer a picture that is there more than once by its best copy only: the same file
                and, where the build looked for near duplicates, pictures that look alike.
            preferences: ids of pictures of the gallery with weights from -1 to 1: above 0 for answers more like them,
                below for less, where 0 stands for 0.25.
            min_score: only hits of at least this score.
            offset: leave out so many of the best hits: the second page of ten has offset 10.

        Returns:
            The hits, best first, with what answered and how long it took.

        Raises:
            TokensError: the tokens cannot be packed.
            FilterTextError: the filter's text does not follow its grammar.
            SpaceMismatchError: server or gallery are of another space.
            RequestRefusedError: the request is not one that this server answers.
            ServerError: another of its kinds; see `asymcir_edge.errors`.
        """
        request = make_search_request(
            tokens,
            self.token_encoding,
            word_space=word_space,
            modifier=modifier,
            gallery=gallery,
            top_k=top_k,
            excluded_ids=excluded_ids,
            with_metadata=with_metadata,
            where=where,
            every_picture=every_picture,
            collapse_duplicates=collapse_duplicates,
            preferences=preferences,
            min_score=min_score,
            offset=offset,
        )
        return self._search(request)

    def search_text(self, text: str, **options: Any) -> SearchResult:
        """Search a gallery by words alone.

        Args:
            text: what to search for, such as "a red mug".
            options: those of `search` but tokens, word_space and modifier.

        Raises:
            RequestRefusedError, FilterTextError, ServerError: see `search`.
        """
        return self._search(make_search_request(None, self.token_encoding, text=text, **options))

    def search_from(self, start_id: str, modifier: str = "", **options: Any) -> SearchResult:
        """Search a gallery from one of its pictures, which is not answered itself.

        Args:
            start_id: the picture's id.
            modifier: the change; empty for what looks like it.
            options: those of `search` but tokens, word_space and modifier.

        Raises:
            RequestRefusedError, FilterTextError, ServerError: see `search`.
        """
        request = make_search_request(None, self.token_encoding, start_id=start_id, modifier=modifier, **options)
        return self._search(request)

    def search_many(
        self, queries: Iterable[Mapping[str, Any]], *, at_once: int = DEFAULT_AT_ONCE
    ) -> list[SearchResult | AsymcirError]:
        """Send many searches over this connection, several at a time, which the server encodes together.

        Args:
            queries: keywords of `search` each; `text` or `start_id` in place of tokens and word_space.
            at_once: searches on their way at the same time; a server takes 64 of all its callers as a rule.

        Returns:
            In the order of the queries, the answer of each, or the error that it alone would have raised.

        Raises:
            RequestRefusedError: at_once is not from 1 to 256.
        """
        check_at_once(at_once)

        def ask(query: Mapping[str, Any]) -> SearchResult | AsymcirError:
            try:
                return self._search(
                    make_search_request(query.get("tokens"), self.token_encoding, **other_than_tokens(query))
                )
            except AsymcirError as exc:
                return exc

        with ThreadPoolExecutor(at_once, "search-many") as pool:
            return list(pool.map(ask, queries))

    def _search(self, request: retrieval_pb2.SearchRequest) -> SearchResult:
        response, round_trip_ms = self.call(self._stub.Search, request)
        return read_search_result(response, round_trip_ms=round_trip_ms, request_size_bytes=request.ByteSize())

    def call(
        self, method: Callable[..., Any], request: Message, *, timeout_s: float | None = None
    ) -> tuple[Any, float]:
        """Send one request by a method of a stub over `channel`.

        Args:
            method: of the stub.
            request: its message.
            timeout_s: None: the client's own.

        Returns:
            The answer, and the milliseconds that it took.

        Raises:
            ServerError: one of its kinds; see `asymcir_edge.errors`.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        start_s = time.perf_counter()
        try:
            response = method(request, timeout=timeout_s, metadata=self.metadata)
        except grpc.RpcError as exc:
            raise to_server_error(exc, address=self.address, timeout_s=timeout_s, request=request) from exc
        except ValueError as exc:  # how gRPC says that the channel is closed
            raise RequestRefusedError(f"this client cannot send any more: {exc}") from exc
        return response, (time.perf_counter() - start_s) * 1000.0


def _connect(
    address: str, timeout_s: float, token_encoding: TokenEncoding, credentials: Credentials
) -> RetrievalClient:
    return RetrievalClient(address, timeout_s=timeout_s, token_encoding=token_encoding, credentials=credentials)


def check_at_once(at_once: int) -> None:
    """Refuse a number of searches at a time that no connection should carry."""
    if not 1 <= at_once <= _MAX_AT_ONCE:
        raise RequestRefusedError(f"expected at_once from 1 to {_MAX_AT_ONCE}, got {at_once}")


def other_than_tokens(query: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the tokens out of the keywords of a search."""
    return {key: value for key, value in query.items() if key != "tokens"}


def make_search_request(
    tokens: NDArray[np.float32] | None,
    token_encoding: TokenEncoding,
    *,
    where: str | retrieval_pb2.Filter | None = None,
    top_k: int = 10,
    excluded_ids: Iterable[str] = (),
    preferences: Mapping[str, float] | None = None,
    offset: int = 0,
    **fields: Any,
) -> retrieval_pb2.SearchRequest:
    """Make the message of a search; what it raises is what `RetrievalClient.search` raises before it sends."""
    if not 1 <= top_k <= _MAX_UINT32:
        raise RequestRefusedError(f"expected top_k to be 1 or more, got {top_k}")
    if not 0 <= offset <= _MAX_UINT32:
        raise RequestRefusedError(f"expected an offset of 0 or more, got {offset}")
    if isinstance(excluded_ids, str):
        raise RequestRefusedError(f"expected a list of excluded ids, got the text {excluded_ids!r}")
    packed = None if tokens is None else pack_tokens(tokens, token_encoding)
    try:
        condition = parse_filter(where) if isinstance(where, str) else where
        return retrieval_pb2.SearchRequest(
            tokens=packed,
            top_k=top_k,
            filter=condition,
            excluded_ids=excluded_ids,
            preferences=[
                retrieval_pb2.Preference(id=one, weight=weight) for one, weight in (preferences or {}).items()
            ],
            offset=offset,
            **fields,
        )
    except ValueError as exc:  # lone surrogates: bytes of a command line or a file name that are no UTF-8
        raise RequestRefusedError(f"expected texts and ids in valid UTF-8: {exc}") from exc
