"""The vectors that a batch of decoded pictures lacks: each file encoded once, and kept before it is used."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from asymcir_server.encode.vectors import usable_rows
from asymcir_server.gallery.sources.decode import DecodedPicture
from asymcir_server.gallery.sources.encoded import Encoded, PictureMemory


def complete(
    pictures: Sequence[DecodedPicture],
    encoded: PictureMemory,
    encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> tuple[list[Encoded], int]:
    """Find or make the vector of every picture of a batch.

    Args:
        pictures: in the source's order.
        encoded: keeps what is made, in one transaction.
        encode: pixels [b, S, S, 3] to target representations [b, E].

    Returns:
        What is known of each picture, its vector included (a vector without a direction too, which is not kept), and
        how many were encoded.
    """
    vectors: dict[bytes, NDArray[np.float32]] = {}
    unknown: list[DecodedPicture] = []
    for picture in pictures:
        if picture.pixels is None or picture.digest in vectors:
            continue
        # Pictures with the same file may lie in one batch, or in the batch before, which was not kept yet.
        found = encoded.find(picture.digest).vector
        vectors[picture.digest] = np.empty(0, np.float32) if found is None else found
        if found is None:
            unknown.append(picture)
    bad = set[bytes]()
    if unknown:
        made = encode(np.stack([picture.pixels for picture in unknown if picture.pixels is not None]))  # [b, E]
        for picture, vector, good in zip(unknown, made, usable_rows(made), strict=True):
            vectors[picture.digest] = vector
            if not good:
                bad.add(picture.digest)
    completed = [picture.known.or_else(Encoded(vector=vectors.get(picture.digest))) for picture in pictures]
    encoded.add(
        (picture.digest, known)
        for picture, known in zip(pictures, completed, strict=True)
        if picture.decoded and picture.digest not in bad
    )
    return completed, len(unknown)
