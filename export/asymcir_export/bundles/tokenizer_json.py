"""open_clip tokenizers as `tokenizer.json`, with the proof that the ids are the same.

The server tokenizes with the `tokenizers` library alone. Two kinds of open_clip tokenizer are written: its own
`SimpleTokenizer` (CLIP's byte-level BPE) and `HFTokenizer` (any Hugging Face tokenizer with a fast backend, so also the
SentencePiece vocabularies of T5 and SigLIP). Cleaning the text stays outside, as the server bundle's `clean` says.

Text never becomes a special token: a user who types the name of the end-of-text token gets its letters, where open_clip
gives the token itself. Start and end are added as ids by whoever composes the query.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import regex
from tokenizers import Tokenizer

from asymcir_export.bundles.tokenizer_stress import STRESS_COUNT, stress_texts
from asymcir_export.errors import TokenizerError

_WORD_SUFFIX = "</w>"


def tokenizer_to_json(open_clip_tokenizer: Any) -> str:
    """Write an open_clip tokenizer in the form that `tokenizers.Tokenizer.from_str` reads.

    Args:
        open_clip_tokenizer: what `open_clip.get_tokenizer` returned.

    Returns:
        The text of `tokenizer.json`: no special tokens added, no truncation, no padding.

    Raises:
        TokenizerError: neither a SimpleTokenizer nor a wrapper of a Hugging Face tokenizer with a fast backend.
    """
    if all(hasattr(open_clip_tokenizer, name) for name in ("encoder", "bpe_ranks", "byte_encoder")):
        return json.dumps(_simple_tokenizer_record(open_clip_tokenizer), ensure_ascii=False)
    backend = getattr(getattr(open_clip_tokenizer, "tokenizer", None), "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"expected open_clip's SimpleTokenizer, or an HFTokenizer with a fast backend, got "
            f"{type(open_clip_tokenizer).__name__}: this text tower's tokenizer has no tokenizer.json form"
        )
    return json.dumps(_strip_backend(json.loads(backend.to_str())), ensure_ascii=False)


def check_tokenizer(tokenizer_json: str, open_clip_tokenizer: Any, clean: Callable[[str], str]) -> dict[str, int]:
    """Compare the written tokenizer with its original on `STRESS_COUNT` strings.

    Args:
        tokenizer_json: as `tokenizer_to_json` wrote it.
        open_clip_tokenizer: what it was written from.
        clean: the cleaning that the server does before `tokenizer.json`.

    Returns:
        What was compared: `strings`, `ids` and `differences` (0), for the manifest.

    Raises:
        TokenizerError: a string whose ids differ; the message shows it.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    total = 0
    for text in stress_texts(STRESS_COUNT, seed=0):
        expected = open_clip_ids(open_clip_tokenizer, text)
        found = tokenizer.encode(clean(text), add_special_tokens=False).ids
        if expected != found:
            raise TokenizerError(
                f"tokenizer.json is not the tokenizer it was made from: {text[:80]!r} gives {found[:12]}, "
                f"expected {expected[:12]}: this tokenizer cannot be exported"
            )
        total += len(found)
    return {"strings": STRESS_COUNT, "ids": total, "differences": 0}


def open_clip_ids(open_clip_tokenizer: Any, text: str) -> list[int]:
    """Return the ids that an open_clip tokenizer gives a raw text between its start and end tokens, uncut."""
    if hasattr(open_clip_tokenizer, "bpe_ranks"):
        return list(open_clip_tokenizer.encode(text))  # cleans by itself
    cleaned = open_clip_tokenizer.clean_fn(text)
    return list(open_clip_tokenizer.tokenizer(cleaned, add_special_tokens=False, verbose=False).input_ids)


def _simple_tokenizer_record(tokenizer: Any) -> dict[str, Any]:
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    # Byte-level symbols are single characters; with this pattern no piece is empty, so no unknown token is needed.
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _word_pattern()}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": _WORD_SUFFIX,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(tokenizer.encoder),
            "merges": [list(merge) for merge in merges],
        },
    }


def _word_pattern() -> str:
    r"""Return CLIP's word pattern for Oniguruma.

    The classes are spelled out as the code points that the `regex` module of this machine means by them: the two
    libraries carry different Unicode versions, and IGNORECASE adds to them (U+0345 counts as a letter because its
    capital is one, the long s counts in `'s`).
    """
    letters, numbers, others = (_code_points(pattern) for pattern in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    contraction = r"'(?:[sS\x{17F}]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
    return f"{contraction}|[{letters}]+|[{numbers}]|[{others}]+"


def _code_points(pattern: str) -> str:
    matches = regex.compile(pattern, regex.IGNORECASE).fullmatch
    members = (point for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF and matches(chr(point)))
    return "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in _ranges(members))


def _ranges(points: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1] = (ranges[-1][0], point)
        else:
            ranges.append((point, point))
    return ranges


def _strip_backend(record: dict[str, Any]) -> dict[str, Any]:
    record["truncation"] = record["padding"] = record["post_processor"] = None
    record["added_tokens"] = [token for token in record.get("added_tokens", []) if not token["special"]]
    return record
