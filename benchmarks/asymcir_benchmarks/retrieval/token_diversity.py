"""How different the sentence tokens of pictures are, and what they look at, through the device bundle.

Notation: n pictures, L sentence tokens.
"""

from pathlib import Path

import numpy as np
from asymcir_common import ImageError, read_image
from asymcir_common.places import PathReader, find_pictures
from asymcir_common.sentences import TokenDiversity, measure_diversity
from asymcir_edge import QueryEncoder

from asymcir_benchmarks.errors import BenchmarkError


def measure_pictures(encoder: QueryEncoder, pictures: Path, *, limit: int) -> tuple[TokenDiversity, int]:
    """Encode pictures and compare the tokens of each.

    Args:
        encoder: of the bundle.
        pictures: folder or archive; what cannot be read is passed over.
        limit: pictures to encode at most, spread evenly.

    Returns:
        What was measured, and over how many pictures.

    Raises:
        BenchmarkError: fewer than two pictures.
        PlaceError: it is no such place.
    """
    files, reader = find_pictures(pictures), PathReader()
    chosen = [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files
    tokens, maps = [], []
    for path in chosen:
        try:
            pixels = read_image(path, reader)
            if encoder.gives_maps:
                found, looked_at = encoder.encode_with_maps(pixels)
                maps.append(looked_at)
            else:
                found = encoder.encode_image(pixels)
        except ImageError:
            continue
        tokens.append(found)
    if len(tokens) < 2:
        raise BenchmarkError(f"expected two or more pictures in {pictures}, found {len(tokens)}")
    return measure_diversity(np.stack(tokens), np.stack(maps) if maps else None), len(tokens)


def format_diversity(found: TokenDiversity, *, pictures: int) -> str:
    """Lay out what was measured, with a warning where the tokens are nearly one."""
    length = found.sentence_length
    lines = [
        f"{pictures} pictures, {length} tokens each",
        f"cosine between the tokens of a picture: {found.cosine:.3f} ({found.least_cosine:.3f} to "
        f"{found.largest_cosine:.3f})",
        f"effective rank: {found.effective_rank:.2f} of {length}",
        f"centred rank (without what a token says of every picture): {found.centred_rank:.2f} of {length}",
        f"cosine of the same token between two pictures: {found.cosine_between_pictures:.3f}",
    ]
    if found.overlap is not None:
        lines.append(f"attention that two tokens share: {found.overlap:.3f}")
    if found.warning:
        lines.append(f"warning: {found.warning}")
    return "\n".join(lines)
