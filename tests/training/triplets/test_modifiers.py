"""The room for a modifier is counted as the server counts it."""

import pytest
import torch
from asymcir_training import Foundation
from asymcir_training.errors import DataError
from asymcir_training.triplets.modifiers import check_modifiers


@pytest.mark.parametrize("sentence_length", [None, 3])
def test_the_longest_that_fits_is_taken_and_one_word_more_is_refused(
    foundation: Foundation, sentence_length: int | None
) -> None:
    def rows(words: int) -> int:
        """How long the prompt is in truth, in words before it is cut."""
        text = " ".join(["red"] * words)
        if sentence_length is None:
            return len(foundation.tokenize(text)) + len(foundation.start_ids) + len(foundation.end_ids)
        before, after = (foundation.tokenize(part) for part in ("a photo of ", f" that {text}"))
        return len(before) + sentence_length + len(after) + len(foundation.start_ids) + len(foundation.end_ids)

    words = 1
    while rows(words + 1) <= foundation.context_length:
        words += 1
    fits, over = " ".join(["red"] * words), " ".join(["red"] * (words + 1))
    check_modifiers(foundation, [("a", fits), ("b", ""), ("c", "  ")], sentence_length=sentence_length)
    with pytest.raises(DataError, match=r"^c: the modifier takes \d+ tokens and \d+ are left: of the text encoder's "):
        check_modifiers(foundation, [("a", fits), ("c", over)], sentence_length=sentence_length)
    with pytest.raises(DataError, match=r"\(2 more are too long\)"):
        check_modifiers(foundation, [("a", over)] * 3, sentence_length=sentence_length)


def test_what_fits_reaches_the_tower_whole(foundation: Foundation) -> None:
    tokens = torch.randn(1, 3, foundation.word_width)
    after = foundation.tokenize(" that is red")
    mask = foundation.embed_query(tokens, ["is red"])[1]
    before = len(foundation.tokenize("a photo of "))
    assert int(mask.sum()) == before + 3 + len(after) + len(foundation.start_ids) + len(foundation.end_ids)
