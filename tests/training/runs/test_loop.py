"""The loop: exact resume however a run ends, and what it says when it cannot go on."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from asymcir_training import CheckpointError, TrainingError
from asymcir_training.engine.processes import Processes
from asymcir_training.runs.log import CLOCK_FIGURES, LOG_FILE, read_log
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.runs.state import newest_state, read_record, restore_best
from asymcir_training.runs.stopping import Interrupted
from tiny_run import STEPS, train
from torch import Tensor
from two_processes import run_in_two_processes


def _curve(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock says, every digit of the rest."""
    return [{k: v for k, v in line.items() if k not in CLOCK_FIGURES} for line in read_log(folder / LOG_FILE)]


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def _raise_at(number: int, exc: BaseException) -> Any:
    def before_step(at: int) -> None:
        if at == number:
            raise exc

    return before_step


def test_a_process_killed_at_random_moments_takes_the_same_steps_to_the_last_bit(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    settings = {"save_every": 3, "validate_every": 4, "best": "accuracy"}
    summary, weights = train(whole, loop=settings)
    killed.mkdir()
    command = [sys.executable, tiny_run.__file__, str(killed), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    assert _curve(killed) == _curve(whole), f"seed {seed}"
    _assert_equal(torch.load(killed / "weights.pt"), weights)
    assert len(_curve(whole)) == STEPS + STEPS // 4 + 1  # the last step is validated, too
    models = [tiny_run.make_model(), tiny_run.make_model()]
    records = [restore_best(folder, {"model": model}) for folder, model in zip((killed, whole), models, strict=True)]
    assert records[0] == records[1] and records[0].best_step == summary.best_step
    _assert_equal(models[0].state_dict(), models[1].state_dict())
    assert [path.name for path in (killed / "states").iterdir()] == [f"step-{STEPS:06d}"]
    assert [path.name for path in (killed / "best").iterdir()] == [f"step-{summary.best_step:06d}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    calls: list[int] = []

    def before_step(at: int) -> None:
        calls.append(at)
        if at == 12:
            signal.raise_signal(number)
            signal.raise_signal(number)  # a terminal and a launcher may both pass it on

    seldom = {"save_every": 1000}
    with pytest.raises(Interrupted, match=f"stopped by {number.name}: saved at step 13 of 30.*same command goes on"):
        train(tmp_path / "cut", before_step=before_step, loop=seldom)
    assert calls[-1] == 12 and signal.getsignal(number) is before
    state = newest_state(tmp_path / "cut" / "states")
    assert state is not None and read_record(state).done == 13
    prepared: list[int] = []
    summary, weights = train(tmp_path / "cut", loop=seldom, prepare=prepared.append)
    assert (summary.resumed_from, summary.steps, prepared) == (13, STEPS, [13])
    _assert_equal(weights, train(tmp_path / "whole", loop=seldom)[1])
    assert _curve(tmp_path / "cut") == _curve(tmp_path / "whole")


def test_the_same_signal_again_ends_at_once(tmp_path: Path) -> None:
    def before_step(at: int) -> None:
        if at == 7:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.1)  # more than a moment, and the step is still not done
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.0)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, before_step=before_step)
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_record(tmp_path / "states" / "step-000005").done == 5


def test_a_signal_that_ends_the_workers_too_keeps_the_state_before(tmp_path: Path) -> None:
    def before_step(at: int) -> None:
        if at == 7:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    with pytest.raises(Interrupted, match=r"SIGTERM \(step 7 failed meanwhile: DataLoader.*saved at step 5 of 30"):
        train(tmp_path, before_step=before_step)
    with pytest.raises(Interrupted, match="nothing was saved yet"):
        train(tmp_path / "other", before_step=before_step, loop={"save_every": 50})


