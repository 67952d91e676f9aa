"""Every kind of index against brute force: all rows, some excluded, and some selected."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_server.gallery.indexes import KINDS
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.indexes.kinds import Effort
from asymcir_server.gallery.indexes.mapped import MappedIndex
from numpy.typing import NDArray
from small_indexes import CODED, WIDTH, Built, build, make_vectors

QUERIES = make_vectors(100, 2)


def recall_of(found: NDArray[np.int64], vectors: NDArray[np.float32], rows: NDArray[np.int64], depth: int) -> float:
    """Return the share of the true best among `rows` that is found."""
    scores = QUERIES @ vectors[rows].T
    best = rows[np.argsort(-scores, axis=1)[:, :depth]]
    return float(np.mean([len(set(a) & set(b)) / depth for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_recall_and_true_scores(built: Callable[[str], Built], kind: str) -> None:
    one = built(kind)
    everything = np.arange(6000)
    for depth in (1, 10, 100):
        scores, rows = one.index.search(QUERIES, depth)
        assert rows.shape == scores.shape == (100, depth)
        assert recall_of(rows, one.vectors, everything, depth) >= (1.0 if kind == "exact" else 0.96)
        assert np.abs(scores - np.einsum("qke,qe->qk", one.vectors[rows], QUERIES)).max() < 1e-5
        assert (np.diff(scores, axis=1) <= 0).all()
        assert all(len(set(row)) == depth for row in rows.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_as_its_queries_do(built: Callable[[str], Built], kind: str) -> None:
    index = built(kind).index
    batch = index.search(QUERIES[:7], 5)[1]
    assert batch.tolist() == [index.search(query[None], 5)[1][0].tolist() for query in QUERIES[:7]]


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_rows_are_never_answered(built: Callable[[str], Built], kind: str) -> None:
    one = built(kind)
    excluded = np.unique(one.index.search(QUERIES, 8)[1])  # most of what would be answered
    rows = one.index.search(QUERIES, 10, excluded)[1]
    assert rows.shape == (100, 10)
    assert not np.isin(rows, excluded).any()
    assert recall_of(rows, one.vectors, np.setdiff1d(np.arange(6000), excluded), 10) >= 0.93
    rest = np.arange(5995)
    assert one.index.search(QUERIES[:2], 10, rest)[1].shape == (2, 5)
    assert set(one.index.search(QUERIES[:1], 10, rest)[1][0].tolist()) == set(range(5995, 6000))
    assert one.index.search(QUERIES[:2], 10, np.arange(6000))[1].shape == (2, 0)


@pytest.mark.parametrize("exact_rows", [None, 0])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_selections(
    built: Callable[[str], Built], kind: str, share: float, exact_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the index, not exact search, has to find them."""
    one = built(kind)
    if exact_rows is not None and kind != "exact" and not (kind == "hnsw" and share < 0.1):  # where a graph is no way
        monkeypatch.setattr(one.index, "_exact_rows", exact_rows)
    generator = np.random.default_rng(3)
    selection = np.sort(generator.choice(6000, max(1, round(6000 * share)), replace=False)).astype(np.int64)
    excluded = selection[::10] if len(selection) > 10 else np.empty(0, np.int64)
    left = np.setdiff1d(selection, excluded)
    depth = min(10, len(left))
    scores, rows = one.index.search(QUERIES, 10, excluded, selection)
    assert rows.shape == scores.shape == (100, depth)
    assert np.isin(rows, left).all()
    assert recall_of(rows, one.vectors, left, depth) >= 0.96
    assert np.abs(scores - np.einsum("qke,qe->qk", one.vectors[rows], QUERIES)).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_selections_far_from_the_query(built: Callable[[str], Built], kind: str) -> None:
    """All selected rows are in one cluster, and the lists and links near the query hold none of them."""
    one = built(kind)
    selection = np.sort(np.argsort(one.vectors @ QUERIES[0])[:1800]).astype(np.int64)
    rows = one.index.search(QUERIES, 10, None, selection)[1]
    assert rows.shape == (100, 10)
    assert np.isin(rows, selection).all()
    assert recall_of(rows, one.vectors, selection, 10) >= (1.0 if kind == "exact" else 0.8)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_wrong_selections(built: Callable[[str], Built], kind: str) -> None:
    index = built(kind).index
    assert index.search(QUERIES[:3], 5, None, np.empty(0, np.int64))[1].shape == (3, 0)
    for wrong in ([-1, 4], [5, 6000]):
        with pytest.raises(ValueError, match="expected rows from 0 to 5999"):
            index.search(QUERIES[:3], 5, None, np.array(wrong))
    for shape in ((2, WIDTH + 1), (2, WIDTH - 1), (WIDTH,)):
        with pytest.raises(ValueError, match="expected queries"):
            index.search(np.ones(shape, np.float32), 5)


