"""A gallery that is replaced while requests use it."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from asymcir_server import Gallery, ServerBundle
from asymcir_server.gallery import GalleryHolder


def _answers(gallery: Gallery) -> bool:
    try:
        return len(gallery.search(np.ones((1, gallery.embedding_width), np.float32), 1).ids[0]) == 1
    except sqlite3.ProgrammingError:  # its tables are closed
        return False


@pytest.mark.parametrize("owned", [True, False])
def test_a_replaced_gallery_is_closed_when_its_last_request_ends(
    gallery_folder: Path, bundle: ServerBundle, owned: bool
) -> None:
    first, second = (Gallery.open(gallery_folder, bundle.target_spaces) for _ in range(2))
    holder = GalleryHolder(first, owned=owned)
    with holder.lease() as one, holder.lease() as other:
        assert one is other is first
        holder.replace(second)
        assert holder.current is second and _answers(first)
        with holder.lease() as newer:
            assert newer is second
        assert _answers(first)
    assert _answers(first) is not owned
    with holder.lease() as newer:
        assert newer is second and _answers(second)
    holder.replace(Gallery.open(gallery_folder, bundle.target_spaces))
    assert not _answers(second)  # nobody used it
    holder.close()
    first.close()
