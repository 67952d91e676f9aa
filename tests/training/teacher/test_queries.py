"""Queries are composed once for each encoder, picture and modifier, and found again by whoever asks."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_training import Foundation, LightEncoder, load_foundation
from asymcir_training.errors import CacheError
from asymcir_training.teacher.queries import cache_queries
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH
from torch import Tensor

IDENTITIES = np.arange(4, dtype=np.uint8).repeat(32).reshape(4, 32)[[0, 1, 0, 1, 0, 3]]
MODIFIERS = ["is red", "", "is red", " \t", "is blue", ""]
ROWS = [0, 1, 0, 1, 4, 5]
"""The first query of each that is the same."""


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


@pytest.fixture
def encoder() -> LightEncoder:
    torch.manual_seed(0)
    spec = Preprocessing(size=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    return LightEncoder("mobilenetv3_small_050", word_width=WORD_WIDTH, width=64, preprocessing=spec)


Compose = Callable[[Sequence[int]], Iterator[Tensor]]


def _composer(composed: list[int], value: float = 0.0) -> Compose:
    """Give each query a row of its number, two at a time, and note which were asked for."""

    def compose(numbers: Sequence[int]) -> Iterator[Tensor]:
        composed.extend(numbers)
        for start in range(0, len(numbers), 2):
            some = torch.tensor(numbers[start : start + 2], dtype=torch.float32)
            yield (some + value)[:, None].expand(-1, EMBEDDING_WIDTH)

    return compose


def _ask(root: Path, encoder: LightEncoder, foundation: Foundation, compose: Compose) -> list[float]:
    found = cache_queries(root, encoder, foundation, identities=IDENTITIES, modifiers=MODIFIERS, compose=compose)
    assert found.shape == (len(MODIFIERS), EMBEDDING_WIDTH) and found.dtype == np.float32
    return found[:][:, 0].tolist()


def test_blank_modifiers_share_a_row_and_a_second_call_composes_nothing(
    encoder: LightEncoder, clip: Foundation, tmp_path: Path
) -> None:
    composed: list[int] = []
    assert _ask(tmp_path, encoder, clip, _composer(composed)) == ROWS
    assert composed == [0, 4, 1, 5]  # of one picture side by side
    assert _ask(tmp_path, encoder, clip, _composer(composed)) == ROWS and len(composed) == 4


def test_another_encoder_or_other_weights_are_another_store(
    encoder: LightEncoder, clip: Foundation, clip_folder: Path, tmp_path: Path
) -> None:
    composed: list[int] = []
    _ask(tmp_path, encoder, clip, _composer(composed))
    with torch.no_grad():
        next(encoder.parameters()).add_(0.1)
    assert _ask(tmp_path, encoder, clip, _composer(composed, 0.5)) == [row + 0.5 for row in ROWS]
    other = LightEncoder(
        "mobilenetv3_small_050", sentence_length=3, word_width=WORD_WIDTH, width=64, preprocessing=encoder.preprocessing
    )
    assert _ask(tmp_path, other, clip, _composer(composed, 0.25)) == [row + 0.25 for row in ROWS]
    foundation = load_foundation(f"local-dir:{clip_folder}")
    with torch.no_grad():
        foundation.word_embedding_table().add_(0.1)
    assert _ask(tmp_path, encoder, foundation, _composer(composed, 2.0)) == [row + 2 for row in ROWS]
    assert len(list(tmp_path.glob("queries-*"))) == 4 and len(composed) == 16


@pytest.mark.parametrize("name", ["cache.json", "index.sqlite", "queries.f32"])
def test_a_damaged_store_says_what_to_remove(
    name: str, encoder: LightEncoder, clip: Foundation, tmp_path: Path
) -> None:
    _ask(tmp_path, encoder, clip, _composer([]))
    (folder,) = tmp_path.iterdir()
    (folder / name).write_bytes(b"x" * 100)
    with pytest.raises(CacheError, match=f"the query cache {folder} is damaged .*{name}.*: remove that folder"):
        _ask(tmp_path, encoder, clip, _composer([]))


def test_queries_that_are_not_finite_are_not_kept(encoder: LightEncoder, clip: Foundation, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not finite"):
        _ask(tmp_path, encoder, clip, _composer([], float("nan")))
    assert _ask(tmp_path, encoder, clip, _composer([])) == ROWS


def test_no_query_is_no_store(encoder: LightEncoder, clip: Foundation, tmp_path: Path) -> None:
    none = cache_queries(tmp_path, encoder, clip, identities=IDENTITIES[:0], modifiers=[], compose=_composer([]))
    assert none.shape == (0, EMBEDDING_WIDTH) and not any(tmp_path.iterdir())
