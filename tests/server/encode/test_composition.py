"""Composition and the text encoder, against the references in NumPy."""

from pathlib import Path

import numpy as np
import pytest
from asymcir_common.arguments import MAX_TEXT_BATCH
from asymcir_server import Composer, ServerBundle, TextEncoder, Tokenizer
from asymcir_server.encode.composition import MAX_MODIFIER_BYTES
from asymcir_server.encode.tokenizer import clean_text
from asymcir_server.errors import ModifierError, RequestError
from numpy.typing import NDArray
from tiny_server_bundle import END, PAD, START, UNK, WORDS, TinyModel, write_tiny_bundle, write_tiny_manifest

MODIFIERS = ["", "red hair", "is wearing a hat", "NOT  Red", "blue\tand\ngreen", "zebra"]


@pytest.fixture(scope="module")
def composer(bundle: ServerBundle) -> Composer:
    return Composer(bundle)


@pytest.fixture(scope="module", params=[False, True], ids=["bidirectional", "causal"])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyModel, TextEncoder]:
    model = TinyModel(causal=request.param)
    folder = write_tiny_bundle(tmp_path_factory.mktemp("tower") / "server", model)
    return model, TextEncoder(ServerBundle.load(folder, threads=1))


@pytest.mark.parametrize(
    ("text", "whitespace", "lower"),
    [
        ("  Red \t\n hair ", "Red hair", "red hair"),
        ("caf&amp;eacute; &lt;b&gt;", "café <b>", "café <b>"),
        ("schÃ¶n", "schön", "schön"),
        ("a\u00a0b\u3000c", "a b c", "a b c"),
        ("ﬁne “quotes”", 'fine "quotes"', 'fine "quotes"'),
        ("\uff37\uff29\uff24\uff25", "WIDE", "wide"),
        ("\x00\x1b[31mred\x1b[0m", "red", "red"),
        ("👩🏽‍🦰 woman", "👩🏽‍🦰 woman", "👩🏽‍🦰 woman"),
        ("", "", ""),
    ],
)
def test_cleaning_is_open_clips(text: str, whitespace: str, lower: str) -> None:
    assert clean_text(text, "whitespace") == whitespace
    assert clean_text(text, "lower") == lower


def test_tokenizer_gives_words_only(bundle_folder: Path) -> None:
    tokenizer = Tokenizer(bundle_folder / "tokenizer.json", clean="lower")
    assert tokenizer.encode("A photo OF zebra") == [WORDS.index("a"), WORDS.index("photo"), WORDS.index("of"), UNK]
    assert tokenizer.encode("") == []
    with pytest.raises(RequestError, match="UTF-8"):
        tokenizer.encode("\ud800")


@pytest.mark.parametrize("modifier", MODIFIERS)
def test_compose_query_matches_the_reference(
    composer: Composer, model: TinyModel, tokens: NDArray[np.float32], modifier: str
) -> None:
    assert np.array_equal(composer.compose_query(tokens, modifier), model.compose(tokens, modifier))


@pytest.mark.parametrize("modifier", ["", " ", "\t\n \u3000", "&nbsp;", "\x00", "\u00a0"])
def test_white_space_is_no_modifier(composer: Composer, tokens: NDArray[np.float32], modifier: str) -> None:
    assert np.array_equal(composer.compose_query(tokens, modifier), composer.compose_query(tokens))


@pytest.mark.parametrize("modifier", ["{tokens}", "{modifier}", "{0} %s $x", "[end] [start] [pad]"])
def test_a_modifier_is_text_and_nothing_else(
    composer: Composer, model: TinyModel, tokens: NDArray[np.float32], modifier: str
) -> None:
    assert np.array_equal(composer.compose_query(tokens, modifier), model.compose(tokens, modifier))


def test_emoji_modifiers_compose(composer: Composer, tokens: NDArray[np.float32]) -> None:
    row = composer.compose_query(tokens, "👩🏽‍🦰 🔴❤️")
    assert len(row) == len(composer.compose_query(tokens)) + 3  # that, and two unknown words


def test_the_longest_modifier_fits_and_one_more_does_not(composer: Composer, tokens: NDArray[np.float32]) -> None:
    room = 24 - 2 - 4 - len(tokens)
    assert len(composer.compose_query(tokens, "red " * room)) == 24
    with pytest.raises(ModifierError, match=rf"takes {room + 1} tokens and {room} are left") as caught:
        composer.compose_query(tokens, "red " * (room + 1))
    assert "\n" not in str(caught.value)


