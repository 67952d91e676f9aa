"""Many searches in one call of a client: each has the answer, or the error, that it would have alone."""

import asyncio
from typing import Any

import numpy as np
import pytest
from asymcir_common.errors import AsymcirError
from asymcir_edge import AsyncRetrievalClient, RequestRefusedError, RetrievalClient, SearchResult, SpaceMismatchError
from asymcir_server import RetrievalServer
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel


def make_queries(model: TinyModel, tokens: NDArray[np.float32], count: int) -> list[dict[str, Any]]:
    """Queries that differ in tokens, two of them wrong: another space, and a NaN."""
    queries: list[dict[str, Any]] = [
        {"tokens": np.roll(tokens, shift, axis=1), "word_space": model.word_space, "modifier": "red", "top_k": 3}
        for shift in range(count)
    ]
    queries[4]["word_space"] = "another"
    queries[7]["tokens"] = np.full_like(tokens, np.nan)
    return queries


def check(queries: list[dict[str, Any]], answers: list[SearchResult | AsymcirError], client: RetrievalClient) -> None:
    assert len(answers) == len(queries)
    for number, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        if number in (4, 7):
            assert isinstance(answer, SpaceMismatchError if number == 4 else AsymcirError)
            continue
        assert isinstance(answer, SearchResult)
        alone = client.search(**query)
        assert [hit.id for hit in answer.hits] == [hit.id for hit in alone.hits]


def test_answers_of_many_are_those_of_each_alone(
    server: RetrievalServer, model: TinyModel, tokens: NDArray[np.float32]
) -> None:
    queries = make_queries(model, tokens, 20)
    with RetrievalClient(server.address) as client:
        check(queries, client.search_many(queries), client)
        assert client.search_many([]) == []
        (words,) = client.search_many([{"text": "red", "top_k": 2}])
        assert isinstance(words, SearchResult)
        with pytest.raises(RequestRefusedError, match="at_once"):
            client.search_many(queries, at_once=0)


def test_asyncio(server: RetrievalServer, model: TinyModel, tokens: NDArray[np.float32]) -> None:
    queries = make_queries(model, tokens, 20)

    async def ask() -> list[SearchResult | AsymcirError]:
        async with AsyncRetrievalClient(server.address) as client:
            return await client.search_many(queries, at_once=5)

    with RetrievalClient(server.address) as client:
        check(queries, asyncio.run(ask()), client)
