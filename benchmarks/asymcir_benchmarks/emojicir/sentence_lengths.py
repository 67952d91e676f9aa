"""What a sentence of 1 to L tokens costs: bytes on the wire, and milliseconds of the text encoder.

Notation: L sentence tokens, D word-embedding width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from asymcir_protos import pack_tokens
from asymcir_server import TextEncoder
from numpy.typing import NDArray

_WARM_UP = 3
_ROUNDS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthCost:
    """The cost of a composed query whose sentence was cut.

    Attributes:
        length: tokens that are sent.
        fp16_bytes, int8_bytes: of the packed tokens, in either encoding.
        encode_ms, encode_p95_ms: of the text encoder, one query at a time: median and 95th percentile.
    """

    length: int
    fp16_bytes: int
    int8_bytes: int
    encode_ms: float
    encode_p95_ms: float

    def figures(self) -> dict[str, float]:
        """Return name -> number, for result files."""
        return {
            "bytes, fp16": float(self.fp16_bytes),
            "bytes, int8": float(self.int8_bytes),
            "text encoder, ms": self.encode_ms,
            "text encoder, ms, p95": self.encode_p95_ms,
        }


def measure_lengths(
    tokens: NDArray[np.float32], modifiers: Sequence[str], text_encoder: TextEncoder, *, rounds: int = _ROUNDS
) -> list[LengthCost]:
    """Measure every length in turn, round after round, so that a busy machine slows all of them alike.

    Args:
        tokens: [L, D], of any picture.
        modifiers: one or more; a round takes the next.
        text_encoder: of the server bundle.
        rounds: timed, after a few that are not.
    """
    lengths = range(1, len(tokens) + 1)
    taken_ms: dict[int, list[float]] = {length: [] for length in lengths}
    for number in range(-_WARM_UP, rounds):
        modifier = modifiers[number % len(modifiers)]
        for length in lengths:
            started_s = time.perf_counter()
            text_encoder.encode_queries([tokens[:length]], [modifier])
            if number >= 0:
                taken_ms[length].append((time.perf_counter() - started_s) * 1000.0)
    return [
        LengthCost(
            length=length,
            fp16_bytes=pack_tokens(tokens[:length], "fp16").ByteSize(),
            int8_bytes=pack_tokens(tokens[:length], "int8").ByteSize(),
            encode_ms=float(np.median(taken_ms[length])),
            encode_p95_ms=float(np.percentile(taken_ms[length], 95)),
        )
        for length in lengths
    ]