def test_long_modifiers(composer: Composer, tokens: NDArray[np.float32]) -> None:
    with pytest.raises(ModifierError, match=f"10000 bytes, the limit is {MAX_MODIFIER_BYTES}"):
        composer.compose_query(tokens, "x" * 10_000)
    with pytest.raises(ModifierError, match="takes 4000 tokens"):
        composer.compose_query(tokens, "x " * 4000)


def test_sentence_tokens_that_do_not_fit(composer: Composer, model: TinyModel) -> None:
    longest = composer.max_sentence_length
    assert len(composer.compose_query(np.ones((longest, model.word_width), np.float32))) == model.context_length
    for shape in ((longest + 1, model.word_width), (6, model.word_width + 1), (0, model.word_width), (12,)):
        with pytest.raises(RequestError):
            composer.compose_query(np.ones(shape, np.float32))


def test_plain_and_null_text(composer: Composer, model: TinyModel) -> None:
    table = model.weights["table"]
    assert np.array_equal(composer.compose_null(), table[[START, END]])
    assert np.array_equal(composer.compose_text("red cat"), table[[START, WORDS.index("red"), WORDS.index("cat"), END]])
    with pytest.raises(RequestError, match="30 tokens and 22 fit"):
        composer.compose_text("red " * 30)


def test_padding(composer: Composer, model: TinyModel, tokens: NDArray[np.float32]) -> None:
    short, long = composer.compose_query(tokens), composer.compose_query(tokens, "red hair")
    batch = composer.pad([short, long])
    assert batch.word_embeddings.shape == (2, len(long), model.word_width)
    assert batch.attention_mask.sum(axis=1).tolist() == [len(short), len(long)]
    assert batch.pool_index.tolist() == [len(short) - 1, len(long) - 1]
    assert np.array_equal(batch.word_embeddings[0, len(short)], model.weights["table"][PAD])
    assert composer.pad([short], length=24).word_embeddings.shape[1] == 24


def test_modifier_in_front_of_the_tokens(tmp_path: Path, model: TinyModel, tokens: NDArray[np.float32]) -> None:
    folder = write_tiny_bundle(tmp_path / "server", model)
    prompts = {
        "tokens": "a photo of {tokens}",
        "tokens_modifier": "{modifier} photo of {tokens} cat",
        "null": "a photo",
    }
    write_tiny_manifest(folder, model, prompts=prompts)
    composer = Composer(ServerBundle.load(folder))
    row = composer.compose_query(tokens, "red blue")
    table = model.weights["table"]
    before, after = model.word_ids("red blue photo of"), model.word_ids("cat")
    assert np.array_equal(row, np.concatenate([table[[START, *before]], tokens, table[[*after, END]]]))
    assert np.array_equal(composer.compose_null(), composer.compose_text("a photo"))
    with pytest.raises(ModifierError, match="takes 30 tokens and 13 are left"):
        composer.compose_query(tokens, "red " * 30)


def test_text_features_match_the_reference(tower: tuple[TinyModel, TextEncoder], tokens: NDArray[np.float32]) -> None:
    model, encoder = tower
    sentences = [tokens[: 1 + i % 6] for i in range(len(MODIFIERS))]
    expected = np.stack([model.text_features(model.compose(s, m)) for s, m in zip(sentences, MODIFIERS, strict=True)])
    prompts = [encoder.composer.compose_query(s, m) for s, m in zip(sentences, MODIFIERS, strict=True)]
    assert np.abs(encoder.encode_prompts(prompts) - expected).max() < 1e-5
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(encoder.encode_queries(sentences, MODIFIERS) - expected).max() < 1e-5
    words = model.weights["table"][[START, *model.word_ids("red cat"), END]]
    assert np.abs(encoder.encode_text(["red cat"])[0] - model.text_features(words)).max() < 1e-5
    assert np.abs(encoder.null_features - model.text_features(model.weights["table"][[START, END]])).max() < 1e-5


def test_a_row_does_not_depend_on_its_batch(tower: tuple[TinyModel, TextEncoder], tokens: NDArray[np.float32]) -> None:
    _, encoder = tower
    modifiers = ["red " * (i % 9) for i in range(MAX_TEXT_BATCH + 5)]
    together = encoder.encode_queries([tokens] * len(modifiers), modifiers)
    alone = np.concatenate([encoder.encode_queries([tokens], [modifier]) for modifier in modifiers])
    assert np.abs(together - alone).max() < 1e-6
    assert encoder.encode_queries([]).shape == (0, encoder.embedding_width)


def test_tokens_out_of_range_are_refused(tower: tuple[TinyModel, TextEncoder], tokens: NDArray[np.float32]) -> None:
    _, encoder = tower
    with pytest.raises(RequestError, match="no usable query embedding"):
        encoder.encode_queries([np.full_like(tokens, np.finfo(np.float32).max)])
