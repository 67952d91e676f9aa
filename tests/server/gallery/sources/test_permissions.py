"""Folders and files that may not be read are named, not passed over in silence."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
PROGRAM = """
import json, os, sys
from asymcir_common import ImageError
from asymcir_server.gallery.build import plan_gallery
from asymcir_server.gallery.sources.entries import Entry, open_source

def look(place):
    plan = plan_gallery(place, place + "/gallery")
    reasons = {}
    for item in open_source(place):
        if isinstance(item, Entry):
            try:
                item.read()
                reasons[item.path] = ""
            except ImageError as exc:
                reasons[item.path] = str(exc)
        else:
            reasons[item.path] = item.reason
    return [plan.pictures, plan.quarantined_by_reason, reasons]

readable, place, nobody = sys.argv[1:]
look(readable)  # imports all that it needs: the interpreter may lie where nobody may read
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(nobody))
    os.setuid(int(nobody))
print(json.dumps(look(place)))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user of the machine can reach, which pytest's are not."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder
        (folder / "closed").chmod(0o755)


def test_what_may_not_be_read_is_named(place: Path) -> None:
    for name in ("open/1.png", "closed/2.png", "readable/3.png"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"x")
    (place / "open" / "1.png").chmod(0)
    (place / "closed").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place / "readable"), str(place), str(NOBODY)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("this process may not become another user, and is root, who may read everything")
    assert done.returncode == 0, done.stderr
    pictures, planned, reasons = json.loads(done.stdout)
    assert pictures == 2
    assert [reason for reason in planned if "Permission denied" in reason]
    (closed,) = [path for path in reasons if path.endswith("closed")]
    assert reasons[closed] == "cannot be listed: Permission denied"
    assert "cannot read" in reasons["open/1.png"] and "Permission denied" in reasons["open/1.png"]
    assert reasons["readable/3.png"] == ""
