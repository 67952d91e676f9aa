"""Text to word ids, exactly as the foundation's own tokenizer does it."""

import html
import string
from pathlib import Path

import ftfy
from asymcir_common import BundleError
from tokenizers import Tokenizer as _Tokenizer

from asymcir_server.errors import RequestError

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_text(text: str, clean: str) -> str:
    """Repair and normalise text before it is tokenised.

    Args:
        text: as typed.
        clean: "whitespace" (mend broken Unicode, resolve HTML entities, collapse white space), "lower" (that, then
            lower case) or "canonicalize" (the same without ASCII punctuation; SigLIP).

    Source: open_clip, `tokenizer.py`, `get_clean_fn`; entities are resolved twice because web captions are often
    escaped twice.
    """
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    if clean == "canonicalize":
        mended = mended.replace("_", " ").translate(_WITHOUT_PUNCTUATION).lower()
    collapsed = " ".join(mended.split())
    return collapsed.lower() if clean == "lower" else collapsed


class Tokenizer:
    """A bundle's `tokenizer.json` with its text cleaning; gives words only, start and end are set by the composition.
    Safe to share between threads.

    Raises:
        BundleError: the file cannot be read.
    """

    def __init__(self, path: str | Path, *, clean: str) -> None:
        """Read `tokenizer.json`."""
        path = Path(path)
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as exc:  # the library raises bare Exception
            raise BundleError(f"cannot read the tokenizer {path}: {exc}; export the bundle again") from exc
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # what does not fit is refused with a count, not cut
        self._clean = clean
        unknown = getattr(self._tokenizer.model, "unk_token", None)  # a vocabulary of bytes needs none
        self._unknown = None if unknown is None else self._tokenizer.token_to_id(unknown)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words of a text, without start, end or padding.

        Raises:
            RequestError: the text cannot be written as UTF-8 (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise RequestError(f"expected text that can be written as UTF-8, got {exc.reason}") from exc
        cleaned = clean_text(text, self._clean)
        ids: list[int] = self._tokenizer.encode(cleaned, add_special_tokens=False).ids
        return ids

    def find_unknown(self, text: str) -> list[str]:
        """Return the words of a text that the vocabulary lacks: all of them are one and the same to the encoder."""
        if self._unknown is None:
            return []
        cleaned = clean_text(text, self._clean)
        encoding = self._tokenizer.encode(cleaned, add_special_tokens=False)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(cleaned[start:end] for found, (start, end) in places if found == self._unknown))
