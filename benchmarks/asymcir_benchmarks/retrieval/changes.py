"""What changing a gallery costs: adding a thousand vectors until they are found, removing, updating, merging.

    python -m asymcir_benchmarks.retrieval.changes --work FOLDER --out benchmarks/results/gallery-changes.json

`--sizes` takes several, such as `1000000x768` (3 GB of vectors, and as much again for the merge).

The vectors are synthetic (`clustered_vectors.py`), the index is the one that `auto` takes, or `--index`. Added vectors
come ready, so that no encoder is measured. Two processes take part: a server's gallery that follows every 0.25 s in
this one, and the writer, a process of its own as `asymcir gallery add` is one. Its time to open the gallery is given
apart. A change is found when the follower's gallery answers with it. Searches are wall clock, medians over the queries,
in turn with and without changes. Published are medians over the rounds.
"""

import json
import logging
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import AsymcirError, write_manifest
from asymcir_common.arguments import ArgumentParser, whole_number
from asymcir_common.files import write_atomically
from asymcir_common.manifest import GALLERY
from asymcir_protos import parse_filter
from asymcir_server import Gallery
from asymcir_server.gallery import AnyGallery, Follower, GalleryHolder, compact_gallery, edit_gallery
from asymcir_server.gallery.changes.following import FollowThread
from asymcir_server.gallery.changes.table import NewPicture
from asymcir_server.gallery.history import rollback
from asymcir_server.gallery.indexes import INDEX_NAME, KINDS, IndexConfig, build_index, choose_kind
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataWriter
from asymcir_server.gallery.vectors_file import VECTORS_NAME, VectorWriter
from numpy.typing import NDArray

from asymcir_benchmarks.results import write_result
from asymcir_benchmarks.retrieval.clustered_vectors import ClusteredVectors, clusters_for
from asymcir_benchmarks.retrieval.indexes import parse_size

ADDED = 1000
QUERIES = 200
_WAIT_S = 60.0
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.retrieval.changes", description=__doc__)
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(100_000, 384)], metavar="NxE")
    parser.add_argument("--rounds", type=whole_number(1, 100), default=3, help="(default: 3)")
    parser.add_argument("--index", choices=["auto", *KINDS], default="auto")
    parser.add_argument("--no-compact", action="store_true", help="leave the merge out, which builds the index again")
    parser.add_argument("--work", type=Path, required=True, help="folder for the galleries, kept")
    parser.add_argument("--out", type=Path, help="required, but for --write")
    parser.add_argument("--write", metavar="ACTION", help="what the writer's process does; not for you")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure at every size; figures of other sizes that the file holds stay."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.write:
        print(json.dumps(write_change(args.work, args.write)))  # noqa: T201
        return 0
    if args.out is None:
        parser.error("expected --out FILE")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOG.setLevel(logging.INFO)
    figures: dict[str, float] = {}
    if args.out.exists():
        figures = json.loads(args.out.read_text(encoding="utf-8"))["figures"]
    try:
        for size, width in args.sizes:
            folder = args.work / f"changes-{size}x{width}-{args.index}"
            if not (folder / "CURRENT").exists():
                write_gallery(folder, size, width, args.index)
            label = f"{size:,} x {width}, {args.index if args.index != 'auto' else choose_kind(size, width)}"
            for name, value in measure(folder, args.rounds, merge=not args.no_compact).items():
                figures[f"{label}, {name}"] = round(value, 4)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-gallery-changes")
    return 0


def write_gallery(folder: Path, size: int, width: int, index: str) -> None:
    """Write snapshot 000001 of clustered vectors, each with a number from 0 to 99 as metadata."""
    _LOG.info("writing %d x %d", size, width)
    snapshot = folder / "snapshots/000001"
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / METADATA_NAME).unlink(missing_ok=True)
    vectors, table, row = VectorWriter(snapshot / VECTORS_NAME, width), MetadataWriter(snapshot / METADATA_NAME), 0
    for chunk in ClusteredVectors(width, clusters_for(size)).draw(size, seed=1):
        vectors.append(chunk)
        for _ in chunk:
            table.add(row, f"p{row}", {"hundredth": row % 100})
            row += 1
    vectors.close()
    items = table.finish()
    table.close()
    properties = {
        "version": "000001", "target": "union", "target_space": "synthetic", "size": size, "items": items,
        "embedding_width": width, "encoder": "synthetic",
        **build_index(snapshot / VECTORS_NAME, snapshot / INDEX_NAME, IndexConfig(kind=index)),
    }  # fmt: skip
    write_manifest(snapshot, format=GALLERY, properties=properties, sampled=True)
    write_atomically(folder / "CURRENT", "000001\n")


