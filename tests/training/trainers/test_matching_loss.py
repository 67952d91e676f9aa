from pathlib import Path

import pytest
import torch
from asymcir_training import DataError, Foundation, FoundationError, load_foundation
from asymcir_training.trainers.matching_loss import (
    MATCH,
    SCALE,
    HardNegatives,
    draw_hard_negatives,
    local_alignment_by_matching,
    matching_logits,
)
from tiny_blip import SIDE, write_blip
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH
from torch.nn import functional
from transformers import BertTokenizerFast, BlipForImageTextRetrieval

ROWS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("foundation") / "blip")


@pytest.fixture(scope="module")
def foundation(folder: Path) -> Foundation:
    return load_foundation(f"blip:{folder}")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(ROWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(ROWS, 6, WORD_WIDTH, generator=torch.Generator().manual_seed(1))


def test_sentence_tokens_that_are_words_match_as_transformers_says(
    foundation: Foundation, folder: Path, pixels: torch.Tensor
) -> None:
    theirs = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    said = ["cat dog", "red dog", "dog blue", "cat red", "cat cat"]
    words = BertTokenizerFast.from_pretrained(folder)([f"a photo of {text}" for text in said], return_tensors="pt")
    tokens = foundation.word_embedding_table()[torch.tensor([foundation.tokenize(text) for text in said])]
    with torch.no_grad():
        expected = theirs(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels).itm_score
        states = foundation.encode_image_states(pixels)
        found = matching_logits(foundation, tokens, states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_draws_follow_the_similarities_and_never_hit_a_positive() -> None:
    torch.manual_seed(0)
    # Alike, so that the temperature leaves a chance to all.
    texts, images = (torch.ones(4, 8) + 0.3 * torch.randn(4, 8) for _ in range(2))
    draws = 4000
    similarity = functional.normalize(texts, dim=-1) @ functional.normalize(images, dim=-1).T
    shares = (SCALE * similarity).exp() * ~torch.eye(4, dtype=torch.bool)
    counts = {"images": torch.zeros(4, 4), "sentences": torch.zeros(4, 4)}
    for _ in range(draws):
        drawn = draw_hard_negatives(texts, images)
        counts["images"][torch.arange(4), drawn.images] += 1
        counts["sentences"][torch.arange(4), drawn.sentences] += 1
    expected = {"images": shares / shares.sum(dim=1, keepdim=True), "sentences": (shares / shares.sum(dim=0)).T}
    for name, count in counts.items():
        assert (count[expected[name] == 0] == 0).all()
        torch.testing.assert_close(count / draws, expected[name], rtol=0, atol=0.04)
    assert (expected["images"] - expected["sentences"]).abs().max() > 0.15  # the two cannot be taken for each other


def test_draws_repeat_with_torchs_generator() -> None:
    texts, images = (torch.ones(64, 8) + 0.3 * torch.randn(64, 8) for _ in range(2))

    def draw(seed: int) -> HardNegatives:
        torch.manual_seed(seed)
        return draw_hard_negatives(texts, images)

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first.images, again.images) and torch.equal(first.sentences, again.sentences)
    assert not torch.equal(first.images, other.images)


def test_a_batch_without_a_wrong_partner_is_refused() -> None:
    with pytest.raises(DataError, match="make the batch larger"):
        draw_hard_negatives(torch.randn(1, 4), torch.randn(1, 4))


def test_the_loss_is_blips_pair_by_pair(
    foundation: Foundation, folder: Path, pixels: torch.Tensor, tokens: torch.Tensor
) -> None:
    theirs = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    negatives = HardNegatives(images=torch.tensor([3, 0, 1, 4, 2]), sentences=torch.tensor([1, 4, 0, 2, 3]))

    def answer(sentence: int, image: int, label: int) -> torch.Tensor:
        table = theirs.get_input_embeddings().weight
        before = [*foundation.start_ids, *foundation.tokenize("a photo of")]
        words = torch.cat([table[before], tokens[sentence], table[foundation.end_ids]])
        states = theirs.vision_model(pixels[image : image + 1]).last_hidden_state
        read = theirs.text_encoder(inputs_embeds=words[None], encoder_hidden_states=states).last_hidden_state
        return functional.cross_entropy(theirs.itm_head(read[:, 0]), torch.tensor([label]))

    with torch.no_grad():
        expected = torch.stack(
            [
                (answer(i, i, 1) + answer(i, int(image), 0) + answer(int(sentence), i, 0)) / 3
                for i, (image, sentence) in enumerate(zip(negatives.images, negatives.sentences, strict=True))
            ]
        )
        states = foundation.encode_image_states(pixels)
        found = local_alignment_by_matching(foundation, tokens, states, negatives)
    assert MATCH == 1 and found.shape == (ROWS,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sentences_learn_to_match_their_pictures(
    foundation: Foundation, pixels: torch.Tensor, tokens: torch.Tensor
) -> None:
    states, images = foundation.encode_image_states(pixels), foundation.encode_pixels(pixels)
    tokens.requires_grad_()
    optimizer = torch.optim.Adam([tokens], lr=0.05)
    torch.manual_seed(0)

    def fits() -> torch.Tensor:
        with torch.no_grad():
            pairs = torch.cartesian_prod(torch.arange(ROWS), torch.arange(ROWS)).T
            logits = matching_logits(foundation, tokens[pairs[0]], states[pairs[1]])
            return (logits[:, MATCH] - logits[:, 1 - MATCH]).view(ROWS, ROWS)

    before = fits()
    for _ in range(60):
        said = foundation.compose_query(tokens)
        negatives = draw_hard_negatives(said, images)
        loss = local_alignment_by_matching(foundation, tokens, states, negatives).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert tokens.grad is not None and (tokens.grad.abs().sum(dim=2) > 0).all()
    assert all(parameter.grad is None for parameter in foundation.parameters())
    after, wrong = fits(), ~torch.eye(ROWS, dtype=torch.bool)
    lead_before = before.diagonal().mean() - before[wrong].mean()
    assert after.diagonal().mean() - after[wrong].mean() > lead_before + 1.0


def test_what_cannot_be_compared_is_refused(
    foundation: Foundation, clip_folder: Path, pixels: torch.Tensor, tokens: torch.Tensor
) -> None:
    states = foundation.encode_image_states(pixels)
    with pytest.raises(DataError, match="as many pictures as sentences, got 4 and 5"):
        matching_logits(foundation, tokens, states[:4])
    with pytest.raises(FoundationError, match="has no matching encoder"):
        matching_logits(load_foundation(f"local-dir:{clip_folder}"), tokens, states)
    assert foundation.embedding_width == EMBEDDING_WIDTH
