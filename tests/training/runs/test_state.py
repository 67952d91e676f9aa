"""States on disk: whatever is nested comes back to the bit, whole or not at all."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asymcir_common.manifest import digest_file
from asymcir_training import CheckpointError
from asymcir_training.runs.state import (
    RunRecord,
    changed_keys,
    load_parts,
    newest_state,
    prune_states,
    read_record,
    restore_best,
    save_state,
    update_record,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

RECORD = RunRecord(done=200, identity={"lr": 0.1})


class Keeper:
    """A part that keeps whatever it is given."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        strides = expected.stride() if expected.is_contiguous(memory_format=torch.channels_last) else None
        return (
            found.dtype == expected.dtype
            and torch.equal(found, expected)
            and (strides is None or found.stride() == strides)
        )
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(_same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and all(_same(a, b) for a, b in zip(found, expected, strict=True))
    return type(found) is type(expected) and found == expected


def test_nested_states_come_back_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = torch.randn(6, 6)
    whole = {
        "tensors": {f"{dtype}".removeprefix("torch."): torch.ones(3).to(dtype) for dtype in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool
        )},
        "shapes": [torch.tensor(7.5), torch.zeros(0, 3), large[1:3, ::2], large.T, large[:, :2], large],
        "channels_last": torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last),
        "tied": (large, large),
        "a.b": torch.ones(1), "a": {"b": torch.zeros(1)},  # one name for two tensors
        "plain": {"none": None, "yes": True, "n": 3, "x": 0.1 + 0.2, "text": "é", "inf": float("inf"), "empty": {}},
        3: {0: [1, (2, [])], "0": -1},
    }  # fmt: skip
    path = save_state(tmp_path, RECORD, {"whole": Keeper(whole)})
    assert path == tmp_path / "step-000200" == newest_state(tmp_path)
    part = Keeper({})
    load_parts(path, {"whole": part})
    assert _same(part.state, whole)
    assert read_record(path) == RECORD
    part.state["tied"][0].add_(1.0)  # not a view of the file
    load_parts(path, {"whole": part})
    assert _same(part.state, whole)


def _parts() -> dict[str, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    model = model.to(memory_format=torch.channels_last)
    groups = [{"params": model[0].parameters(), "lr": 0.1, "peak_lr": 0.2}, {"params": model[3].parameters()}]
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.99)),
        "scaler": torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2),
        "off": torch.amp.GradScaler("cpu", enabled=False),
        "average": AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    }


def _train(parts: dict[str, Any], steps: int) -> None:
    for _ in range(steps):
        loss = parts["model"](torch.randn(5, 3, 4, 4)).square().mean()
        parts["optimizer"].zero_grad()
        parts["scaler"].scale(loss).backward()
        parts["scaler"].step(parts["optimizer"])
        parts["scaler"].update()
        parts["average"].update_parameters(parts["model"])


def test_an_optimizer_a_scaler_and_an_average_go_on_where_they_were(tmp_path: Path) -> None:
    parts, others = _parts(), _parts()
    _train(parts, 3)
    load_parts(save_state(tmp_path, RECORD, parts), others)
    for some in (parts, others):
        torch.manual_seed(9)
        _train(some, 3)
    assert all(_same(others[name].state_dict(), parts[name].state_dict()) for name in parts)
    assert others["scaler"].get_scale() == 16.0 * 2**3
    assert others["optimizer"].param_groups[0]["betas"] == (0.8, 0.99)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("state.pt", lambda data: data[:-7], r"state.pt is damaged \(expected [\d,]+ bytes, got"),
        ("state.pt", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "state.pt is damaged .*digest"),
        ("state.pt", None, "state.pt is damaged .*FileNotFoundError"),
        ("state.json", lambda data: data[: len(data) // 2], "state.json is damaged .*JSONDecodeError"),
        (
            "state.json",
            lambda data: b'{"format": "asymcir.run-state", "version": 2}',
            "state.json is damaged .*KeyError",
        ),
        ("state.json", None, "state.json is damaged .*FileNotFoundError"),
    ],
)
def test_a_damaged_state_says_which_file_and_what_to_do(tmp_path: Path, name: str, damage: Any, words: str) -> None:
    parts = _parts()
    path = save_state(tmp_path, RECORD, parts)
    if damage is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(damage((path / name).read_bytes()))
    with pytest.raises(CheckpointError, match=f"{words}.*remove the folder {path} to begin again"):
        read_record(path)
        load_parts(path, parts)


