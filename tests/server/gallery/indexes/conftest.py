"""An index of every kind."""

from collections.abc import Callable, Iterator

import faiss
import pytest
from small_indexes import Built, build, make_vectors


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build an index over 6,000 vectors, once for each kind."""
    found: dict[str, Built] = {}

    def get(kind: str) -> Built:
        if kind not in found:
            found[kind] = build(tmp_path_factory.mktemp(kind), kind, make_vectors(6000, 1))
        return found[kind]

    return get


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Give FAISS two threads, whatever the environment says."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)
