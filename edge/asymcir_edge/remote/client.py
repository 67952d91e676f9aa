"""Sentence tokens and a typed change to a server, hits back, over gRPC."""

import json
import math
import re
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from asymcir_common import TokensError
from asymcir_protos import pack_tokens, parse_filter
from asymcir_protos.tokens import TokenEncoding
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from google.protobuf.message import Message
from numpy.typing import NDArray

from asymcir_edge.errors import AddressError, RequestRefusedError
from asymcir_edge.remote.answers import SearchResult, ServerDescription, read_description, read_search_result
from asymcir_edge.remote.status import to_server_error

DEFAULT_TIMEOUT_S = 10.0

_ADDRESS = re.compile(r"unix:.+|(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+", re.IGNORECASE)
_MAX_UINT32 = 2**32 - 1

# Both calls only read, so a call that a server did not take may be sent again: once, after about 0.2 s, or when the
# server's `grpc-retry-pushback-ms` says.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "asymcir.v1.Retrieval"}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.2s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    # A server answers more than one ping in 5 minutes without data, or pings without a call, with GOAWAY.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Routers of mobile networks forget an idle connection within minutes: a new one costs less than a dead one.
    ("grpc.client_idle_timeout_ms", 240_000),
    # After an outage the next call must not wait for the default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class RetrievalClient:
    """A connection to one server, kept open from call to call.

    Use it as a context manager, or call `close`. Thread-safe. Connecting happens at the first call. A call that finds
    the server UNAVAILABLE is sent once more after a short wait, within `timeout_s`; no other call is repeated.
    """

    def __init__(
        self, address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, token_encoding: TokenEncoding = "fp16"
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            address: HOST:PORT, [IPV6]:PORT or unix:PATH.
            timeout_s: for each call, repeating included.
            token_encoding: how sentence tokens travel: "fp16", or "int8" at half the size.

        Raises:
            AddressError: the address is of none of these forms.
            RequestRefusedError: timeout_s is not above 0, or infinite.
            TokensError: the token encoding is unknown.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None or not 1 <= int(match["port"] or 1) <= 65535:
            raise AddressError(f"expected a server address HOST:PORT, such as localhost:50051, got {address!r}")
        if not 0 < timeout_s < math.inf:
            raise RequestRefusedError(f"expected a finite timeout above 0 seconds, got {timeout_s:g}")
        if token_encoding not in ("fp16", "int8"):
            raise TokensError(f"expected the token encoding fp16 or int8, got {token_encoding!r}")
        self.address = address
        self.timeout_s = timeout_s
        self.token_encoding: TokenEncoding = token_encoding
        self._channel = grpc.insecure_channel(address, options=_options_for(address))
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)  # type: ignore[no-untyped-call]

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
        """The connection, for other services of the same server."""
        return self._channel

    def describe(self) -> ServerDescription:
        """Ask what the server holds: spaces, galleries, limits.

        Raises:
            ServerError: one of its kinds; see `asymcir_edge.errors`.
        """
        response, _ = self._call(self._stub.Describe, retrieval_pb2.DescribeRequest())
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

        Returns:
            The hits, best first, with what answered and how long it took.

        Raises:
            TokensError: the tokens cannot be packed.
            FilterTextError: the filter's text does not follow its grammar.
            SpaceMismatchError: server or gallery are of another space.
            RequestRefusedError: the request is not one that this server answers.
            ServerError: another of its kinds; see `asymcir_edge.errors`.
        """
        if not 1 <= top_k <= _MAX_UINT32:
            raise RequestRefusedError(f"expected top_k to be 1 or more, got {top_k}")
        if isinstance(excluded_ids, str):
            raise RequestRefusedError(f"expected a list of excluded ids, got the text {excluded_ids!r}")
        packed = pack_tokens(tokens, self.token_encoding)
        try:
            condition = parse_filter(where) if isinstance(where, str) else where
            request = retrieval_pb2.SearchRequest(
                tokens=packed,
                word_space=word_space,
                modifier=modifier,
                gallery=gallery,
                top_k=top_k,
                excluded_ids=excluded_ids,
                with_metadata=with_metadata,
                filter=condition,
                every_picture=every_picture,
            )
        except ValueError as exc:  # lone surrogates: bytes of a command line or a file name that are no UTF-8
            raise RequestRefusedError(f"expected modifier, gallery, ids and filter in valid UTF-8: {exc}") from exc
        response, round_trip_ms = self._call(self._stub.Search, request)
        return read_search_result(response, round_trip_ms=round_trip_ms, request_size_bytes=request.ByteSize())

    def _call(self, method: Callable[..., Any], request: Message) -> tuple[Any, float]:
        """Send one request; return the answer and the milliseconds that it took."""
        start_s = time.perf_counter()
        try:
            response = method(request, timeout=self.timeout_s)
        except grpc.RpcError as exc:
            raise to_server_error(exc, address=self.address, timeout_s=self.timeout_s) from exc
        except ValueError as exc:  # how gRPC says that the channel is closed
            raise RequestRefusedError(f"this client cannot send any more: {exc}") from exc
        return response, (time.perf_counter() - start_s) * 1000.0


def _options_for(address: str) -> list[tuple[str, str | int]]:
    """Return the channel's options: what listens on this machine is never asked through the proxy of `http_proxy`."""
    direct: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)] if _LOOPBACK.fullmatch(address) else []
    return [*_CHANNEL_OPTIONS, *direct]
