"""The benchmark of index kinds, small."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks.pages.gallery_tables import lay_out_indexes
from asymcir_benchmarks.retrieval.clustered_vectors import ClusteredVectors, clusters_for
from asymcir_benchmarks.retrieval.indexes import main


def test_vectors_are_normalised_clustered_and_the_same_for_the_same_seed() -> None:
    source = ClusteredVectors(24, clusters_for(3000))
    vectors = np.concatenate(list(source.draw(3000, seed=1)))
    assert vectors.shape == (3000, 24) and vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    again = ClusteredVectors(24, clusters_for(3000))
    assert np.array_equal(vectors, np.concatenate(list(again.draw(3000, seed=1))))
    queries = np.concatenate(list(source.draw(50, seed=2)))
    scores = np.sort(queries @ vectors.T, axis=1)
    assert scores[:, -10].mean() > scores.mean() + 2 * scores.std()  # they have neighbours
    assert scores.max() < 0.9999  # no query is in the gallery


@pytest.mark.slow
def test_kinds_and_peers_are_measured(tmp_path: Path) -> None:
    peers = ["usearch", *(["hnswlib"] if importlib.util.find_spec("hnswlib") else [])]  # that one needs a compiler
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "gallery.json")]
    assert main(["--sizes", "2000x32", "--subjects", "exact", "ivf-sq8", *peers, *arguments]) == 0
    record = json.loads((tmp_path / "gallery.json").read_text())
    figures = record["figures"]
    for subject in ("exact", "ivf-sq8", *peers):
        assert figures[f"2,000 x 32, {subject}, recall@10"] >= 0.95
        assert figures[f"2,000 x 32, {subject}, ms per query and thread"] > 0
    assert figures["2,000 x 32, ivf-sq8, 1% selected, recall@10"] == 1.0
    table = lay_out_indexes(record)
    assert "| exact | 2,000 x 32 |" in table
    assert len(table.splitlines()) == 6 + len(peers)
