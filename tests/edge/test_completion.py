"""Completion as the shell asks for it: argcomplete's protocol, over file descriptor 8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def complete(line: str, folder: Path) -> list[str]:
    """Return what may stand at the end of the line, in place of its last word."""
    out = folder / "completions"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\013",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    code = "import sys; sys.argv = ['asymcir']; from asymcir_edge.cli import main; sys.exit(main())"
    command = ["bash", "-c", 'exec "$0" -c "$1" 8>"$2" 9>/dev/null', sys.executable, code, str(out)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return sorted(word.strip() for word in out.read_text().split("\013") if word.strip())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("asymcir e", ["encode", "eval", "explain", "export"]),
        (
            "asymcir gallery ",
            [
                *("--help", "--verbose", "-h", "-v", "add", "build", "compact", "gc", "info", "list", "remove"),
                *("rollback", "update-metadata", "verify"),
            ],
        ),
        ("asymcir gallery build x --server-b", ["--server-bundle"]),
        ("asymcir gallery build x --server-bundle S --target ", ["original", "sum", "union"]),
        ("asymcir serve --max", ["--max-batch", "--max-in-flight", "--max-top-k"]),
        ("asymcir -v export d", ["device"]),
        ("asymcir train distil --print", ["--print-config"]),
        ("asymcir eval emojicir --split n", ["novel"]),
        ("asymcir query --encoding ", ["fp16", "int8"]),
        ("asymcir selftest --device-bundle bun", ["bundle-of-mine/"]),
        ("asymcir serve --wrong x --gal", ["--gallery"]),
    ],
)
def test_completions(line: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "bundle-of-mine").mkdir()
    assert complete(line, tmp_path) == expected


def test_every_command_is_offered(tmp_path: Path) -> None:
    names = {"demo", "describe", "encode", "eval", "export", "gallery", "keys", "query", "selftest", "serve", "train"}
    assert set(complete("asymcir ", tmp_path)) >= names
