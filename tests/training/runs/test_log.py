"""The log: lines, their cut at a resume, TensorBoard events, curves, and what is said without the extra packages."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from asymcir_training.runs.durations import describe_time
from asymcir_training.runs.log import (
    CURVES_FILE,
    LOG_FILE,
    STEPS_PER_S,
    TENSORBOARD_FOLDER,
    WAIT_SHARE,
    RunLog,
    draw_curves,
    read_log,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def _open(folder: Path, **changes: Any) -> RunLog:
    return RunLog(folder, **({"first": 0, "steps": 100, "validated": 0, "tensorboard": False} | changes))


def _steps(folder: Path) -> list[tuple[int, str]]:
    kinds = ("validation", "changes")
    return [(line["step"], next((k for k in kinds if k in line), "step")) for line in read_log(folder / LOG_FILE)]


def test_lines_hold_every_digit_of_a_float32_and_progress_tells_the_time_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log = _open(tmp_path)
    time.sleep(0.1)
    log.write_step(50, {"loss": 0.123456791043, "norm": 3e-9})
    log.write_validation(50, {"R@10": 0.25})
    log.close(curves=False)
    line, validation = read_log(tmp_path / LOG_FILE)
    assert line["loss"] == 0.123456791 and line["norm"] == 3e-9
    assert 0 < line[STEPS_PER_S] <= 500 and WAIT_SHARE not in line
    assert validation == {"step": 50, "validation": {"R@10": 0.25}}
    assert f"{tmp_path.name} 50/100  loss 0.1235 norm 0.0000" in caplog.text
    assert "steps/s, 0 s left" in caplog.text and "validation after 50/100  R@10 0.2500" in caplog.text


def test_the_share_of_time_that_steps_waited_for_data_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = _open(tmp_path)
    for done in range(1, 5):
        started = time.monotonic()
        time.sleep(0.02 if done % 2 else 0.1)
        log.add_wait(0.75 * (time.monotonic() - started))
        if done % 2 == 0:
            log.write_step(done, {"loss": 1.0})
    log.write_step(5, {"loss": 1.0})  # waited for nothing since
    log.close(curves=False)
    shares = [line[WAIT_SHARE] for line in read_log(tmp_path / LOG_FILE)]
    assert shares[:2] == pytest.approx([0.75, 0.75], abs=0.15) and shares[2] == 0.0
    assert "% waiting for data" in caplog.text


def test_a_resumed_log_keeps_what_its_state_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = _open(tmp_path)
    log.write_step(10, {"loss": 1.0})
    log.write_validation(10, {"R@1": 0.1})
    log.write_step(20, {"loss": 0.9})
    log.write_changes(20, {"lr": "1 -> 2"})
    log.write_validation(20, {"R@1": 0.2})
    log.write_step(30, {"loss": 0.8})
    log.close(curves=False)
    with (tmp_path / LOG_FILE).open("a") as stream:
        stream.write('{"step": 40, "lo')  # killed while writing
    _open(tmp_path, first=20, validated=20).close(curves=False)
    assert _steps(tmp_path) == [(10, "step"), (10, "validation"), (20, "step"), (20, "validation")]
    assert "unfinished line" in caplog.text
    log = _open(tmp_path, first=20, validated=10)  # the validation of step 20 was not finished
    assert _steps(tmp_path) == [(10, "step"), (10, "validation"), (20, "step")]
    log.write_step(30, {"loss": 0.8})
    log.close(curves=False)
    assert all(json.loads(text) for text in (tmp_path / LOG_FILE).read_text().splitlines())
    _open(tmp_path).close(curves=False)
    assert _steps(tmp_path) == []


def test_events_are_read_by_tensorboard_and_show_each_step_once(tmp_path: Path) -> None:
    for first, last in ((0, 5), (3, 6)):
        log = _open(tmp_path, first=first, tensorboard=True)
        for done in range(first + 1, last + 1):
            log.write_step(done, {"loss": done + first / 10})
        log.write_validation(last, {"R@10": last / 10})
        if last == 5:
            continue  # killed: never closed, and nothing that was shown is lost
        log.close(curves=False)
    events = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert found == pytest.approx({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.3, 5: 5.3, 6: 6.3})
    tags = events.Tags()["scalars"]
    assert f"train/{STEPS_PER_S}" in tags
    (validation,) = [tag for tag in tags if tag.startswith("validation/")]
    assert "10" in validation and [event.step for event in events.Scalars(validation)] == [6]


def test_curves_show_every_figure_by_its_name(tmp_path: Path) -> None:
    log = _open(tmp_path)
    for done in range(10, 60, 10):
        log.write_step(done, {"loss": 1.0 / done, "norm": float(done)})
        log.write_validation(done, {"R@10": done / 100})
    log.write_changes(50, {"lr": "1 -> 2"})
    log.close(curves=True)
    figure = draw_curves(read_log(tmp_path / LOG_FILE), title="distil")
    assert figure is not None
    shown = {axes.get_title(): axes.lines[0].get_xydata().tolist() for axes in figure.axes}
    assert shown.keys() == {"loss", "norm", STEPS_PER_S, "validation R@10"}
    assert shown["norm"] == [[done, done] for done in range(10, 60, 10)]
    assert shown["validation R@10"][0] == [10, 0.1]
    with Image.open(tmp_path / CURVES_FILE) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 1000
        assert picture.info["Description"] == f"loss, norm, {STEPS_PER_S}, validation R@10"
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 10  # something is drawn
    assert draw_curves([], title="nothing") is None


def test_an_empty_log_draws_nothing(tmp_path: Path) -> None:
    _open(tmp_path).close(curves=True)
    assert not (tmp_path / CURVES_FILE).exists()


def test_without_the_extra_packages_a_run_goes_on_and_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import logging, sys\n"
        "from pathlib import Path\n"
        "sys.modules |= {'matplotlib': None, 'tensorboard': None}\n"
        "logging.basicConfig()\n"
        "from asymcir_training.runs.log import RunLog\n"
        "log = RunLog(Path(sys.argv[1]), first=0, steps=1, validated=0, tensorboard=True)\n"
        "log.write_step(1, {'loss': 1.0})\n"
        "log.close(curves=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no TensorBoard events, for tensorboard is not installed: pip install" in done.stderr
    assert "curves.png is not drawn, for matplotlib" in done.stderr and done.stderr.count("pip install") == 2
    assert [path.name for path in tmp_path.iterdir()] == [LOG_FILE]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (425, "7 min 5 s"),
        (12_000, "3 h 20 min"),
        (187_300, "2 d 4 h"),
    ],
)
def test_times_are_said_as_people_do(seconds: float, words: str) -> None:
    assert describe_time(seconds) == words
