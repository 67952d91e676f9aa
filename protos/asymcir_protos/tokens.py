"""Sentence tokens on the wire: fp16, or int8 with one scale per token."""

from typing import Literal

import numpy as np
from asymcir_common.errors import TokensError
from numpy.typing import NDArray

from asymcir_protos.v1 import retrieval_pb2

TokenEncoding = Literal["fp16", "int8"]
MAX_TOKEN_NORM = 1e8
"""L2 norm of one sentence token; embeddings of words have norms below 100."""

_INT8_MAX = 127


def pack_tokens(tokens: NDArray[np.float32], encoding: TokenEncoding = "fp16") -> retrieval_pb2.SentenceTokens:
    """Pack sentence tokens into their message.

    Args:
        tokens: [L, D], finite.
        encoding: "fp16" (2 bytes a value, exact to about 3 digits) or "int8" (1 byte a value and one scale per token).

    Returns:
        The message; 2*L*D or L*(D + 4) bytes of payload.

    Raises:
        TokensError: tokens is not a finite [L, D] array, does not fit fp16, or the encoding is unknown.
    """
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise TokensError(f"expected sentence tokens of shape [L, D], got {list(tokens.shape)}")
    if not np.isfinite(tokens).all():
        raise TokensError("expected finite sentence tokens, got NaN or infinity: the encoder or its input is broken")
    length, width = tokens.shape
    message = retrieval_pb2.SentenceTokens(length=length, width=width)
    if encoding == "fp16":
        limit = float(np.finfo(np.float16).max)
        if float(np.abs(tokens).max()) > limit:
            raise TokensError(f"a token value exceeds {limit:g}, the largest that fp16 holds: send them as int8")
        message.fp16 = tokens.astype("<f2").tobytes()
    elif encoding == "int8":
        scales = (np.abs(tokens).max(axis=1) / _INT8_MAX).astype(np.float32)  # [L]
        divisors = np.where(scales > 0, scales, np.float32(1.0))
        values = np.clip(np.rint(tokens / divisors[:, None]), -_INT8_MAX, _INT8_MAX).astype(np.int8)
        message.int8.values = values.tobytes()
        message.int8.scales.extend(scales.tolist())
    else:
        raise TokensError(f"expected the token encoding fp16 or int8, got {encoding!r}")
    return message


def unpack_tokens(message: retrieval_pb2.SentenceTokens) -> NDArray[np.float32]:
    """Unpack a message to sentence tokens.

    Returns:
        [L, D], float32.

    Raises:
        TokensError: the payload does not have the size that length and width announce, is not finite, has a negative
            scale, or a token's norm is above MAX_TOKEN_NORM.
    """
    length, width = message.length, message.width
    if length == 0 or width == 0:
        raise TokensError(f"expected sentence tokens of length and width above 0, got [{length}, {width}]")
    encoding = message.WhichOneof("encoding")
    if encoding == "fp16":
        _expect_bytes(message.fp16, 2 * length * width, f"fp16 tokens [{length}, {width}]")
        tokens = np.frombuffer(message.fp16, dtype="<f2").astype(np.float32).reshape(length, width)
    elif encoding == "int8":
        _expect_bytes(message.int8.values, length * width, f"int8 tokens [{length}, {width}]")
        if len(message.int8.scales) != length:
            raise TokensError(f"expected {length} scales, one per token, got {len(message.int8.scales)}")
        if any(scale < 0 for scale in message.int8.scales):
            raise TokensError("expected scales of 0 or more, got a negative one")
        values = np.frombuffer(message.int8.values, dtype=np.int8).astype(np.float32).reshape(length, width)
        with np.errstate(over="ignore", invalid="ignore"):  # scales from the wire: what overflows is refused below
            tokens = values * np.asarray(message.int8.scales, dtype=np.float32)[:, None]
    else:
        raise TokensError("expected sentence tokens as fp16 or int8, got neither")
    if not np.isfinite(tokens).all():
        raise TokensError("expected finite sentence tokens, got NaN or infinity: the encoder or its input is broken")
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(tokens, axis=1).max())
    if norm > MAX_TOKEN_NORM:
        raise TokensError(f"expected sentence tokens of a norm up to {MAX_TOKEN_NORM:g}, got {norm:g}")
    return tokens


def _expect_bytes(payload: bytes, expected: int, what: str) -> None:
    if len(payload) != expected:
        raise TokensError(f"expected {expected} bytes for {what}, got {len(payload)}")
