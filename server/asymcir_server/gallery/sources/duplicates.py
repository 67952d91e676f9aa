"""Pictures that are in a gallery more than once: found, counted and listed.

`duplicates.jsonl` has a line for each group: {"kind": "exact" | "near", "ids": [...]}, ids in the gallery's order.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_server.gallery.metadata import MetadataWriter
from asymcir_server.gallery.sources.near_duplicates import find_near_duplicates

DUPLICATES_NAME = "duplicates.jsonl"
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Pictures that are there more than once.

    Attributes:
        exact: pictures whose file is that of an earlier one.
        near: pictures that look like an earlier one, of another file; None: not looked for.
        examples: the ids of the first groups, at most EXAMPLES of each kind.
    """

    exact: int
    near: int | None
    examples: tuple[tuple[str, ...], ...]


def write_duplicates(path: Path, metadata: MetadataWriter, hashes: NDArray[np.uint64] | None) -> Duplicates:
    """Find duplicates and list them.

    Args:
        path: `duplicates.jsonl`; not there afterwards where there are none.
        metadata: of every picture, with its digest.
        hashes: [N], to look for near duplicates by; None: do not.
    """
    counts, examples = Counter[str](), list[tuple[str, ...]]()
    with path.open("w", encoding="utf-8") as stream:
        for kind, found in (("exact", metadata.duplicates()), ("near", _near(metadata, hashes))):
            shown = 0
            for ids in found:
                counts[kind] += len(ids) - 1
                stream.write(json.dumps({"kind": kind, "ids": ids}, ensure_ascii=False) + "\n")
                if shown < EXAMPLES:
                    examples.append(tuple(ids))
                    shown += 1
    if not counts:
        path.unlink()
    return Duplicates(exact=counts["exact"], near=None if hashes is None else counts["near"], examples=tuple(examples))


def _near(metadata: MetadataWriter, hashes: NDArray[np.uint64] | None) -> Iterator[list[str]]:
    """Yield the ids of each group, one of each file; a group of one file is an exact duplicate only."""
    if hashes is None:
        return
    for rows in find_near_duplicates(hashes):
        first_of = dict[bytes | None, str]()
        for identity, digest in metadata.rows(rows):
            first_of.setdefault(digest, identity)
        if len(first_of) > 1:
            yield list(first_of.values())
