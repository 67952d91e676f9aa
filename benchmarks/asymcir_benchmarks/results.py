"""Result files: the command, commit, machine and date, and a flat table of figures with the unit in each key."""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asymcir_common.files import write_atomically


def write_result(
    path: Path,
    *,
    figures: Mapping[str, float],
    command: str | None = None,
    details: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write `benchmarks/results/NAME.json`.

    Args:
        path: the file; replaced atomically.
        figures: key with unit -> number, the peer's figure beside ours.
        command: how to get these figures again; the running command by default.
        details: what is no number, by kind: why a check failed, which files were measured.
    """
    record: dict[str, Any] = {
        "command": command or shlex.join(["asymcir", *sys.argv[1:]]),
        "version": version("asymcir"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "figures": dict(figures),
    }
    if details:
        record["details"] = {kind: dict(values) for kind, values in details.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _commit() -> str:
    """Return the commit of the checkout that the command ran in, "unknown" outside one of this project."""
    if not Path("protos/asymcir_protos").is_dir():
        return "unknown"
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
