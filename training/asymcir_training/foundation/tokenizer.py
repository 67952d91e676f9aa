"""Words in: open_clip's tokenizers behind one interface, without special tokens and without padding."""

from typing import Any

from asymcir_training.errors import FoundationError

_MOST_CACHED = 200_000


class WordTokenizer:
    """Text -> ids of its words, as open_clip's tokenizer of the model would give them between start and end.

    Attributes:
        start_ids, end_ids: what open_clip puts before and after the words.
        pad_id: what it fills rows with.
        clean: the cleaning before tokenisation, "whitespace", "lower" or "canonicalize".
    """

    def __init__(self, tokenizer: Any) -> None:
        self.open_clip_tokenizer = tokenizer
        kind = type(tokenizer).__name__
        self._inner = getattr(tokenizer, "tokenizer", None)
        self.clean = _clean_name(tokenizer)
        self._cache: dict[str, list[int]] = {}
        if kind == "SimpleTokenizer":
            self.start_ids, self.end_ids = [tokenizer.sot_token_id], [tokenizer.eot_token_id]
            self.pad_id = 0
        elif kind == "HFTokenizer" and self._inner is not None and not tokenizer.tokenizer_mode:
            probe = self.tokenize("a")
            row = self._inner(["a"], padding=False).input_ids[0]
            start = next((i for i in range(len(row)) if row[i : i + len(probe)] == probe), None)
            if start is None:
                raise FoundationError("cannot tell this tokenizer's start and end tokens from its words")
            self.start_ids, self.end_ids = list(row[:start]), list(row[start + len(probe) :])
            if tokenizer.strip_sep_token:
                self.end_ids = [i for i in self.end_ids if i != self._inner.sep_token_id]
            self.pad_id = int(self._inner.pad_token_id or 0)
        else:
            raise FoundationError(f"expected open_clip's SimpleTokenizer or HFTokenizer, got {kind}")

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of the words, cleaned as open_clip cleans; empty for empty text."""
        found = self._cache.get(text)
        if found is None:
            if self._inner is None:
                found = list(self.open_clip_tokenizer.encode(text))  # cleans by itself
            else:
                cleaned = self.open_clip_tokenizer.clean_fn(text)
                found = list(self._inner(cleaned, add_special_tokens=False).input_ids)
            if len(self._cache) >= _MOST_CACHED:  # phrases times modifiers would fill the memory of a long run
                self._cache.clear()
            self._cache[text] = found
        return found

    def vocabulary(self) -> dict[str, int]:
        """Return word piece -> id, the part of the tokenizer that `word_space` depends on."""
        if self._inner is None:
            return dict(self.open_clip_tokenizer.encoder)
        return dict(self._inner.get_vocab())


def _clean_name(tokenizer: Any) -> str:
    """Recover which of open_clip's cleaning functions a tokenizer was built with."""
    name = getattr(tokenizer.clean_fn, "__name__", "").removeprefix("_clean_")
    if name not in {"whitespace", "lower", "canonicalize"}:
        raise FoundationError(f"expected a tokenizer that cleans whitespace, lower or canonicalize, got {name!r}")
    return name
