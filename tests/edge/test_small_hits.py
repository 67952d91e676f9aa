"""What people hit at the command: full disks, long ids, missing extras, an early Ctrl-C."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_device_bundle as tiny
from asymcir_edge.cli import main
from asymcir_edge.query_commands import _print_hits
from asymcir_edge.remote.answers import SearchHit, SearchResult, SearchTiming
from PIL import Image

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk(before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny.write_device_bundle(tmp_path / "bundle")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out" / "a.npy"
    out.parent.mkdir()
    if before:
        out.write_bytes(b"old")
    words = ["encode", str(tmp_path / "a.png"), "--device-bundle", str(bundle), "--out", str(out), "--force"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a larger file fails as on a full disk
    try:
        assert main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert f"cannot write {out}" in said and "choose another --out" in said
    assert ("the file that was there stays" if before else "nothing was written") in said
    assert [(path.name, path.read_bytes()) for path in out.parent.iterdir()] == [("a.npy", b"old")] * before


def test_a_long_id_moves_its_own_line_only(capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["a", "x" * 1000, "a name of thirty characters ok"]
    result = SearchResult(
        hits=tuple(SearchHit(id=one, score=0.5, metadata={"name": "N"}) for one in ids),
        gallery="g",
        gallery_version="1",
        timing=SearchTiming(queue_ms=0, encode_ms=0, search_ms=0, round_trip_ms=0),
        request_size_bytes=1,
    )
    _print_hits(result)
    lines = capsys.readouterr().out.splitlines()
    assert ids[1] in lines[2]  # whole: it can be copied
    assert max(len(line) for line in (lines[0], lines[1], lines[3])) < 80
    assert lines[1].endswith("  N") and lines[3].endswith("  N")
    assert lines[1].index("N") == lines[3].index("N")


def test_interrupted_while_it_is_imported() -> None:
    program = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'asymcir_edge.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from asymcir_edge.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "asymcir: error: interrupted\n")


def test_help_of_every_command_without_any_extra() -> None:
    from asymcir_edge.cli import _EXTRA_OF_MODULE

    blocked = {*_EXTRA_OF_MODULE, "pi_heif", "pyarrow", "aiohttp", "fsspec", "usearch", "hnswlib"}
    program = BLOCKED + (
        "from asymcir_edge.cli import build_parser, main\n"
        "build_parser()  # registers all of them\n"
        "for words in (['serve'], ['gallery', 'build'], ['train', 'distil'], ['export', 'device'],"
        " ['eval', 'emojicir'], ['demo'], ['keys', 'create']):\n"
        "    assert main([*words, '--help']) == 0, words\n"
        "assert main(['keys', 'list', '--keys', 'x']) == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(sorted(blocked))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: asymcir") == 7
    assert re.search(r"of the extra 'server', which is not installed: pip install .*\[server\]'$", done.stderr.strip())
