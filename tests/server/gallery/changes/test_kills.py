"""Whoever writes a gallery is killed at random moments: what was acknowledged is there, and nothing else is.

KILLS=100 (`make soak`) kills each kind of writer a hundred times, instead of a few.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from asymcir_server.gallery.history import remove_old_snapshots, verify_snapshots
from gallery_writers import KINDS, begin, count_built, expected, read_state, run_changes

FEW_KILLS = 4


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Processes that start within milliseconds: they fork from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gallery_writers"])
    with pytest.MonkeyPatch.context() as patch:  # Python 3.11 gives that process no other path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield context


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_is_there_and_nothing_else(
    tmp_path: Path, kind: str, processes: ForkServerContext, bundle_folder: Path, pictures: Path
) -> None:
    draw, folder, done, lost, longest_s = random.Random(f"kill {kind}"), tmp_path / "g", 0, 0, 0.3
    begin(folder, kind)
    kills = int(os.environ.get("KILLS", FEW_KILLS))
    for _ in range(kills):
        receiver, sender = processes.Pipe(duplex=False)
        writer = processes.Process(target=run_changes, args=(folder, kind, done, sender, bundle_folder, pictures))
        writer.start()
        sender.close()
        assert receiver.recv_bytes() == b"ready"
        time.sleep(draw.uniform(0.0, longest_s))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL, "it ended by itself"
        before_kill = done
        with contextlib.suppress(EOFError):
            while receiver.recv_bytes():
                done += 1
        if not 1 <= done - before_kill <= 5:  # on any machine, kills come during the first few changes
            longest_s *= 0.7 if done > before_kill else 1.5
        receiver.close()
        if kind == "build":
            begun = (folder / "CURRENT").exists()
            assert begun or done == 0
            found: object = len(read_state(folder)) if begun else 0
            before, after = count_built(done - 1) if done else 0, count_built(done)
        else:
            found, before, after = read_state(folder), expected(kind, done), expected(kind, done + 1)
        assert found in (before, after), f"{done} changes were acknowledged"
        if found != before:  # made, and killed before it could say so
            done += 1
            lost += 1
        if (folder / "CURRENT").exists():
            verify_snapshots(folder)
            remove_old_snapshots(folder, keep=2)
    print(f"{kind}: {done} changes, {lost} of them made but not acknowledged")
    assert done > 0
