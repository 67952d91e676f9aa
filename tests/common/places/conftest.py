"""The two faces of the reader: what training and the gallery make of the same places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from asymcir_server.gallery import open_source
from asymcir_server.gallery.sources import Entry
from asymcir_training import open_pictures


@dataclass(frozen=True, slots=True)
class Face:
    """What a face makes of places: ids in order, how to read one by number, id -> reason of what is rejected."""

    ids: list[str]
    read: Callable[[int], bytes]
    rejected: dict[str, str]


OpenFace = Callable[[Sequence[str | Path]], Face]


def open_for_gallery(specs: Sequence[str | Path]) -> Face:
    items = list(open_source(specs))
    entries = [item for item in items if isinstance(item, Entry)]
    rejected = {item.id: item.reason for item in items if not isinstance(item, Entry)}
    assert len(open_source(specs)) == len(items)
    return Face([entry.id for entry in entries], lambda number: entries[number].read(), rejected)


def open_for_training(specs: Sequence[str | Path]) -> Face:
    pictures = open_pictures(specs)
    return Face(list(pictures.keys), pictures.read, dict(pictures.problems))


FACES: dict[str, OpenFace] = {"gallery": open_for_gallery, "training": open_for_training}


@pytest.fixture(params=list(FACES))
def face(request: pytest.FixtureRequest) -> OpenFace:
    return FACES[request.param]


@pytest.fixture
def faces() -> list[OpenFace]:
    return list(FACES.values())
