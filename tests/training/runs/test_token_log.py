"""What the log of a run says of the tokens of a batch."""

from pathlib import Path

import pytest
import torch
from asymcir_common.sentences import measure_diversity
from asymcir_training.engine.processes import Processes
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.runs.token_log import TokenLog, measure_tokens
from torch import Tensor

DIFFERENT = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0))
EQUAL = DIFFERENT[:, :1].expand_as(DIFFERENT)


def _log(folder: Path, *, steps: int = 7, log_every: int = 3) -> TokenLog:
    return TokenLog(LoopConfig(folder=folder, steps=steps, log_every=log_every), Processes())


def _step(log: TokenLog, number: int, chunks: list[Tensor], *, passes: int = 1) -> dict[str, float]:
    log.begin(number, chunks=len(chunks))
    for _ in range(passes):
        for tokens in chunks:
            log.add(tokens)
    return log.figures()


def test_only_steps_that_are_logged_are_measured(tmp_path: Path) -> None:
    log = _log(tmp_path)
    measured = [number + 1 for number in range(7) if _step(log, number, [DIFFERENT])]
    assert measured == [3, 6, 7]  # every third, and the last


def test_chunks_and_their_second_pass_are_one_batch(tmp_path: Path) -> None:
    expected = measure_diversity(DIFFERENT.numpy())
    for chunks, passes in (([DIFFERENT], 1), ([*DIFFERENT.split(2)], 2)):
        found = _step(_log(tmp_path), 2, chunks, passes=passes)
        assert found == {"token_cosine": expected.cosine, "centred_rank": expected.centred_rank}


@pytest.mark.parametrize(
    "tokens", [DIFFERENT[:1], DIFFERENT[:, :1], torch.zeros(4, 3, 8), torch.full((4, 3, 8), torch.nan)]
)
def test_what_cannot_be_compared_is_left_out(tmp_path: Path, tokens: Tensor) -> None:
    assert measure_tokens(tokens) is None
    assert _step(_log(tmp_path), 2, [tokens]) == {}


def test_half_precision_with_a_graph_is_measured() -> None:
    tokens = DIFFERENT.clone().requires_grad_().to(torch.bfloat16)
    found = measure_tokens(tokens, torch.full((8, 4, 2, 2), 0.25, dtype=torch.float16))
    assert found is not None and found.overlap == 1.0 and found.effective_rank > 2.0


def test_a_run_that_ends_with_one_word_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = _log(tmp_path)
    log.warn_of_one_word()
    _step(log, 2, [EQUAL])
    _step(log, 6, [DIFFERENT])
    log.warn_of_one_word()
    assert not caplog.records
    _step(log, 6, [EQUAL])
    log.warn_of_one_word()
    assert "at the end of the run, the 4 tokens of a picture are nearly one" in caplog.text
