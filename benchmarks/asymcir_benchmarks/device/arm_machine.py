"""The emulated arm64 machine: Python in a Debian root under qemu-user, and a plugin that counts its instructions.

`benchmarks/arm/assemble` makes it; nothing of the machine at hand but the packages of this project is seen inside.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asymcir_common
import asymcir_edge
import asymcir_protos

from asymcir_benchmarks.errors import BenchmarkError

CPU = "cortex-a76"
"""Of phones from 2019 on, with the dot-product instructions that int8 kernels use, and of the Raspberry Pi 5."""

EMULATOR = "qemu-aarch64"
"""Of qemu-user."""

FEW_QUERIES, MANY_QUERIES = 1, 3
TIMEOUT_S = 1800.0
_PYTHON = Path("usr/bin/python3.11")
_ASSEMBLE = "run benchmarks/arm/assemble"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmMachine:
    """An assembled machine.

    Attributes:
        work: the folder that `assemble` filled: `root`, with the wheels in `root/site`, and `insn_count.so`.
    """

    work: Path

    def __post_init__(self) -> None:
        """Check that everything is there.

        Raises:
            BenchmarkError: no emulator, or the folder is not an assembled machine.
        """
        if shutil.which(EMULATOR) is None:
            raise BenchmarkError(f"{EMULATOR} is missing: apt-get install qemu-user")
        for path in (self.work / "root" / _PYTHON, self.work / "root" / "site", self.work / "insn_count.so"):
            if not path.exists():
                raise BenchmarkError(
                    f"expected an assembled ARM machine, but {path} is missing: {_ASSEMBLE} {self.work}"
                )

    def run(self, arguments: Sequence[str], *, count_to: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run Python on the machine.

        Args:
            arguments: of Python.
            count_to: write the number of executed instructions here.

        Raises:
            BenchmarkError: it does not end within TIMEOUT_S.
        """
        root = self.work.resolve() / "root"
        command = [EMULATOR, "-cpu", CPU, "-L", str(root)]
        if count_to is not None:
            command += ["-plugin", f"{self.work.resolve() / 'insn_count.so'},out={count_to}"]
        packages = [root / "site", *(_parent_of(module) for module in (asymcir_common, asymcir_protos, asymcir_edge))]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(str(path) for path in packages),
            "PYTHONDONTWRITEBYTECODE": "1",  # the checkout is not this machine's to write to
            "PYTHONHASHSEED": "0",  # so that two runs do the same
            "OMP_NUM_THREADS": "1",  # numpy's threads would wait, and waiting is counted too
        }
        try:
            return subprocess.run(
                [*command, str(root / _PYTHON), *arguments],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as exc:
            raise BenchmarkError(f"the ARM machine did not end {arguments[0]} within {TIMEOUT_S:.0f} s") from exc

    def run_json(self, arguments: Sequence[str], *, count_to: Path | None = None) -> dict[str, Any]:
        """Run Python on the machine and read the JSON that it prints.

        Raises:
            BenchmarkError: it fails or prints something else.
        """
        return read_json(self.run(arguments, count_to=count_to), "the ARM machine")

    def count(self, arguments: Sequence[str]) -> int:
        """Count the instructions that Python executes, from its start to its end.

        Raises:
            BenchmarkError: it fails, or nothing was counted.
        """
        with tempfile.TemporaryDirectory(prefix="asymcir-arm-") as folder:
            counted = Path(folder) / "instructions"
            self.run_json(arguments, count_to=counted)
            try:
                return int(counted.read_text(encoding="ascii"))
            except (OSError, ValueError) as exc:
                raise BenchmarkError(
                    f"the plugin counted nothing: {exc}; remove {self.work / 'insn_count.so'} and {_ASSEMBLE} again"
                ) from exc

    def count_query(self, arguments: Sequence[str]) -> float:
        """Count the instructions of one query: those of a run with 3 queries less those of a run with 1, halved.

        The first query of a process is left out: it also plans memory and fills caches.

        Args:
            arguments: of Python; `--queries N` is added.

        Raises:
            BenchmarkError: a run fails.
        """
        few, many = (self.count([*arguments, "--queries", str(number)]) for number in (FEW_QUERIES, MANY_QUERIES))
        return cost_per_query(few, many)


def cost_per_query(few: int, many: int) -> float:
    """Return the instructions of a query from those of runs with FEW_QUERIES and with MANY_QUERIES.

    Raises:
        BenchmarkError: the longer run took no more.
    """
    if many <= few:
        raise BenchmarkError(
            f"{MANY_QUERIES} queries took {many} instructions, {FEW_QUERIES} took {few}: expected more; the run does "
            "something else than queries"
        )
    return (many - few) / (MANY_QUERIES - FEW_QUERIES)


def read_json(done: "subprocess.CompletedProcess[str]", where: str) -> dict[str, Any]:
    """Read the JSON object that a finished process printed last.

    Raises:
        BenchmarkError: the process failed, with the last line that it said; or there is no such object.
    """
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchmarkError(f"{where} failed with exit code {done.returncode}: {said}")
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as exc:
        raise BenchmarkError(f"{where}: expected a line of JSON, got {done.stdout[-200:]!r}") from exc
    if not isinstance(found, dict):
        raise BenchmarkError(f"{where}: expected a JSON object, got {found!r}")
    return found


def _parent_of(module: Any) -> Path:
    return Path(module.__file__).resolve().parents[1]
