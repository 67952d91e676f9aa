"""The client for asyncio."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import numpy as np
from asymcir_common.errors import AsymcirError
from asymcir_protos.tokens import TokenEncoding
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from google.protobuf.message import Message
from numpy.typing import NDArray

from asymcir_edge.errors import RequestRefusedError
from asymcir_edge.remote.answers import SearchResult, ServerDescription, read_description, read_search_result
from asymcir_edge.remote.channels import DEFAULT_TIMEOUT_S, check_connection, options_for
from asymcir_edge.remote.client import DEFAULT_AT_ONCE, check_at_once, make_search_request, other_than_tokens
from asymcir_edge.remote.credentials import Credentials
from asymcir_edge.remote.status import to_server_error


class AsyncRetrievalClient:
    """What `RetrievalClient` does, for a loop: the same arguments, answers and errors.

    Make it and use it in one loop, as an async context manager, or call `close`.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        token_encoding: TokenEncoding = "fp16",
        credentials: Credentials | None = None,
    ) -> None:
        """Prepare a connection; see `RetrievalClient`."""
        check_connection(address, timeout_s, token_encoding)
        credentials = credentials or Credentials()
        credentials.check_address(address)
        self.address, self.timeout_s = address, timeout_s
        self.token_encoding: TokenEncoding = token_encoding
        secret = credentials.channel_credentials()
        self._metadata = credentials.metadata()
        if secret is None:
            self._channel = grpc.aio.insecure_channel(address, options=options_for(address))
        else:
            self._channel = grpc.aio.secure_channel(address, secret, options=options_for(address))
        self._stub = retrieval_pb2_grpc.RetrievalStub(self._channel)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: the connection belongs to its loop."""
        raise TypeError("an AsyncRetrievalClient belongs to its loop and cannot be pickled: make one in each process")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that are under way end with an error."""
        await self._channel.close(None)

    async def describe(self) -> ServerDescription:
        """Ask what the server holds; see `RetrievalClient.describe`."""
        response, _ = await self._call(self._stub.Describe, retrieval_pb2.DescribeRequest())
        return read_description(response)

    async def search(
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
        """Search a gallery by sentence tokens and a typed change; see `RetrievalClient.search`."""
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
        return await self._search(request)

    async def search_text(self, text: str, **options: Any) -> SearchResult:
        """Search a gallery by words alone; see `RetrievalClient.search_text`."""
        return await self._search(make_search_request(None, self.token_encoding, text=text, **options))

    async def search_from(self, start_id: str, modifier: str = "", **options: Any) -> SearchResult:
        """Search a gallery from one of its pictures; see `RetrievalClient.search_from`."""
        request = make_search_request(None, self.token_encoding, start_id=start_id, modifier=modifier, **options)
        return await self._search(request)

    async def search_many(
        self, queries: Iterable[Mapping[str, Any]], *, at_once: int = DEFAULT_AT_ONCE
    ) -> list[SearchResult | AsymcirError]:
        """Send many searches over this connection, several at a time; see `RetrievalClient.search_many`."""
        check_at_once(at_once)
        room = asyncio.Semaphore(at_once)

        async def ask(query: Mapping[str, Any]) -> SearchResult | AsymcirError:
            async with room:
                try:
                    return await self._search(
                        make_search_request(query.get("tokens"), self.token_encoding, **other_than_tokens(query))
                    )
                except AsymcirError as exc:
                    return exc

        return await asyncio.gather(*(ask(query) for query in queries))

    async def _search(self, request: retrieval_pb2.SearchRequest) -> SearchResult:
        response, round_trip_ms = await self._call(self._stub.Search, request)
        return read_search_result(response, round_trip_ms=round_trip_ms, request_size_bytes=request.ByteSize())

    async def _call(self, method: Any, request: Message) -> tuple[Any, float]:
        start_s = time.perf_counter()
        try:
            response = await method(request, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as exc:
            raise to_server_error(exc, address=self.address, timeout_s=self.timeout_s, request=request) from exc
        except (ValueError, grpc.aio.UsageError) as exc:  # how gRPC says that the channel is closed
            raise RequestRefusedError(f"this client cannot send any more: {exc}") from exc
        return response, (time.perf_counter() - start_s) * 1000.0
