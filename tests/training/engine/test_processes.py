"""Processes, devices and precision; two processes are real ones that torchrun starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes, start_processes, stop_processes
from asymcir_training.errors import ConfigError, TrainingError
from torch import nn
from two_processes import WORLD, run_in_two_processes

CPU = torch.device("cpu")
ONE = Processes()
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}


def work(processes: Processes, folder: Path) -> dict[str, Any]:
    """Run in each of two processes."""
    del folder
    rank = processes.rank
    found: dict[str, Any] = {
        "world": processes.world,
        "again": start_processes().rank,
    }
    rows = torch.arange(6).reshape(2, 3) + 10 * rank
    found["gather"] = processes.gather(rows), processes.gather(rows.float().t()[:2].requires_grad_())
    found["object"] = processes.share_object({"rank": rank, "text": "é"})
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.fill_(rank + 1.0)
    nn.init.constant_(module.weight, float(rank))
    processes.broadcast(nn.Sequential(module, norm))
    found["broadcast"] = module.weight.detach(), module.weight.stride(), norm.running_mean

    values = [nn.Parameter(torch.zeros(size)) for size in (3, 2, 4, 1)] + [nn.Parameter(torch.zeros(2).double())]
    values[0].grad = torch.full((3,), rank + 1.0)
    values[1].grad = torch.ones(2) if rank == 1 else None
    values[3].requires_grad_(False)
    values[4].grad = torch.ones(2).double()
    large = [nn.Parameter(torch.zeros(5_000_000)) for _ in range(2)]
    for number, value in enumerate(large):
        value.grad = torch.full((5_000_000,), float(number + rank))
    processes.reduce_gradients([*values, *large, values[0]])
    found["gradients"] = [value.grad for value in values] + [value.grad[::1_000_000] for value in large]

    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_in_two_processes(__file__, "work", tmp_path_factory.mktemp("two"))


def test_torchrun_processes_know_each_other_and_starting_again_changes_nothing(two: list[dict[str, Any]]) -> None:
    assert [found["world"] for found in two] == [WORLD, WORLD]
    assert [found["again"] for found in two] == [0, 1]


def test_rows_are_gathered_in_the_order_of_ranks_and_objects_and_weights_come_from_the_first(
    two: list[dict[str, Any]],
) -> None:
    expected = torch.tensor([[0, 1, 2], [3, 4, 5], [10, 11, 12], [13, 14, 15]])
    for found in two:
        whole, turned = found["gather"]
        assert torch.equal(whole, expected) and whole.dtype == torch.int64
        assert turned.tolist() == [[0, 3], [1, 4], [10, 13], [11, 14]] and not turned.requires_grad
        assert found["object"] == {"rank": 0, "text": "é"}
        weight, stride, mean = found["broadcast"]
        assert (weight == 0).all() and stride == (12, 1, 6, 3) and (mean == 1).all()


def test_gradients_are_summed_and_what_no_process_has_stays_without(two: list[dict[str, Any]]) -> None:
    for found in two:
        first, second, third, fixed, wide, *large = found["gradients"]
        assert first.tolist() == [3, 3, 3] and second.tolist() == [1, 1]
        assert third is None and fixed is None
        assert wide.dtype == torch.float64 and wide.tolist() == [2, 2]
        assert [value.tolist() for value in large] == [[1] * 5, [3] * 5]  # two buckets


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "29511")  # alone, it says nothing of torchrun
    assert start_processes("cpu") == Processes() and Processes().is_main
    stop_processes()
    rows = torch.ones(2, 3, requires_grad=True)
    assert not ONE.gather(rows).requires_grad and torch.equal(ONE.gather(rows), rows)
    assert ONE.share_object("x") == "x"


@pytest.mark.parametrize("present", [("RANK",), ("WORLD_SIZE", "MASTER_ADDR"), ("RANK", "WORLD_SIZE", "LOCAL_RANK")])
def test_half_an_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name in present:
        monkeypatch.setenv(name, TORCHRUN[name])
    with pytest.raises(ConfigError, match="torchrun's variables or none") as caught:
        start_processes("cpu")
    missing = str(caught.value).split("without ")[1].split(":")[0]
    assert missing.split(", ") == [name for name in TORCHRUN if name not in present]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": "first"}, "whole number in the variable RANK, got 'first'"),
        ({"RANK": "2"}, "RANK 2 of WORLD_SIZE 2"),
    ],
)
def test_a_senseless_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], words: str
) -> None:
    for name, value in (TORCHRUN | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        start_processes("cpu")


def test_an_unknown_device_is_refused() -> None:
    for asked in ("gpu", "cpu:1", "cuda:x"):
        with pytest.raises(ConfigError, match=f"got '{asked}'"):
            start_processes(asked)


def test_cuda_where_there_is_none_says_what_was_asked_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=rf"'{asked}' was asked for, and torch {torch.__version__[:4]}.*no GPU"):
            start_processes(asked)
    assert start_processes("auto").device == CPU


def test_too_few_gpus_are_refused_by_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"'cuda:3', and torch sees 1 GPU"):
        start_processes("cuda:3")
    for name, value in (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"2 processes with one GPU each, and torch sees 1 GPU"):
        start_processes("auto")
    with pytest.raises(ConfigError, match="'cuda:0' was asked for by 2 processes"):
        start_processes("cuda:0")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp32, bf16 or fp16, got 'half'"):
        Precision("half", CPU)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_each_precision_computes_in_its_type_and_steps(name: str, dtype: torch.dtype) -> None:
    precision, linear = Precision(name, CPU), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    with precision.autocast():
        y = linear(torch.ones(1, 2))
    assert y.dtype == dtype and precision.scaler.is_enabled() == (name == "fp16")
    before = linear.weight.detach().clone()
    precision.scaler.scale(0.5 * y.float().sum()).backward()
    figures = precision.step(optimizer, linear.parameters(), clip_norm=1.0)
    assert abs(figures["norm"] - 0.5 * 6**0.5) < 1e-3  # of the unscaled gradient
    torch.testing.assert_close(linear.weight, before - 0.1 / 6**0.5, rtol=0, atol=1e-4)


def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale_until_it_is_hopeless() -> None:
    precision, linear = Precision("fp16", CPU), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    before = linear.weight.detach().clone()

    def step(gradient: float) -> dict[str, float]:
        precision.scaler.scale(torch.zeros(()))
        for value in linear.parameters():
            value.grad = torch.full_like(value, gradient)
        return precision.step(optimizer, linear.parameters(), clip_norm=1.0)

    assert step(float("inf")) == {"norm": 0.0, "loss_scale": 2.0**15, "overflowed": 1.0}
    assert torch.equal(linear.weight, before) and not optimizer.state
    other = Precision("fp16", CPU)
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 2.0**15
    other.load_state_dict(Precision("fp32", CPU).state_dict())  # another precision's: nothing in it
    assert step(1.0)["overflowed"] == 0.0 and not torch.equal(linear.weight, before)
    with pytest.raises(TrainingError, match="even at a loss scale of 1: train in bf16"):
        for _ in range(17):
            step(float("nan"))
