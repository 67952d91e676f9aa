"""Mutated messages on both faces: every one is answered or refused by a code, and none stops the server.

MESSAGES says how many (default: 1,000).
"""

import http.client
import os
import random

import grpc
import numpy as np
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.serve.http import HttpConfig
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel

MESSAGES = int(os.environ.get("MESSAGES", "1000"))
SEARCH = "/asymcir.v1.Retrieval/Search"
REFUSALS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}
NUMBERS = (0, 1, 2, 2**31, 2**32 - 1)


def mutate(message: retrieval_pb2.SearchRequest, draw: random.Random) -> bytes:
    """Change a field to something odd, or bytes of the message to others."""
    other = retrieval_pb2.SearchRequest.FromString(message.SerializeToString())
    kind = draw.randrange(6)
    if kind == 0:
        setattr(other.tokens, draw.choice(("length", "width")), draw.choice(NUMBERS))
    elif kind == 1:
        other.tokens.fp16 = draw.randbytes(draw.randrange(400))
    elif kind == 2:
        other.tokens.int8.values = other.tokens.fp16[: draw.randrange(200)]
        other.tokens.int8.scales.extend(draw.choice((0.0, -1.0, 1e38, float("nan"), float("inf"))) for _ in range(6))
    elif kind == 3:
        other.modifier = "".join(chr(draw.randrange(1, 0xD800)) for _ in range(draw.randrange(300)))
    elif kind == 4:
        other.top_k = draw.choice(NUMBERS)
        other.gallery = draw.choice(("", "noise", "\0", "../noise"))
    else:
        for _ in range(draw.randrange(70)):
            inner = retrieval_pb2.SearchRequest.FromString(other.SerializeToString()).filter
            other.filter.negated.CopyFrom(inner)
    data = bytearray(other.SerializeToString())
    if draw.random() < 0.5:
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)


def test_mutated_messages_are_answered_or_refused(
    bundle: ServerBundle, gallery: Gallery, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    draw = random.Random(14)
    good = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), word_space=model.word_space, modifier="red", top_k=3)
    with (
        RetrievalServer(bundle, {"noise": gallery}, ServerConfig(http=HttpConfig())) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.unary_unary(SEARCH)
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
        codes: dict[str, int] = {}
        for _ in range(MESSAGES):
            data = mutate(good, draw)
            try:
                call(data, timeout=30)
                code = "OK"
            except grpc.RpcError as exc:
                code = exc.code().name
                assert code in REFUSALS, (exc.details(), data)
            connection.request("POST", SEARCH, data, {"content-type": "application/proto"})
            answer = connection.getresponse()
            text = answer.read()
            found = "OK" if answer.status == 200 else next(name for name in REFUSALS if name.lower().encode() in text)
            assert found == code, (found, code, data)
            codes[code] = codes.get(code, 0) + 1
        connection.close()
        assert len(retrieval_pb2.SearchResponse.FromString(call(good.SerializeToString())).hits) == 3
        assert server.service.admission._in_flight == 0
    assert codes.keys() >= {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}  # or the mutations reach too little
