import json
from pathlib import Path

import pytest
import torch
from asymcir_training import CheckpointError, TrainingError
from asymcir_training.loop import LoopConfig, cosine_schedule, parameter_groups, run_steps
from torch import nn


def _train(folder: Path, *, steps: int = 12, stop_at: int | None = None, width: int = 4) -> list[float]:
    torch.manual_seed(1)
    model = nn.Linear(width, 1)
    optimizer = torch.optim.AdamW(parameter_groups({model: 0.1}, weight_decay=0.1))
    losses: list[float] = []

    def step(number: int) -> dict[str, float]:
        if number == stop_at:
            raise KeyboardInterrupt
        cosine_schedule(optimizer, number=number, steps=steps, warmup=2)
        loss = (model(torch.randn(8, width)) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        return {"loss": loss.item()}

    config = LoopConfig(folder=folder, steps=steps, save_every=5, log_every=1)
    run_steps(config, identity={"width": width}, parts={"model": model, "optimizer": optimizer}, step=step)
    return losses


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "cut", stop_at=8)
    rest = _train(tmp_path / "cut")
    assert rest == whole[5:]  # the state of step 5 was the last one kept
    lines = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    _train(tmp_path)
    with pytest.raises(CheckpointError, match="differs in width"):
        _train(tmp_path, width=5)


def test_nan_stops_the_run(tmp_path: Path) -> None:
    config = LoopConfig(folder=tmp_path, steps=3)
    with pytest.raises(TrainingError, match="step 1"):
        run_steps(config, identity={}, parts={}, step=lambda number: {"loss": float("nan") if number else 1.0})


def test_no_steps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least one epoch"):
        LoopConfig(folder=tmp_path, steps=0)
