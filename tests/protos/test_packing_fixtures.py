"""The bytes that the browser's packing is held to (edge/web/tests/tokens.test.ts) are those of Python."""

import json
from pathlib import Path

import numpy as np
import pytest
from asymcir_protos import pack_tokens

FIXTURES = Path(__file__).parents[2] / "edge/web/tests/fixtures/tokens.json"
CASES = json.loads(FIXTURES.read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_packed_bytes(case: dict[str, object]) -> None:
    tokens = np.array(case["bits"], dtype=np.uint32).view(np.float32).reshape(case["length"], -1)
    assert pack_tokens(tokens, "fp16").fp16.hex() == case["fp16"]
    packed = pack_tokens(tokens, "int8").int8
    assert packed.values.hex() == case["int8"]
    assert [float(scale) for scale in packed.scales] == case["scales"]