def write_change(folder: Path, action: str) -> dict[str, float]:
    """Make a change as a writer's process does; returns when its parts began and ended, in seconds of the clock."""
    times = {"started": time.time()}
    with edit_gallery(folder, "benchmark") as editor:
        times["opened"] = time.time()
        if action == "add":
            width = editor.gallery.embedding_width
            generator = np.random.default_rng(editor.gallery.change)
            rows = generator.standard_normal((ADDED, width), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            new = [
                NewPicture(
                    id=f"added{editor.gallery.change}-{n}", item=None, digest=generator.bytes(32),
                    metadata={"hundredth": n % 100}, vector=row, encoder="synthetic",
                )
                for n, row in enumerate(rows)
            ]  # fmt: skip
            times["ready"] = time.time()
            editor.add(new)
        elif action == "remove":
            times["ready"] = time.time()
            editor.remove([f"p{n}" for n in range(ADDED)])
        else:
            times["ready"] = time.time()
            editor.update([(f"p{ADDED + n}", {"hundredth": 100}) for n in range(ADDED)])
        times["written"] = time.time()
    return times


def measure(folder: Path, rounds: int, *, merge: bool = True) -> dict[str, float]:
    """Measure the changes, the searches with and without them, and the merge; the gallery is as before afterwards."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for number in range(rounds):
        with edit_gallery(folder, "benchmark") as editor:
            editor.discard()
        started_s = time.perf_counter()
        gallery = Gallery.open(folder)
        note("opening, s", time.perf_counter() - started_s)
        plain = Gallery.open(folder)
        holder = GalleryHolder(gallery)
        with closing(plain), FollowThread({"g": Follower(holder)}):
            size, width = gallery.size, gallery.embedding_width
            for action in ("add", "remove", "update"):
                times, seen = _run_writer(folder, action, holder)
                note(f"{action} {ADDED}, until found, s", seen - times["ready"])
                note(f"{action} {ADDED}, until on disk, s", times["written"] - times["ready"])
                note("opening by the writer, s", times["opened"] - times["started"])
            query = next(ClusteredVectors(width, clusters_for(size)).draw(QUERIES, seed=2))
            where = parse_filter("hundredth = 7")
            holder.current.search(query[:1], 10, where=where)
            for name, options in (("", {}), (", 1% selected", {"where": where})):
                before, after = _time_searches(query, plain, holder.current, options)
                note(f"search without changes{name}, ms", before)
                note(f"search with changes{name}, ms", after)
        holder.close()
        _LOG.info("round %d: %s", number + 1, {name: round(values[-1], 4) for name, values in found.items()})
    if merge:
        started_s = time.perf_counter()
        report = compact_gallery(folder)
        found["compact, s"] = [time.perf_counter() - started_s]
        found["compact, recall@10"] = [report.index_recall_at_10]
        rollback(folder, "1", discard_changes=True)
        shutil.rmtree(folder / "snapshots" / report.version)
    return {name: statistics.median(values) for name, values in found.items()}


def _run_writer(folder: Path, action: str, holder: GalleryHolder) -> tuple[dict[str, float], float]:
    """Run the writer's process; returns its times, and when the follower's gallery had the change."""
    version = holder.current.full_version
    command = [sys.executable, "-m", "asymcir_benchmarks.retrieval.changes", "--work", str(folder), "--write", action]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + _WAIT_S
        while holder.current.full_version == version and time.monotonic() < deadline_s and process.poll() in (None, 0):
            time.sleep(0.005)
        seen = time.time()
        output = process.communicate()[0]
    times: dict[str, float] = json.loads(output)
    return times, seen


def _time_searches(
    query: NDArray[np.float32], plain: Gallery, changed: AnyGallery, options: dict[str, Any]
) -> tuple[float, float]:
    """Return the median milliseconds of one search without and with changes, query by query in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(len(query)):
        for gallery, taken in zip((plain, changed), times, strict=True):
            started_s = time.perf_counter()
            gallery.search(query[number : number + 1], 10, **options)
            taken.append((time.perf_counter() - started_s) * 1000.0)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    sys.exit(main())
