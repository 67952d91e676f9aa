"""Files that are replaced whole, and what is left of interrupted ones."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asymcir_common import PlaceError
from asymcir_common.files import read_utf8, replacing, write_atomically


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A write beyond this fails as one does on a full disk, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def age(path: Path, seconds: float) -> None:
    status = path.stat()
    os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    write_atomically(str(path), "old")
    with files_of_at_most(4), pytest.raises(OSError, match="too large"):
        write_atomically(path, "new" * 1000)
    assert path.read_text() == "old"
    assert [left.name for left in tmp_path.iterdir()] == ["CURRENT"]


def test_what_the_body_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [left.name for left in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    gone = int(done.stdout)
    names = {
        "left": f".pf.{gone}.tmp",
        "young": f".pf.{gone}.tmp2",
        "running": f".pf.{os.getppid()}.tmp",
        "other": f".pf2.{gone}.tmp",
        "no number": ".pf.x.tmp",
    }
    for name in names.values():
        (tmp_path / name).write_text("")
        age(tmp_path / name, 3600)
    write_atomically(tmp_path / "pf", "50051\n")
    assert {path.name for path in tmp_path.iterdir()} == {"pf", *names.values()} - {names["left"]}
    (tmp_path / names["left"]).write_text("")  # of a moment ago: it may be written on another machine
    write_atomically(tmp_path / "pf", "50051\n")
    assert (tmp_path / names["left"]).exists()


def test_mode(tmp_path: Path) -> None:
    write_atomically(tmp_path / "keys", "secret", mode=0o600)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "ids.txt").write_text("one\ntwo\n", encoding=encoding)
    with pytest.raises(PlaceError, match=r"ids\.txt is UTF-16: save it as UTF-8"):
        read_utf8(tmp_path / "ids.txt")


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(PlaceError, match="not UTF-8"):
        read_utf8(tmp_path / "ids.txt")
    with pytest.raises(PlaceError, match="cannot read"):
        read_utf8(tmp_path / "nothing")
    (tmp_path / "ids.txt").write_text("caf\u00e9", encoding="utf-8-sig")
    assert read_utf8(str(tmp_path / "ids.txt")) == "caf\u00e9"
