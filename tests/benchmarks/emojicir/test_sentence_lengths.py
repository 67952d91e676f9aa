"""What a sentence of each length costs."""

from pathlib import Path

import numpy as np
from asymcir_benchmarks.emojicir.sentence_lengths import measure_lengths
from asymcir_server import ServerBundle, TextEncoder
from tiny_server_bundle import TinyModel, write_tiny_bundle


def test_a_shorter_sentence_has_fewer_bytes_and_every_length_is_timed(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", TinyModel(word_width=32))
    encoder = TextEncoder(ServerBundle.load(tmp_path / "b"))
    tokens = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    costs = measure_lengths(tokens, ["is red", "is blue"], encoder, rounds=3)
    assert [cost.length for cost in costs] == [1, 2, 3]
    steps = np.diff([cost.fp16_bytes for cost in costs])
    assert (steps >= 64).all() and (steps <= 66).all()  # a token of 32 half floats, and at most two bytes of lengths
    assert all(cost.int8_bytes < cost.fp16_bytes for cost in costs)
    assert all(0 < cost.encode_ms <= cost.encode_p95_ms for cost in costs)
