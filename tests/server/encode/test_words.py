import json
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_server import ServerBundle
from asymcir_server.encode.words import LocalText, _pick_whole

ASSETS = Path(__file__).parents[3] / "demo" / "assets"


@pytest.fixture(scope="module")
def text_side() -> LocalText:
    return LocalText(ASSETS / "server")


def test_the_nearest_word_to_a_words_own_embedding_is_that_word(text_side: LocalText) -> None:
    bundle = ServerBundle.load(ASSETS / "server")
    vocabulary = json.loads((bundle.folder / bundle.tokenizer_file).read_text(encoding="utf-8"))["model"]["vocab"]
    wanted = ["apple", "blue", "cat"]
    tokens = 3.0 * bundle.word_table().lookup([vocabulary[word] for word in wanted])
    found = text_side.find_nearest_words(tokens, 4)
    assert [words[0][0] for words in found] == wanted
    for words in found:
        cosines = [cosine for _, cosine in words]
        assert len(words) == 4 and cosines[0] == pytest.approx(1.0, abs=1e-4)
        assert cosines == sorted(cosines, reverse=True)


def test_a_change_moves_the_query_and_no_change_does_not(text_side: LocalText) -> None:
    bundle = ServerBundle.load(ASSETS / "server")
    tokens = bundle.word_table().lookup([2000, 3000])
    same, also, other = text_side.encode_queries(tokens, ["", " ", "is blue"])
    assert same @ also == pytest.approx(1.0, abs=1e-5) and same @ other < 0.99


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ({"red": 0, "##dish": 1, "[unused1]": 2, "7up": 3, "a": 4}, {0: "red"}),
        ({"red</w>": 0, "red": 1, "dish": 2}, {0: "red"}),
        ({"Ġred": 0, "dish": 1, "Ġblue": 2}, {0: "red", 2: "blue"}),
        ({"▁red": 0, "dish": 1, "▁blue": 2}, {0: "red", 2: "blue"}),
    ],
)
def test_whole_words_are_told_from_parts(vocabulary: dict[str, int], expected: dict[int, str]) -> None:
    assert _pick_whole(vocabulary) == expected


def test_a_folder_that_is_no_server_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        LocalText(tmp_path)


def test_nearest_words_do_not_depend_on_a_tokens_length(text_side: LocalText) -> None:
    tokens = np.random.default_rng(0).normal(size=(2, 384)).astype(np.float32)
    once, twice = text_side.find_nearest_words(tokens, 3), text_side.find_nearest_words(2.0 * tokens, 3)
    assert [[word for word, _ in words] for words in once] == [[word for word, _ in words] for words in twice]
