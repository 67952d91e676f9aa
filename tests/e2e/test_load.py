"""`asymcir bench-server` against a server of the committed bundles."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_running_server_is_measured_at_several_rates(
    asymcir: Run, assets: Path, address: str, tmp_path: Path
) -> None:
    out, picture = tmp_path / "load.json", tmp_path / "load.svg"
    device = ("--device-bundle", assets / "device", "--pictures", assets / "queries.zip", "--limit", 3)
    done = asymcir(
        *("bench-server", "--server", address, *device, "--rate", "5,20", "--seconds", 1, "--warm-up", 0.2),
        *("--out", out, "--picture", picture, "--json"),
    )
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert list(reports) == ["5/s", "20/s"]
    for report in reports.values():
        assert report["OK, requests"] == report["requests"] > 0
        assert 0 < report["OK, p50, ms"] <= report["OK, p99, ms"] <= report["OK, longest, ms"]
    record = json.loads(out.read_text())
    assert record["figures"]["20/s, requests"] == reports["20/s"]["requests"]
    counted = record["details"]["20/s, latencies of answers"]
    assert sum(map(int, counted.values())) == reports["20/s"]["OK, requests"]
    assert picture.read_text().startswith("<?xml")
    most = asymcir("bench-server", "--server", address, *device, "--callers", 2, "--seconds", 0.5, "--warm-up", 0)
    assert most.returncode == 0 and most.stdout.startswith("2 callers: ")


def test_what_cannot_be_measured_is_said_in_a_line(asymcir: Run, assets: Path, tmp_path: Path) -> None:
    device = ("--device-bundle", assets / "device", "--pictures", assets / "queries.zip", "--limit", 1)
    nobody = ("bench-server", "--server", "127.0.0.1:1", *device)
    for words, code, said in (
        ((*nobody, "--rate", "0"), 2, "expected rates above 0"),
        ((*nobody, "--rate", "1", "--callers", "1"), 2, "not allowed with"),
        ((*nobody, "--rate", "1", "--picture", tmp_path / "a.pdf"), 1, "expected a picture named .svg or .png"),
        ((*nobody, "--rate", "1", "--changes", tmp_path / "none"), 1, "cannot read"),
    ):
        done = asymcir(*words)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr and "Traceback" not in done.stderr
