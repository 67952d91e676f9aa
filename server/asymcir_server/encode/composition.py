"""Composition: sentence tokens and words side by side, as rows of word embeddings.

A template such as "a photo of {tokens} that {modifier}" is split at `{tokens}`. The words before and after are
tokenised by themselves, looked up, and the sentence tokens are put between: [start] prefix, tokens, suffix [end].

A modifier that does not fit the context is refused, never cut: "... but without a hat", cut before its last words, asks
for the opposite. The error names the tokens used and the room left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymcir_server.encode.bundle import MODIFIER_FIELD, TOKENS_FIELD, ServerBundle
from asymcir_server.encode.tokenizer import Tokenizer
from asymcir_server.errors import ModifierError, RequestError

MAX_MODIFIER_BYTES = 8192
"""Above this a modifier is refused before it is tokenised: tokenising is the only step whose cost it drives."""


_SHOWN_WORDS = 3
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptBatch:
    """Padded prompts, as the text encoder takes them.

    Attributes:
        word_embeddings: [b, T, D], float32.
        attention_mask: [b, T], int64, 1 where a row has a word.
        pool_index: [b], int64, the position of each row's end of text.
    """

    word_embeddings: NDArray[np.float32]
    attention_mask: NDArray[np.int64]
    pool_index: NDArray[np.int64]


class Composer:
    """Builds rows of word embeddings for one bundle.

    Constant parts of the templates are tokenised and looked up once. Safe to share between threads.
    """

    def __init__(self, bundle: ServerBundle) -> None:
        """Tokenise the constant parts of the templates.

        Raises:
            BundleError: tokenizer or table cannot be read, or the templates alone fill the context.
        """
        self._config = bundle.text
        self._table = bundle.word_table()
        self._tokenizer = Tokenizer(bundle.folder / bundle.tokenizer_file, clean=bundle.clean)
        self._null_prompt = bundle.prompts.null
        self._start = self._table.lookup(self._config.start_ids)  # [start, D]
        self._end = self._table.lookup(self._config.end_ids)  # [end, D]
        self._pad = self._table.lookup((self._config.pad_id,))[0]  # [D]
        before, after = bundle.prompts.tokens.split(TOKENS_FIELD)
        self._plain_prefix = np.concatenate([self._start, self._words(before)])
        self._plain_suffix = np.concatenate([self._words(after), self._end])
        self._modified_before, self._modified_after = bundle.prompts.tokens_modifier.split(TOKENS_FIELD)
        self._modified_prefix = np.concatenate([self._start, self._words(self._modified_before)])
        self._modified_frame = sum(
            len(self._tokenizer.encode(part.replace(MODIFIER_FIELD, "")))
            for part in (self._modified_before, self._modified_after)
        )

    @property
    def max_sentence_length(self) -> int:
        """The most sentence tokens that fit the context when there is no modifier."""
        return self._config.context_length - len(self._plain_prefix) - len(self._plain_suffix)

    def compose_query(self, tokens: NDArray[np.float32], modifier: str = "") -> NDArray[np.float32]:
        """Compose one query.

        Args:
            tokens: [L, D], the sentence tokens.
            modifier: the typed change; empty or only white space means none.

        Returns:
            [T, D], start and end included, T <= context_length.

        Raises:
            RequestError: tokens is not [L, D], or L does not fit the context.
            ModifierError: the modifier is above MAX_MODIFIER_BYTES or does not fit the context.
        """
        width = self._config.word_width
        if tokens.ndim != 2 or tokens.shape[1] != width or len(tokens) == 0:
            raise RequestError(f"expected sentence tokens of shape [L, {width}], got {list(tokens.shape)}")
        if len(tokens) > self.max_sentence_length:
            raise RequestError(
                f"got {len(tokens)} sentence tokens, at most {self.max_sentence_length} fit the text encoder's "
                f"context of {self._config.context_length}: send fewer"
            )
        tokens = tokens.astype(np.float32, copy=False)
        size_bytes = len(modifier.encode("utf-8", "surrogatepass"))
        if size_bytes > MAX_MODIFIER_BYTES:
            raise ModifierError(
                f"the modifier has {size_bytes} bytes, the limit is {MAX_MODIFIER_BYTES}: shorten it to a phrase"
            )
        # Control characters and lone joiners vanish in the tokenizer; what is left of them is no change either.
        if not modifier.strip() or not self._tokenizer.encode(modifier):
            return np.concatenate([self._plain_prefix, tokens, self._plain_suffix])
        return self._compose_modified(tokens, modifier)

    def reads(self, text: str) -> bool:
        """Whether the tokenizer leaves anything of a text."""
        return bool(self._tokenizer.encode(text))

    def explain_unread(self, modifier: str) -> list[str]:
        """Say what of a modifier the text encoder does not read, a sentence each."""
        if not modifier.strip():
            return []
        if not self._tokenizer.encode(modifier):
            return [f"the text encoder reads nothing of the change {_show(modifier)}: it was left out"]
        unknown = self._tokenizer.find_unknown(modifier)
        if not unknown:
            return []
        shown = ", ".join(_show(word) for word in unknown[:_SHOWN_WORDS])
        more = f" and {len(unknown) - _SHOWN_WORDS} more" if len(unknown) > _SHOWN_WORDS else ""
        return [f"words that the text encoder does not know: {shown}{more}"]

    def compose_text(self, text: str) -> NDArray[np.float32]:
        """Compose plain text, without a template.

        Returns:
            [T, D], start and end included.

        Raises:
            RequestError: the text does not fit the context.
        """
        ids = self._tokenizer.encode(text)
        room = self._config.context_length - len(self._start) - len(self._end)
        if len(ids) > room:
            raise RequestError(
                f"the text takes {len(ids)} tokens and {room} fit the context of "
                f"{self._config.context_length}: shorten it"
            )
        return np.concatenate([self._start, self._table.lookup(ids), self._end])

    def compose_null(self) -> NDArray[np.float32]:
        """Compose the null prompt, the text that stands beside every gallery picture: [T, D]."""
        return self.compose_text(self._null_prompt)

    def pad(self, prompts: Sequence[NDArray[np.float32]], *, length: int | None = None) -> PromptBatch:
        """Pad prompts of different lengths to one batch.

        Args:
            prompts: b rows [T_i, D], at least one.
            length: T; without it the longest prompt's, which is exact for a causal tower and for one with a mask.
        """
        lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)  # [b]
        width = int(lengths.max()) if length is None else length
        word_embeddings = np.empty((len(prompts), width, self._config.word_width), dtype=np.float32)
        word_embeddings[:] = self._pad
        for row, prompt in zip(word_embeddings, prompts, strict=True):
            row[: len(prompt)] = prompt
        mask = (np.arange(width)[None, :] < lengths[:, None]).astype(np.int64)  # [b, T]
        return PromptBatch(word_embeddings=word_embeddings, attention_mask=mask, pool_index=lengths - 1)

    def _compose_modified(self, tokens: NDArray[np.float32], modifier: str) -> NDArray[np.float32]:
        before, prefix = self._modified_before, self._modified_prefix
        if MODIFIER_FIELD in before:
            prefix = np.concatenate([self._start, self._words(before.replace(MODIFIER_FIELD, modifier))])
        suffix = self._words(self._modified_after.replace(MODIFIER_FIELD, modifier))
        row = np.concatenate([prefix, tokens, suffix, self._end])  # [T, D]
        context = self._config.context_length
        if len(row) > context:
            frame = len(self._start) + len(self._end) + self._modified_frame
            room = context - frame - len(tokens)
            raise ModifierError(
                f"the modifier takes {len(row) - frame - len(tokens)} tokens and {max(room, 0)} are left: of the text "
                f"encoder's {context}, {len(tokens)} are sentence tokens and {frame} the prompt; shorten the modifier"
            )
        return row

    def _words(self, text: str) -> NDArray[np.float32]:
        return self._table.lookup(self._tokenizer.encode(text))


def _show(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
