"""Searches as they go over the wire: made before the load begins, so that none of it is the generator's to compute."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from asymcir_common import read_image
from asymcir_common.places import PathReader, find_pictures
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2

from asymcir_benchmarks.errors import BenchmarkError


def make_searches(
    device_bundle: Path, pictures: Path, *, changes: Sequence[str], limit: int, gallery: str = "", top_k: int = 10
) -> list[bytes]:
    """Encode pictures and make a search of each with each change.

    Args:
        device_bundle: encodes the pictures.
        pictures: folder or archive.
        changes: typed changes, "" for none.
        limit: pictures at most, spread evenly.
        gallery, top_k: of the searches.

    Returns:
        Serialised `SearchRequest`s, neighbours of different pictures.

    Raises:
        BenchmarkError: no pictures.
        ImageError: one cannot be read.
    """
    found = find_pictures(pictures)
    if not found:
        raise BenchmarkError(f"no pictures in {pictures}: expected a folder or an archive with some")
    chosen = found[:: max(1, len(found) // limit)][:limit]
    encoder, reader = QueryEncoder(DeviceBundle.load(device_bundle)), PathReader()
    tokens = [pack_tokens(encoder.encode_image(read_image(path, reader))) for path in chosen]
    return [
        retrieval_pb2.SearchRequest(
            tokens=packed,
            word_space=encoder.bundle.word_space,
            modifier=change,
            gallery=gallery,
            top_k=top_k,
        ).SerializeToString()
        for change, packed in itertools.product(changes, tokens)
    ]
