"""Right answers and what is taken out, in a gallery whose vectors are chosen, through its real index."""

import numpy as np
import pytest
from asymcir_benchmarks import Triplet
from asymcir_benchmarks.emojicir.catalogue import Catalogue, GalleryPicture
from asymcir_benchmarks.emojicir.evaluate import rank_triplets
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.metrics import NOT_FOUND
from asymcir_benchmarks.retrieval.ranking import rank_all_relevant, rank_first_answer
from asymcir_server import Gallery, ServerBundle, build_gallery
from asymcir_server.gallery.snapshots import current_snapshot
from numpy.typing import NDArray
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle

SIZE = 16


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Random pictures p00 to p15."""
    folder = tmp_path_factory.mktemp("ranking")
    rng = np.random.default_rng(1)
    (folder / "pictures").mkdir()
    for number in range(SIZE):
        pixels = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"p{number:02d}.png")
    bundle = ServerBundle.load(write_tiny_bundle(folder / "server", TinyModel()))
    build_gallery(folder / "pictures", bundle, folder / "gallery")
    return Gallery.open(folder / "gallery", bundle.target_spaces)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    rows = np.random.default_rng(2).standard_normal((5, 16)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def orders(gallery: Gallery, queries: NDArray[np.float32]) -> list[list[str]]:
    """The whole ranking of each query, by the score matrix."""
    vectors = np.load(current_snapshot(gallery.folder) / "vectors.npy")
    return [[f"p{row:02d}.png" for row in np.argsort(-(vectors @ query))] for query in queries]


def _catalogue(concepts: dict[str, str], drawings: dict[str, str] | None = None) -> Catalogue:
    """Picture -> concept; picture -> drawing, its own where it is not named."""
    ids = [f"p{number:02d}.png" for number in range(SIZE)]
    return Catalogue(
        GalleryPicture(
            id=identity,
            concept=concepts.get(identity, identity),
            name=identity,
            figure=identity,
            drawing=(drawings or {}).get(identity, identity),
        )
        for identity in ids
    )


def _ask(reference: str, target: str) -> Triplet:
    return Triplet(reference=reference, modifier="is x", target=target, family="hair")


def test_the_best_placed_picture_of_the_concept_counts(
    gallery: Gallery, queries: NDArray[np.float32], orders: list[list[str]]
) -> None:
    order = orders[0]
    catalogue = _catalogue({order[7]: "wanted", order[3]: "wanted", order[12]: "wanted"})
    found = rank_triplets([_ask("", "wanted")], {"composed": queries[:1]}, gallery, catalogue)
    assert found.ranks["composed"].tolist() == [4]


def test_an_equal_drawing_of_another_concept_counts(
    gallery: Gallery, queries: NDArray[np.float32], orders: list[list[str]]
) -> None:
    order = orders[0]
    alone = rank_triplets([_ask("", order[8])], {"composed": queries[:1]}, gallery, _catalogue({}))
    assert alone.ranks["composed"].tolist() == [9]
    shared = _catalogue({}, {order[8]: "same", order[2]: "same"})
    found = rank_triplets([_ask("", order[8])], {"composed": queries[:1]}, gallery, shared)
    assert found.ranks["composed"].tolist() == [3]


def test_every_picture_of_the_reference_concept_is_taken_out(
    gallery: Gallery, queries: NDArray[np.float32], orders: list[list[str]]
) -> None:
    order = orders[0]
    catalogue = _catalogue({order[0]: "own", order[2]: "own", order[9]: "own"})
    triplets = [_ask("own", order[5]), _ask("elsewhere", order[5])]
    found = rank_triplets(triplets, {"composed": queries[[0, 0]]}, gallery, catalogue)
    assert found.ranks["composed"].tolist() == [4, 6]


def test_a_reference_drawn_like_the_target_answers_nothing(
    gallery: Gallery, queries: NDArray[np.float32], orders: list[list[str]]
) -> None:
    order = orders[0]
    catalogue = _catalogue({}, {order[0]: "same", order[4]: "same"})
    found = rank_triplets([_ask(order[0], order[4])], {"composed": queries[:1]}, gallery, catalogue)
    assert found.ranks["composed"].tolist() == [4]


def test_past_the_last_hit_is_not_found_and_queries_keep_their_order(
    gallery: Gallery, queries: NDArray[np.float32], orders: list[list[str]]
) -> None:
    places = (9, 10, 0, 4, 3)
    answers = [frozenset({order[place]}) for order, place in zip(orders, places, strict=True)]
    excluded = [frozenset({order[15]}) if number % 2 else frozenset() for number, order in enumerate(orders)]
    ranks = rank_first_answer(queries, answers, excluded, gallery, 10)
    assert ranks.tolist() == [10, NOT_FOUND, 1, 5, 4]


def test_all_relevant_items_are_ranked_to_the_end(
    gallery: Gallery, queries: NDArray[np.float32], orders: list[list[str]]
) -> None:
    relevant = [frozenset({order[15], order[0], order[6]}) for order in orders]
    rankings = rank_all_relevant(queries, relevant, gallery)
    assert [ranks.tolist() for ranks in rankings.ranks] == [[1, 7, 16]] * 5
    assert rankings.found(10).tolist() == [1.0] * 5 and rankings.precisions(10).tolist() == [0.2] * 5
    assert rankings.average_precisions() == pytest.approx((1 + 2 / 7 + 3 / 16) / 3)
    late = rank_all_relevant(queries[:1], [frozenset({orders[0][10]})], gallery)
    assert late.found(10).tolist() == [0.0] and late.found(11).tolist() == [1.0]


def test_a_relevant_item_that_is_not_there_is_an_error(gallery: Gallery, queries: NDArray[np.float32]) -> None:
    for relevant in (frozenset({"p00.png", "ghost"}), frozenset()):
        with pytest.raises(BenchmarkError, match="relevant items"):
            rank_all_relevant(queries[:1], [relevant], gallery)
