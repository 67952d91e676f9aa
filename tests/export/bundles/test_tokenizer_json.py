import json

import open_clip
import pytest
from asymcir_export import TokenizerError, check_tokenizer, tokenizer_to_json
from asymcir_export.bundles.tokenizer_stress import STRESS_COUNT, stress_texts
from asymcir_server.encode.tokenizer import clean_text
from asymcir_training import Foundation
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def simple_json() -> str:
    return tokenizer_to_json(open_clip.tokenizer.SimpleTokenizer())


def clean_lower(text: str) -> str:
    return clean_text(text, "lower")


def test_stress_texts_are_many_seeded_and_diverse() -> None:
    texts = list(stress_texts(STRESS_COUNT, seed=0))
    assert len(texts) == STRESS_COUNT == 10_000
    assert texts == list(stress_texts(STRESS_COUNT, seed=0))
    assert texts != list(stress_texts(STRESS_COUNT, seed=1))
    assert len(set(texts)) > 9_000
    for sample in ("\U0001f9b0", "&amp;", "\u200d", "\u202e", "\u3000", "\x07", "漢"):
        assert any(sample in text for text in texts), sample
    assert max(map(len, texts)) == 5000


def test_simple_tokenizer_keeps_every_id(simple_json: str) -> None:
    found = check_tokenizer(simple_json, open_clip.tokenizer.SimpleTokenizer(), clean_lower)
    assert found["strings"] == 10_000
    assert found["differences"] == 0
    assert found["ids"] > 100_000


def test_hugging_face_tokenizer_keeps_every_id(bert_foundation: Foundation) -> None:
    tokenizer = bert_foundation.open_clip_tokenizer
    found = check_tokenizer(tokenizer_to_json(tokenizer), tokenizer, lambda text: clean_text(text, "whitespace"))
    assert found["differences"] == 0


def test_text_never_becomes_a_special_token(simple_json: str, bert_foundation: Foundation) -> None:
    bert_json = tokenizer_to_json(bert_foundation.open_clip_tokenizer)
    for record, text, special in [(simple_json, "<end_of_text>", 49407), (bert_json, "a [SEP] b [MASK]", 3)]:
        ids = Tokenizer.from_str(record).encode(text).ids
        assert len(ids) > 1
        assert special not in ids


def test_nothing_is_added_cut_or_padded(bert_foundation: Foundation) -> None:
    record = json.loads(tokenizer_to_json(bert_foundation.open_clip_tokenizer))
    assert record["post_processor"] is None
    assert record["truncation"] is None
    assert record["padding"] is None


def test_another_tokenizer_is_told_apart(simple_json: str) -> None:
    record = json.loads(simple_json)
    vocabulary = record["model"]["vocab"]
    vocabulary["red</w>"], vocabulary["blue</w>"] = vocabulary["blue</w>"], vocabulary["red</w>"]
    with pytest.raises(TokenizerError, match="is not the tokenizer it was made from"):
        check_tokenizer(json.dumps(record), open_clip.tokenizer.SimpleTokenizer(), clean_lower)


def test_a_tokenizer_without_a_fast_backend_is_refused() -> None:
    with pytest.raises(TokenizerError, match="got object"):
        tokenizer_to_json(object())
