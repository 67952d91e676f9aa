"""Whether typed changes fit the text encoder's context: refused before any work, as the server does, and never cut.

"... but without a hat", cut before its last words, asks for the opposite.
"""

from collections.abc import Iterable, Sequence

from asymcir_training.errors import DataError
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import TOKENS_MODIFIER_PROMPT
from asymcir_training.triplets.triplet import PictureTriplet


def check_modifiers(
    foundation: Foundation, modifiers: Iterable[tuple[str, str]], *, sentence_length: int | None
) -> None:
    """Refuse modifiers that do not fit the context.

    Args:
        foundation: whose tokenizer and context count.
        modifiers: (what names it in the message, text); an empty one fits.
        sentence_length: L, the sentence tokens that stand in the same prompt; None where a modifier stands alone.

    Raises:
        DataError: one does not fit; names the first, its length and the room.
    """
    context = foundation.context_length
    frame = len(foundation.start_ids) + len(foundation.end_ids)
    length, after = 0, "{modifier}"
    if sentence_length is not None:
        before, after = TOKENS_MODIFIER_PROMPT.split("{tokens}")
        length = sentence_length
        frame += len(foundation.tokenize(before)) + len(foundation.tokenize(after.format(modifier="")))
    room = max(0, context - frame - length)
    bare = len(foundation.tokenize(after.format(modifier="")))
    found = [
        (where, taken)
        for where, text in modifiers
        if text.strip() and (taken := len(foundation.tokenize(after.format(modifier=text))) - bare) > room
    ]
    if not found:
        return
    (where, taken), more = found[0], len(found) - 1
    use = f"{length} are sentence tokens and {frame} the prompt" if length else f"{frame} are its start and end"
    raise DataError(
        f"{where}: the modifier takes {taken} tokens and {room} are left: of the text encoder's {context}, {use}; "
        "shorten it, or leave it out" + (f" ({more} more are too long)" if more else "")
    )


def check_triplets(foundation: Foundation, triplets: Sequence[PictureTriplet], *, sentence_length: int | None) -> None:
    """Refuse triplets whose modifiers do not fit; see `check_modifiers`.

    Raises:
        DataError: see there.
    """
    named = ((triplet.where or f"triplet {number}", triplet.modifier) for number, triplet in enumerate(triplets, 1))
    check_modifiers(foundation, named, sentence_length=sentence_length)
