"""What a search is made of: a picture's sentence, words, or a picture of the gallery; and what it shall be like.

A query embedding is of length 1. One that starts from a picture of the gallery is that picture's own vector; with a
typed change, the sum of the vector and CHANGE_WEIGHT times the change's text embedding. Preferences add the vectors of
pictures by weight, as relevance feedback does since Rocchio (1971).

Notation: T rows of a prompt, D word-embedding width, E joint-embedding width.
"""

import math
from collections.abc import Sequence

import numpy as np
from asymcir_protos import unpack_tokens
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_server.encode.composition import MAX_MODIFIER_BYTES, Composer
from asymcir_server.errors import ModifierError, RequestError
from asymcir_server.gallery import AnyGallery

CHANGE_WEIGHT = 2.0
"""Of the change's text embedding beside the vector of the picture that a search starts from. Chosen on EmojiCIR's dev
split among 0.5 to 3: docs/serve.md has the figures."""

PREFERENCE_WEIGHT = 0.25
"""Of a preference that names none, chosen in the same way among 0.1 to 1."""

MAX_PREFERENCES = 32


def check_request(request: retrieval_pb2.SearchRequest, *, word_width: int, max_sentence_length: int) -> None:
    """Check what a search is made of, before anything is computed.

    Raises:
        RequestError: not one of tokens, text and start_id; or a size, weight, score or offset that cannot be.
        ModifierError: modifier or text are too long.
    """
    given = [
        name
        for name, there in (
            ("tokens", request.HasField("tokens")),
            ("text", bool(request.text)),
            ("start_id", bool(request.start_id)),
        )
        if there
    ]
    if len(given) > 1:
        raise RequestError(f"expected one of tokens, text and start_id to search with, got {' and '.join(given)}")
    if request.text:
        if request.modifier.strip():
            raise RequestError("expected no modifier beside a text: say all of it in the text")
        if not request.text.strip():
            raise RequestError("the text to search for is only white space")
    for name, text in (("modifier", request.modifier), ("text", request.text)):
        size_bytes = len(text.encode("utf-8"))
        if size_bytes > MAX_MODIFIER_BYTES:
            raise ModifierError(
                f"the {name} has {size_bytes} bytes, the limit is {MAX_MODIFIER_BYTES}: shorten it to a phrase"
            )
    if not (request.text or request.start_id):
        if request.tokens.width != word_width:
            raise RequestError(f"expected sentence tokens of width {word_width}, got {request.tokens.width}")
        if not 1 <= request.tokens.length <= max_sentence_length:
            raise RequestError(f"expected 1 to {max_sentence_length} sentence tokens, got {request.tokens.length}")
    if len(request.preferences) > MAX_PREFERENCES:
        raise RequestError(f"expected at most {MAX_PREFERENCES} preferences, got {len(request.preferences)}")
    for preference in request.preferences:
        if not preference.id:
            raise RequestError("a preference names no picture: expected the id of one")
        if not -1.0 <= preference.weight <= 1.0:  # NaN neither
            raise RequestError(
                f"expected a weight from -1 to 1 for the preference of {preference.id!r}, got {preference.weight:g}"
            )
    if request.HasField("min_score") and not math.isfinite(request.min_score):
        raise RequestError(f"expected a finite min_score, got {request.min_score:g}")


def compose_prompt(request: retrieval_pb2.SearchRequest, composer: Composer) -> NDArray[np.float32] | None:
    """Compose what the text encoder has to run for a search: [T, D]; None where that is nothing.

    Raises:
        RequestError, ModifierError, TokensError: it cannot be composed.
    """
    if request.text:
        return composer.compose_text(request.text)
    if request.start_id:
        words = request.modifier.strip()
        return composer.compose_text(words) if words and composer.reads(words) else None
    return composer.compose_query(unpack_tokens(request.tokens), request.modifier)


def place_query(
    request: retrieval_pb2.SearchRequest, encoded: NDArray[np.float32] | None, gallery: AnyGallery
) -> tuple[NDArray[np.float32], list[str]]:
    """Return a search's embedding.

    Args:
        request: checked.
        encoded: [E], L2-normalised, of its prompt; None where it has none.
        gallery: holds the pictures that it names.

    Returns:
        [E], L2-normalised, and the ids of preferences that the gallery does not hold.

    Raises:
        RequestError: the gallery does not hold start_id, or the parts cancel each other out.
    """
    if not (request.start_id or request.preferences):
        assert encoded is not None
        return encoded, []
    wanted = [preference.id for preference in request.preferences]
    vectors = gallery.vectors([*wanted, *([request.start_id] if request.start_id else [])])
    if request.start_id:
        if request.start_id not in vectors:
            raise RequestError(f"the gallery holds no picture {request.start_id!r} to start from")
        query = vectors[request.start_id].astype(np.float64)
        if encoded is not None:
            query = query + CHANGE_WEIGHT * encoded
    else:
        assert encoded is not None
        query = encoded.astype(np.float64)
    query = _normalise(query)
    for preference in request.preferences:
        if preference.id in vectors:
            query = query + (preference.weight or PREFERENCE_WEIGHT) * vectors[preference.id]
    return _normalise(query).astype(np.float32), [one for one in dict.fromkeys(wanted) if one not in vectors]


def left_out_ids(request: retrieval_pb2.SearchRequest) -> Sequence[str]:
    """Return the ids that a search must not answer: those excluded, the start, and the pictures of negative weight."""
    unlike = [preference.id for preference in request.preferences if preference.weight < 0]
    return [*request.excluded_ids, *([request.start_id] if request.start_id else []), *unlike]


def _normalise(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    if not length > 1e-6:
        raise RequestError("what the search shall be like and unlike cancel each other out: leave some of it away")
    return vector / length
