import numpy as np
import pytest
from asymcir_common import TokensError
from asymcir_protos import pack_tokens, unpack_tokens
from asymcir_protos.v1 import retrieval_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
VALUES = st.floats(-60_000, 60_000, width=32)
TOKENS = hnp.arrays(np.float32, SHAPES, elements=VALUES)


@settings(max_examples=60, deadline=None)
@given(TOKENS)
def test_fp16_round_trip(tokens: NDArray[np.float32]) -> None:
    message = retrieval_pb2.SentenceTokens.FromString(pack_tokens(tokens, "fp16").SerializeToString())
    assert len(message.fp16) == 2 * tokens.size
    unpacked = unpack_tokens(message)
    assert unpacked.dtype == np.float32
    np.testing.assert_array_equal(unpacked, tokens.astype(np.float16).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(TOKENS)
def test_int8_round_trip(tokens: NDArray[np.float32]) -> None:
    message = retrieval_pb2.SentenceTokens.FromString(pack_tokens(tokens, "int8").SerializeToString())
    assert len(message.int8.values) == tokens.size
    assert len(message.int8.scales) == len(tokens)
    unpacked = unpack_tokens(message)
    assert unpacked.shape == tokens.shape
    half_step = np.abs(tokens).max(axis=1, keepdims=True) / 127 / 2
    assert (np.abs(unpacked - tokens) <= half_step * 1.001 + 1e-38).all()


def test_int8_rows_have_their_own_scale_and_zero_rows_stay_zero() -> None:
    tokens = np.array([[0, 0, 0], [1e-4, -1e-4, 5e-5], [100, -50, 0]], np.float32)
    message = pack_tokens(tokens, "int8")
    assert message.int8.scales[0] == 0
    unpacked = unpack_tokens(message)
    np.testing.assert_array_equal(unpacked[0], 0)
    np.testing.assert_allclose(unpacked, tokens, rtol=0.01)


def test_message_sizes_of_a_clip_sentence() -> None:
    tokens = np.random.default_rng(0).normal(size=(6, 768)).astype(np.float32)
    assert 6 * 768 * 2 <= pack_tokens(tokens).ByteSize() <= 6 * 768 * 2 + 16
    assert 6 * 772 <= pack_tokens(tokens, "int8").ByteSize() <= 6 * 772 + 24


@pytest.mark.parametrize("shape", [(), (4,), (1, 2, 3), (0, 3), (3, 0)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(TokensError, match=r"\[L, D\]"):
        pack_tokens(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ["fp16", "int8"])
def test_not_finite(value: float, encoding: str) -> None:
    tokens = np.ones((2, 3), np.float32)
    tokens[1, 2] = value
    with pytest.raises(TokensError, match="finite"):
        pack_tokens(tokens, encoding)  # type: ignore[arg-type]


def test_beyond_fp16_goes_as_int8() -> None:
    tokens = np.full((1, 2), 1e6, np.float32)
    with pytest.raises(TokensError, match="as int8"):
        pack_tokens(tokens, "fp16")
    np.testing.assert_allclose(unpack_tokens(pack_tokens(tokens, "int8")), tokens, rtol=0.01)


def test_unknown_encoding() -> None:
    with pytest.raises(TokensError, match="'fp8'"):
        pack_tokens(np.ones((1, 1), np.float32), "fp8")  # type: ignore[arg-type]


def _int8(values: bytes, scales: list[float]) -> retrieval_pb2.Int8Tokens:
    return retrieval_pb2.Int8Tokens(values=values, scales=scales)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        (retrieval_pb2.SentenceTokens(), "above 0"),
        (retrieval_pb2.SentenceTokens(length=2, width=3), "neither"),
        (retrieval_pb2.SentenceTokens(length=2, width=3, fp16=b"\0" * 11), "expected 12 bytes"),
        (retrieval_pb2.SentenceTokens(length=2, width=3, fp16=b"\0" * 13), "expected 12 bytes"),
        (retrieval_pb2.SentenceTokens(length=2**32 - 1, width=2**32 - 1, fp16=b"\0"), "bytes"),
        (retrieval_pb2.SentenceTokens(length=1, width=1, fp16=b"\x00\x7c"), "finite"),
        (retrieval_pb2.SentenceTokens(length=1, width=1, fp16=b"\x00\x7e"), "finite"),
        (retrieval_pb2.SentenceTokens(length=1, width=2, int8=_int8(b"\0", [1.0])), "expected 2 bytes"),
        (retrieval_pb2.SentenceTokens(length=2, width=1, int8=_int8(b"\1\1", [1.0])), "2 scales"),
        (retrieval_pb2.SentenceTokens(length=1, width=1, int8=_int8(b"\1", [float("nan")])), "finite"),
        (retrieval_pb2.SentenceTokens(length=1, width=1, int8=_int8(b"\0", [float("inf")])), "finite"),
        (retrieval_pb2.SentenceTokens(length=1, width=1, int8=_int8(b"\x7f", [3e38])), "finite"),
    ],
)
def test_damaged_message(message: retrieval_pb2.SentenceTokens, pattern: str) -> None:
    with pytest.raises(TokensError, match=pattern):
        unpack_tokens(message)
