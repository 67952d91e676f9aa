"""Run a function of a test file in two processes, in torchrun's environment, and return what each gave back."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from asymcir_training.engine.processes import start_processes, stop_processes
from torch.distributed import TCPStore

WORLD = 2
_LIMIT_S = 300
HELPERS = Path(__file__).parent


def run_in_two_processes(file: str, function: str, folder: Path) -> list[Any]:
    """Call `function(processes, folder)` of a file in two gloo processes; what it returns, by rank."""
    # As torchrun's agent does: the meeting place is open, on a free port, before the processes start.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        # Where the test files find what they import.
        "PYTHONPATH": os.pathsep.join(str(path) for path in (HELPERS, HELPERS.parent / "tiny")),
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, file, function, str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=_LIMIT_S)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * WORLD, "\n".join(said)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(WORLD)]


def _main(file: str, function: str, folder: Path) -> None:
    found = importlib.util.spec_from_file_location("test_file", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["test_file"] = module
    found.loader.exec_module(module)
    processes = start_processes("cpu")
    try:
        torch.save(getattr(module, function)(processes, folder), folder / f"rank-{processes.rank}.pt")
        processes.barrier()
    finally:
        stop_processes()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