class Harm:
    """What a pickle that was not written by `save_state` could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("foreign", ["harm", "text", "tensor"])
def test_what_is_no_state_is_refused_and_nothing_of_it_runs(tmp_path: Path, foreign: str) -> None:
    path = save_state(tmp_path, RECORD, {"part": Keeper({})})
    if foreign == "text":
        (path / "state.pt").write_bytes(b"anything")
    else:
        torch.save({"part": Harm(tmp_path / "harmed")} if foreign == "harm" else torch.ones(2), path / "state.pt")
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | {"parts": asdict(digest_file(path / "state.pt"))}))
    with pytest.raises(CheckpointError, match=r"state.pt is damaged \(\w+Error: .*remove the folder .* to begin again"):
        load_parts(path, {"part": Keeper({})})
    assert not (tmp_path / "harmed").exists()


def test_states_that_do_not_fit_are_refused_with_words(tmp_path: Path) -> None:
    parts = _parts()
    path = save_state(tmp_path, RECORD, {"model": parts["model"]})
    with pytest.raises(CheckpointError, match=r"has no optimizer, scaler \(it holds model\)"):
        load_parts(path, {name: parts[name] for name in ("model", "scaler", "optimizer")})
    with pytest.raises(CheckpointError, match=r"model in the state .* does not fit this run .*size mismatch"):
        load_parts(path, {"model": nn.Sequential(nn.Conv2d(3, 8, 3))})
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | {"version": 1}))
    with pytest.raises(CheckpointError, match=r"of version 1, this asymcir reads asymcir\.run-state of version 2"):
        read_record(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor([1.0, float("nan")]), r"part.inner.0 holds NaN"),
        (object(), "cannot keep part.inner.0: expected tensors and plain values, got object"),
        (np.float64(0.5), "cannot keep part.inner.0: expected tensors and plain values, got float64"),
        ({(1, 2): 3}, r"cannot keep part.inner.0: expected keys .*got \(1, 2\)"),
    ],
)
def test_what_cannot_be_kept_is_named_and_the_state_before_stays(tmp_path: Path, value: Any, words: str) -> None:
    before = save_state(tmp_path, RECORD, {"part": Keeper({"inner": [1.0]})})
    with pytest.raises(CheckpointError, match=words):
        save_state(tmp_path, RunRecord(done=300, identity={}), {"part": Keeper({"inner": [value]})})
    assert [*tmp_path.iterdir()] == [before]


def test_a_full_disk_says_how_much_is_needed_and_keeps_the_state_before(tmp_path: Path) -> None:
    before = save_state(tmp_path / "states", RECORD, {"part": Keeper({"x": torch.zeros(3)})})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow past it
    try:
        with pytest.raises(CheckpointError, match=r"state of step 300 .*needs about 4,000,000 bytes, [\d,]+ are free"):
            save_state(
                tmp_path / "states", RunRecord(done=300, identity={}), {"part": Keeper({"x": torch.zeros(1_000_000)})}
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [*(tmp_path / "states").iterdir()] == [before]


def test_one_state_stays_and_leftovers_go(tmp_path: Path) -> None:
    paths = [save_state(tmp_path, RunRecord(done=done, identity={}), {}) for done in (90, 1_000_000, 200)]
    (tmp_path / ".step-000300.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert newest_state(tmp_path) == paths[1]
    prune_states(tmp_path, paths[2])
    assert {path.name for path in tmp_path.iterdir()} == {"step-000200", "notes.txt"}
    prune_states(tmp_path, None)
    assert newest_state(tmp_path) is None and newest_state(tmp_path / "nowhere") is None


def test_a_record_can_be_replaced_and_the_parts_stay(tmp_path: Path) -> None:
    parts = _parts()
    path = save_state(tmp_path, RECORD, parts)
    later = RunRecord(done=200, identity={"lr": 0.1}, validated=200, best_step=200, best_figure=0.1 + 0.2)
    update_record(path, later)
    assert read_record(path) == later
    load_parts(path, parts)


def test_no_best_state_is_an_error_that_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no state: run with validation"):
        restore_best(tmp_path, {})


def test_changed_keys_are_dotted_and_complete() -> None:
    old = {"a": {"b": {"c": 1, "d": [1, 2]}, "e": {}}, "f": "x", "same": {"g": None}}
    new = {"a": {"b": {"c": 1.5, "d": [2, 1]}, "e": {"h": True}}, "same": {"g": None}}
    assert changed_keys(old, new) == {
        "a.b.c": "1 -> 1.5",
        "a.b.d": "[1, 2] -> [2, 1]",
        "a.e": "{} -> absent",
        "a.e.h": "absent -> true",
        "f": '"x" -> absent',
    }
    assert changed_keys(old, old) == {}


def test_a_process_killed_while_it_saves_leaves_a_whole_state(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    command = [sys.executable, __file__, str(tmp_path), str(seed)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, f"seed {seed}: {found.stderr}"


def _save_for_ever(folder: Path, first: int, told: int) -> None:
    """Keep one state after another, each holding its own number throughout, and tell of each."""
    for done in range(first, first + 100_000):
        state = {"many": {str(i): torch.full((500,), float(done)) for i in range(20)}, "done": done}
        prune_states(folder, save_state(folder, RunRecord(done=done, identity={}), {"part": Keeper(state)}))
        os.write(told, b".")


def _kill_often(folder: Path, seed: int) -> None:
    """Kill a saving process 12 times at random moments, and load what it left each time."""
    draw, done = random.Random(seed), 0
    for _ in range(12):
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            _save_for_ever(folder, done + 1, tell)
        for _ in range(2):
            os.read(told, 1)
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
        path, part = newest_state(folder), Keeper({})
        assert path is not None
        load_parts(path, {"part": part})
        assert read_record(path).done == part.state["done"] >= done + 2
        done = part.state["done"]
        assert all(torch.equal(value, torch.full((500,), float(done))) for value in part.state["many"].values())


if __name__ == "__main__":  # a process of its own, for torch's threads do not survive a fork
    _kill_often(Path(sys.argv[1]), int(sys.argv[2]))
