"""Searches by words, from a picture of the gallery, by preferences; pages and least scores."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from asymcir_edge import AsyncRetrievalClient, RequestRefusedError, RetrievalClient
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2
from asymcir_server import Gallery, RetrievalServer, ServerBundle, TextEncoder
from asymcir_server.gallery import ShardedGallery
from asymcir_server.serve.queries import CHANGE_WEIGHT, MAX_PREFERENCES, PREFERENCE_WEIGHT
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel

START = "left/07.png"
Vector = NDArray[np.float32]


@pytest.fixture
def client(server: RetrievalServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def embed(bundle: ServerBundle) -> Callable[[str], Vector]:
    """A text's embedding, of length 1."""
    encoder = TextEncoder(bundle)

    def encode(text: str) -> Vector:
        features = encoder.encode_text([text])[0]
        return features / np.linalg.norm(features)

    return encode


def _unit(vector: Vector) -> Vector:
    return vector / np.linalg.norm(vector)


def _expect(gallery: Gallery, query: Vector, top_k: int, excluded: list[str]) -> list[tuple[str, float]]:
    found = gallery.search(query[None].astype(np.float32), top_k, excluded)
    return list(zip(found.ids[0], found.scores[0].tolist(), strict=True))


def _check(result: Any, expected: list[tuple[str, float]]) -> None:
    assert [hit.id for hit in result.hits] == [identity for identity, _ in expected]
    assert [hit.score for hit in result.hits] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_words_alone(client: RetrievalClient, gallery: Gallery, embed: Callable[[str], Vector]) -> None:
    _check(client.search_text("a red mug", top_k=7), _expect(gallery, embed("a red mug"), 7, []))


def test_from_a_picture_of_the_gallery(
    client: RetrievalClient, gallery: Gallery, embed: Callable[[str], Vector]
) -> None:
    start = gallery.vectors([START])[START]
    assert np.linalg.norm(start) == pytest.approx(1.0, abs=1e-5)
    assert gallery.search(start[None], 1).ids == [[START]]
    for change in ("", "  "):  # no change at all
        _check(client.search_from(START, change), _expect(gallery, start, 10, [START]))
    changed = _unit(start + CHANGE_WEIGHT * embed("is red"))
    _check(client.search_from(START, "is red", top_k=5), _expect(gallery, changed, 5, [START]))
    with pytest.raises(RequestRefusedError, match="no picture 'nobody' to start from"):
        client.search_from("nobody")


def test_preferences_move_the_query_by_their_weights(
    client: RetrievalClient, gallery: Gallery, embed: Callable[[str], Vector], tokens: Vector, model: TinyModel
) -> None:
    liked, unlike = "right/10.png", "left/11.png"
    vectors = gallery.vectors([liked, unlike, "nobody"])
    assert vectors.keys() == {liked, unlike}
    text = embed("a mug")
    expected = _unit(text + PREFERENCE_WEIGHT * vectors[liked])
    _check(client.search_text("a mug", preferences={liked: 0.0}), _expect(gallery, expected, 10, []))
    expected = _unit(text + 0.75 * vectors[liked] - 0.5 * vectors[unlike])
    result = client.search_text("a mug", preferences={liked: 0.75, unlike: -0.5, "nobody": 0.5})
    _check(result, _expect(gallery, expected, 10, [unlike]))  # what it shall be unlike is not answered
    assert result.warnings[0] == "preferences of pictures that the gallery does not hold: 'nobody'"
    nearer = client.search(tokens, model.word_space, "is red", preferences={liked: 1.0}, top_k=40)
    before = client.search(tokens, model.word_space, "is red", top_k=40)
    assert [hit.id for hit in nearer.hits].index(liked) <= [hit.id for hit in before.hits].index(liked)
    with pytest.raises(RequestRefusedError, match="cancel each other out"):
        client.search_from(START, preferences={START: -1.0})


def test_pages_and_a_least_score(client: RetrievalClient, tokens: Vector, model: TinyModel) -> None:
    whole = client.search(tokens, model.word_space, top_k=12).hits
    pages = [client.search(tokens, model.word_space, top_k=5, offset=offset).hits for offset in (0, 5, 10)]
    assert [hit.id for page in pages for hit in page][:12] == [hit.id for hit in whole]
    assert client.search(tokens, model.word_space, offset=100).hits == ()
    least = whole[6].score
    found = client.search(tokens, model.word_space, top_k=12, min_score=least).hits
    assert [hit.id for hit in found] == [hit.id for hit in whole if hit.score >= least]
    assert client.search(tokens, model.word_space, min_score=1.1).hits == ()


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "two at once": ({"text": "a", "start_id": START}, "expected one of tokens, text and start_id"),
    "text and modifier": ({"text": "a", "modifier": "b"}, "no modifier beside a text"),
    "white text": ({"text": "  "}, "only white space"),
    "long text": ({"text": "a" * 9000}, "the text has 9000 bytes"),
    "nothing": ({}, "expected the word_space"),
    "nan": ({"text": "a", "preferences": [{"id": "x", "weight": float("nan")}]}, "expected a weight from -1 to 1"),
    "heavy": ({"text": "a", "preferences": [{"id": "x", "weight": 1.5}]}, "expected a weight from -1 to 1"),
    "nobody": ({"text": "a", "preferences": [{}]}, "names no picture"),
    "many": ({"text": "a", "preferences": [{"id": "x"}] * (MAX_PREFERENCES + 1)}, "at most 32 preferences"),
    "score": ({"text": "a", "min_score": float("inf")}, "a finite min_score"),
    "page": ({"text": "a", "offset": 995, "top_k": 10}, "top_k of at most 1000, got 10 with an offset of 995"),
    "space": ({"text": "a", "word_space": "other"}, "the device works in word_space other"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_refused(server: RetrievalServer, case: str) -> None:
    fields, said = CASES[case]
    with pytest.raises(Exception, match=said) as refused:
        server.service.search(retrieval_pb2.SearchRequest(**fields))
    assert type(refused.value).__module__ == "asymcir_server.errors"


def test_tokens_beside_a_text_are_refused(server: RetrievalServer, tokens: Vector) -> None:
    request = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), text="a")
    with pytest.raises(Exception, match="got tokens and text"):
        server.service.search(request)


async def _ask_in_a_loop(address: str) -> tuple[list[str], list[str]]:
    async with AsyncRetrievalClient(address) as client:
        words, start = await client.search_text("a mug"), await client.search_from(START, "is red", offset=1)
    return [hit.id for hit in words.hits], [hit.id for hit in start.hits]


def test_the_client_for_asyncio_asks_the_same(server: RetrievalServer, client: RetrievalClient) -> None:
    import asyncio

    words, start = asyncio.run(_ask_in_a_loop(server.address))
    assert words == [hit.id for hit in client.search_text("a mug").hits]
    assert start == [hit.id for hit in client.search_from(START, "is red", offset=1).hits]


def test_vectors_of_changed_and_sharded_galleries(gallery: Gallery, gallery_folder: Any, bundle: ServerBundle) -> None:
    sharded = ShardedGallery.open([gallery_folder], bundle.target_spaces)
    np.testing.assert_array_equal(sharded.vectors([START, "x"])[START], gallery.vectors([START])[START])
    sharded.close()