def test_an_error_of_a_step_passes_and_the_run_goes_on_from_the_state_before(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        train(tmp_path / "cut", before_step=_raise_at(13, OSError("gone")))
    lines = len(_curve(tmp_path / "cut"))
    summary, weights = train(tmp_path / "cut")
    assert lines == 13 and summary.resumed_from == 10
    _assert_equal(weights, train(tmp_path / "whole")[1])
    assert _curve(tmp_path / "cut") == _curve(tmp_path / "whole")
    again, same = train(tmp_path / "cut", before_step=_raise_at(0, OSError("a finished run takes no step")))
    assert again.resumed_from == STEPS
    _assert_equal(same, weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_keeps_the_last_good_state_and_names_the_batch(tmp_path: Path, value: float) -> None:
    with pytest.raises(TrainingError, match=r"step 7 gave loss \d.*norm (nan|inf): lower.*bad-batch.json.*step 5\) is"):
        train(
            tmp_path,
            figures_of=lambda number, figures: figures | ({"norm": value} if number == 7 else {}),
            describe=lambda number: {"pictures": [f"{number}.png"], "index": torch.arange(2)},
        )
    bad = json.loads((tmp_path / "bad-batch.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert bad["step"] == 7 and bad["figures"]["norm"] == str(value)
    assert bad["batch"] == {"pictures": ["7.png"], "index": [0, 1]}
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-000005"]
    assert train(tmp_path)[0].resumed_from == 5  # it was the data: mended, the same command goes on


def test_weights_that_became_nan_unseen_are_not_kept(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)

    def step(number: int) -> dict[str, float]:
        model.weight.data.fill_(float("nan") if number == 3 else 1.0)
        return {"loss": 1.0}

    config = LoopConfig(folder=tmp_path, steps=6, save_every=2, curves=False)
    with pytest.raises(CheckpointError, match=r"model.weight holds NaN.*learning rate"):
        run_steps(config, identity={}, parts={"model": model}, step=step)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-000002"]


def test_a_changed_identity_is_listed_and_refused_unless_it_is_accepted(tmp_path: Path) -> None:
    old = {"config": {"lr": 0.02, "views": {"scale": (0.8, 1.0)}, "gone": 1}, "student": "a"}
    new = {"config": {"lr": 0.01, "views": {"scale": (0.5, 1.0)}, "come": None}, "student": "a"}
    train(tmp_path, identity=old, steps=10)
    listed = (
        r"config.come: absent -> null; config.gone: 1 -> absent; config.lr: 0.02 -> 0.01; "
        r"config.views.scale: \[0.8, 1.0\] -> \[0.5, 1.0\]; steps: 10 -> 20\): pass another folder.*allow_changes"
    )
    with pytest.raises(CheckpointError, match=listed):
        train(tmp_path, identity=new, steps=20)
    with pytest.raises(OSError):  # before the changed run has a state of its own
        train(tmp_path, identity=new, steps=20, before_step=_raise_at(12, OSError()), loop={"allow_changes": True})
    summary, _ = train(tmp_path, identity=new, steps=20, loop={"allow_changes": True})
    assert summary.resumed_from == 10
    changes = [line for line in _curve(tmp_path) if "changes" in line]
    assert len(changes) == 1 and changes[0]["step"] == 10 and changes[0]["changes"]["config.lr"] == "0.02 -> 0.01"
    train(tmp_path, identity=new, steps=20)  # no longer a change
    assert sum("changes" in line for line in _curve(tmp_path)) == 1


def _scores(done: int, figures: dict[str, float]) -> dict[str, float]:
    """The best at step 15, and as good again later."""
    return {"R@10": {5: 0.1, 10: 0.2, 15: 0.5, 20: 0.4, 25: 0.5, 30: 0.3}[done], **figures}


def test_the_best_weights_by_validation_are_kept_and_the_figures_logged(tmp_path: Path) -> None:
    loop = {"validate_every": 5, "best": "R@10", "save_every": 12}

    def validation(done: int, figures: dict[str, float]) -> dict[str, float]:
        if done == 15:
            state = newest_state(tmp_path / "states")
            assert state is not None and read_record(state).done == 15  # a long validation is not the end of a step
        return _scores(done, figures)

    summary, weights = train(tmp_path, validation=validation, loop=loop)
    assert isinstance(summary, RunSummary) and (summary.best_step, summary.best_figure) == (15, 0.5)
    lines = [line for line in _curve(tmp_path) if "validation" in line]
    assert [(line["step"], line["validation"]["R@10"]) for line in lines] == [
        (5, 0.1), (10, 0.2), (15, 0.5), (20, 0.4), (25, 0.5), (30, 0.3)
    ]  # fmt: skip
    again, _ = train(tmp_path, validation=lambda *_: pytest.fail("validated again"), loop=loop)
    assert (again.best_step, again.best_figure) == (15, 0.5)
    model = tiny_run.make_model()
    assert restore_best(tmp_path, {"model": model}).best_figure == 0.5
    with pytest.raises(OSError):  # the same run as far as step 15
        train(tmp_path / "short", before_step=_raise_at(15, OSError()), validation=_scores, loop=loop)
    other = tiny_run.make_model()
    restore_best(tmp_path / "short", {"model": other})
    _assert_equal(model.state_dict(), other.state_dict())
    assert not torch.equal(model.state_dict()["0.weight"], weights["model.0.weight"])


def test_a_validation_that_was_interrupted_is_made_up_for(tmp_path: Path) -> None:
    loop = {"validate_every": 5, "best": "R@10"}

    def fail(done: int, figures: dict[str, float]) -> dict[str, float]:
        if done == 15:
            raise OSError("the gallery is gone")
        return _scores(done, figures)

    with pytest.raises(OSError, match="gallery"):
        train(tmp_path / "cut", validation=fail, loop=loop)
    assert train(tmp_path / "cut", validation=_scores, loop=loop)[0].best_step == 15
    train(tmp_path / "whole", validation=_scores, loop=loop)
    assert _curve(tmp_path / "cut") == _curve(tmp_path / "whole")
    only_last = train(tmp_path / "last", validation=_scores, loop={"validate_every": 0})[0]
    assert only_last.best_step is None  # no figure was named
    assert [line["step"] for line in _curve(tmp_path / "last") if "validation" in line] == [STEPS]


def test_validation_says_what_is_wrong_with_its_figures(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="validation after 10 steps gave R@1 nan"):
        train(tmp_path, validation=lambda *_: {"R@1": float("nan")}, loop={"validate_every": 10})
    with pytest.raises(TrainingError, match=r"expected validation to give 'R@5'.*got R@1"):
        train(tmp_path, validation=lambda *_: {"R@1": 0.5}, loop={"validate_every": 10, "best": "R@5"})


def test_a_best_state_that_was_removed_is_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = {"validate_every": 5, "best": "R@10"}
    with pytest.raises(OSError):
        train(tmp_path, before_step=_raise_at(18, OSError()), validation=_scores, loop=loop)
    for path in (tmp_path / "best" / "step-000015").iterdir():
        path.unlink()
    (tmp_path / "best" / "step-000015").rmdir()
    assert train(tmp_path, validation=_scores, loop=loop)[0].best_step == 25
    assert "is gone" in caplog.text


def test_wrong_settings_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least one epoch"):
        LoopConfig(folder=tmp_path, steps=0)
    with pytest.raises(TrainingError, match="save_every of 1 or more"):
        LoopConfig(folder=tmp_path, steps=1, save_every=0)


def share_a_run(processes: Processes, folder: Path) -> dict[str, Any]:
    """Run in each of two processes."""
    second = processes.rank == 1
    said: dict[str, Any] = {}

    def end_by(name: str, **changes: Any) -> None:
        try:
            said[name] = train(folder / name, processes=processes, **changes)[1]
        except TrainingError as exc:
            said[name] = f"{type(exc).__name__}: {exc}"

    def signal_the_second(number: int) -> None:
        if second and number == 12:
            signal.raise_signal(signal.SIGTERM)

    def spoil_the_second(number: int, figures: dict[str, float]) -> dict[str, float]:
        return figures | ({"norm": float("nan")} if second and number == 7 else {})

    def fill_the_disk(number: int) -> None:
        if not second and number == 8:
            (folder / "full" / "states" / ".step-000010.tmp").write_bytes(b"a file where a folder must go")

    waits = {"figures_of": lambda number, figures: figures | {"waited_s": 0.05 * processes.rank}}
    # The same steps alone, here: other processes may compute with more threads, which sum in another order.
    summary, said["alone"] = train(folder / f"alone-{processes.rank}")
    said["steps"] = summary.steps
    end_by("signal", before_step=signal_the_second)
    end_by("nan", figures_of=spoil_the_second, describe=lambda number: {"step": number})
    end_by("full", before_step=fill_the_disk, steps=15)
    end_by("signal", **waits)
    # Only the main process's figures count, and every process must come to the same best step.
    end_by("best", validation=lambda done, _: {"R@1": -abs(done - 5.0 - 5 * processes.rank)},
           loop={"validate_every": 5, "best": "R@1"}, steps=10)  # fmt: skip
    return said


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("two")
    return run_in_two_processes(__file__, "share_a_run", folder), folder


def test_what_ends_one_process_ends_both_at_the_same_step(two: tuple[list[dict[str, Any]], Path]) -> None:
    said, folder = two
    for found in said:
        assert found["nan"].startswith("TrainingError: step 7 gave") and " in process 1: " in found["nan"]
        assert found["full"].startswith("CheckpointError: cannot write the state of step 10")
    assert json.loads((folder / "nan" / "bad-batch.json").read_text())["ranks"] == [1]
    for rank, found in enumerate(said):
        _assert_equal(found["signal"], found["alone"])
        assert found["steps"] == STEPS
        assert _curve(folder / "signal") == _curve(folder / f"alone-{rank}")
    shares = [line["wait_share"] for line in read_log(folder / "signal" / LOG_FILE) if "wait_share" in line]
    assert len(shares) == STEPS - 13 and min(shares) > 0.0  # it is the other process that waits
    assert read_record(folder / "best" / "states" / "step-000010").best_step == 5
