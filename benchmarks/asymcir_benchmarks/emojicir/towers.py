"""The models that queries are made with, opened once: the device's encoder, the server's text and visual towers.

Notation: L sentence tokens, D word-embedding width, E joint-embedding width, q queries, n pictures.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asymcir_common import preprocess, read_image
from asymcir_common.places import PathReader
from asymcir_edge import QueryEncoder
from asymcir_protos import pack_tokens, unpack_tokens
from asymcir_server import ServerBundle, TextEncoder, VisualEncoder
from numpy.typing import NDArray

_BATCH = 64
_LOG_EVERY = 256
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPictures:
    """Pictures as the device sends them and as the server's large tower sees them.

    Attributes:
        tokens: slug -> [L, D], after the wire's own packing, so that its rounding is part of what is measured.
        large: slug -> [E], L2-normalised.
    """

    tokens: Mapping[str, NDArray[np.float32]]
    large: Mapping[str, NDArray[np.float32]]


class Towers:
    """Device encoder, text tower and visual tower.

    Attributes:
        text_encoder: the text tower of the server bundle.
    """

    def __init__(self, bundle: ServerBundle, encoder: QueryEncoder) -> None:
        """Open the towers of the server bundle.

        Raises:
            BundleError: one cannot be opened.
        """
        self._device = encoder
        self.text_encoder = TextEncoder(bundle)
        self._visual = VisualEncoder(bundle)

    def encode_pictures(self, paths: Mapping[str, Path], what: str = "pictures") -> EncodedPictures:
        """Encode picture files with the device's encoder and with the large tower.

        Args:
            paths: slug -> file; a path may lead into an archive.
            what: they are, for the log.

        Raises:
            ImageError: a file is not a picture that can be used.
        """
        tokens: dict[str, NDArray[np.float32]] = {}
        large: dict[str, NDArray[np.float32]] = {}
        slugs, reader = sorted(paths), PathReader()
        for start in range(0, len(slugs), _BATCH):
            part = slugs[start : start + _BATCH]
            pixels = [read_image(paths[slug], reader) for slug in part]
            for slug, picture in zip(part, pixels, strict=True):
                tokens[slug] = unpack_tokens(pack_tokens(self._device.encode_image(picture)))
            squares = np.stack([preprocess(picture, self._visual.preprocessing) for picture in pixels])
            large.update(zip(part, normalise(self._visual.encode_image(squares)), strict=True))
            done = start + len(part)
            if done % _LOG_EVERY == 0 or done == len(slugs):
                _LOG.info("encoded %d of %d %s", done, len(slugs), what)
        return EncodedPictures(tokens=tokens, large=large)

    def compose(self, pictures: EncodedPictures, slugs: Sequence[str], modifiers: Sequence[str]) -> NDArray[np.float32]:
        """Encode "a photo of <picture> that <modifier>": [q, E], L2-normalised."""
        return self.text_encoder.encode_queries([pictures.tokens[slug] for slug in slugs], modifiers)

    def encode_tokens(self, pictures: EncodedPictures, slugs: Sequence[str]) -> NDArray[np.float32]:
        """Encode "a photo of <picture>", each picture once: [q, E], L2-normalised."""
        once = list(dict.fromkeys(slugs))
        return _spread(once, self.text_encoder.encode_queries([pictures.tokens[slug] for slug in once]), slugs)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode plain texts, each once: [q, E], L2-normalised."""
        once = list(dict.fromkeys(texts))
        return _spread(once, normalise(self.text_encoder.encode_text(once)), texts)


def look_up(pictures: EncodedPictures, slugs: Sequence[str]) -> NDArray[np.float32]:
    """Return the large tower's embeddings of pictures: [q, E]."""
    return np.stack([pictures.large[slug] for slug in slugs])


def normalise(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1."""
    normalised: NDArray[np.float32] = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return normalised


def _spread(once: Sequence[str], rows: NDArray[np.float32], wanted: Sequence[str]) -> NDArray[np.float32]:
    place = {key: number for number, key in enumerate(once)}
    return rows[[place[key] for key in wanted]]
