"""Pictures that look alike: a hash of 64 bits of each, and the groups whose hashes differ in few bits.

The hash is the difference hash: whether each of 8 x 8 cells of the grey square is brighter than its right neighbour.
Scaling, another file format and light retouching change few bits of it.

Two hashes that differ in at most d bits are equal in one of d + 1 bands of their bits. So each band is sorted, and a
hash is compared with those that follow it there, MAX_FOLLOWERS at most: the cost is bounded by N, and groups of more
than that many different hashes of one band may come out in parts.

Notation: N pictures, u different hashes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASHES_NAME = "picture_hashes.npy"
"""In a snapshot for which near duplicates were looked for: uint64 [N]."""

MAX_DIFFERENT_BITS = 3
"""Of 64; pictures above this are not called near duplicates."""

MAX_FOLLOWERS = 256

_SIDE = 8
_BANDS = MAX_DIFFERENT_BITS + 1
_BAND_BITS = 64 // _BANDS
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def hash_picture(square: NDArray[np.uint8]) -> int:
    """Return the difference hash of a preprocessed picture [S, S, 3]: 64 bits."""
    grey = Image.fromarray(square).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    cells = np.asarray(grey)
    return int.from_bytes(np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes(), "big")


def find_near_duplicates(hashes: NDArray[np.uint64]) -> Iterator[list[int]]:
    """Group pictures by their hashes; a group is linked from picture to picture, so its ends may differ in more bits.

    Args:
        hashes: [N].

    Yields:
        Rows of each group of two or more, ascending; groups by their first row.
    """
    distinct, group_of_row = np.unique(hashes, return_inverse=True)  # [u], [N]
    parents = np.arange(len(distinct))
    for band in range(_BANDS):
        shift = np.uint64(band * _BAND_BITS)
        rotated = (distinct << shift) | (distinct >> ((np.uint64(64) - shift) % np.uint64(64)))
        order = np.argsort(rotated, kind="stable")
        sorted_hashes = rotated[order]
        prefixes = sorted_hashes >> np.uint64(64 - _BAND_BITS)
        for step in range(1, min(MAX_FOLLOWERS, len(distinct) - 1) + 1):
            same = np.flatnonzero(prefixes[step:] == prefixes[:-step])
            if not len(same):
                break
            differing = np.bitwise_xor(sorted_hashes[same], sorted_hashes[same + step])
            near = same[_count_bits(differing) <= MAX_DIFFERENT_BITS]
            if not len(near):
                continue
            firsts, seconds = order[near], order[near + step]
            parents = _flatten(parents)
            apart = parents[firsts] != parents[seconds]  # where all look alike, most are joined already
            for first, second in zip(firsts[apart].tolist(), seconds[apart].tolist(), strict=True):
                _join(parents, first, second)
    groups = _flatten(parents)[group_of_row.reshape(-1)]  # [N]
    rows = np.flatnonzero(np.bincount(groups)[groups] > 1) if len(groups) else groups
    rows = rows[np.argsort(groups[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[rows]))
    found = [group.tolist() for group in np.split(rows, starts + 1) if len(group)]
    yield from sorted(found)


def _count_bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = _BITS_OF_BYTE[values.view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.int64)
    return counts


def _flatten(parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Let every item point to its root."""
    while not np.array_equal(parents, above := parents[parents]):
        parents = above
    return parents


def _root(parents: NDArray[np.int64], item: int) -> int:
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = int(parents[item])
    return item


def _join(parents: NDArray[np.int64], first: int, second: int) -> None:
    first, second = _root(parents, first), _root(parents, second)
    parents[max(first, second)] = min(first, second)
