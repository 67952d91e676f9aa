"""How different the sentence tokens of an encoder are while it trains, for its log and its validation.

Notation: n pictures, b_c rows of a chunk, L sentence tokens, D word-embedding width, h, w sides of an attention map.
"""

import logging
from typing import TYPE_CHECKING

import torch
from asymcir_common import TokensError
from asymcir_common.sentences import TokenDiversity, measure_diversity
from torch import Tensor

from asymcir_training.runs.settings import LoopConfig

if TYPE_CHECKING:
    from asymcir_training.engine.processes import Processes

TOKEN_COSINE = "token_cosine"
EFFECTIVE_RANK = "effective_rank"
CENTRED_RANK = "centred_rank"
ATTENTION_OVERLAP = "attention_overlap"
_LOG = logging.getLogger(__name__)


def measure_tokens(tokens: Tensor, maps: Tensor | None = None) -> TokenDiversity | None:
    """Measure how different the tokens of pictures are.

    Args:
        tokens: [n, L, D], of any float type, on any device.
        maps: [n, L, h, w], what they look at.

    Returns:
        What was measured; None of a single picture or a single token, and where a token is not finite or has no
        direction: that is for the losses to report.
    """
    if min(tokens.shape[:2]) < 2:
        return None
    try:
        return measure_diversity(
            tokens.detach().float().cpu().numpy(), None if maps is None else maps.detach().float().cpu().numpy()
        )
    except TokensError:
        return None


class TokenLog:
    """Keeps the tokens of the steps that are logged, from the forward pass that they take anyway, and measures them."""

    def __init__(self, loop: LoopConfig, processes: "Processes") -> None:
        self._loop, self._processes = loop, processes
        self._wanted = 0
        self._held: list[Tensor] = []
        self._last: TokenDiversity | None = None

    def begin(self, number: int, *, chunks: int) -> None:
        """Begin step `number`, in which this process takes its part of the batch in `chunks` chunks."""
        logged = (number + 1) % self._loop.log_every == 0 or number + 1 == self._loop.steps
        self._wanted, self._held = chunks if logged else 0, []

    def add(self, tokens: Tensor) -> None:
        """Take the tokens of a chunk [b_c, L, D]; those of a chunk that is computed again are passed over."""
        if len(self._held) < self._wanted:
            self._held.append(tokens.detach())

    def figures(self) -> dict[str, float]:
        """Return mean cosine and centred rank of the whole batch's tokens; nothing in a step that is not logged.

        To be called in every process.
        """
        if not self._held:
            return {}
        found = measure_tokens(self._processes.gather(torch.cat(self._held).float()))
        self._held = []
        if found is None:
            return {}
        self._last = found
        return {TOKEN_COSINE: found.cosine, CENTRED_RANK: found.centred_rank}

    def warn_of_one_word(self) -> None:
        """Say so where the tokens of the last batch that was measured are nearly one."""
        if self._last is not None and self._last.warning and self._processes.is_main:
            _LOG.warning("at the end of the run, %s", self._last.warning)
