"""Opening and searching one index in a process of its own: ours, usearch and hnswlib."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import read_manifest
from asymcir_common.manifest import GALLERY
from asymcir_server.gallery.indexes import INDEX_NAME, KINDS, open_index
from numpy.typing import NDArray

USEARCH = "usearch"
HNSWLIB = "hnswlib"
PEERS = (USEARCH, HNSWLIB)
"""usearch with float32 and its own settings, mapped; hnswlib with M = 16 and ef_construction = 200, its examples'."""

_EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_ADD_ROWS = 16_384

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""query [1, E] -> ten rows."""


def build_peer(name: str, vectors_path: Path, path: Path) -> None:
    """Build a peer's index on one thread, in chunks, and write it."""
    vectors = np.load(vectors_path, mmap_mode="r")
    count, width = vectors.shape
    index = _make_usearch(width) if name == USEARCH else _make_hnswlib(width, count)
    for start in range(0, count, _ADD_ROWS):
        rows = np.arange(start, min(count, start + _ADD_ROWS))
        chunk = np.ascontiguousarray(vectors[rows[0] : rows[-1] + 1])
        if name == USEARCH:
            index.add(rows, chunk, threads=1)
        else:
            index.add_items(chunk, rows, num_threads=1)
    if name == USEARCH:
        index.save(str(path))
    else:
        index.save_index(str(path))


def measure_subject(name: str, folder: Path, recall: float) -> dict[str, float]:
    """Open a subject in a new process and measure it there.

    Args:
        name: of KINDS or PEERS.
        folder: holds vectors, queries and true answers, and a folder named as the subject.
        recall: that a peer's effort is chosen for.

    Returns:
        Figures with units.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (name, folder, recall))


def _measure(name: str, folder: Path, recall: float) -> dict[str, float]:
    import faiss

    faiss.omp_set_num_threads(1)
    queries = np.load(folder / "queries.npy")
    truth = np.load(folder / "truth.npy")
    count = len(np.load(folder / "vectors.npy", mmap_mode="r"))
    path = folder / name / INDEX_NAME
    figures = {"bytes per vector on disk beside the vectors": path.stat().st_size / count if path.is_file() else 0.0}
    if name == USEARCH:  # the library is there before memory is counted
        _make_usearch(4)
    elif name == HNSWLIB:
        _make_hnswlib(4, 4)
    before, started_s = read_memory(), time.perf_counter()
    index: Any
    if name in KINDS:
        manifest = read_manifest(folder / name, format=GALLERY, sampled=True)
        index = open_index(folder / name, folder / name / "vectors.npy", manifest)
    elif name == USEARCH:
        from usearch.index import Index

        index = Index.restore(str(path), view=True)
    else:
        index = _make_hnswlib(queries.shape[1], count, path)
    figures["opening, s"] = time.perf_counter() - started_s
    opened = read_memory()
    figures["memory at opening, own, MB"] = opened[0] - before[0]
    figures["memory at opening, with mapped files, MB"] = sum(opened) - sum(before)
    search = _searcher(name, index)
    if name in PEERS:
        figures["search effort, probes"] = float(_tune(name, index, search, queries, truth, recall))
    figures |= _time(search, queries, truth)
    after = read_memory()
    figures["own bytes per vector after the queries"] = (after[0] - before[0]) * 1e6 / count
    if name in KINDS:
        selection = np.load(folder / "selection.npy")
        found = _time(
            lambda query: index.search(query, 10, None, selection)[1][0],
            queries,
            np.load(folder / "selection_truth.npy"),
        )
        figures |= {f"1% selected, {key}": value for key, value in found.items()}
    return figures


def read_memory() -> tuple[float, float]:
    """Return a process's resident MB (Linux): its own, and those of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(sizes["RssAnon"]) * 1024 / 1e6, int(sizes["RssFile"]) * 1024 / 1e6


def _searcher(name: str, index: Any) -> Search:
    if name in KINDS:
        return lambda query: np.asarray(index.search(query, 10)[1][0])
    if name == USEARCH:
        return lambda query: np.asarray(index.search(query[0], 10, threads=1).keys, dtype=np.int64)
    return lambda query: np.asarray(index.knn_query(query, 10, num_threads=1)[0][0], dtype=np.int64)


def _tune(
    name: str, index: Any, search: Search, queries: NDArray[np.float32], truth: NDArray[np.int64], recall: float
) -> int:
    """Set and return the least effort that reaches the recall, else the greatest."""
    for effort in _EFFORTS:
        if name == USEARCH:
            index.expansion_search = effort
        else:
            index.set_ef(effort)
        if _recall(np.stack([search(query[None]) for query in queries]), truth) >= recall:
            break
    return effort


def _time(search: Search, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, float]:
    found = np.stack([search(query[None]) for query in queries])  # warm-up, and what is judged
    walls_ms, processor_s = [], time.process_time()
    for query in queries:
        started_s = time.perf_counter()
        search(query[None])
        walls_ms.append((time.perf_counter() - started_s) * 1e3)
    processor_s = time.process_time() - processor_s
    return {
        "recall@10": _recall(found, truth),
        "ms per query and thread": processor_s * 1e3 / len(walls_ms),
        "wall ms per query, median": float(np.median(walls_ms)),
        "wall ms per query, p95": float(np.percentile(walls_ms, 95)),
    }


def _recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def _make_usearch(width: int) -> Any:
    from usearch.index import Index

    return Index(ndim=width, metric="ip", dtype="f32")


def _make_hnswlib(width: int, count: int, path: Path | None = None) -> Any:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=width)
    if path is None:
        index.init_index(max_elements=count, M=16, ef_construction=200)
    else:
        index.load_index(str(path))
    return index
