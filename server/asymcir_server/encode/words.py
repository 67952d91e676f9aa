"""A server bundle read for an explanation: the words nearest to a token, and how far a typed change moves the query.

Notation: L sentence tokens, D word-embedding width, V words, E joint-embedding width.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.text_encoder import TextEncoder

_CHUNK = 8192
"""Rows of the word table that are float32 at a time."""

_ENDS, _STARTS = "</w>", ("Ġ", "▁")
"""How the tokenizers of CLIP, and of byte-level and SentencePiece vocabularies, mark a whole word."""

_PART = "##"
"""How WordPiece marks a part of a word."""


class LocalText:
    """The text side of a server bundle, on this machine.

    Attributes:
        word_space: that its tokens must live in.
    """

    def __init__(self, folder: Path) -> None:
        """Open a server bundle.

        Raises:
            BundleError: it cannot be opened.
        """
        self._bundle = ServerBundle.load(folder)
        self._encoder = TextEncoder(self._bundle)
        self.word_space = self._bundle.word_space

    def encode_queries(self, tokens: NDArray[np.float32], modifiers: Sequence[str]) -> NDArray[np.float32]:
        """Encode one picture's tokens with each of b typed changes.

        Args:
            tokens: [L, D].
            modifiers: b of them; empty for none.

        Returns:
            [b, E], L2-normalised.

        Raises:
            RequestError: a query cannot be composed.
        """
        return self._encoder.encode_queries([tokens] * len(modifiers), modifiers)

    def find_nearest_words(self, tokens: NDArray[np.float32], count: int) -> list[list[tuple[str, float]]]:
        """Find the whole words of the vocabulary whose embeddings are nearest to each token.

        Args:
            tokens: [L, D].
            count: words for each.

        Returns:
            For each token its words with the cosine, nearest first.

        Raises:
            BundleError: the vocabulary names no whole word.
        """
        table = self._bundle.word_table()
        words = {place: word for place, word in self._whole_words().items() if place < len(table)}
        places = list(words)
        if not places:
            raise BundleError(f"{self._bundle.folder} has no vocabulary of whole words: export it again")
        directions = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
        cosines = np.empty((len(tokens), len(places)), np.float32)
        for start in range(0, len(places), _CHUNK):
            rows = table.lookup(places[start : start + _CHUNK])
            norms = np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
            cosines[:, start : start + _CHUNK] = directions @ rows.T / norms
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        return [
            [(words[places[column]], float(row[column])) for column in columns]
            for row, columns in zip(cosines, order.tolist(), strict=True)
        ]

    def _whole_words(self) -> dict[int, str]:
        """Return id -> word, without special tokens, parts of words, and what is no letter."""
        path = self._bundle.folder / self._bundle.tokenizer_file
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            special = {str(added["content"]) for added in record.get("added_tokens", [])}
            listed = record["model"]["vocab"]
            vocabulary = (
                {str(token): int(place) for token, place in listed.items()}
                if isinstance(listed, dict)
                else {str(token): place for place, (token, _) in enumerate(listed)}
            )
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise BundleError(f"cannot read the vocabulary of {path}: {exc}; export the bundle again") from exc
        return _pick_whole({token: place for token, place in vocabulary.items() if token not in special})


def _pick_whole(vocabulary: Mapping[str, int]) -> dict[int, str]:
    if any(token.endswith(_ENDS) for token in vocabulary):
        whole = {place: token.removesuffix(_ENDS) for token, place in vocabulary.items() if token.endswith(_ENDS)}
    elif marks := [mark for mark in _STARTS if sum(token.startswith(mark) for token in vocabulary) > 1]:
        mark = marks[0]
        whole = {place: token.removeprefix(mark) for token, place in vocabulary.items() if token.startswith(mark)}
    else:
        whole = {place: token for token, place in vocabulary.items() if not token.startswith(_PART)}
    return {place: word for place, word in whole.items() if len(word) > 1 and word.isalpha()}
