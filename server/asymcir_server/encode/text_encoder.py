"""The frozen text encoder: rows of word embeddings in, embeddings out."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from asymcir_common.arguments import MAX_TEXT_BATCH
from numpy.typing import NDArray

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.composition import Composer
from asymcir_server.encode.sessions import run_session
from asymcir_server.encode.vectors import l2_normalize, usable_rows
from asymcir_server.errors import RequestError

UNUSABLE = (
    "the sentence tokens give no usable query embedding (not finite, or zero): their values are out of range, check "
    "the device bundle and the token encoding"
)


class TextEncoder:
    """Encodes prompts, composed queries and plain text with one bundle's text tower.

    Safe to share between threads.

    Attributes:
        composer: builds the rows.
        embedding_width: E.
    """

    def __init__(self, bundle: ServerBundle) -> None:
        """Open tokenizer, word embeddings and text tower.

        Raises:
            BundleError: a part cannot be opened or does not fit the manifest.
        """
        self.composer = Composer(bundle)
        self.embedding_width = bundle.text.embedding_width
        self._path = bundle.folder / bundle.text.file
        self._session, self._inputs = bundle.text_session()
        # Without a mask a bidirectional tower reads its padding, so it must be padded as it was in training.
        reads_padding = not bundle.text.causal and "attention_mask" not in self._inputs
        self._length = bundle.text.context_length if reads_padding else None

    def encode_prompts(self, prompts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Encode composed rows.

        Args:
            prompts: b rows [T_i, D] from the composer.

        Returns:
            [b, E], text_features, not normalised.

        Raises:
            BundleError: the graph fails, or does not give [b, E].
        """
        features = np.empty((len(prompts), self.embedding_width), dtype=np.float32)
        for start in range(0, len(prompts), MAX_TEXT_BATCH):
            chunk = prompts[start : start + MAX_TEXT_BATCH]
            batch = self.composer.pad(chunk, length=self._length)
            feed: dict[str, NDArray[Any]] = {
                "word_embeddings": batch.word_embeddings,
                "attention_mask": batch.attention_mask,
                "pool_index": batch.pool_index,
            }
            declared = {name: array for name, array in feed.items() if name in self._inputs}
            shape = (len(chunk), self.embedding_width)
            features[start : start + len(chunk)] = run_session(
                self._session, self._path, "text_features", declared, shape
            )
        return features

    def encode_queries(
        self, tokens: Sequence[NDArray[np.float32]], modifiers: Sequence[str] | None = None
    ) -> NDArray[np.float32]:
        """Compose and encode queries.

        Args:
            tokens: b times [L, D].
            modifiers: b modifiers; without it, none.

        Returns:
            [b, E], query embeddings, L2-normalised.

        Raises:
            RequestError: a query cannot be composed, or its tokens drive the tower out of its range.
        """
        changes = [""] * len(tokens) if modifiers is None else modifiers
        prompts = [self.composer.compose_query(row, change) for row, change in zip(tokens, changes, strict=True)]
        features = self.encode_prompts(prompts)
        if not usable_rows(features).all():
            raise RequestError(UNUSABLE)
        return l2_normalize(features)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode plain texts.

        Returns:
            [b, E], text_features, not normalised.

        Raises:
            RequestError: a text does not fit the context.
        """
        return self.encode_prompts([self.composer.compose_text(text) for text in texts])

    @functools.cached_property
    def null_features(self) -> NDArray[np.float32]:
        """Features of the null prompt, [E], not normalised; computed once."""
        features: NDArray[np.float32] = self.encode_prompts([self.composer.compose_null()])[0]
        return features
