"""What each kind of index costs, beside usearch and hnswlib on the same vectors: build, memory, recall, time.

    python -m asymcir_benchmarks.retrieval.indexes --work FOLDER --out benchmarks/results/gallery.json

`--sizes` takes several, such as `1000000x768` (3 GB of vectors). The vectors are synthetic
(`clustered_vectors.py`). Each index is built for recall@10 of at least 0.98 on one set of queries and measured on
another, against FAISS's exact search; a peer takes the least effort that reaches it there. Each is opened in a process
of its own, which searches one query at a time on one thread. Times are processor time of that process, which other
work on the machine lengthens least, with the median of the wall clock beside them; memory is what the process gains,
split into its own and that of mapped files. Searches run in rounds, subject after subject; published are medians.

Vectors and indexes that are in the working folder are used again, with the times that their build took: so a run that
was interrupted goes on. Remove the folder to measure everything anew.
"""

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from asymcir_common import AsymcirError, write_manifest
from asymcir_common.arguments import ArgumentParser
from asymcir_common.files import write_atomically
from asymcir_common.manifest import GALLERY
from asymcir_server.gallery.indexes import INDEX_NAME, KINDS, IndexConfig, build_index
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.vectors_file import VectorWriter

from asymcir_benchmarks.results import write_result
from asymcir_benchmarks.retrieval.clustered_vectors import ClusteredVectors, clusters_for
from asymcir_benchmarks.retrieval.index_subjects import PEERS, build_peer, measure_subject

RECALL = 0.98
ROUNDS = 3
"""Of the searches: the subjects in turn, so that whatever else the machine does meets all of them alike."""
QUERIES = 1000
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.retrieval.indexes", description=__doc__)
    parser.add_argument("--sizes", type=parse_size, nargs="+", default=[(100_000, 384)], metavar="NxE")
    parser.add_argument("--subjects", nargs="+", choices=[*KINDS, *PEERS], default=[*KINDS, *PEERS])
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors and indexes, kept")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def parse_size(text: str) -> tuple[int, int]:
    """Read a size such as 100000x384.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or int(found[1]) < 100 or int(found[2]) < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 100000x384, got {text}")
    return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every subject at every size; figures of other sizes that the file holds stay."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    figures = json.loads(args.out.read_text(encoding="utf-8"))["figures"] if args.out.is_file() else {}
    sizes = " ".join(f"{count}x{width}" for count, width in args.sizes)
    try:
        for count, width in args.sizes:
            figures |= measure(args.work / f"{count}x{width}", count, width, args.subjects)
            command = f"python -m asymcir_benchmarks.retrieval.indexes --sizes {sizes}"
            write_result(args.out, figures=figures, command=command)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def measure(folder: Path, count: int, width: int, subjects: Sequence[str]) -> dict[str, float]:
    """Build and measure some subjects over one set of vectors.

    Args:
        folder: for the vectors and the indexes; what is there is used again.
        count: N.
        width: E.
        subjects: of KINDS and PEERS.

    Returns:
        Flat figures, by size and subject.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = f"{count:,} x {width}"
    _prepare(folder, count, width)
    figures: dict[str, float] = {f"{size}, vectors": float(count)}
    for subject in subjects:
        built = _build(subject, folder)
        figures |= {f"{size}, {subject}, {name}": value for name, value in built.items()}
        _LOG.info("%s, %s: built in %.1f s", size, subject, built["build, s"])
    rounds = [{subject: measure_subject(subject, folder, RECALL) for subject in subjects} for _ in range(ROUNDS)]
    for subject in subjects:
        found = {name: float(np.median([one[subject][name] for one in rounds])) for name in rounds[0][subject]}
        figures |= {f"{size}, {subject}, {name}": value for name, value in found.items()}
        _LOG.info("%s, %s: %s", size, subject, {name: round(value, 4) for name, value in found.items()})
    return {name: round(value, 5) for name, value in figures.items()}


def _build(subject: str, folder: Path) -> dict[str, float]:
    """Build one subject over the vectors of a folder and return what it took; one that is there is not built again."""
    path = folder / subject
    done = path / "built.json"
    if done.is_file():
        known: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return known
    path.mkdir(exist_ok=True)
    wall_s, processor_s = time.perf_counter(), time.process_time()
    probes: dict[str, float] = {}
    if subject in KINDS:
        (path / "vectors.npy").unlink(missing_ok=True)
        (path / "vectors.npy").hardlink_to(folder / "vectors.npy")
        (path / INDEX_NAME).unlink(missing_ok=True)
        properties = build_index(
            path / "vectors.npy",
            path / INDEX_NAME,
            IndexConfig(kind=subject, recall=RECALL, recall_queries=folder / "tuning.npy"),
        )
        probes = {"search effort, probes": float(properties["index"].get("effort", {}).get("probes", 0))}
    else:
        build_peer(subject, folder / "vectors.npy", path / INDEX_NAME)
    taken = {"build, s": time.perf_counter() - wall_s, "build, processor s": time.process_time() - processor_s}
    if subject in KINDS:
        (path / "manifest.json").unlink(missing_ok=True)
        write_manifest(path, format=GALLERY, properties=properties, sampled=True)
    write_atomically(done, json.dumps(taken | probes))
    return taken | probes


def _prepare(folder: Path, count: int, width: int) -> None:
    """Write vectors, two sets of queries and the true answers of the second, where they are not there."""
    source = ClusteredVectors(width, clusters_for(count))
    if not (folder / "vectors.npy").is_file():
        writer = VectorWriter(folder / "vectors.part", width)
        for chunk in source.draw(count, seed=1):
            writer.append(chunk)
        writer.close()
        (folder / "vectors.part").rename(folder / "vectors.npy")
    for name, seed in (("tuning.npy", 2), ("queries.npy", 3)):
        np.save(folder / name, np.concatenate(list(source.draw(QUERIES, seed=seed))))
    exact = ReadOnlyIndex(folder / "vectors.npy")
    queries = np.load(folder / "queries.npy")
    np.save(folder / "truth.npy", exact.search(queries, 10)[1])
    selection = np.sort(np.random.default_rng(4).choice(count, count // 100, replace=False)).astype(np.int64)
    np.save(folder / "selection.npy", selection)
    np.save(folder / "selection_truth.npy", exact.search(queries, 10, None, selection)[1])


if __name__ == "__main__":
    sys.exit(main())
