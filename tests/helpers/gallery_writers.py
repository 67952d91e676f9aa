"""A numbered run of changes to a gallery, for tests that kill whoever makes them or fill the disk beneath.

Change n is the same whoever makes it, so what a gallery holds says how many changes were made to it.
"""

import json
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.gallery import compact_gallery, edit_gallery
from vector_galleries import new_picture, unit_rows, write_gallery

BASE = 40
State = dict[str, dict[str, Any]]
CHANGING = ("add", "remove", "update", "compact", "mixed")
KINDS = ("build", *CHANGING)


def kind_of(kind: str, number: int) -> str:
    """Say what change `number` of a run is."""
    if kind == "remove":
        return ("add", "remove")[number % 2]
    if kind == "compact":
        return ("add", "compact")[number % 2]
    return ("add", "update", "remove", "compact", "add", "remove")[number % 6] if kind == "mixed" else kind


def begin(folder: Path, kind: str) -> None:
    """Write the gallery that a run starts from."""
    if kind != "build":
        write_gallery(folder, [{"v": 0} for _ in range(BASE)])


def make_change(
    folder: Path, kind: str, number: int, bundle: ServerBundle | None = None, pictures: Path | None = None
) -> None:
    """Make change `number` of a run."""
    what = kind_of(kind, number)
    if what == "build":
        assert bundle is not None and pictures is not None
        files = sorted(pictures.rglob("*.png"))[: count_built(number)]
        listed = folder.parent / f"{count_built(number)}.jsonl"
        listed.write_text("\n".join(json.dumps({"path": str(path)}) for path in files), encoding="utf-8")
        build_gallery(listed, bundle, folder, config=BuildConfig(allow_shrink=True))
    elif what == "compact":
        compact_gallery(folder)
    else:
        with edit_gallery(folder, what) as editor:
            if what == "add":
                rows = unit_rows(3, number)
                editor.add([new_picture(f"a{number}-{n}", rows[n], {"v": 0}) for n in range(3)])
            elif what == "remove":
                editor.remove(removed_by(kind, number))
            else:
                editor.update([(f"p{n}", {"v": number + 1}) for n in range(BASE)])


def removed_by(kind: str, number: int) -> list[str]:
    last = max(n for n in range(number) if kind_of(kind, n) == "add")
    return [f"a{last}-{n}" for n in range(2)]


def count_built(number: int) -> int:
    return 4 + number % 4  # never less than half of those before, which a build refuses


@lru_cache(maxsize=4096)
def state_items(kind: str, count: int) -> tuple[tuple[str, int], ...]:
    """Return ids and the values of `v` after the first `count` changes of a run, as a tuple."""
    if count == 0:
        return tuple((f"p{n}", 0) for n in range(BASE))
    state, number = dict(state_items(kind, count - 1)), count - 1
    what = kind_of(kind, number)
    if what == "add":
        state |= {f"a{number}-{n}": 0 for n in range(3)}
    elif what == "remove":
        for identity in removed_by(kind, number):
            state.pop(identity, None)
    elif what == "update":
        state |= {f"p{n}": number + 1 for n in range(BASE)}
    return tuple(sorted(state.items()))


def expected(kind: str, count: int) -> dict[str, int]:
    return dict(state_items(kind, count))


def read_state(folder: Path) -> dict[str, int]:
    """Return what an opened gallery holds: id -> `v`; every picture is found by a search."""
    gallery = Gallery.open(folder)
    try:
        ids = gallery.search(np.ones((1, gallery.embedding_width), np.float32), 100_000).ids[0]
        assert len(ids) == len(set(ids)) == gallery.size
        return {identity: record.get("v", 0) for identity, record in zip(ids, gallery.metadata(ids), strict=True)}
    finally:
        gallery.close()


def run_changes(folder: Path, kind: str, start: int, acknowledge: Connection, bundle: Path, pictures: Path) -> None:
    """Make change after change, and acknowledge each, until it is killed."""
    loaded = ServerBundle.load(bundle, threads=1) if kind == "build" else None
    acknowledge.send_bytes(b"ready")
    for number in range(start, start + 10_000):
        make_change(folder, kind, number, loaded, pictures)
        acknowledge.send_bytes(b"done")
