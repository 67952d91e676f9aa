"""A server bundle from a BLIP foundation, run by the server's own classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_export import export_server_bundle
from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.text_encoder import TextEncoder
from asymcir_training import Foundation, UnionHead, load_foundation
from tiny_blip import CONTEXT, SIDE, write_blip
from tiny_foundations import WORD_WIDTH


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    return load_foundation(f"blip:{write_blip(tmp_path_factory.mktemp('foundation') / 'blip')}")


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, foundation: Foundation, union_head: UnionHead, pictures: Path
) -> ServerBundle:
    out = tmp_path_factory.mktemp("bundle") / "server"
    manifest = export_server_bundle(foundation, union_head, out, pictures=pictures)
    assert manifest.properties["foundation"] == "blip:blip"
    assert manifest.parity["text_features"]["cosine_min"] > 0.9999
    assert manifest.parity["image_features"]["cosine_min"] > 0.9999
    assert manifest.parity["tokenizer"]["differences"] == 0
    return ServerBundle.load(out)


def test_the_bundle_has_the_foundations_spaces_and_preprocessing(
    bundle: ServerBundle, foundation: Foundation, union_head: UnionHead
) -> None:
    assert bundle.word_space == foundation.word_space()
    assert dict(bundle.target_spaces) == foundation.target_spaces(union_head)
    assert bundle.text.context_length == CONTEXT and not bundle.text.causal
    assert (bundle.preprocessing.size, bundle.preprocessing.resize) == (SIDE, "squash")


def test_queries_of_any_length_and_batch_agree_with_the_foundation(
    bundle: ServerBundle, foundation: Foundation
) -> None:
    encoder = TextEncoder(bundle)
    tokens = torch.randn(3, 6, WORD_WIDTH, generator=torch.Generator().manual_seed(0))
    modifiers = ["", "is red", "has a blue hat and long sleeves"]
    prompts = [encoder.composer.compose_query(row.numpy(), text) for row, text in zip(tokens, modifiers, strict=True)]
    with torch.no_grad():
        expected = foundation.compose_query(tokens, modifiers).numpy()
    np.testing.assert_allclose(encoder.encode_prompts(prompts), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_prompts(prompts[2:]), expected[2:], rtol=1e-3, atol=1e-4)
