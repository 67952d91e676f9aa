"""What an explanation shows, gathered from an encoder, a server, and where it is there, a server bundle.

Notation: L sentence tokens, D word-embedding width, h, w sides of an attention map, E joint-embedding width.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from asymcir_common import BundleError, preprocess
from numpy.typing import NDArray

from asymcir_edge.device.encoder import QueryEncoder
from asymcir_edge.errors import RequestRefusedError, SpaceMismatchError
from asymcir_edge.remote.answers import SearchHit
from asymcir_edge.remote.client import RetrievalClient

TEXT_GROUP = "asymcir.text_sides"
"""Entry points that read a server bundle, which this package does not know: path -> `TextSide`."""

NEAREST_WORDS = 5
MAX_WORDS = 32
"""Of a change that is explained: one search each."""

SHOWN_SIDE = 256
"""Of the square that is shown, in pixels."""


class TextSide(Protocol):
    """The text side of a server bundle."""

    word_space: str

    def encode_queries(self, tokens: NDArray[np.float32], modifiers: Sequence[str]) -> NDArray[np.float32]:
        """Encode tokens [L, D] with each of b changes: [b, E], L2-normalised."""
        ...

    def find_nearest_words(self, tokens: NDArray[np.float32], count: int) -> list[list[tuple[str, float]]]:
        """Find the words nearest to each token, with their cosines."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the server answers to one change.

    Attributes:
        change: the words; empty for none.
        hits: best first.
        gallery: the name of the gallery.
    """

    change: str
    hits: tuple[SearchHit, ...]
    gallery: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WordEffect:
    """What happens without one word of the change.

    Attributes:
        word: left out; empty for the whole change.
        replaced: of the answers to the whole change, how many are no longer among the first.
        first: the first answer then; None where there is none.
        moved: 1 - cosine between the query's embeddings with and without the word; None without a server bundle.
    """

    word: str
    replaced: int
    first: SearchHit | None
    moved: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What an explanation shows.

    Attributes:
        square: [s, s, 3] uint8, the part of the picture that the encoder sees.
        maps: [L, h, w], what each token looks at.
        words: for each token the nearest words with their cosines; empty without a server bundle.
        before, after: the answers without and with the change.
        effects: of each word, in order, and last of all words together; empty without a change.
    """

    square: NDArray[np.uint8]
    maps: NDArray[np.float32]
    words: Sequence[Sequence[tuple[str, float]]]
    before: Answer
    after: Answer
    effects: Sequence[WordEffect]


def open_text_side(folder: Path) -> TextSide:
    """Open a server bundle for its words and its text encoder.

    Raises:
        BundleError: this installation cannot read server bundles, or not this one.
    """
    entries = importlib.metadata.entry_points(group=TEXT_GROUP)
    try:
        open_bundle: Callable[[Path], TextSide] = next(iter(entries)).load()
    except (StopIteration, ModuleNotFoundError) as exc:
        raise BundleError(
            f"reading {folder} needs the server's packages: pip install 'asymcir[server]', or leave out --server-bundle"
        ) from exc
    return open_bundle(folder)


def explain(
    pixels: NDArray[np.uint8],
    change: str,
    *,
    encoder: QueryEncoder,
    client: RetrievalClient,
    text_side: TextSide | None = None,
    gallery: str = "",
    top_k: int = 10,
    excluded_ids: Sequence[str] = (),
) -> Explanation:
    """Encode a picture, and search with the change, without it, and without each of its words.

    Args:
        pixels: [h, w, 3], RGB, any size.
        change: typed; may be empty.
        encoder: of a bundle that gives attention maps.
        client: of the server to ask.
        text_side: of the server's bundle, for nearest words and distances; None: without these.
        gallery: its name; empty for the server's first.
        top_k: answers at most.
        excluded_ids: what must not be answered.

    Raises:
        BundleError: the encoder gives no maps.
        ImageError, EncoderError: the picture cannot be encoded.
        RequestRefusedError: the change has more than MAX_WORDS words, or the server refuses it.
        SpaceMismatchError: encoder, server bundle and server were not made for each other.
        ServerError: another of its kinds.
    """
    words = change.split()
    if len(words) > MAX_WORDS:
        raise RequestRefusedError(f"expected a change of at most {MAX_WORDS} words to explain, got {len(words)}")
    bundle = encoder.bundle
    if text_side is not None and text_side.word_space != bundle.word_space:
        raise SpaceMismatchError(
            f"the device bundle is of the word space {bundle.word_space}, the server bundle of {text_side.word_space}: "
            "give the bundle that the server serves"
        )
    tokens, maps = encoder.encode_with_maps(pixels)

    def ask(text: str) -> Answer:
        result = client.search(
            tokens,
            bundle.word_space,
            modifier=text,
            gallery=gallery,
            top_k=top_k,
            excluded_ids=excluded_ids,
            with_metadata=True,
        )
        return Answer(change=text, hits=result.hits, gallery=result.gallery)

    before = ask("")
    after = ask(" ".join(words)) if words else before
    shortened = [" ".join([*words[:place], *words[place + 1 :]]) for place in range(len(words))]
    left_out = list(zip(words, shortened, strict=True)) if len(words) > 1 else []
    cases = [*((word, rest, ask(rest)) for word, rest in left_out), *([("", "", before)] if words else [])]
    moved: list[float | None] = [None] * len(cases)
    if text_side is not None and cases:
        vectors = text_side.encode_queries(tokens, [after.change, *(rest for _, rest, _ in cases)])
        moved = [max(0.0, 1.0 - float(vectors[0] @ vector)) for vector in vectors[1:]]
    kept = {hit.id for hit in after.hits}
    return Explanation(
        square=preprocess(pixels, replace(bundle.preprocessing, size=SHOWN_SIDE)),
        maps=maps,
        words=[] if text_side is None else text_side.find_nearest_words(tokens, NEAREST_WORDS),
        before=before,
        after=after,
        effects=[
            WordEffect(
                word=word,
                replaced=len(kept - {hit.id for hit in answer.hits}),
                first=answer.hits[0] if answer.hits else None,
                moved=distance,
            )
            for (word, _, answer), distance in zip(cases, moved, strict=True)
        ],
    )