@pytest.mark.parametrize("count", [1, 2, 3, 40, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_few_vectors_and_more_hits_than_there_are(tmp_path: Path, kind: str, count: int) -> None:
    one = build(tmp_path / "small", kind, make_vectors(count, 5))
    for top_k in (1, 10, 1000):
        rows = one.index.search(QUERIES, top_k)[1]
        assert rows.shape == (100, min(top_k, count))
        assert rows.min() >= 0
    assert np.sort(rows, axis=1).tolist() == [list(range(count))] * 100
    assert one.properties["index_recall_at_10"] >= 0.98


@pytest.mark.parametrize("kind", CODED)
def test_equal_vectors_come_in_the_order_of_their_rows(tmp_path: Path, kind: str) -> None:
    vectors = make_vectors(300, 5)
    vectors[100:120] = vectors[7]
    one = build(tmp_path / "equal", kind, vectors)
    scores, rows = one.index.search(vectors[7:8], 300)
    assert rows[0, :21].tolist() == [7, *range(100, 120)]
    assert len(set(scores[0, :21].tolist())) == 1
    assert one.index.search(vectors[7:8], 5)[0].tolist() == [scores[0, :5].tolist()]
    same = build(tmp_path / "same", kind, np.repeat(vectors[:1], 200, axis=0))
    assert same.index.search(QUERIES[:1], 200)[1].tolist() == [list(range(200))]


@pytest.mark.parametrize("kind", ["ivf-sq8", "ivf-rabitq"])
def test_lists_that_a_graph_finds(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a gallery of 200,000 vectors and more has them; few probes go through the graph, many do not."""
    monkeypatch.setattr("asymcir_server.gallery.indexes.training.MIN_CENTROID_GRAPH", 16)
    one = build(tmp_path / "g", kind, make_vectors(6000, 1))
    assert one.index.lists >= 128
    everything = np.arange(6000)
    assert recall_of(one.index.search(QUERIES, 10)[1], one.vectors, everything, 10) >= 0.96
    few, many = Effort(probes=2, candidates=10), Effort(probes=one.index.lists, candidates=100)
    assert recall_of(one.index.search(QUERIES, 10, effort=few)[1], one.vectors, everything, 10) >= 0.5
    assert recall_of(one.index.search(QUERIES, 10, effort=many)[1], one.vectors, everything, 10) == 1.0
    monkeypatch.setattr(one.index, "_exact_rows", 0)
    selection = np.arange(0, 6000, 20)
    rows = one.index.search(QUERIES, 10, None, selection)[1]
    assert np.isin(rows, selection).all()
    assert recall_of(rows, one.vectors, selection, 10) >= 0.96


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_one_index(built: Callable[[str], Built], kind: str) -> None:
    index = built(kind).index
    expected = index.search(QUERIES, 10, np.arange(50))[1].tolist()
    answers: list[list[list[int]]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(index.search(QUERIES, 10, np.arange(50))[1].tolist()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_takes_one_thread(built: Callable[[str], Built], kind: str, two_threads: None) -> None:
    index = built(kind).index
    index.search(QUERIES[:1], 10)
    started_s = time.process_time(), time.thread_time()
    for query in QUERIES:
        index.search(query[None], 10)
    elsewhere_s = (time.process_time() - started_s[0]) - (time.thread_time() - started_s[1])
    assert elsewhere_s < 0.2 * (time.thread_time() - started_s[1]) + 0.002
    assert faiss.omp_get_max_threads() == 2  # as it was


@pytest.mark.parametrize("kind", CODED)
def test_nothing_hands_the_index_out(built: Callable[[str], Built], kind: str) -> None:
    """FAISS's `add` on a mapped index ends the process."""
    index = built(kind).index
    assert {name for name in dir(index) if not name.startswith("_")} == {
        "effort", "kind", "lists", "search", "size", "width",
    }  # fmt: skip
    assert not [value for value in vars(index).values() if isinstance(value, faiss.Index)]


@pytest.mark.parametrize("kind", CODED)
def test_another_index_than_the_manifest_says_is_refused(
    tmp_path: Path, built: Callable[[str], Built], kind: str
) -> None:
    one = build(tmp_path / "one", kind, make_vectors(300, 1))
    del one
    path = tmp_path / "one" / "index.faiss"
    np.save(tmp_path / "more.npy", make_vectors(301, 1))
    effort = Effort(probes=4, candidates=2)
    with pytest.raises(BundleError, match="expected an index"):
        MappedIndex(path, kind, ReadOnlyIndex(tmp_path / "more.npy"), effort)
    other = "sq8" if kind != "sq8" else "hnsw"
    with pytest.raises(BundleError, match="expected an index"):
        MappedIndex(path, other, ReadOnlyIndex(tmp_path / "one" / "vectors.npy"), effort)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BundleError, match="cannot read the index"):
        MappedIndex(path, kind, ReadOnlyIndex(tmp_path / "one" / "vectors.npy"), effort)
